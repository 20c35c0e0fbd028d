"""Find texts that are nearly the same, by MinHash and locality-sensitive hashing (Broder 1997; Lee et al. 2022, section 4.2).

The similarity of two texts is the Jaccard index of their word 5-grams. 128 random permutations give each text a signature, whose agreement
estimates it; 21 bands of 6 values propose pairs: of those with index 0.8, 99.8% (1 - (1 - 0.8^6)^21). Each proposed pair is then
compared exactly, so that no pair below the threshold is reported.

A text leaves one number of four bytes a band, 84 MB for a million texts; texts that are compared are read again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from llm_lightning.inspection.shingles import Shingles, hash_shingles

PERMUTATIONS, BANDS, ROWS = 128, 21, 6
THRESHOLD = 0.8
AT_ONCE = 1 << 13  # shingles whose permutations are computed together: 4 MB, which stays in a core's cache
READ = 256  # texts that are read together
COMPARED = 1 << 20  # shingles of the texts that are compared together
MOST_COMPARED = 20
"""Texts of a bucket that a text is compared with: a phrase that begins thousands of rows would make millions of pairs."""

Reader = Callable[[np.ndarray], list[str]]
"""Returns the texts of some numbers, which are in order."""


@dataclass(frozen=True)
class Pair:
    """Two texts by their numbers, the first the earlier one, and the Jaccard index of their 5-grams."""

    first: int
    second: int
    jaccard: float


def find_near_duplicates(read: Reader, count: int, threshold: float = THRESHOLD) -> list[Pair]:
    """Return the pairs of `count` texts that are nearly the same, by the number of the second.

    In a set of more than MOST_COMPARED texts with the same phrases, each is compared with the first and with those right before it.
    """
    keys, sizes = _hash_bands(read, count)
    return [pair for pair in _compare(read, sizes, _propose(keys, sizes > 0)) if pair.jaccard >= threshold]


def _hash_bands(read: Reader, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (count, BANDS) uint32, a hash of each band of the signature of each text, and (count,) its number of shingles."""
    keys, sizes = np.empty((count, BANDS), np.uint32), np.empty(count, np.int64)
    factors = np.array([pow(0x9E3779B97F4A7C15, power, 1 << 64) for power in range(1, ROWS + 1)], np.uint64)
    for start in range(0, count, READ):
        end = min(start + READ, count)
        shingles = hash_shingles(read(np.arange(start, end)))
        sizes[start:end] = np.diff(shingles.starts)
        values = sign(shingles)[:, : BANDS * ROWS].astype(np.uint64).reshape(end - start, BANDS, ROWS)
        keys[start:end] = (values * factors).sum(-1, dtype=np.uint64) >> np.uint64(32)
    return keys, sizes


def sign(shingles: Shingles, seed: int = 0) -> np.ndarray:
    """Return the signatures (texts, PERMUTATIONS) uint32: the least value of each permutation among the shingles of a text.

    A permutation is x -> a x + b modulo 2^32 of the mixed hashes, a odd (Dietzfelbinger et al. 1997).
    """
    rng = np.random.default_rng(seed)
    factors = (rng.integers(0, 1 << 32, PERMUTATIONS, dtype=np.uint32) | np.uint32(1))[:, None]
    shifts = rng.integers(0, 1 << 32, PERMUTATIONS, dtype=np.uint32)[:, None]
    values = (shingles.hashes >> np.uint64(32)).astype(np.uint32)
    signatures = np.full((len(shingles), PERMUTATIONS), np.iinfo(np.uint32).max, np.uint32)
    text, starts = 0, shingles.starts
    while text < len(shingles):
        end = max(text + 1, int(np.searchsorted(starts, starts[text] + AT_ONCE, "right")) - 1)
        signatures[text:end] = _least(values[starts[text] : starts[end]], starts[text : end + 1] - starts[text], factors, shifts)
        text = end
    return signatures


def _least(values: np.ndarray, starts: np.ndarray, factors: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Return (texts, PERMUTATIONS) the least permuted value of each text; its shingles are `values[starts[i] : starts[i + 1]]`."""
    least = np.full((len(starts) - 1, PERMUTATIONS), np.iinfo(np.uint32).max, np.uint32)
    filled = np.flatnonzero(np.diff(starts))
    if not len(filled):
        return least
    for begin in range(0, len(values), AT_ONCE):  # more than one round for a long text alone
        part = values[begin : begin + AT_ONCE]
        bounds = starts[filled] if len(values) <= AT_ONCE else np.zeros(1, np.int64)
        reduced = np.minimum.reduceat(part * factors + shifts, bounds, axis=1).T
        least[filled] = np.minimum(least[filled], reduced)
    return least


def _propose(keys: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Return (pairs, 2) the numbers of texts that agree in a band, the earlier one first; ordered by the second, without repeats."""
    numbers = np.flatnonzero(usable)
    codes = np.empty(0, np.uint64)
    for band in range(BANDS):
        values = keys[numbers, band]
        order = np.argsort(values, kind="stable")  # texts of a bucket in their order
        begins = np.flatnonzero(np.append(True, values[order][1:] != values[order][:-1]))
        sizes = np.diff(np.append(begins, len(order)))
        first = np.repeat(begins, sizes)  # the place where the bucket of a place begins
        places = np.arange(len(order))
        proposed = [np.stack([first, places])[:, places > first + MOST_COMPARED]]
        for distance in range(1, min(int(sizes.max(initial=1)), MOST_COMPARED + 1)):
            later = places[places - distance >= first]
            proposed.append(np.stack([later - distance, later]))
        pairs = numbers[order[np.concatenate(proposed, axis=1)]].astype(np.uint64)
        codes = np.union1d(codes, (pairs[1] << np.uint64(32)) | pairs[0])
    return np.stack([codes & np.uint64(0xFFFFFFFF), codes >> np.uint64(32)], axis=1).astype(np.int64)


def _compare(read: Reader, sizes: np.ndarray, pairs: np.ndarray) -> Iterator[Pair]:
    """Yield the pairs with their Jaccard index. The texts of as many pairs are read together as have COMPARED shingles."""
    ends = np.cumsum(sizes[pairs].sum(1))
    start = 0
    while start < len(pairs):
        end = max(start + 1, int(np.searchsorted(ends, (ends[start - 1] if start else 0) + COMPARED, "right")))
        numbers = np.unique(pairs[start:end])
        shingles = hash_shingles(read(numbers))
        sets = {int(number): set(shingles.of(i).tolist()) for i, number in enumerate(numbers)}
        for first, second in pairs[start:end].tolist():
            yield Pair(first, second, jaccard(sets[first], sets[second]))
        start = end


def jaccard(first: set[int], second: set[int]) -> float:
    """Return the size of the intersection of two sets as a share of that of their union."""
    common = len(first & second)
    return common / max(len(first) + len(second) - common, 1)
