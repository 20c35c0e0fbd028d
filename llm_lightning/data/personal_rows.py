"""Find the rows that hold personal data. Their kinds are kept, never the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llm_lightning.data.row_texts import RowTexts
from llm_lightning.inspection.personal_data import Finder, find_personal_data


@dataclass(frozen=True, order=True)
class PersonalRow:
    """A row with personal data of a kind."""

    split: str
    row: int
    kind: str


def find_personal_rows(splits: Mapping[str, RowTexts], find: Finder = find_personal_data) -> list[PersonalRow]:
    """Return the rows with personal data, a row once for each kind."""
    return sorted(
        {
            PersonalRow(split, start + number, finding.kind)
            for split, texts in splits.items()
            for start, block in texts.blocks()
            for number, findings in find(block)
            for finding in findings
        }
    )
