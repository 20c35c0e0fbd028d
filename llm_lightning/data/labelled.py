"""Splits whose labels were held back: benchmarks hide those of their test split, behind -1, empty cells or a missing column."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

from llm_lightning.config import DataConfig
from llm_lightning.data.label_values import canonical
from llm_lightning.data.labels import count_values
from llm_lightning.data.rows import Rows, column_values, label_columns
from llm_lightning.errors import UserError, listed

log = logging.getLogger(__name__)


def drop_unlabelled(splits: dict[str, Rows], data: DataConfig, is_labelled: Callable[[Any], bool]) -> dict[str, Rows]:
    """Return the splits that have labels, and train; what is left out is logged. `is_labelled` looks at the value of a row.

    Raises UserError where `data.validation` names a split without labels: it cannot choose the weights.
    """
    if data.columns.label is None:
        return splits
    labelled = {}
    for split, rows in splits.items():
        reason = None if split == "train" else _find_reason(rows, splits["train"], data.columns.label, is_labelled)
        if reason is None:
            labelled[split] = rows
        elif split == "validation" and data.validation is not None:
            raise UserError(
                f"data.validation: {rows.where(0)}: {reason}, and the weights are chosen by labels; give rows that have them, or "
                f"leave data.validation out: then a part of train is used."
            )
        else:
            effect = "a part of train is used instead" if split == "validation" else "it is not evaluated"
            log.warning("%s has no labels (%s): %s", split, reason, effect)
    return labelled


def _find_reason(rows: Rows, train: Rows, label: Any, is_labelled: Callable[[Any], bool]) -> str | None:
    """Return why a split has no labels; None where at least one row has one."""
    columns = label_columns(label)
    if absent := [column for column in columns if column not in rows.table.column_names]:
        return f"there is no column {listed(map(repr, absent))}"
    hidden = False
    for value in _values(rows, label):
        if is_labelled(value):
            return None
        hidden |= canonical(value) not in ("", "[]")
    if hidden and any(canonical(value) == "-1" for value in _values(train, label)):  # then -1 is a label
        return None
    named = f"column {listed(map(repr, columns))}"
    return f"{named} holds -1 alone, as benchmarks hide labels" if hidden else f"{named} is empty"


def _values(rows: Rows, label: Any) -> Iterator[Any]:
    """Yield the values of the label of all rows; equal ones may be left out."""
    if isinstance(label, str):
        yield from (value for value, _ in count_values(rows, label))
        return
    for block in rows.table.select_columns(label_columns(label)).iter(batch_size=1000):
        yield from column_values(block, label)
