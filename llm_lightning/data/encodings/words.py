"""Sentences of words with a tag each; the first token of a word carries its tag.

Words are joined by blanks and tokenised as the text that they are, so that every tokenizer sees what it was trained on; a token
belongs to the word that its last character lies in.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import numpy as np

from llm_lightning.config import DataConfig
from llm_lightning.data import labels
from llm_lightning.data.encodings import NO_TOKEN, Sequences, documents, structured, texts
from llm_lightning.data.examples import BadRow, BadRows, Example
from llm_lightning.data.labels import Labels
from llm_lightning.data.masking import IGNORED
from llm_lightning.data.rows import Rows


class Encoder(documents.Encoder):
    """A sentence to one sequence, or, where it is longer than a block, to several that are cut between words.

    Without labels the target of a word is its number, which says what a prediction is of.
    """

    needs_offsets = True

    @staticmethod
    def find_labels(data: DataConfig, train: Rows) -> Labels | None:
        return labels.find(data, train, listed_words, complete=_with_insides)

    def read(
        self, text: Any, pair: Any, value: Any, extra: dict[str, Any] | None = None
    ) -> tuple[list[str], None, list[int] | None]:
        columns, words = self.data.columns, listed_words(text)
        wrong = next((word for word in words if not isinstance(word, str)), None)
        if wrong is not None:
            raise BadRow(f"column '{columns.text}' holds {type(wrong).__name__} among its words, not text")
        if not any(word.strip() for word in words):
            raise BadRow(f"column '{columns.text}' is empty")
        if self.labels is None:
            return words, None, None
        tags = listed_words(value)
        if len(tags) != len(words):
            raise BadRow(f"{len(words)} words (column '{columns.text}') and {len(tags)} tags (column '{columns.label}')")
        return words, None, [texts.index(self.labels, columns.label, tag) for tag in tags]

    def __call__(self, batch: list[Example], bad: BadRows | None) -> Sequences:
        found, room = Sequences([], []), self.data.block_size - len(self.before) - len(self.after)
        encoded = self._backend.encode_batch([" ".join(example.text) for example in batch], add_special_tokens=False)
        for example, whole in zip(batch, encoded, strict=True):
            first = first_tokens(example.text, whole.offsets)
            if not first and bad is not None:
                bad.add(example.row, NO_TOKEN)
            for start, stop in _cuts(sorted(first.values()), len(whole.ids), room):
                self.truncated += stop - start > room
                ids = whole.ids[start : min(stop, start + room)]
                targets = [IGNORED] * (len(self.before) + len(ids) + len(self.after))
                for word, token in first.items():
                    if start <= token < start + len(ids):
                        targets[len(self.before) + token - start] = word if example.label is None else example.label[word]
                found.tokens.append([*self.before, *ids, *self.after])
                found.token_targets.append(targets)
                found.examples.append(example)
        return found


def listed_words(value: Any) -> list[Any]:
    """Words or tags of a row: a list of them, or text with blanks between."""
    value = structured(value)
    return value.split() if isinstance(value, str) else list(value or [])


def first_tokens(words: list[str], offsets: list[tuple[int, int]]) -> dict[int, int]:
    """Word -> its first token, for words joined by blanks; a word that no token ends in is missing."""
    bounds = np.array(list(accumulate((len(word) + 1 for word in words), initial=0)))
    first: dict[int, int] = {}
    for token, (start, end) in enumerate(offsets):
        word = int(np.searchsorted(bounds, end - 1, side="right")) - 1
        if end > start and end - 1 < bounds[word + 1] - 1:  # else it ends in the blank behind the word
            first.setdefault(word, token)
    return first


def _cuts(firsts: list[int], length: int, room: int) -> list[tuple[int, int]]:
    """Bounds of as few pieces of at most `room` tokens as begin with a word; a word that is longer is a piece of its own."""
    cuts, start = [], 0
    ends = [*firsts[1:], length] if firsts else []
    for begin, end in zip(firsts, ends, strict=True):
        if end - start > room and begin > start:
            cuts.append((start, begin))
            start = begin
    return [*cuts, (start, length)] if firsts else []


def _with_insides(tags: set[str]) -> set[str]:
    """BIO tags with the inside of every entity that begins: a train split may hold one-word entities alone."""
    return tags | {f"I-{tag[2:]}" for tag in tags if tag.startswith("B-")}
