"""Count, at the start of a run, the rows of train that are also in validation or test, and the texts with two labels.

Texts are compared without case and blanks, by a hash. Near copies are found by task=inspect. Of a large train split the first rows are
compared, up to CHARACTERS, which takes less than a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import xxhash

from llm_lightning.data.row_texts import RowTexts, hash_text

CHARACTERS = 32 << 20  # of a split


@dataclass(frozen=True)
class SameTexts:
    """The counts of a data set."""

    leaks: dict[str, int]
    """Split that evaluates -> rows of train that are in it too; only splits with such rows."""
    conflicts: int
    """Rows of train whose text stands in another row of train with another label."""
    compared: int
    """Rows of train that were compared."""

    def describe(self) -> str:
        """Return the counts as a clause; empty if there is nothing to say."""
        parts = [f"{number:,} {'row is' if number == 1 else 'rows are'} in {split} too" for split, number in self.leaks.items()]
        if self.conflicts:
            parts.append(f"{self.conflicts:,} rows have a text that another row has with another label")
        return " and ".join(parts)


def find_same_texts(splits: Mapping[str, RowTexts]) -> SameTexts:
    """Return the counts of the exact copies among the rows of train."""
    hashes = {split: _hash_front(texts) for split, texts in splits.items()}
    train = hashes.pop("train")
    leaks = {split: int((np.isin(train, held_out) & (train != 0)).sum()) for split, held_out in hashes.items()}
    labels = splits["train"].labels()[: len(train)] if splits["train"].label is not None else []
    conflicts = _count_conflicts(train, labels) if labels else 0
    return SameTexts({split: number for split, number in leaks.items() if number}, conflicts, len(train))


def _hash_front(texts: RowTexts) -> np.ndarray:
    """Return a hash of each of the first texts."""
    hashes: list[int] = []
    size = 0
    for _, block in texts.blocks():
        hashes += map(hash_text, block)
        size += sum(map(len, block))
        if size > CHARACTERS:
            break
    return np.array(hashes, np.uint64)


def _count_conflicts(texts: np.ndarray, labels: list[str | None]) -> int:
    """Return the number of rows whose text has several labels."""
    values = np.array(
        [0 if label is None else xxhash.xxh3_64_intdigest(label.encode("utf-8", "surrogatepass")) for label in labels], np.uint64
    )
    rows = (texts != 0) & (values != 0)
    pairs = np.unique(np.stack([texts[rows], values[rows]]), axis=1)
    numbers, counts = np.unique(pairs[0], return_counts=True)
    return int(np.isin(texts[rows], numbers[counts > 1]).sum())
