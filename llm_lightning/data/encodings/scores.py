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
        try:
            score = float(value)
        except (TypeError, ValueError):
            score = math.nan
        if not math.isfinite(score):
            found = "is empty" if value is None or not str(value).strip() else f"holds '{value}', which is no number"
            raise BadRow(f"column '{self.data.columns.label}' {found}")
        return score
