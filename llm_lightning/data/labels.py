"""Label names: from the config, from the data set's own features, or from the values in the training split."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import datasets

from llm_lightning.config import DataConfig
from llm_lightning.data.rows import PROBLEM, Rows
from llm_lightning.errors import UserError, listed


def canonical(value: Any) -> str:
    """A label value as text: the same for 1, 1.0, "1" and true; empty where there is none (null, NaN)."""
    if value is None or value != value:
        return ""
    if isinstance(value, bool | int | float) and float(value).is_integer():
        return str(int(value))
    text = str(value).strip()
    whole, dot, zeros = text.partition(".")
    return whole if dot and whole.lstrip("-").isdigit() and zeros.strip("0") == "" else text


@dataclass(frozen=True)
class Labels:
    """The classes: `names` for people and exports, `values` as they stand in the data, in the same order."""

    names: tuple[str, ...]
    values: tuple[str, ...]

    def index(self, value: Any) -> int | None:
        """Class index of a raw value (given as a value or as a name); None where it is neither."""
        return self._indices.get(canonical(value))

    @cached_property
    def _indices(self) -> dict[str, int]:
        """The class index of each value and name, built once: no field, so that `repr`, a part of cache keys, stays as it is."""
        named = {name: i for i, name in reversed(list(enumerate(self.names)))}  # of equal ones the first counts
        return named | {value: i for i, value in reversed(list(enumerate(self.values)))}


def find(
    data: DataConfig,
    train: Rows,
    several: Callable[[Any], Iterable[Any]] | None = None,
    complete: Callable[[set[str]], set[str]] = lambda found: found,
) -> Labels:
    """The classes of a data set. Where a row may have `several`, that takes its value apart; `complete` adds those that follow.

    Raises UserError where there is only one class, or where `data.labels` does not fit the values found.
    """
    column = data.columns.label
    assert column is not None
    feature = train.table.features[column]
    feature = getattr(feature, "feature", feature) if several else feature  # that of a list's items
    if isinstance(feature, datasets.ClassLabel):
        values = tuple(str(i) for i in range(feature.num_classes))
        if data.labels is not None and len(data.labels) != len(values):
            raise UserError(
                f"data.labels names {len(data.labels)} classes ({listed(data.labels)}), and the data set has {len(values)} "
                f"({listed(feature.names)})."
            )
        return Labels(names=tuple(data.labels or feature.names), values=values)
    if several is None and not isinstance(feature, datasets.Value):
        raise UserError(f"{train.where(0)}: column '{column}' holds lists; objective=multi_label learns several labels a row.")
    found = complete(
        {canonical(one) for value in _different(train, column) for one in (several(value) if several else [value])} - {""}
    )
    values = tuple(sorted(found, key=_by_value))
    if len(values) < 2:
        _raise_first_problem(train)
        what = f"only the label '{values[0]}'" if values else "no label"
        raise UserError(f"{train.where(0)}: column '{column}' of train has {what}; classification needs at least two classes.")
    if data.labels is None and len(values) > max(10, len(train) // 2):
        raise UserError(
            f"{train.where(0)}: column '{column}' has {len(values)} different values in {len(train)} rows, so it is no label; set "
            f"data.columns.label to the column that is, or list the classes in data.labels."
        )
    if data.labels is None:
        return Labels(names=values, values=values)
    if found <= set(data.labels):
        return Labels(names=tuple(data.labels), values=tuple(data.labels))
    if len(data.labels) != len(values):
        raise UserError(
            f"data.labels names {len(data.labels)} classes ({listed(data.labels)}), "
            f"and column '{column}' has {len(values)} ({listed(values)})."
        )
    return Labels(names=tuple(data.labels), values=values)


def _different(train: Rows, column: str) -> Iterable[Any]:
    """The values of a column; each once, where they are plain ones."""
    plain = isinstance(train.table.features[column], datasets.Value)
    return train.table.unique(column) if plain else train.table[column]


def _raise_first_problem(train: Rows) -> None:
    """Malformed rows may be why there are no labels."""
    problems = train.table[PROBLEM][:] if PROBLEM in train.table.column_names else []
    for row, problem in enumerate(problems):
        if problem is not None:
            raise UserError(f"{train.where(row)}: {problem}; without such rows there are not two classes.")


def _by_value(value: str) -> tuple[int, float, str]:
    """Numbers first, by size; then text."""
    try:
        return (0, float(value), value)
    except ValueError:
        return (1, 0.0, value)
