"""Name the values of a label column by `data.labels`: a list in order, or a mapping from value to name."""

from __future__ import annotations

import json
import logging
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_lightning.data.label_values import canonical, fold, parse_number
from llm_lightning.errors import UserError, join_names, nearest

log = logging.getLogger(__name__)

_PLAIN = re.compile(r"\w[\w ./+-]*|…")
"""Texts that need no quotes in a mapping."""
Class = tuple[str, list[str]]
"""The name of a class, and its values; an empty list if no row of train has the class."""


@dataclass(frozen=True)
class Column:
    """The values of a label column, for messages and for comparison with names."""

    name: str
    values: Sequence[str]
    """Each value once, in the order of a list of names. If the data set names its values, these names."""

    def __str__(self) -> str:
        return f"column '{self.name}' has {len(self.values)} ({join_names(self.values)})"


def name_classes(setting: Any, column: Column) -> list[Class]:
    """Return the classes in their order. `setting` is `data.labels`.

    Raises UserError if the names do not fit the values, or if a list would give a value the name of another.
    """
    if setting is None:
        return [(value, [value]) for value in column.values]
    classes = _by_mapping(setting, column) if isinstance(setting, Mapping) else _by_list([canonical(n) for n in setting], column)
    if unused := [name for name, values in classes if not values]:
        log.warning("data.labels: no row of train has %s", join_names(unused))
    return classes


def _by_list(names: list[str], column: Column) -> list[Class]:
    if repeated := {name for name in names if names.count(name) > 1}:
        raise UserError(f"data.labels names '{min(repeated)}' twice.")
    values = set(column.values)
    if values <= set(names):
        return [(name, [name] if name in values else []) for name in names]
    numbers = [str(number) for number in range(len(names))]
    if len(values) < len(names) and "0" in values and values <= set(numbers):  # counted from 0, and some do not occur
        log.info(
            "data.labels: %s", _arrows([(number, name) for number, name in zip(numbers, names, strict=True) if number in values])
        )
        return [(name, [number] if number in values else []) for number, name in zip(numbers, names, strict=True)]
    if len(names) != len(column.values):
        raise UserError(f"data.labels names {len(names)} classes ({join_names(names)}), and {column}.")
    folded = {fold(value): value for value in column.values}
    if len(folded) == len(names) and folded.keys() == {fold(name) for name in names}:
        pairs = [(folded[fold(name)], name) for name in names]
        log.info("data.labels: %s", _arrows(pairs))
        return [(name, [value]) for value, name in pairs]
    if unchanged := values & set(names):
        raise UserError(
            f"data.labels names the value '{min(unchanged)}' of column '{column.name}' as it is and does not name "
            f"'{min(values - unchanged)}'; list every value, or map each value to its name: {mapping_example(column.values, names)}."
        )
    pairs = list(zip(column.values, names, strict=True))
    if all(parse_number(value) is not None for value in column.values):
        log.info("data.labels: %s", _arrows(pairs))
        return [(name, [value]) for value, name in pairs]
    _require_likeness(pairs, column)
    log.warning(
        "data.labels: the values of column '%s' are renamed in their sorted order: %s; if that is wrong, map them: %s",
        column.name,
        _arrows(pairs),
        mapping_example(column.values, names),
    )
    return [(name, [value]) for value, name in pairs]


def _require_likeness(pairs: list[tuple[str, str]], column: Column) -> None:
    """Raise UserError if a name would go to one value and begins like another."""
    values, names = zip(*pairs, strict=True)
    for value, name in pairs:
        alike = [other for other in values if is_like(name, other)]
        if alike and value not in alike:
            likeliest = {v: next((n for n in names if is_like(n, v)), "…") for v in values}
            raise UserError(
                f"data.labels: in the order of the values of column '{column.name}' ({join_names(values)}) '{value}' would be called "
                f"'{name}', which looks like '{alike[0]}'; map each value to its name: "
                f"{mapping_example(values, list(likeliest.values()))}."
            )


def _by_mapping(setting: Mapping[Any, Any], column: Column) -> list[Class]:
    names = {canonical(value): canonical(name) for value, name in setting.items()}
    values = set(column.values)
    if not values & names.keys() and values <= set(names.values()):
        if {*names} == set(map(str, range(len(names)))):  # id2label of a model's config
            sequence = join_names((names[str(i)] for i in range(len(names))), len(names))
            raise UserError(
                f"data.labels maps numbers to the values of column '{column.name}'; for that order: data.labels=[{sequence}]."
            )
        turned = {value: name for name, value in names.items()}
        raise UserError(
            f"data.labels maps each value to its name, not a name to its value: {mapping_example(turned, turned.values())}."
        )
    if values <= names.keys() and set(names.values()) == set(map(str, range(len(names)))) and not values & set(names.values()):
        order = sorted(names, key=lambda value: int(names[value]))
        raise UserError(
            f"data.labels maps each value to its name, not to its number; for an order: data.labels=[{', '.join(order)}]."
        )
    if empty := [value for value, name in names.items() if not name]:
        raise UserError(f"data.labels has no name for the value '{empty[0]}'.")
    if missing := [value for value in column.values if value not in names]:
        raise UserError(
            f"data.labels has no name for the value '{missing[0]}' of column '{column.name}', which has {join_names(column.values)}; "
            f"it names {join_names(names)}.{nearest(missing[0], names)}"
        )
    classes: dict[str, list[str]] = {}
    for value, name in names.items():
        classes.setdefault(name, []).extend([value] if value in values else [])
    log.info("data.labels: %s", _arrows([(value, name) for value, name in names.items() if value in values]))
    return list(classes.items())


def is_like(name: str, value: str) -> bool:
    """Return whether one text begins with the other, ignoring case: pos and Positive."""
    a, b = fold(name), fold(value)
    return a.startswith(b) or b.startswith(a)


def _arrows(pairs: Sequence[tuple[str, str]]) -> str:
    return join_names((f"{value} → {name}" for value, name in pairs), 40)


def mapping_example(values: Iterable[str], names: Iterable[str]) -> str:
    """Return the override that gives each value its name, quoted for a shell; as JSON if a text has characters of Hydra's grammar."""
    pairs = list(zip(values, names, strict=False))
    is_plain = all(_PLAIN.fullmatch(text) for pair in pairs for text in pair)
    shown = (f"{value}: {name}" if is_plain else f"{_quote(value)}: {_quote(name)}" for value, name in pairs)
    return shlex.quote(f"data.labels={{{join_names(shown, 12)}}}")


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
