"""Find texts that share phrases with the texts of an evaluation, by their word 13-grams (Brown et al. 2020, appendix C).

An evaluation's text of fewer words is compared as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from llm_lightning.inspection.shingles import hash_shingles

WORDS = 13


@dataclass(frozen=True)
class Overlap:
    """A text, a text of the evaluation, and the number of 13-grams of the latter that the former has too."""

    text: int
    other: int
    shared: int


class Evaluation:
    """The 13-grams of the texts of an evaluation."""

    def __init__(self, texts: Sequence[str]) -> None:
        shingles = hash_shingles(texts, WORDS)
        owners = np.repeat(np.arange(len(texts)), np.diff(shingles.starts))
        order = np.argsort(shingles.hashes, kind="stable")
        self._hashes, self._owners = shingles.hashes[order], owners[order]

    def find(self, texts: Sequence[str]) -> Iterator[Overlap]:
        """Yield each text that shares a 13-gram, with the text of the evaluation that it shares most with."""
        shingles = hash_shingles(texts, WORDS)
        is_shared = np.isin(shingles.hashes, self._hashes)
        texts_of = np.repeat(np.arange(len(texts)), np.diff(shingles.starts))
        for text in np.unique(texts_of[is_shared]).tolist():
            hashes = np.unique(shingles.hashes[is_shared & (texts_of == text)])
            bounds = np.searchsorted(self._hashes, hashes, "left"), np.searchsorted(self._hashes, hashes, "right")
            others = np.concatenate([self._owners[start:end] for start, end in zip(*bounds, strict=True)])
            counts = np.bincount(others)
            yield Overlap(text, int(counts.argmax()), int(counts.max()))
