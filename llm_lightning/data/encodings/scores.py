"""Encode texts, or pairs of texts, with a number each."""

from __future__ import annotations

from typing import Any

from llm_lightning.config.schema import DataConfig
from llm_lightning.data.encodings import texts
from llm_lightning.data.examples import BadRow
from llm_lightning.data.label_values import parse_number
from llm_lightning.data.labels import Labels
from llm_lightning.data.rows import Rows


class Encoder(texts.Encoder):
    """Encodes a text and its score."""

    one_label = False

    @staticmethod
    def find_labels(data: DataConfig, train: Rows) -> Labels | None:
        return Labels((), ())

    def label(self, classes: Labels, value: Any) -> float:
        score = parse_number(value)
        if score is None:
            column, text = self.data.columns.label, "" if value is None else str(value).strip()
            point = text.replace(",", ".")
            hint = f"; write {point}" if text.count(",") == 1 and parse_number(point) is not None else ""
            raise BadRow(f"column '{column}' " + (f"holds '{value}', which is no number{hint}" if text else "is empty"))
        return score
