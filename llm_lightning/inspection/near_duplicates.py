"""Find texts that are nearly the same, by MinHash and locality-sensitive hashing (Broder 1997; Lee et al. 2022, section 4.2).

The similarity of two texts is the Jaccard index of their word 5-grams. 128 random permutations give each text a signature, whose agreement
estimates it; 21 bands of 6 values propose pairs: of those with index 0.8, 99.8% (1 - (1 - 0.8^6)^21). Each proposed pair is then
compared exactly, so that no pair below the threshold is reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from llm_lightning.inspection.shingles import Shingles, hash_shingles

PERMUTATIONS, BANDS, ROWS = 128, 21, 6
THRESHOLD = 0.8
AT_ONCE = 1 << 13  # shingles whose permutations are computed together: 4 MB, which stays in a core's cache
MOST_COMPARED = 20
"""Texts of a bucket that a text is compared with: a phrase that begins thousands of rows would make millions of pairs."""


@dataclass(frozen=True)
class Pair:
    """Two texts by their numbers, the first the earlier one, and the Jaccard index of their 5-grams."""

    first: int
    second: int
    jaccard: float


def find_near_duplicates(texts: Sequence[str], threshold: float = THRESHOLD) -> list[Pair]:
    """Return, for each text that is nearly the same as an earlier one, the pair with the most similar earlier one."""
    shingles = hash_shingles(texts)
    best: dict[int, Pair] = {}
    for first, second in _propose(sign(shingles), np.diff(shingles.starts) > 0):
        index = jaccard(shingles.of(first), shingles.of(second))
        if index >= threshold and (second not in best or index > best[second].jaccard):
            best[second] = Pair(first, second, index)
    return [best[second] for second in sorted(best)]


def jaccard(first: np.ndarray, second: np.ndarray) -> float:
    """Return the size of the intersection of two sets, sorted arrays without repeats, as a share of that of their union."""
    common = len(np.intersect1d(first, second, assume_unique=True))
    return common / max(len(first) + len(second) - common, 1)


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


def _propose(signatures: np.ndarray, usable: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield the pairs (earlier, later) of texts that agree in a band, each once."""
    seen: set[tuple[int, int]] = set()
    for band in range(BANDS):
        values = signatures[:, band * ROWS : (band + 1) * ROWS]
        keys = np.ascontiguousarray(values).view(np.dtype((np.void, values.shape[1] * 4)))[:, 0]
        order = np.argsort(keys, kind="stable")
        order = order[usable[order]]
        same = keys[order][1:] == keys[order][:-1]
        for run in np.split(order, np.flatnonzero(~same) + 1):
            for place in range(1, len(run)):
                earlier = run[max(0, place - MOST_COMPARED) : place]
                for first in {int(run[0]), *map(int, earlier)}:
                    pair = (first, int(run[place]))
                    if pair not in seen:
                        seen.add(pair)
                        yield pair
