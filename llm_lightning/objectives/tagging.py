"""Tagging: a tag for every word, by cross-entropy on the word's first token; entities are scored as whole spans."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llm_lightning.data.collate import MicroBatch
from llm_lightning.data.encodings import structured
from llm_lightning.data.examples import Example
from llm_lightning.data.masking import IGNORED
from llm_lightning.models.forward import token_logits
from llm_lightning.objectives import details
from llm_lightning.objectives.base import Evaluation, Objective

Span = tuple[str, int, int]
"""An entity: its type, its first word, and the word behind its last."""


class Tagging(Objective):
    """Cross-entropy -log p(tag | sentence) of words; F1 of entities that are right in type, beginning and end (Tjong Kim Sang 2002)."""

    encoding = "words"
    labelled = True
    whole_sequences = True
    auto_class = "AutoModelForTokenClassification"
    monitor = "validation/f1"
    maximize = True

    def score(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """(summed loss, logits (words, tags))."""
        logits = token_logits(self.model, batch)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return F.cross_entropy(logits, batch.targets, reduction="sum"), logits

    def outcome(self, batch: MicroBatch, outputs: Tensor) -> list[tuple[int, list[int]]]:
        """(sequence, the tags of its words) of each sequence; words that are cut over two sequences have tags in one."""
        found = _by_sequence(batch, outputs.argmax(-1))
        return [(index, tags.tolist()) for index, tags in zip(batch.indices.tolist(), found, strict=True)]

    def predict(self, batch: MicroBatch) -> list[list[tuple[int, int, float]]]:
        """(word, tag, probability) of the words of each sequence."""
        best, tags = token_logits(self.model, batch).float().softmax(-1).max(-1)
        parts = [_by_sequence(batch, values) for values in (batch.targets, tags, best)]
        return [list(zip(*(part.tolist() for part in found), strict=True)) for found in zip(*parts, strict=True)]

    def answer_row(self, example: Example, found: list[list[tuple[int, int, float]]]) -> dict[str, Any]:
        """`tags` and `scores` of all words (O where a word has no token), `spans` of the entities."""
        config: Any = self.model.config
        said = {word: (config.id2label[tag], score) for part in found for word, tag, score in part}
        tags = [said[i][0] if i in said else "O" for i in range(len(example.text))]
        spans = [
            {"type": kind, "start": start, "end": end, "text": " ".join(example.text[start:end])}
            for kind, start, end in sorted(spans_of(tags), key=lambda span: span[1])
        ]
        return {"tags": tags, "scores": [said[i][1] if i in said else None for i in range(len(tags))], "spans": spans}

    def scores(self, split: str, mean_loss: float, targets: int, outcomes: list[list[tuple[int, list[int]]]]) -> Evaluation:
        encoded, names = self.text.splits[split], self.text.label_names
        assert encoded.rows is not None
        assert encoded.token_targets is not None
        assert names is not None
        found: Counter[str] = Counter()
        true: Counter[str] = Counter()
        right: Counter[str] = Counter()
        words = hits = 0
        sentences: dict[int, tuple[list[str], list[str]]] = {}
        for index, tags in sorted(pair for batch in outcomes for pair in batch):
            start = encoded.starts[index]
            wanted = encoded.token_targets[start : start + encoded.lengths[index]]
            said, known = sentences.setdefault(int(encoded.rows[index]), ([], []))
            said.extend(names[tag] for tag in tags)
            known.extend(names[tag] for tag in wanted[wanted != IGNORED])
        counts: list[tuple[int, int, int]] = []
        for said, known in sentences.values():
            words, hits = words + len(known), hits + sum(a == b for a, b in zip(said, known, strict=True))
            spans = [spans_of(said), spans_of(known)]
            for counter, those in zip((found, true, right), (*spans, spans[0] & spans[1]), strict=True):
                counter.update(kind for kind, _, _ in those)
            counts.append((len(spans[0] & spans[1]), len(spans[0]), len(spans[1])))
        per_class = {kind: _scores(right[kind], found[kind], true[kind]) for kind in sorted(found | true)}
        self._details = {"per_class": per_class}
        if self.final:
            self._details |= self._examples(split, sentences, np.array(counts))
        whole = _scores(right.total(), found.total(), true.total())
        return {
            "loss": mean_loss,
            **{name: whole[name] for name in ("f1", "precision", "recall")},
            "accuracy": hits / max(words, 1),
        }

    def details(self) -> dict[str, Any]:
        return self._details

    def _examples(self, split: str, sentences: dict[int, tuple[list[str], list[str]]], counts: np.ndarray) -> dict[str, Any]:
        """Entities of each sentence that are (right, found, true), in the order of the data, and the sentences with most that are not."""
        right, found, true = counts.T
        table, column = self.text.rows[split].table, self.text.encoding.data.columns.text
        rows, mistakes = list(sentences), []
        for i in details.worst(found + true > 2 * right, found + true - 2 * right):
            words = structured(table[rows[i]][column])
            said, known = (_written(tags, words) for tags in sentences[rows[i]])
            mistakes.append({"text": " ".join(words), "true": known, "said": said})
        return {"mistakes": mistakes, "examples": {"right": right.tolist(), "found": found.tolist(), "true": true.tolist()}}


def _by_sequence(batch: MicroBatch, values: Tensor) -> list[Tensor]:
    """What is known of each target, on the CPU, apart for each sequence of the batch."""
    assert batch.target_places is not None
    sequence = torch.bucketize(batch.target_places, batch.cu_seqlens[1:], right=True)
    return list(values.cpu().split(torch.bincount(sequence, minlength=len(batch.indices)).tolist()))


def spans_of(tags: list[str]) -> set[Span]:
    """The entities of a sentence's BIO tags; as in CoNLL's own scorer, an inside that follows no entity of its type begins one."""
    spans: set[Span] = set()
    kind, start = "", 0
    for i, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        if kind and (prefix != "I" or name != kind):
            spans.add((kind, start, i))
            kind = ""
        if prefix in ("B", "I") and not kind:
            kind, start = name, i
    return spans


def _written(tags: list[str], words: list[str]) -> str:
    """The entities of a sentence as text; `tags` are those of the words that have a token."""
    spans = sorted(spans_of(tags), key=lambda span: span[1])
    return " · ".join(f"{kind}: {' '.join(words[start:end])}" for kind, start, end in spans) or "none"


def _scores(right: int, found: int, true: int) -> dict[str, float]:
    return {
        "precision": right / max(found, 1),
        "recall": right / max(true, 1),
        "f1": 2 * right / max(found + true, 1),
        "support": true,
    }
