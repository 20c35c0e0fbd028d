"""Texts, or pairs of texts, with a number each."""

from __future__ import annotations

import math
from typing import Any

from llm_lightning.config import DataConfig
from llm_lightning.data.encodings import texts
from llm_lightning.data.examples import BadRow
from llm_lightning.data.labels import Labels
from llm_lightning.data.rows import Rows


class Encoder(texts.Encoder):
    """A text and its score."""

    one_label = False

    @staticmethod
    def find_labels(data: DataConfig, train: Rows) -> Labels | None:
        return Labels((), ())

    def label(self, known: Labels, value: Any) -> float:
        score = _parse_number(value)
        if score is None:
            column, text = self.data.columns.label, "" if value is None else str(value).strip()
            point = text.replace(",", ".")
            hint = f"; write {point}" if text.count(",") == 1 and _parse_number(point) is not None else ""
            raise BadRow(f"column '{column}' " + (f"holds '{value}', which is no number{hint}" if text else "is empty"))
        return score


def _parse_number(value: Any) -> float | None:
    """Return a finite number; None for anything else, such as a truth value, or text that only Python takes for a number (1_000)."""
    if isinstance(value, bool | bytes) or (isinstance(value, str) and "_" in value):
        return None
    try:
        score = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return score if math.isfinite(score) else None
