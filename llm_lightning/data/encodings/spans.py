"""A question and the text that may hold its answer, which long texts are cut to overlapping windows for.

A window's target is the first and the last token of the answer where the whole of it lies inside, else the first token of the
window twice: no answer here (Devlin et al. 2019, section 4.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llm_lightning.config import DataConfig
from llm_lightning.data.encodings import Encoding, Sequences, structured, text_of
from llm_lightning.data.examples import BadRow, BadRows, Example
from llm_lightning.data.labels import Labels
from llm_lightning.data.rows import Rows

Answer = tuple[int, str]
"""Where it begins in the context, in characters, and its text."""


@dataclass(frozen=True)
class Window:
    """One sequence of a question: its tokens, and where those of the context lie in it, in characters (None elsewhere)."""

    tokens: list[int]
    spans: list[tuple[int, int] | None]
    second: int
    """Where the context begins, in tokens."""


class Encoder(Encoding):
    """A question with its context to one window or several."""

    needs_offsets = True

    @staticmethod
    def find_labels(data: DataConfig, train: Rows) -> Labels | None:
        return Labels((), ())

    @property
    def overlap(self) -> int:
        """Tokens that two neighbouring windows share."""
        return self.data.block_size // 4 if self.data.overlap is None else self.data.overlap

    def read(self, text: Any, pair: Any, value: Any, extra: dict[str, Any] | None = None) -> tuple[str, str, list[Answer] | None]:
        question, context = self._text(text), text_of(self.data.columns.text_pair, pair)
        size, most = len(self._backend.encode(question, add_special_tokens=False).ids), self.data.block_size - self.overlap
        if size > most - self.tokenizer.num_special_tokens_to_add(pair=True) - 1:
            raise BadRow(
                f"the question has {size} tokens, and data.block_size={self.data.block_size} with data.overlap={self.overlap} "
                f"leaves no room for its context"
            )
        return question, context, None if self.labels is None else answers(value, context, self.data.columns.label)

    def __call__(self, batch: list[Example], bad: BadRows | None) -> Sequences:
        found = Sequences([], [])
        for example, windows in zip(batch, self.windows(batch), strict=True):
            for window in windows:
                found.tokens.append(window.tokens)
                found.examples.append(example)
                found.second.append(window.second)
                if self.labels is not None:
                    found.labels.append(target(window, example.label))
        return found

    def windows(self, batch: list[Example]) -> list[list[Window]]:
        """Each example's windows, in their order."""
        encoded = self.tokenizer(
            [example.text for example in batch],
            [example.text_pair for example in batch],
            truncation="only_second",
            max_length=self.data.block_size,
            stride=self.overlap,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        found: list[list[Window]] = [[] for _ in batch]
        for i, example in enumerate(encoded["overflow_to_sample_mapping"]):
            parts = encoded.sequence_ids(i)
            spans = [tuple(at) if part == 1 else None for at, part in zip(encoded["offset_mapping"][i], parts, strict=True)]
            found[example].append(Window(encoded["input_ids"][i], spans, parts.index(1)))
        return found


def target(window: Window, known: list[Answer]) -> list[int]:
    """[first token, last token] of the first answer; [0, 0] where there is none or it is not whole in the window."""
    if not known:
        return [0, 0]
    start, end = known[0][0], known[0][0] + len(known[0][1])
    places = [i for i, span in enumerate(window.spans) if span is not None and span[1] > start and span[0] < end]
    if not places or window.spans[places[0]][0] > start or window.spans[places[-1]][1] < end:  # type: ignore[index]
        return [0, 0]
    return [places[0], places[-1]]


def answers(value: Any, context: str, column: str | None) -> list[Answer]:
    """The answers of a row, as SQuAD has them: {text: […], answer_start: […]} or a list of {text, answer_start}; none where it is empty.

    Raises BadRow where an answer is not where it is said to be.
    """
    value = structured(value)
    if value is None or value == "":
        return []
    if isinstance(value, str):
        value = [{"text": value}]
    if isinstance(value, dict):
        texts, starts = value.get("text"), value.get("answer_start")
        texts = [texts] if isinstance(texts, str) else list(texts or [])
        starts = [None] * len(texts) if starts is None else [starts] if isinstance(starts, int) else list(starts)
        if len(texts) != len(starts):
            raise BadRow(f"column '{column}' has {len(texts)} answers and {len(starts)} offsets")
        value = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
    if not isinstance(value, list) or not all(isinstance(item, dict) and isinstance(item.get("text"), str) for item in value):
        raise BadRow(f"column '{column}' holds no answers: expected {{text: […], answer_start: […]}}")
    return [_placed(item["text"], item.get("answer_start"), context) for item in value]


def _placed(text: str, start: int | None, context: str) -> Answer:
    if not text.strip():
        raise BadRow("an answer is empty")
    found = context.find(text)
    if found < 0:
        raise BadRow(f"the answer '{text}' is not in the context")
    if start is None:
        if context.find(text, found + 1) >= 0:
            raise BadRow(f"the answer '{text}' is in the context more than once, and answer_start does not say which")
        return found, text
    if not 0 <= start <= len(context) - len(text):
        raise BadRow(f"answer_start={start} with the answer '{text}' lies outside the context of {len(context)} characters")
    if context[start : start + len(text)] != text:
        there = context[start : start + len(text)]
        raise BadRow(f"at answer_start={start} the context has '{there}' and not the answer '{text}', which is at {found}")
    return start, text
