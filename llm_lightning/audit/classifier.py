"""Predict texts by a classifier, as arrays: the probability of each class, and the classes that are decided for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from llm_lightning.errors import UserError
from llm_lightning.inference.predict import Predictor, Row


@dataclass(frozen=True)
class Predictions:
    """A classifier's predictions of some rows."""

    classes: tuple[str, ...]
    probabilities: np.ndarray
    """(rows, classes)"""
    decided: np.ndarray
    """(rows, classes) bool: the class with the highest probability, or all labels that apply."""

    @property
    def compared_classes(self) -> list[int]:
        """Return the numbers of the classes to compare: of two whose probabilities sum to one, the second alone."""
        is_binary = len(self.classes) == 2 and np.allclose(self.probabilities.sum(1), 1)
        return [1] if is_binary else list(range(len(self.classes)))

    def describe(self, row: int) -> str:
        """Return the classes that a row was decided for, with their probabilities."""
        names = [f"{name} {self.probabilities[row, i]:.2f}" for i, name in enumerate(self.classes) if self.decided[row, i]]
        return ", ".join(names) or "none"


def predict_rows(predictor: Predictor, rows: list[Row]) -> Predictions:
    """Return the predictions of rows; each has `where`, its place. Raises UserError for a row that cannot be predicted."""
    answers = predictor(rows)
    for row, answer in zip(rows, answers, strict=True):
        if "error" in answer:
            raise UserError(f"{row['where']}: {answer['error']}. Mend the row, or remove it.")
    return to_predictions(answers)


def to_predictions(answers: list[Row]) -> Predictions:
    """Return the answers of a predictor, of which none is an error, as arrays."""
    classes = tuple(answers[0]["scores"])
    return Predictions(
        classes,
        np.array([[answer["scores"][name] for name in classes] for answer in answers]),
        np.array([[name in _decide(answer) for name in classes] for answer in answers]),
    )


def _decide(answer: dict[str, Any]) -> list[str]:
    """Return the classes of an answer of `Classification` or `MultiLabel`."""
    return answer["labels"] if "labels" in answer else [answer["label"]]


def find_class(classes: tuple[str, ...], label: str) -> int | None:
    """Return the number of the class with a name, whatever its case; None if there is none."""
    names = [name.casefold() for name in classes]
    return names.index(label.casefold()) if label.casefold() in names else None
