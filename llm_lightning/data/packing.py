"""Fill rows of a fixed size with whole sequences: best-fit decreasing, on the histogram of their lengths.

Sequences of one length are interchangeable, so lengths are packed with their counts instead of sequences. The cost depends on the
number of different lengths, at most the size of a row: ten million sequences pack as fast as ten thousand (Krell et al. 2021, section
3, has the idea with other heuristics). The patterns are the same for every epoch; the sequences of a length are assigned to its places
at random in each epoch, so that neighbours change.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llm_lightning.errors import UserError


@dataclass(frozen=True)
class Patterns:
    """The patterns of filled rows: row r holds sequences of the lengths `lengths[bounds[r] : bounds[r + 1]]`."""

    by_length: np.ndarray
    """(sequences,) the sequences sorted by length."""
    places: np.ndarray
    """(sequences,) for each of `by_length`, a place of its length in the rows."""
    bounds: np.ndarray
    """(rows + 1,) bounds of the rows in the places."""
    counts: np.ndarray
    """(different lengths,) sequences of each length, shortest first."""

    @staticmethod
    def best_fit(lengths: np.ndarray, row_size: int) -> Patterns:
        """Pack sequences, longest first, each into the fullest row with room. Raises UserError if one is longer than a row."""
        if int(lengths.max()) > row_size:
            raise UserError(f"data.block_size={row_size}: the longest sequence has {int(lengths.max())} tokens and has to fit.")
        different_lengths, counts = np.unique(lengths, return_counts=True)
        patterns = _pack(dict(zip(different_lengths.tolist(), counts.tolist(), strict=True)), row_size)
        pattern_lengths = np.concatenate([np.tile(np.array(pattern, np.int32), count) for pattern, count in patterns])
        sizes = np.concatenate([np.full(count, len(pattern)) for pattern, count in patterns])
        return Patterns(
            by_length=np.argsort(lengths, kind="stable").astype(np.int32 if len(lengths) < 1 << 31 else np.int64),
            places=np.argsort(pattern_lengths, kind="stable"),
            bounds=np.concatenate([[0], np.cumsum(sizes)]),
            counts=counts,
        )

    def fill(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return (order of the sequences, bounds of the rows in it): rows in random order, each place with a random sequence."""
        shuffled = self.by_length.copy()
        ends = np.cumsum(self.counts)
        for first, last in zip(ends - self.counts, ends, strict=True):
            rng.shuffle(shuffled[first:last])
        packed = np.empty_like(shuffled)
        packed[self.places] = shuffled
        rows = rng.permutation(len(self.bounds) - 1)
        sizes = np.diff(self.bounds)[rows]
        bounds = np.concatenate([[0], np.cumsum(sizes)])
        gather = np.repeat(self.bounds[rows] - bounds[:-1], sizes)
        gather += np.arange(len(packed))
        return packed[gather], bounds


def _pack(histogram: dict[int, int], row_size: int) -> list[tuple[tuple[int, ...], int]]:
    """Return (pattern of lengths, number of such rows) from a histogram of lengths.

    The rows are the same as when placing one sequence after the other: a row that got a sequence is the fullest for the next of its
    length, as long as it has room. So a row takes all it can of a length at once, and equal rows are handled together.
    """
    open_rows: dict[int, list[tuple[tuple[int, ...], int]]] = {}  # room left -> (pattern, rows)
    for length in sorted(histogram, reverse=True):
        remaining = histogram[length]
        for room in sorted(r for r in open_rows if r >= length):
            fits = room // length
            for pattern, count in open_rows.pop(room):
                full, rest = divmod(remaining, fits) if remaining < count * fits else (count, 0)
                _put(open_rows, room - fits * length, pattern + (length,) * fits, full)
                _put(open_rows, room - rest * length, pattern + (length,) * rest, min(rest, 1))
                _put(open_rows, room, pattern, count - full - min(rest, 1))
                remaining -= full * fits + rest
        fits = row_size // length
        full, rest = divmod(remaining, fits)
        _put(open_rows, row_size - fits * length, (length,) * fits, full)
        _put(open_rows, row_size - rest * length, (length,) * rest, min(rest, 1))
    return [entry for rows in open_rows.values() for entry in rows]


def _put(open_rows: dict[int, list[tuple[tuple[int, ...], int]]], room: int, pattern: tuple[int, ...], count: int) -> None:
    if count:
        open_rows.setdefault(room, []).append((pattern, count))
