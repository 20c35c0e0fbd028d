"""Write the scores that prediction sets are made from into an export, and add sets to predictions."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm_lightning.config.checks.coverage import SCORES, export_folder
from llm_lightning.config.schema import Config
from llm_lightning.errors import UserError, join_names
from llm_lightning.metrics.conformal import ConformalScores, rows_needed
from llm_lightning.runs.folder import write_json

log = logging.getLogger(__name__)


def write_scores(folder: Path, scores: ConformalScores | None, rows: str) -> None:
    """Write the scores of validation into an export's folder; `rows` is the fingerprint of the rows. Nothing is written without scores."""
    if scores is None or not len(scores.labels):
        return
    probabilities = {
        name: [float(f"{value:.9g}") for value in np.sort(scores.probabilities[scores.labels == label])]  # 9 digits are fp32's
        for label, name in enumerate(scores.names)
    }
    log.info("prediction sets: %s has the scores of %s validation rows", folder / SCORES, f"{len(scores.labels):,}")
    write_json(folder / SCORES, {"rows": len(scores.labels), "fingerprint": rows, "probabilities_of_the_true_label": probabilities})


def read_scores(file: Path) -> ConformalScores:
    """Read the scores of an export. Raises UserError if the file is damaged."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))["probabilities_of_the_true_label"]
        counts = [len(values) for values in content.values()]
        probabilities = np.array([value for values in content.values() for value in values], np.float32)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(
            f"{file}: the scores of validation rows cannot be read ({error}); task=evaluate writes them anew."
        ) from error
    return ConformalScores(tuple(content), np.repeat(np.arange(len(counts)), counts), probabilities)


@dataclass(frozen=True)
class PredictionSets:
    """The least probability of each label in a prediction set."""

    thresholds: dict[str, float]

    def add(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Return an answer with `set`, the labels of its prediction set, and `abstain`, whether the set has not exactly one label."""
        labels = [name for name, probability in answer["scores"].items() if probability >= self.thresholds[name]]
        return answer | {"set": labels, "abstain": len(labels) != 1}


def load_sets(config: Config, names: Sequence[str]) -> PredictionSets | None:
    """Return the sets of predict.coverage for a model with these classes; None if it is not set.

    Raises UserError if the scores belong to another model. Warns if the validation rows are too few.
    """
    coverage, by_class = config.predict.coverage, config.predict.conditional == "class"
    if coverage is None:
        return None
    file = export_folder(config) / SCORES
    scores = read_scores(file)
    if sorted(scores.names) != sorted(names):
        raise UserError(
            f"{file}: its labels are {join_names(scores.names, 8)}, and the model's {join_names(names, 8)}; it belongs to another model."
        )
    needed = rows_needed(coverage)
    if by_class and (few := scores.classes_with_too_few_rows(coverage)):
        log.warning(
            "predict.coverage=%s: a class needs %s validation rows, so that every set has %s", coverage, needed, join_names(few, 8)
        )
    elif not by_class and len(scores.labels) < needed:
        log.warning(
            "predict.coverage=%s: needs %s validation rows, and there are %s: every set has all labels",
            coverage,
            needed,
            len(scores.labels),
        )
    return PredictionSets(dict(zip(scores.names, scores.thresholds(coverage, by_class).tolist(), strict=True)))
