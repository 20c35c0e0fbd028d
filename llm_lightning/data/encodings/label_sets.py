"""Texts that several labels may apply to at once, or none."""

from __future__ import annotations

from typing import Any

from llm_lightning.config import DataConfig
from llm_lightning.data import labels
from llm_lightning.data.encodings import texts
from llm_lightning.data.labels import Labels
from llm_lightning.data.rows import Rows


class Encoder(texts.Encoder):
    """A text and, for each label, whether it applies."""

    one_label = False

    @staticmethod
    def find_labels(data: DataConfig, train: Rows) -> Labels | None:
        return labels.find(data, train, several)

    def label(self, known: Labels, value: Any) -> list[int]:
        applies = [0] * len(known.names)
        for one in several(value):
            applies[texts.index(known, self.data.columns.label, one)] = 1
        return applies


def several(value: Any) -> list[Any]:
    """The labels of a row: a list of them, or text with commas between; none where it is empty."""
    from llm_lightning.data.encodings import structured

    value = structured(value)
    if isinstance(value, str):
        return [part for part in map(str.strip, value.split(",")) if part]
    return [] if value is None else value if isinstance(value, list) else [value]
