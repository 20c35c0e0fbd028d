"""Tagging: a tag for every word, by cross-entropy on the word's first token.

Whole spans are scored if the tags have a scheme (data/tag_schemes.py), single words if not, as for parts of speech.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llm_lightning.data.collate import MicroBatch
from llm_lightning.data.examples import Example
from llm_lightning.data.masking import IGNORED
from llm_lightning.data.prepare import TokenizedDataset
from llm_lightning.data.tag_schemes import TagScheme, count_transitions, recognize, refine
from llm_lightning.data.word_lists import read_words
from llm_lightning.errors import join_names
from llm_lightning.metrics.counts import ClassCounts, Tally
from llm_lightning.metrics.rows import Parts, Rows, TopRows
from llm_lightning.metrics.state import States
from llm_lightning.models.forward import token_logits
from llm_lightning.objectives.base import Evaluation, Objective

log = logging.getLogger(__name__)

Sentence = tuple[int, list[int], list[int]]
"""A sentence's row, and the true and the predicted tags of its words that have a token."""


class Tagging(Objective):
    """Cross-entropy -log p(tag | sentence) of words; F1 of spans that are right in type, beginning and end (Tjong Kim Sang 2002).

    Without a scheme, accuracy decides which weights are the best, and macro-F1 of the tags is reported too.
    """

    encoding = "words"
    labelled = True
    whole_sequences = True
    scores_rows = True
    auto_class = "AutoModelForTokenClassification"
    monitor = "validation/f1"
    maximize = True

    def __init__(self, dataset: TokenizedDataset) -> None:
        super().__init__(dataset)
        self._details: dict[str, Any] = {}
        self._is_whole = np.empty(0, dtype=bool)
        """(sequences,) whether a sequence of the current split holds a whole sentence."""
        self.scheme: TagScheme | None = None
        """How the tags mark spans; None if they mark none."""
        if dataset.labels is not None:
            self.scheme = _find_scheme(dataset)
            if self.scheme is None:
                self.monitor = "validation/accuracy"

    def loss_and_outputs(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Return (summed loss, logits (words, tags))."""
        logits = token_logits(self.model, batch)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return F.cross_entropy(logits, batch.targets, reduction="sum"), logits

    def build_states(self) -> States:
        rows = self.dataset.splits[self.split].rows
        assert rows is not None
        changes = rows[1:] != rows[:-1]
        self._is_whole = np.append(True, changes) & np.append(changes, True)
        assert self.dataset.label_names is not None
        states: States = {"spans": Tally(), "tags": ClassCounts(len(self.dataset.label_names)), "parts": Parts()}
        return states | ({"examples": Rows(1 + int(changes.sum())), "mistakes": TopRows()} if self.final else {})

    def update_states(self, states: States, batch: MicroBatch, outputs: Tensor) -> None:
        """Count the words and spans of whole sentences; store the parts of sentences that are cut over several sequences."""
        parts = zip(_by_sequence(batch, batch.targets), _by_sequence(batch, outputs.argmax(-1)), strict=True)
        sentences = []
        for index, row, (true, tags) in zip(batch.indices.tolist(), self.rows(batch).tolist(), parts, strict=True):
            if self._is_whole[index]:
                sentences.append((row, true.tolist(), tags.tolist()))
            else:
                states["parts"].update(index, torch.stack([true, tags]).numpy().astype(np.int32))
        self._count(states, sentences)

    def predict(self, batch: MicroBatch) -> list[list[tuple[int, int, float]]]:
        """Return (word, tag, probability) of the words of each sequence."""
        best, tags = token_logits(self.model, batch).float().softmax(-1).max(-1)
        parts = [_by_sequence(batch, values) for values in (batch.targets, tags, best)]
        return [list(zip(*(part.tolist() for part in columns), strict=True)) for columns in zip(*parts, strict=True)]

    def answer_row(self, example: Example, predictions: list[list[tuple[int, int, float]]]) -> dict[str, Any]:
        """Return `tags` and `scores` of all words, and `spans` if the tags have a scheme.

        A word without a token is outside of spans. Its score is None, and so is its tag without a scheme.
        """
        config: Any = self.model.config
        scheme = recognize(list(map(str, config.id2label.values())), self.dataset.encoding.data.tags)
        by_word = {word: (config.id2label[tag], score) for part in predictions for word, tag, score in part}
        nothing = (None if scheme is None else scheme.outside, None)
        tags, scores = ([by_word.get(i, nothing)[k] for i in range(len(example.text))] for k in (0, 1))
        row = {"tags": tags, "scores": scores}
        if scheme is None:
            return row
        spans = [
            {"type": kind, "start": start, "end": end, "text": " ".join(example.text[start:end])}
            for kind, start, end in sorted(scheme.spans(tags), key=lambda span: span[1])  # type: ignore[arg-type]
        ]
        return row | {"spans": spans}

    def score_labels(self, batch: MicroBatch, outputs: Tensor) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the columns of all words; `sequence` orders the parts of a sentence that is cut."""
        words_of_sequence = [len(part) for part in _by_sequence(batch, batch.targets)]
        rows, sequences = (np.repeat(values, words_of_sequence) for values in (self.rows(batch), batch.indices.cpu().numpy()))
        columns = {"label": batch.targets.cpu().numpy(), "probabilities": outputs.softmax(-1).cpu().numpy()}
        return rows, columns | {"sequence": sequences}

    def compute_metrics(self, mean_loss: float, targets: int, states: States) -> Evaluation:
        self._count(states, self._join_parts(states["parts"].arrays))
        spans, tags, names = states["spans"], states["tags"], self.dataset.label_names
        assert names is not None
        if self.scheme is None:
            per_class = tags.per_class(names)
            metrics = {"accuracy": tags.accuracy(), "macro_f1": tags.macro_f1()}
        else:
            kinds = sorted({kind for counted, kind in spans.counts if counted != "right"})
            per_class = {kind: _scores(*(spans[counted, kind] for counted in ("right", "found", "true"))) for kind in kinds}
            overall = _scores(*(sum(spans[counted, kind] for kind in kinds) for counted in ("right", "found", "true")))
            metrics = {**{name: overall[name] for name in ("f1", "precision", "recall")}, "accuracy": tags.accuracy()}
        self._details = {"per_class": per_class}
        if self.final:
            self._details |= self._examples(states)
        return {"loss": mean_loss, **metrics}

    def details(self) -> dict[str, Any]:
        return self._details

    def _join_parts(self, parts: dict[int, np.ndarray]) -> list[Sentence]:
        """Return the sentences that are cut, joined from their parts by sequence."""
        rows = self.dataset.splits[self.split].rows
        assert rows is not None
        sentences: dict[int, list[np.ndarray]] = {}
        for index in sorted(parts):
            sentences.setdefault(int(rows[index]), []).append(parts[index])
        return [(row, *np.concatenate(arrays, axis=1).tolist()) for row, arrays in sentences.items()]

    def _count(self, states: States, sentences: list[Sentence]) -> None:
        """Add sentences to the states."""
        names = self.dataset.label_names
        assert names is not None
        counts, written = [], []
        for _, true, tags in sentences:
            states["tags"].update(np.array(true, np.int64), np.array(tags, np.int64))
            true_names, predicted_names = ([names[tag] for tag in part] for part in (true, tags))
            written.append((true_names, predicted_names))
            if self.scheme is None:
                counts.append([sum(a == b for a, b in zip(true, tags, strict=True)), len(tags), len(true)])
                continue
            spans = {"found": self.scheme.spans(predicted_names), "true": self.scheme.spans(true_names)}
            spans["right"] = spans["found"] & spans["true"]
            states["spans"].update((counted, kind) for counted, matches in spans.items() for kind, _, _ in matches)
            counts.append([len(spans[counted]) for counted in ("right", "found", "true")])
        if self.final and sentences:
            rows, (right_counts, predicted_counts, true_counts) = np.array([row for row, _, _ in sentences]), np.array(counts).T
            states["examples"].update(rows, right=right_counts, found=predicted_counts, true=true_counts)
            wrong = predicted_counts + true_counts - 2 * right_counts
            states["mistakes"].update(rows, wrong, wrong > 0, lambda i: written[i])

    def _examples(self, states: States) -> dict[str, Any]:
        """Return the numbers of right, found and true spans of each sentence (without a scheme, of words), and the sentences with the most
        mistakes."""
        table, column = self.dataset.rows[self.split].table, self.dataset.encoding.data.columns.text
        self.scored[self.split] = states["examples"].columns()
        mistakes = []
        for row, (true, predicted) in states["mistakes"].rows():
            words = read_words(table[row][column])
            shown = (_write_spans(self.scheme, tags, words) for tags in (true, predicted))
            mistakes.append({"text": " ".join(words), **dict(zip(("true", "said"), shown, strict=True))})
        return {"mistakes": mistakes, "examples": states["examples"].table(), **states["examples"].describe_sample()}


def _by_sequence(batch: MicroBatch, values: Tensor) -> list[Tensor]:
    """Return the values of the targets, on the CPU, split by sequence of the batch."""
    assert batch.target_places is not None
    sequence = torch.bucketize(batch.target_places, batch.cu_seqlens[1:], right=True)
    return list(values.cpu().split(torch.bincount(sequence, minlength=len(batch.indices)).tolist()))


def _find_scheme(dataset: TokenizedDataset) -> TagScheme | None:
    """Return the scheme of the training tags. Log it, and how often a tag follows one that it cannot follow, as an I- without a B-."""
    assert dataset.label_names is not None
    setting = dataset.encoding.data.tags
    scheme = recognize(dataset.label_names, setting)
    if scheme is None:
        reason = "data.tags=none" if setting == "none" else "no scheme was recognised; data.tags sets one"
        log.info(
            "tags: %s (%s) mark no spans (%s): accuracy decides which weights are the best",
            len(dataset.label_names),
            join_names(dataset.label_names, 8),
            reason,
        )
        _warn_of_numbers(dataset.label_names, setting)
        return None
    transitions = count_transitions(scheme, dataset.label_names, *_tags_of(dataset, "train"))
    if setting == "auto":
        scheme = refine(scheme, transitions)
    log.info(
        "tags: %s, spans %s; F1 of spans decides which weights are the best%s",
        scheme.title,
        f"of {types}" if (types := join_names(scheme.types(dataset.label_names), 8)) else "without a type",
        " (neighbours of one type are one span)" if scheme.name == "io" else "",
    )
    if malformed := [name for name in dataset.label_names if scheme.parse(name) is None]:
        log.warning(
            "tags: %s do not have the form of %s and count as outside of spans (%s)",
            join_names(malformed),
            scheme.title,
            scheme.outside,
        )
    for split in dataset.splits:
        invalid = count_transitions(scheme, dataset.label_names, *_tags_of(dataset, split)).count_invalid(scheme.name)
        if invalid:
            log.warning(
                "%s: %s times a tag follows one that it cannot follow in %s (such as an inside without a beginning); it is taken for the "
                "beginning of a span, as CoNLL's scorer does",
                split,
                f"{invalid:,}",
                scheme.title,
            )
    return scheme


def _warn_of_numbers(names: tuple[str, ...], setting: str) -> None:
    """Log a warning if the tags are numbers, which may stand for tags with a scheme."""
    if setting == "auto" and all(name.isdigit() for name in names):
        log.warning(
            "tags: they are numbers; name them in their order, data.labels='[O,B-PER,I-PER,…]', and spans are scored and predicted"
        )


def _tags_of(dataset: TokenizedDataset, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (words,) the tags of a split, and (words,) the row of each."""
    encoded = dataset.splits[split]
    assert encoded.token_targets is not None
    assert encoded.rows is not None
    is_word = encoded.token_targets != IGNORED
    return np.asarray(encoded.token_targets[is_word]), np.repeat(encoded.rows, encoded.lengths)[is_word]


def _write_spans(scheme: TagScheme | None, tags: list[str], words: list[str]) -> str:
    """Return the spans of a sentence as text, or its tags without a scheme. `tags` belong to the words that have a token."""
    if scheme is None:
        return " ".join(tags)
    spans = sorted(scheme.spans(tags), key=lambda span: span[1])
    return " · ".join(f"{kind}: {' '.join(words[start:end])}" for kind, start, end in spans) or "none"


def _scores(right: int, predicted: int, true: int) -> dict[str, float]:
    return {
        "precision": right / max(predicted, 1),
        "recall": right / max(true, 1),
        "f1": 2 * right / max(predicted + true, 1),
        "support": true,
    }
