"""Encode a question and the text that may hold its answer. Long texts are cut to overlapping windows.

A window's target is the first and the last token of the answer if it lies completely inside, else the first token of the window twice:
no answer here (Devlin et al. 2019, section 4.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm_lightning.config.schema import DataConfig
from llm_lightning.data.answers import Answer, is_answered, read_answers
from llm_lightning.data.encodings import Encoding, Sequences, text_of
from llm_lightning.data.examples import BadRow, BadRows, Example
from llm_lightning.data.labels import Labels
from llm_lightning.data.rows import Rows
from llm_lightning.data.windows import cut_to_windows, overlap_of

SEVERAL = "there are several different answers; the first that is whole in a window is learnt"


@dataclass(frozen=True)
class Window:
    """One sequence of a question: its tokens, and the characters of the context that each covers (None for other tokens)."""

    tokens: list[int]
    spans: list[tuple[int, int] | None]
    second: int
    """The start of the context, in tokens."""


class Encoder(Encoding):
    """Encodes a question with its context as one or several windows."""

    needs_offsets = True
    shares_contexts = True
    extra_columns = ("answer_start", "answer_starts", "is_impossible")

    @staticmethod
    def is_labelled(value: Any, extra: Mapping[str, Any]) -> bool:
        """Return whether a question has an answer, or says by is_impossible that it has none."""
        return is_answered(value, extra.get("is_impossible"))

    @staticmethod
    def find_labels(data: DataConfig, train: Rows) -> Labels | None:
        return Labels((), ())

    def read(self, text: Any, pair: Any, value: Any, extra: dict[str, Any] | None = None) -> tuple[str, str, list[Answer] | None]:
        question, context = self._text(text), text_of(self.data.columns.text_pair, pair)
        overlap = overlap_of(self.data)
        size, most = len(self._backend.encode(question, add_special_tokens=False).ids), self.data.block_size - overlap
        if size > most - self.tokenizer.num_special_tokens_to_add(pair=True) - 1:
            raise BadRow(
                f"the question has {size} tokens, and data.block_size={self.data.block_size} with data.overlap={overlap} "
                f"leaves no room for its context"
            )
        if self.labels is None:
            return question, context, None
        extra = extra or {}
        start = extra.get("answer_start", extra.get("answer_starts"))
        return question, context, read_answers(value, context, self.data.columns.label, start, extra.get("is_impossible"))

    def __call__(self, batch: list[Example], bad: BadRows | None) -> Sequences:
        sequences = Sequences([], [])
        for example, windows in zip(batch, self.windows(batch), strict=True):
            if self.labels is not None:
                try:
                    sequences.labels += targets(windows, example.label)
                except BadRow as problem:
                    if bad is not None:
                        bad.add(example.row, str(problem))
                    continue
                self.notes[SEVERAL] += len({text for _, text in example.label}) > 1
            sequences.tokens += [window.tokens for window in windows]
            sequences.second += [window.second for window in windows]
            sequences.examples += [example] * len(windows)
        return sequences

    def windows(self, batch: list[Example]) -> list[list[Window]]:
        """Return each example's windows, in order."""
        texts, pairs = [example.text for example in batch], [example.text_pair for example in batch]
        encoded = cut_to_windows(self.tokenizer, texts, pairs, self.data, return_offsets_mapping=True)
        windows: list[list[Window]] = [[] for _ in batch]
        for i, example in enumerate(encoded["overflow_to_sample_mapping"]):
            parts = encoded.sequence_ids(i)
            spans = [tuple(at) if part == 1 else None for at, part in zip(encoded["offset_mapping"][i], parts, strict=True)]
            windows[example].append(Window(encoded["input_ids"][i], spans, parts.index(1)))
        return windows


def cover(windows: list[Window], answer: Answer) -> list[list[int] | None]:
    """Return for each window of a question [first token, last token] of an answer; None for a window without the whole answer.

    Characters that the tokenizer drops (invisible ones, accents) lie in no token: the answer's tokens are those of the fullest window.
    """
    start, end = answer[0], answer[0] + len(answer[1])
    places = [[i for i, span in enumerate(w.spans) if span is not None and span[1] > start and span[0] < end] for w in windows]
    bounds = [(w.spans[at[0]][0], w.spans[at[-1]][1]) if at else None for w, at in zip(windows, places, strict=True)]  # type: ignore[index]
    inside = [bound for bound in bounds if bound is not None]
    answer_bounds = (min(first for first, _ in inside), max(last for _, last in inside)) if inside else None
    most = max(map(len, places))
    return [
        [at[0], at[-1]] if bound is not None and bound == answer_bounds and len(at) == most else None
        for at, bound in zip(places, bounds, strict=True)
    ]


def targets(windows: list[Window], answers: list[Answer]) -> list[list[int]]:
    """Return for each window of a question [first token, last token] of the first answer that is whole in a window.

    Windows without it, and all windows of a question without an answer, get [0, 0]. Raises BadRow if no answer is whole in a window.
    """
    for answer in answers:
        places = cover(windows, answer)
        if any(places):
            return [[0, 0] if place is None else place for place in places]
    if not answers:
        return [[0, 0]] * len(windows)
    start, end = answers[0][0], answers[0][0] + len(answers[0][1])
    if not any(span is not None and span[1] > start and span[0] < end for window in windows for span in window.spans):
        raise BadRow(f"the answer '{answers[0][1]}' has no token of the tokenizer's")
    raise BadRow(
        f"the answer, of {len(answers[0][1])} characters, is whole in no window: raise data.overlap, the tokens that windows share, or "
        f"data.block_size"
    )
