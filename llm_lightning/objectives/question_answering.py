"""Extractive question answering: find the span of a text that answers a question, or that the text has no answer."""

from __future__ import annotations

import logging
from functools import cached_property
from itertools import islice
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from llm_lightning import distributed
from llm_lightning.config.signatures import Range
from llm_lightning.data.collate import MicroBatch
from llm_lightning.data.encodings.spans import Encoder, Window
from llm_lightning.data.examples import Example
from llm_lightning.data.prepare import TokenizedDataset
from llm_lightning.metrics.rows import SCORED, Rows, TopRows
from llm_lightning.metrics.state import States, merge_over_ranks
from llm_lightning.metrics.text import SAMPLE, answer_agreements
from llm_lightning.metrics.words import describe_words, is_latin, split_words
from llm_lightning.models.forward import sequence_of, span_logits
from llm_lightning.objectives.base import Evaluation, Objective

log = logging.getLogger(__name__)

AT_ONCE = 200  # questions whose windows are rebuilt together

Best = tuple[float, int, int, float]
"""Of a window: the sum of logits of its best span, the span's first and last token, and the sum of logits for no answer."""


class QuestionAnswering(Objective):
    """-log p(first token) - log p(last token), halved, over the tokens of a window (Devlin et al. 2019, section 4.2).

    A question's answer is the span with the largest sum of logits over all its windows. Where train has questions without an answer,
    the answer is none if the sum at the first token is larger in every window.
    """

    encoding = "spans"
    labelled = True
    whole_sequences = True
    scores_rows = True
    auto_class = "AutoModelForQuestionAnswering"
    monitor = "validation/f1"
    maximize = True

    def __init__(self, dataset: TokenizedDataset, *, max_answer: Annotated[int, Range(1)] = 30) -> None:
        """`max_answer` is the longest answer, in tokens."""
        super().__init__(dataset)
        self.max_answer = max_answer
        self._details: dict[str, Any] = {}

    def head(self) -> dict[str, Any]:
        """Return the config of the head. `unanswerable`: whether train has questions without an answer."""
        return {"num_labels": 2, "unanswerable": any(not example.label for example in self.dataset.examples("train"))}

    def loss_and_outputs(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Return (summed loss, logits (tokens, 2) of beginning and end). Each window has its own softmax."""
        logits = span_logits(self.model, batch)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        window = sequence_of(batch)
        largest = logits.new_full((batch.segments, 2), -torch.inf)
        largest = largest.scatter_reduce(0, window[:, None].expand_as(logits), logits.detach(), "amax")
        sums = torch.zeros_like(largest).index_add(0, window, (logits - largest[window]).exp())
        places = batch.cu_seqlens[: len(batch.indices), None] + batch.targets
        target_logits = logits[places[:, 0], 0] + logits[places[:, 1], 1]
        return ((largest + sums.log())[: len(batch.indices)].sum() - target_logits.sum()) / 2, logits

    def build_states(self) -> States:
        return {"windows": Rows(len(self.dataset.splits[self.split]), SCORED)}

    def update_states(self, states: States, batch: MicroBatch, outputs: Tensor) -> None:
        """Store the best span and the score for no answer of each window: the answer depends on nothing else."""
        second = self.dataset.splits[self.split].second
        assert second is not None
        bests = [
            best_of(logits, int(second[index]), len(logits) - self._behind, self.max_answer)
            for index, logits in zip(batch.indices.tolist(), _by_window(batch, outputs), strict=True)
        ]
        kinds = {"score": np.float32, "first": np.int32, "last": np.int32, "none": np.float32}
        columns = {
            name: np.array(values, kind) for (name, kind), values in zip(kinds.items(), zip(*bests, strict=True), strict=True)
        }
        states["windows"].update(self.rows(batch), window=batch.indices.cpu().numpy().astype(np.int32), **columns)

    def predict(self, batch: MicroBatch) -> list[np.ndarray]:
        """Return the logits (tokens, 2) of each window."""
        return _by_window(batch, span_logits(self.model, batch))

    def answer_row(self, example: Example, predictions: list[np.ndarray]) -> dict[str, Any]:
        (windows,) = self._encoder.windows([example])
        bests = [
            best_of(logits, window.second, len(logits) - self._behind, self.max_answer)
            for window, logits in zip(windows, predictions, strict=True)
        ]
        return self.answer(example, windows, bests)

    def compute_metrics(self, mean_loss: float, targets: int, states: States) -> Evaluation:
        """Return the metrics. Each rank answers its share of the questions and scores the answers."""
        windows, split = states["windows"].columns(), self.dataset.splits[self.split]
        assert split.rows is not None
        order = np.argsort(windows["window"], kind="stable")
        windows = {name: values[order] for name, values in windows.items()}
        rows, starts, counts = np.unique(windows["number"], return_index=True, return_counts=True)
        is_complete = np.searchsorted(split.rows, rows, "right") - np.searchsorted(split.rows, rows) == counts
        # a question lacks windows if only a part of the split was evaluated
        places = np.flatnonzero(is_complete)[distributed.rank() :: distributed.world_size()]
        answers: States = {"scores": Rows(len(rows), SCORED), "mistakes": TopRows()}
        for chunk in (places[i : i + AT_ONCE] for i in range(0, len(places), AT_ONCE)):
            examples = [self.dataset.example(self.split, int(row)) for row in rows[chunk]]
            predictions = []
            for place, example, parts in zip(chunk, examples, self._encoder.windows(examples), strict=True):
                inside = slice(starts[place], starts[place] + counts[place])
                bests = list(zip(*(windows[name][inside].tolist() for name in ("score", "first", "last", "none")), strict=True))
                predictions.append(self.answer(example, parts, bests)["answer"])
            _count(answers, examples, predictions)
        merge_over_ranks(answers.values(), self.device)
        columns = answers["scores"].columns()
        if self.final:
            sample = (text for example in islice(self.dataset.examples(self.split), SAMPLE) for _, text in example.label)
            compared = describe_words(sample)
            log.info("%s: F1 and exact match compare %s", self.split, compared)
            self.scored[self.split] = columns
            self._details = {
                "compared": {"f1": compared, "exact_match": compared},
                "mistakes": [mistake for _, mistake in answers["mistakes"].rows()],
                "examples": answers["scores"].table(),
                **answers["scores"].describe_sample(),
            }
        means = {name: float(columns[name].mean()) if columns else 0.0 for name in ("f1", "exact_match")}
        return {"loss": mean_loss, **means}

    def details(self) -> dict[str, Any]:
        return self._details

    def answer(self, example: Example, windows: list[Window], bests: list[Best]) -> dict[str, Any]:
        """Return the best span over a question's windows: `answer` (empty for none), `start` and `end` in characters, `score`."""
        best: tuple[float, int, int] = (-np.inf, 0, 0)
        for window, (score, first, last, _) in zip(windows, bests, strict=True):
            if score > best[0]:
                best = (score, window.spans[first][0], window.spans[last][1])  # type: ignore[index]
        score, start, end = best
        none = min(none for _, _, _, none in bests)
        if getattr(self.model.config, "unanswerable", False) and none > score:
            return {"answer": "", "start": None, "end": None, "score": none}
        return {"answer": example.text_pair[start:end], "start": start, "end": end, "score": score}

    def summary(self) -> dict[str, float]:
        """Return the F1 of random spans of 1 to 5 words from anywhere in the text."""
        scores = {}
        for split in self.dataset.splits:
            if split == "train":
                continue
            rng, random_answers, references = np.random.default_rng(0), [], []
            for example in self.dataset.examples(split):
                context = example.text_pair
                words = context.split() if is_latin([context]) else split_words(context) or context.split()
                start = int(rng.integers(len(words)))
                random_answers.append(" ".join(words[start : start + int(rng.integers(1, 6))]))
                references.append([text for _, text in example.label])
            scores[f"{split}/random_f1"] = agreement(random_answers, references)["f1"]
        return scores

    @cached_property
    def _encoder(self) -> Encoder:
        assert isinstance(self.dataset.encoding, Encoder)
        return self.dataset.encoding

    @cached_property
    def _behind(self) -> int:
        """Return the number of special tokens behind the context of a window."""
        ((window,),) = self._encoder.windows([Example(0, "a", "a")])
        return next(i for i, span in enumerate(reversed(window.spans)) if span is not None)


def _by_window(batch: MicroBatch, logits: Tensor) -> list[np.ndarray]:
    """Return the logits (tokens, 2) of each window in fp16, on the CPU."""
    return np.split(logits.half().cpu().numpy(), batch.cu_seqlens[1:-1].tolist())


def best_of(logits: np.ndarray, start: int, stop: int, longest: int) -> Best:
    """Return the best span of a window whose context lies from `start` to before `stop`, and its sum of logits for no answer."""
    logits = logits.astype(np.float32)
    return *best_span(logits, start, stop, longest), float(logits[0].sum())


def best_span(logits: np.ndarray, start: int, stop: int, longest: int) -> tuple[float, int, int]:
    """Return (sum of logits, first token, last token) of the best span of at most `longest` tokens from `start` to before `stop`.

    logits (tokens, 2).
    """
    starts, ends = logits[start:stop, 0], logits[start:stop, 1]
    size = len(starts)
    sums = starts[:, None] + ends[None, :]
    distance = np.arange(size)[None, :] - np.arange(size)[:, None]
    sums[(distance < 0) | (distance >= longest)] = -np.inf
    first, last = np.unravel_index(int(sums.argmax()), sums.shape)
    return float(sums[first, last]), start + int(first), start + int(last)


def agreement(answers: list[str], references: list[list[str]]) -> dict[str, float]:
    """Return the means of `answer_agreements`."""
    return {name: float(np.mean(values)) if values else 0.0 for name, values in answer_agreements(answers, references).items()}


def _count(answers: States, examples: list[Example], predictions: list[str]) -> None:
    """Add the scores of some answers to the states, and as mistakes the answers without a word of the right one."""
    references = [[text for _, text in example.label] for example in examples]
    scores = {name: np.array(values) for name, values in answer_agreements(predictions, references).items()}
    rows = np.array([example.row for example in examples])
    answers["scores"].update(rows, **scores)
    answers["mistakes"].update(
        rows,
        -scores["f1"],
        scores["f1"] == 0,
        lambda i: {
            "text": examples[i].text,
            "true": references[i][0] if references[i] else "no answer",
            "said": predictions[i] or "no answer",
        },
    )
