"""BLEU and chrF of a corpus, from counts of n-grams that add up over sentences and ranks."""

from __future__ import annotations

from typing import Any

import numpy as np

from llm_lightning.metrics.counts import Sums


class CorpusScores(Sums):
    """sacrebleu's BLEU (Papineni et al. 2002) and chrF (Popović 2015), as it sums them up itself.

    The methods whose names begin with `_` were read in sacrebleu 2.6; a test compares the scores with `corpus_score`.
    """

    def __init__(self) -> None:
        from sacrebleu.metrics import BLEU, CHRF

        self.metrics: dict[str, Any] = {"bleu": BLEU(), "chrf": CHRF()}
        super().__init__(**{name: self._statistics(name, ["a"], ["a"]).shape[1] for name in self.metrics})

    def _statistics(self, name: str, texts: list[str], references: list[str]) -> np.ndarray:
        """Return (texts, counts) what sacrebleu counts of each text."""
        return np.array(self.metrics[name]._extract_corpus_statistics(texts, [references]), dtype=np.int64)

    def update(self, texts: list[str], references: list[str]) -> np.ndarray:
        """Take in some texts, and return (texts,) the chrF of each."""
        statistics = {name: self._statistics(name, texts, references) for name in self.metrics}
        for name, counts in statistics.items():
            self[name][...] += counts.sum(0)
        return np.array([self._score("chrf", counts) for counts in statistics["chrf"]])

    def _score(self, name: str, counts: np.ndarray) -> float:
        return float(self.metrics[name]._aggregate_and_compute([counts.tolist()]).score)

    def scores(self) -> dict[str, float]:
        """Return `bleu` and `chrf`, from 0 to 100."""
        return {name: self._score(name, self[name]) for name in self.metrics}
