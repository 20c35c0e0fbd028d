"""Find rows that are copies, or nearly copies, of others: in the same split, and in another one, where they leak what is tested."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from llm_lightning.data.row_texts import RowTexts
from llm_lightning.inspection.near_duplicates import Pair, find_near_duplicates


@dataclass(frozen=True, order=True)
class Copy:
    """A row that is nearly the same as another: an earlier one of its split, or one of a split that evaluates."""

    split: str
    row: int
    other_split: str
    other_row: int
    jaccard: float
    """Jaccard index of their word 5-grams; 1 for rows that differ in case and blanks alone."""


@dataclass(frozen=True)
class Copies:
    """The copies in a data set, by split and row."""

    duplicates: list[Copy]
    """In the same split: each row once, with the most similar earlier row."""
    leaks: list[Copy]
    """In other splits: a row of train once for each split that evaluates, with the most similar row there."""


@dataclass(frozen=True)
class Groups:
    """The rows of all splits, grouped by their text without case and blanks; rows without a word are in no group."""

    splits: dict[str, RowTexts]
    """The splits, train last, so that the first row of a group is one that evaluates."""
    numbers: dict[str, np.ndarray]
    """Split -> (rows,) the group of each row, or -1."""
    first_rows: dict[str, np.ndarray]
    """Split -> (groups,) the first row of each group, or -1."""

    @property
    def count(self) -> int:
        return len(next(iter(self.first_rows.values())))

    def read(self, groups: np.ndarray) -> list[str]:
        """Return a text of each group."""
        texts = np.empty(len(groups), object)
        open_groups = np.ones(len(groups), bool)
        for split, first_rows in self.first_rows.items():
            chosen = np.flatnonzero(open_groups & (first_rows[groups] >= 0))
            open_groups[chosen] = False
            rows, order = np.unique(first_rows[groups[chosen]], return_inverse=True)
            if len(rows):
                texts[chosen] = np.array(self.splits[split].read(rows), object)[order]
        return list(texts)


def group_rows(splits: dict[str, RowTexts], hashes: dict[str, np.ndarray] | None = None) -> Groups:
    """Group the rows of splits; `hashes` are those of their texts, where they are known."""
    ordered = {split: splits[split] for split in sorted(splits, key=lambda split: (split == "train", split))}
    hashes = hashes or {split: texts.hash_texts() for split, texts in ordered.items()}
    everything = np.concatenate([hashes[split] for split in ordered])
    filled = everything != 0
    values, first, inverse = np.unique(everything[filled], return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first))  # groups in the order of their first rows, so that neighbours are read together
    numbers = np.full(len(everything), -1, np.int64)
    numbers[filled] = order[inverse]
    ends = np.cumsum([len(hashes[split]) for split in ordered])
    by_split = dict(zip(ordered, np.split(numbers, ends[:-1]), strict=True))
    return Groups(ordered, by_split, {split: _first_rows(part, len(values)) for split, part in by_split.items()})


def _first_rows(numbers: np.ndarray, count: int) -> np.ndarray:
    first_rows = np.full(count, -1, np.int64)
    rows = np.flatnonzero(numbers >= 0)[::-1]
    first_rows[numbers[rows]] = rows  # of equal indices the last assignment counts
    return first_rows


def find_copies(groups: Groups, near: bool = True) -> Copies:
    """Return the copies of rows, and with `near` their near copies."""
    pairs = find_near_duplicates(groups.read, groups.count) if near else []
    duplicates = {(copy.split, copy.row): copy for copy in _exact_duplicates(groups)}
    leaks = {(copy.split, copy.row, copy.other_split): copy for copy in _exact_leaks(groups)}
    members = _list_members(groups, pairs)
    for pair in pairs:
        for split, first_rows in groups.first_rows.items():
            rows = int(first_rows[pair.first]), int(first_rows[pair.second])
            if min(rows) >= 0:
                copy = Copy(split, max(rows), split, min(rows), pair.jaccard)
                if (best := duplicates.get((split, copy.row))) is None or best.jaccard < copy.jaccard:
                    duplicates[split, copy.row] = copy
        for split, other in _list_leaking(groups):
            for group, other_group in ((pair.first, pair.second), (pair.second, pair.first)):
                if (other_row := int(groups.first_rows[other][other_group])) < 0:
                    continue
                for row in members[split, group]:
                    best = leaks.get((split, row, other))
                    if best is None or best.jaccard < pair.jaccard:
                        leaks[split, row, other] = Copy(split, row, other, other_row, pair.jaccard)
    return Copies(sorted(duplicates.values()), sorted(leaks.values()))


def _list_leaking(groups: Groups) -> list[tuple[str, str]]:
    """Return (split, other split) of which the first must not hold rows of the second: train of all, validation of test."""
    pairs = [("train", split) for split in groups.splits if split != "train"]
    pairs += [("validation", "test")]
    return [(split, other) for split, other in pairs if split in groups.splits and other in groups.splits]


def _exact_duplicates(groups: Groups) -> Iterator[Copy]:
    for split, numbers in groups.numbers.items():
        first_rows = np.where(numbers >= 0, groups.first_rows[split][numbers], np.arange(len(numbers)))
        for row in np.flatnonzero(first_rows != np.arange(len(numbers))).tolist():
            yield Copy(split, row, split, int(first_rows[row]), 1.0)


def _exact_leaks(groups: Groups) -> Iterator[Copy]:
    for split, other in _list_leaking(groups):
        numbers = groups.numbers[split]
        other_rows = np.where(numbers >= 0, groups.first_rows[other][numbers], -1)
        for row in np.flatnonzero(other_rows >= 0).tolist():
            yield Copy(split, row, other, int(other_rows[row]), 1.0)


def _list_members(groups: Groups, pairs: list[Pair]) -> dict[tuple[str, int], list[int]]:
    """Return (split, group) -> its rows, of the groups in pairs."""
    paired = np.unique([number for pair in pairs for number in (pair.first, pair.second)])
    members: dict[tuple[str, int], list[int]] = defaultdict(list)
    for split, numbers in groups.numbers.items():
        for row in np.flatnonzero(np.isin(numbers, paired)).tolist():
            members[split, int(numbers[row])].append(row)
    return members


@dataclass(frozen=True)
class Conflict:
    """A row whose text stands in another row with another label."""

    split: str
    row: int
    label: str
    other_split: str
    other_row: int
    other_label: str


def find_conflicts(groups: Groups) -> list[Conflict]:
    """Return each row of a text that has two labels, with a row of the text that has another one, of its own split if possible."""
    labels = {split: texts.labels() for split, texts in groups.splits.items()}
    codes: dict[str | None, int] = {None: -1}
    coded = {split: np.array([codes.setdefault(label, len(codes)) for label in part], np.int64) for split, part in labels.items()}
    order = sorted(groups.splits, key=lambda split: (split != "train", split))
    texts, values = (np.concatenate([by_split[split] for split in order]) for by_split in (groups.numbers, coded))
    counted = np.flatnonzero((texts >= 0) & (values >= 0))
    pairs = np.unique(np.stack([texts[counted], values[counted]]), axis=1)
    numbers, sizes = np.unique(pairs[0], return_counts=True)
    disputed: dict[int, list[tuple[str, int]]] = defaultdict(list)
    places = [(split, row) for split in order for row in range(len(labels[split]))] if (sizes > 1).any() else []
    for place in counted[np.isin(texts[counted], numbers[sizes > 1])].tolist():
        disputed[int(texts[place])].append(places[place])
    conflicts = []
    for rows in disputed.values():
        for split, row in rows:
            label = labels[split][row]
            others = [other for other in rows if labels[other[0]][other[1]] != label]
            other, other_row = min(others, key=lambda place: place[0] != split)
            conflicts.append(Conflict(split, row, str(label), other, other_row, str(labels[other][other_row])))
    return sorted(conflicts, key=lambda conflict: (conflict.split != "train", conflict.split, conflict.row))
