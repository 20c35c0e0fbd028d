"""Drop splits whose labels were held back: benchmarks hide the labels of their test split by -1, empty cells or a missing column."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from llm_lightning.config.schema import DataConfig
from llm_lightning.data.label_values import canonical, is_unlabelled
from llm_lightning.data.labels import count_values
from llm_lightning.data.rows import PROBLEM, Rows, column_values, label_columns
from llm_lightning.errors import UserError, join_names

if TYPE_CHECKING:
    from llm_lightning.data.encodings import Encoding

log = logging.getLogger(__name__)


def drop_unlabelled(splits: dict[str, Rows], data: DataConfig, encoding: type[Encoding]) -> dict[str, Rows]:
    """Return the splits that have labels, and log the others. `encoding` distinguishes labels from signs of a missing label.

    Raises UserError if train has no labels, or if `data.validation` names a split without labels, which cannot choose the weights.
    """
    if data.columns.label is None:
        return splits
    labelled = {}
    for split, rows in splits.items():
        reason = _find_reason(rows, splits["train"], data.columns.label, encoding)
        if reason is None:
            labelled[split] = rows
        elif split == "train":
            raise UserError(f"{rows.where(0)}: {reason}: train has no labels, so there is nothing to learn.")
        elif split == "validation" and data.validation is not None:
            raise UserError(
                f"data.validation: {rows.where(0)}: {reason}, and the weights are chosen by labels; give rows with labels, or "
                f"leave data.validation out: then a part of train is used. task=predict reads files without labels."
            )
        else:
            effect = "a part of train is used instead" if split == "validation" else "it is not evaluated"
            log.warning("%s has no labels (%s): %s", split, reason, effect)
    return labelled


def _find_reason(rows: Rows, train: Rows, label: Any, encoding: type[Encoding]) -> str | None:
    """Return why a split has no labels; None if a row has one, or is malformed, which is reported when the row is read."""
    columns = label_columns(label)
    if absent := [column for column in columns if column not in rows.table.column_names]:
        return f"there is no column {join_names(map(repr, absent))}"
    if PROBLEM in rows.table.column_names and rows.table.data.column(PROBLEM).null_count < len(rows):
        return None
    signs: set[str] = set()
    for value, extra in _values(rows, label, encoding.extra_columns):
        if encoding.is_labelled(value, extra):
            return None
        signs |= set(_flatten(value)) if is_unlabelled(value) else set()
    if signs and any(signs & set(_flatten(value)) for value, _ in _values(train, label, ())):  # then -1, or None, is a label
        return None
    label_column = f"column {join_names(map(repr, columns))}"
    return (
        f"{label_column} holds {join_names(sorted(signs))} alone, as benchmarks hide labels"
        if signs
        else f"{label_column} is empty"
    )


def _flatten(value: Any) -> Iterator[str]:
    """Yield the items of a value that may be a list, as text, without empty ones."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from _flatten(item)
    elif name := canonical(value):
        yield name


def _values(rows: Rows, label: Any, extra_columns: tuple[str, ...]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield (value of the label, values of the extra columns) of all rows; repeated pairs may be left out."""
    extra = [name for name in extra_columns if name in rows.table.column_names]
    if isinstance(label, str) and not extra:
        yield from ((value, {}) for value, _ in count_values(rows, label))
        return
    for block in rows.table.select_columns([*label_columns(label), *extra]).iter(batch_size=1000):
        for i, value in enumerate(column_values(block, label)):
            yield value, {name: block[name][i] for name in extra if block[name][i] is not None}
