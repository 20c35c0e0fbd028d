"""Tagging: a tag for every word, by cross-entropy on the word's first token; entities are scored as whole spans."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llm_lightning.data.collate import MicroBatch
from llm_lightning.data.encodings import structured
from llm_lightning.data.examples import Example
from llm_lightning.data.module import Text
from llm_lightning.metrics.counts import Sums, Tally
from llm_lightning.metrics.rows import Parts, Rows, TopRows
from llm_lightning.metrics.state import States
from llm_lightning.models.forward import token_logits
from llm_lightning.objectives.base import Evaluation, Objective

Span = tuple[str, int, int]
"""An entity: its type, its first word, and the word behind its last."""
Sentence = tuple[int, list[int], list[int]]
"""A sentence's row, and the true and the predicted tags of its words that have a token."""


class Tagging(Objective):
    """Cross-entropy -log p(tag | sentence) of words; F1 of entities that are right in type, beginning and end (Tjong Kim Sang 2002)."""

    encoding = "words"
    labelled = True
    whole_sequences = True
    auto_class = "AutoModelForTokenClassification"
    monitor = "validation/f1"
    maximize = True

    def __init__(self, text: Text) -> None:
        super().__init__(text)
        self._details: dict[str, Any] = {}
        self._is_whole = np.empty(0, dtype=bool)
        """(sequences,) whether a sequence of the split that is evaluated holds a whole sentence."""

    def score(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """(summed loss, logits (words, tags))."""
        logits = token_logits(self.model, batch)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return F.cross_entropy(logits, batch.targets, reduction="sum"), logits

    def build_states(self) -> States:
        rows = self.text.splits[self.split].rows
        assert rows is not None
        changes = rows[1:] != rows[:-1]
        self._is_whole = np.append(True, changes) & np.append(changes, True)
        states: States = {"spans": Tally(), "words": Sums(right=1, all=1), "parts": Parts()}
        return states | ({"examples": Rows(1 + int(changes.sum())), "mistakes": TopRows()} if self.final else {})

    def update_states(self, states: States, batch: MicroBatch, outputs: Tensor) -> None:
        """Count the words and spans of whole sentences; where a sentence is cut over several sequences, its parts wait for one another."""
        parts = zip(_by_sequence(batch, batch.targets), _by_sequence(batch, outputs.argmax(-1)), strict=True)
        sentences = []
        for index, row, (true, tags) in zip(batch.indices.tolist(), self.rows(batch).tolist(), parts, strict=True):
            if self._is_whole[index]:
                sentences.append((row, true.tolist(), tags.tolist()))
            else:
                states["parts"].update(index, torch.stack([true, tags]).numpy().astype(np.int32))
        self._count(states, sentences)

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

    def scores(self, mean_loss: float, targets: int, states: States) -> Evaluation:
        self._count(states, self._joined(states["parts"].arrays))
        spans, words = states["spans"], states["words"]
        kinds = sorted({kind for counted, kind in spans.counts if counted != "right"})
        per_class = {kind: _scores(*(spans[counted, kind] for counted in ("right", "found", "true"))) for kind in kinds}
        self._details = {"per_class": per_class}
        if self.final:
            self._details |= self._examples(states)
        whole = _scores(*(sum(spans[counted, kind] for kind in kinds) for counted in ("right", "found", "true")))
        return {
            "loss": mean_loss,
            **{name: whole[name] for name in ("f1", "precision", "recall")},
            "accuracy": int(words["right"][0]) / max(int(words["all"][0]), 1),
        }

    def details(self) -> dict[str, Any]:
        return self._details

    def _joined(self, parts: dict[int, np.ndarray]) -> list[Sentence]:
        """Return the sentences that are cut, from their parts by sequence."""
        rows = self.text.splits[self.split].rows
        assert rows is not None
        sentences: dict[int, list[np.ndarray]] = {}
        for index in sorted(parts):
            sentences.setdefault(int(rows[index]), []).append(parts[index])
        return [(row, *np.concatenate(found, axis=1).tolist()) for row, found in sentences.items()]

    def _count(self, states: States, sentences: list[Sentence]) -> None:
        """Add sentences to the states."""
        names = self.text.label_names
        assert names is not None
        counts, written = [], []
        for _, true, tags in sentences:
            states["words"]["all"][0] += len(true)
            states["words"]["right"][0] += sum(a == b for a, b in zip(true, tags, strict=True))
            known, said = ([names[tag] for tag in part] for part in (true, tags))
            spans = {"found": spans_of(said), "true": spans_of(known)}
            spans["right"] = spans["found"] & spans["true"]
            states["spans"].update((counted, kind) for counted, those in spans.items() for kind, _, _ in those)
            counts.append([len(spans[counted]) for counted in ("right", "found", "true")])
            written.append((known, said))
        if self.final and sentences:
            rows, (right, found, there) = np.array([row for row, _, _ in sentences]), np.array(counts).T
            states["examples"].update(rows, right=right, found=found, true=there)
            wrong = found + there - 2 * right
            states["mistakes"].update(rows, wrong, wrong > 0, lambda i: written[i])

    def _examples(self, states: States) -> dict[str, Any]:
        """Return the entities of each sentence that are (right, found, true), and the sentences with most that are not."""
        table, column = self.text.rows[self.split].table, self.text.encoding.data.columns.text
        mistakes = []
        for row, (known, said) in states["mistakes"].rows():
            words = structured(table[row][column])
            mistakes.append({"text": " ".join(words), "true": _written(known, words), "said": _written(said, words)})
        return {"mistakes": mistakes, "examples": states["examples"].table(), **states["examples"].sampled()}


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
