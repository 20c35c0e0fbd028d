"""Extractive question answering: the span of a text that answers a question, or that there is none."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.text import squad

from llm_lightning.data.collate import MicroBatch
from llm_lightning.data.encodings.spans import Encoder, Window
from llm_lightning.data.examples import Example
from llm_lightning.data.module import Text
from llm_lightning.models.forward import sequence_of, span_logits
from llm_lightning.objectives import details
from llm_lightning.objectives.base import Evaluation, Objective
from llm_lightning.signatures import Range

AT_ONCE = 200  # questions whose windows are made again together


class QuestionAnswering(Objective):
    """-log p(first token) - log p(last token), halved, over the tokens of a window (Devlin et al. 2019, section 4.2).

    A question's answer is the span with the largest sum of logits over all its windows. Where train has questions without an answer,
    the answer is none if the sum at the first token is larger in every window.
    """

    encoding = "spans"
    labelled = True
    whole_sequences = True
    auto_class = "AutoModelForQuestionAnswering"
    monitor = "validation/f1"
    maximize = True

    def __init__(self, text: Text, *, max_answer: Annotated[int, Range(1)] = 30) -> None:
        """`max_answer` is the longest answer, in tokens."""
        super().__init__(text)
        self.max_answer = max_answer
        self._details: dict[str, Any] = {}

    def head(self) -> dict[str, Any]:
        """`unanswerable`: whether the model has learnt that there may be no answer."""
        return {"num_labels": 2, "unanswerable": any(not example.label for example in self.text.examples("train"))}

    def score(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """(summed loss, logits (tokens, 2) of beginning and end; the loss is over each window's own)."""
        logits = span_logits(self.model, batch)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        window = sequence_of(batch)
        largest = logits.new_full((len(batch.indices), 2), -torch.inf)
        largest = largest.scatter_reduce(0, window[:, None].expand_as(logits), logits.detach(), "amax")
        sums = torch.zeros_like(largest).index_add(0, window, (logits - largest[window]).exp())
        places = batch.cu_seqlens[:-1, None] + batch.targets
        wanted = logits[places[:, 0], 0] + logits[places[:, 1], 1]
        return ((largest + sums.log()).sum() - wanted.sum()) / 2, logits

    def outcome(self, batch: MicroBatch, outputs: Tensor) -> list[tuple[int, np.ndarray]]:
        """(window, logits (tokens, 2)) of each."""
        rows = outputs.half().cpu().numpy()
        bounds = batch.cu_seqlens.tolist()
        return [(index, rows[bounds[i] : bounds[i + 1]]) for i, index in enumerate(batch.indices.tolist())]

    def predict(self, batch: MicroBatch) -> list[np.ndarray]:
        """The logits (tokens, 2) of each window."""
        return [found for _, found in self.outcome(batch, span_logits(self.model, batch))]

    def answer_row(self, example: Example, found: list[np.ndarray]) -> dict[str, Any]:
        (windows,) = self._encoder.windows([example])
        return self.answer(example, windows, found)

    def scores(self, split: str, mean_loss: float, targets: int, outcomes: list[list[tuple[int, np.ndarray]]]) -> Evaluation:
        logits = dict(pair for batch in outcomes for pair in batch)
        said, known, asked, number = [], [], [], 0
        for example, windows in self._windows(split):
            found = [logits[i] for i in range(number, number + len(windows)) if i in logits]
            number += len(windows)
            if len(found) == len(windows):  # else a part of the split alone was evaluated
                said.append(self.answer(example, windows, found)["answer"])
                known.append([text for _, text in example.label])
                asked.append(example.text)
        if self.final:
            self._details = _examples(asked, said, known)
        return {"loss": mean_loss, **agreement(said, known)}

    def details(self) -> dict[str, Any]:
        return self._details

    def answer(self, example: Example, windows: list[Window], logits: list[np.ndarray]) -> dict[str, Any]:
        """The best span over a question's windows: `answer` (empty for none), `start` and `end` in characters, `score`."""
        best: tuple[float, int, int] = (-np.inf, 0, 0)
        for window, found in zip(windows, logits, strict=True):
            inside = sum(span is not None for span in window.spans)
            score, first, last = best_span(found.astype(np.float32), window.second, window.second + inside, self.max_answer)
            if score > best[0]:
                best = (score, window.spans[first][0], window.spans[last][1])  # type: ignore[index]
        score, start, end = best
        none = min(float(found[0].astype(np.float32).sum()) for found in logits)
        if getattr(self.model.config, "unanswerable", False) and none > score:
            return {"answer": "", "start": None, "end": None, "score": none}
        return {"answer": example.text_pair[start:end], "start": start, "end": end, "score": score}

    def summary(self) -> dict[str, float]:
        """What spans drawn at random would score: of 1 to 5 words, from anywhere in the text."""
        found = {}
        for split in self.text.splits:
            if split == "train":
                continue
            rng, said, known = np.random.default_rng(0), [], []
            for example in self.text.examples(split):
                words = example.text_pair.split()
                start = int(rng.integers(len(words)))
                said.append(" ".join(words[start : start + int(rng.integers(1, 6))]))
                known.append([text for _, text in example.label])
            found[f"{split}/random_f1"] = agreement(said, known)["f1"]
        return found

    def _windows(self, split: str) -> Iterator[tuple[Example, list[Window]]]:
        encoder, examples = self._encoder, self.text.examples(split)
        while batch := list(islice(examples, AT_ONCE)):
            yield from zip(batch, encoder.windows(batch), strict=True)

    @cached_property
    def _encoder(self) -> Encoder:
        assert isinstance(self.text.encoding, Encoder)
        return self.text.encoding


def best_span(logits: np.ndarray, start: int, stop: int, longest: int) -> tuple[float, int, int]:
    """(sum of logits, first token, last token) of the best span of at most `longest` tokens from `start` to before `stop`.

    logits (tokens, 2).
    """
    starts, ends = logits[start:stop, 0], logits[start:stop, 1]
    size = len(starts)
    sums = starts[:, None] + ends[None, :]
    distance = np.arange(size)[None, :] - np.arange(size)[:, None]
    sums[(distance < 0) | (distance >= longest)] = -np.inf
    first, last = np.unravel_index(int(sums.argmax()), sums.shape)
    return float(sums[first, last]), start + int(first), start + int(last)


def agreement(said: list[str], known: list[list[str]]) -> dict[str, float]:
    """The means of `agreements`."""
    return {name: float(np.mean(values)) if values else 0.0 for name, values in agreements(said, known).items()}


def _examples(asked: list[str], said: list[str], known: list[list[str]]) -> dict[str, Any]:
    """Each question's scores, and the first of those whose answer has no word of the right one."""
    scores = agreements(said, known)
    f1 = np.array(scores["f1"])
    mistakes = [
        {"text": asked[i], "true": known[i][0] if known[i] else "no answer", "said": said[i] or "no answer"}
        for i in details.worst(f1 == 0, -f1)
    ]
    return {"mistakes": mistakes, "examples": scores}


def agreements(said: list[str], known: list[list[str]]) -> dict[str, list[float]]:
    """SQuAD's exact match and F1 of each answer, as shares; a question without an answer agrees with none alone (Rajpurkar et al. 2018)."""
    exact, f1 = [], []
    for answer, answers in zip(said, known, strict=True):
        if not answers or not answer:
            exact.append(float(not answers and not answer))
            f1.append(exact[-1])
            continue
        scores = squad(
            [{"prediction_text": answer, "id": "0"}],
            [{"answers": {"answer_start": [0] * len(answers), "text": answers}, "id": "0"}],
        )
        exact.append(float(scores["exact_match"]) / 100)
        f1.append(float(scores["f1"]) / 100)
    return {"f1": f1, "exact_match": exact}
