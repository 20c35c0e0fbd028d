"""Reduce what an objective stores of each row to the parts of a score: the score of any rows is one sum divided by another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llm_lightning.objectives.base import Objective
from llm_lightning.reporting.intervals import Interval, ratio_interval, share_interval


@dataclass(frozen=True)
class RowScores:
    """The parts of a score by row: `score` of some rows is the sum of their `top` over the sum of their `bottom`."""

    name: str
    """The metric's name in the run's summary, or of the same kind: `accuracy`, `micro_f1`, `mae`."""
    top: np.ndarray
    bottom: np.ndarray
    unit: str
    """`share` (from 0 to 1), `points` (from 0 to 100) or `error` (lower is better)."""

    def score(self, rows: np.ndarray) -> float | None:
        """Return the score of `rows` (a mask); None if their denominators are all zero, as for F1 without a label."""
        bottom = float(self.bottom[rows].sum())
        return float(self.top[rows].sum()) / bottom if bottom else None

    def interval(self, rows: np.ndarray) -> Interval:
        """Return the 95% interval of the score of `rows`: Wilson's of a share of right rows, else the bootstrap's."""
        top, bottom = self.top[rows], self.bottom[rows]
        if self.unit == "share" and bool(np.isin(top, (0, 1)).all() and (bottom == 1).all()):
            return share_interval(int(top.sum()), len(top))
        return ratio_interval(top, bottom)


def read_row_scores(objective: Objective, columns: dict[str, np.ndarray]) -> RowScores:
    """Return the scores of the rows whose `columns` the last evaluation stored."""
    values = {name: array.astype(np.float64) for name, array in columns.items() if name != "number"}
    ones = np.ones(len(columns["number"]))
    if {"right", "found", "true"} <= values.keys():
        name = objective.monitor.partition("/")[
            2
        ]  # without a tag scheme it is the accuracy of words, of which as many are found as true
        return RowScores(name, 2 * values["right"], values["found"] + values["true"], "share")
    if {"prediction", "target"} <= values.keys():
        return RowScores("mae", np.abs(values["prediction"] - values["target"]), ones, "error")
    if "correct" in values:
        return RowScores("accuracy", values["correct"], ones, "share")
    if "f1" in values:
        return RowScores("f1", values["f1"], ones, "share")
    if "chrf" in values:
        return RowScores("chrf", values["chrf"], ones, "points")
    return RowScores("rouge_l", 100 * values["rouge_l"], ones, "points")
