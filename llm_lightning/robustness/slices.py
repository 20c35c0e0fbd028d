"""Score slices of a split, and compare each with the rest: the record that summaries, reports and model cards show.

The differences are tested by permutation, and their probabilities corrected for all slices by Holm (1979).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llm_lightning.reporting.significance import correct
from llm_lightning.robustness.permutation import permute
from llm_lightning.robustness.row_scores import RowScores
from llm_lightning.robustness.slicing import FEWEST, Slice

TOO_FEW = "too few rows"
EVERY_ROW = "every row: nothing to compare with"
NO_LABEL = "no label is true or predicted here"


def score_slices(slices: list[Slice], scores: RowScores) -> list[dict[str, Any]]:
    """Return an entry for each slice, the worst first: by, slice, rows, score, low, high, rest, difference, p (corrected), p_single, note.

    A slice that is not compared has a note with the reason: it has fewer than FEWEST rows (then it has no score either), it holds every
    row, or fewer than FEWEST rows are outside.
    """
    entries = [_describe(part, scores) for part in slices]
    compared = [place for place, entry in enumerate(entries) if entry["difference"] is not None]
    probabilities = permute(scores.top, scores.bottom, [slices[i].rows for i in compared], np.random.default_rng(0))
    for place, single, corrected in zip(compared, probabilities, correct(probabilities, len(probabilities)), strict=True):
        entries[place] |= {"p_single": single, "p": corrected}
    sign = 1 if scores.unit == "error" else -1
    return sorted(entries, key=lambda entry: (entry["difference"] is None, -sign * (entry["difference"] or 0)))


def _describe(part: Slice, scores: RowScores) -> dict[str, Any]:
    count = int(part.rows.sum())
    entry: dict[str, Any] = {"by": part.by, "slice": part.name, "rows": count}
    entry |= dict.fromkeys(("score", "low", "high", "rest", "difference", "p", "p_single", "note"))
    if count < FEWEST:
        return entry | {"note": TOO_FEW}
    if (score := scores.score(part.rows)) is None:
        return entry | {"note": NO_LABEL}
    low, high = scores.interval(part.rows)
    entry |= {"score": score, "low": low, "high": high}
    if count == len(part.rows):
        return entry | {"note": EVERY_ROW}
    if len(part.rows) - count < FEWEST or (rest := scores.score(~part.rows)) is None:
        return entry | {"note": f"fewer than {FEWEST} rows to compare with"}
    return entry | {"rest": rest, "difference": score - rest}
