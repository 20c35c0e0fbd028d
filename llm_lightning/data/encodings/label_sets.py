"""Encode texts to which several labels may apply at once, or none.

A row names its labels, as a list or as text with separators; or it marks each label with 0 or 1, in a list or in a column a label.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import datasets

from llm_lightning.config.schema import DataConfig
from llm_lightning.data import labels
from llm_lightning.data.encodings import texts
from llm_lightning.data.examples import BadRow
from llm_lightning.data.label_names import Column, name_classes
from llm_lightning.data.label_values import MISSING, canonical, is_unlabelled, parse_number, truth
from llm_lightning.data.labels import Labels
from llm_lightning.data.literals import BROKEN, parse_structure, split_bare
from llm_lightning.data.rows import Rows, label_columns
from llm_lightning.errors import UserError, join_names

log = logging.getLogger(__name__)

SEPARATORS = ("\n", "|", ";", ",")
"""Separators of labels, the least ambiguous first."""
MOSTLY = 0.9
"""Share of rows with lists of 0 and 1 of one length from which on a column holds such lists; the other rows are bad."""
DIGITS = re.compile(r"(?:[01](?:\.0)?|true|false)(?:[\s,;|]+(?:[01](?:\.0)?|true|false))+", re.IGNORECASE)
"""Several truth values in a row of text."""


@dataclass(frozen=True)
class LabelSetLayout:
    """The notation of labels in rows."""

    separator: str = ","
    """The separator of labels in text."""
    missing: tuple[str, ...] = MISSING
    """Texts that stand for no label."""
    indicators: int = 0
    """The length of lists of 0 and 1; 0 if rows name their labels."""

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"Layout({values})"  # cache keys hold it: it stays when the class is renamed


@dataclass(frozen=True)
class LabelSets(Labels):
    """The labels of a data set, and their notation in rows."""

    layout: LabelSetLayout = LabelSetLayout()


class Encoder(texts.Encoder):
    """Encodes a text and, for each label, whether it applies."""

    one_label = False

    @staticmethod
    def find_labels(data: DataConfig, train: Rows) -> Labels | None:
        if isinstance(data.columns.label, list):
            return _name_indicators(data, train, list(data.columns.label))
        layout = find_layout(data, train)
        if layout.indicators:
            return _name_indicators(data, train, None, layout)

        classes = labels.find(data, train, lambda value: split_labels(value, layout))
        return LabelSets(classes.names, classes.values, classes.spellings, layout)

    @staticmethod
    def is_labelled(value: Any, extra: Mapping[str, Any]) -> bool:
        return not is_unlabelled(parse_structure(value))

    def label(self, classes: Labels, value: Any) -> list[int]:
        layout = classes.layout if isinstance(classes, LabelSets) else LabelSetLayout()
        column = self.data.columns.label
        if layout.indicators:
            return read_indicators(value, layout.indicators, column, classes.values)
        applies = [0] * len(classes.names)
        for label in split_labels(value, layout):
            if isinstance(label, list | dict):
                kind = "objects" if isinstance(label, dict) else "lists"
                raise BadRow(
                    f"column '{column}' holds {kind} in a list ({str(label)[:60]}); write the labels alone: ['joy', 'anger']"
                )
            applies[texts.index(classes, column, label)] = 1
        return applies


def split_labels(value: Any, layout: LabelSetLayout) -> list[Any]:
    """Return the labels that a row names in a list, in an object {label: whether it applies}, or in text with separators.

    Raises BadRow if an object has another value than 0 or 1 for a label, or if the text begins a list that it does not end.
    """
    value = parse_structure(value)
    if isinstance(value, dict) and set(value) == {"choices"}:  # of Label Studio
        value = value["choices"]
    if isinstance(value, dict):
        if wrong := next((label for label, applies in value.items() if truth(applies) is None), None):
            raise BadRow(f"the label '{wrong}' has {value[wrong]!r}, which is neither 0 nor 1")
        return [label for label, applies in value.items() if truth(applies)]
    if isinstance(value, list):
        return value
    if not isinstance(value, str):
        return [] if not canonical(value) else [value]
    text = value.strip()
    if text in layout.missing:
        return []
    if (items := split_bare(text)) is not None:
        return items
    if BROKEN.match(text):
        raise BadRow(f"the labels {text!r} cannot be read as a list")
    return [part for part in map(str.strip, text.split(layout.separator)) if part]


def read_indicators(value: Any, count: int, column: Any, names: Iterable[str]) -> list[int]:
    """Return for each label 0 or 1. Raises BadRow for another number of values, and for values other than 0 and 1."""
    items = indicators(value)
    columns = column if isinstance(column, list) else None
    if not isinstance(items, list) or len(items) != count:
        content = f"{len(items)} values" if isinstance(items, list) else f"'{value}'"
        raise BadRow(f"column '{column}' holds {content}, not the {count} values 0 or 1 of the labels {join_names(names)}")
    for place, item in enumerate(items):
        if truth(item) is None:
            where = f"column '{columns[place]}'" if columns else f"column '{column}', value {place + 1}"
            raise BadRow(
                f"{where} is empty; write 0 or 1" if not canonical(item) else f"{where} holds '{item}', which is neither 0 nor 1"
            )
    return [int(bool(truth(item))) for item in items]


def indicators(value: Any) -> Any:
    """Return a value as a list if it may be a list of 0 and 1; else the value."""
    value = parse_structure(value)
    if isinstance(value, str) and DIGITS.fullmatch(value.strip()):
        return re.split(r"[\s,;|]+", value.strip())
    return value


def _are_measures(items: list[Any]) -> bool:
    """Return whether a list holds measurements, and not numbers of labels: a number repeats, is missing, or is a fraction."""
    numbers = [parse_number(item) for item in items]
    if None in numbers and not all(item is None or number is not None for item, number in zip(items, numbers, strict=True)):
        return False
    return len(set(numbers)) < len(numbers) or None in numbers or any(number % 1 for number in numbers if number is not None)


def find_layout(data: DataConfig, train: Rows) -> LabelSetLayout:
    """Return the notation of labels in the column: lists of 0 and 1, or names with a separator.

    Of several separators that occur, the one that gives the fewest different labels wins. Any other notation than a plain list is
    logged with its count.
    """
    column = data.columns.label
    declared = {canonical(name) for name in data.labels or ()}
    missing = tuple(text for text in MISSING if text not in declared)
    sizes: Counter[int] = Counter()
    absent: Counter[str] = Counter()
    binary, repeats, rows, single = 0, False, 0, 0
    measured: list[Any] | None = None
    """A list of numbers that name no labels."""
    with_separator: Counter[str] = Counter()
    pieces: dict[str, set[str]] = {separator: set() for separator in SEPARATORS}
    feature = train.table.features[column]
    are_names = isinstance(getattr(feature, "feature", feature), datasets.ClassLabel)
    for value, count in labels.count_values(train, column):
        items = indicators(value)
        single += count if not isinstance(items, list) and truth(items) is not None else 0
        if isinstance(items, list):
            numbers = [truth(item) for item in items]
            sizes[len(items)] += count if items else 0
            binary += count if items and None not in numbers else 0
            repeats |= len(items) != len(set(map(canonical, items)))
            measured = measured or (items if _are_measures(items) else None)
            rows += count if items else 0
        elif isinstance(items, str) and items.strip():
            rows += count
            if items.strip() in missing:
                absent[items.strip()] += count
            if items.strip() in missing or split_bare(items) is not None:
                continue
            for separator in SEPARATORS:
                with_separator[separator] += count if separator in items else 0
                pieces[separator].update(part.strip() for part in items.split(separator))
    if single and single == len(train) and not declared and not are_names:
        raise UserError(
            f"{train.where(0)}: column '{column}' says of one label whether it applies: list the columns of all labels, "
            f"'data.columns.label=[{column},…]', or choose objective=classification."
        )
    size, same = sizes.most_common(1)[0] if sizes else (0, 0)
    if measured is not None and len(sizes) == 1 and size > 1 and binary < MOSTLY * rows and not are_names:
        raise UserError(
            f"{train.where(0)}: column '{column}' holds lists of {size} numbers a row that are neither 0 and 1 nor numbers of labels "
            f"({str(measured)[:60]}); objective=multi_label learns lists of 0 and 1, or lists of the labels that apply."
        )
    if not are_names and size > 1 and min(same, binary) >= MOSTLY * rows and (repeats or len(sizes) == 1):
        return LabelSetLayout(missing=missing, indicators=size)
    present = [separator for separator in SEPARATORS if with_separator[separator]]
    separator = min(present, key=lambda s: len(pieces[s]), default=",")
    if absent:
        spelled = join_names(f"'{text}' ({count:,} rows of train)" for text, count in absent.items())
        log.warning("column '%s' holds %s: no label applies to these rows", column, spelled)
    if not present and rows and not sum(sizes.values()) and any(len(value.split()) > 1 for value in pieces[","]):
        example = next(value for value in sorted(pieces[","]) if len(value.split()) > 1)
        log.warning(
            "column '%s': no row of train has more than one label (such as '%s'): blanks and other signs are parts of labels; what "
            "separates labels is a comma, a semicolon, a bar or a line end",
            column,
            example,
        )
    if separator != "," or len(present) > 1:
        others = [f"{s!r} is part of a label in {with_separator[s]:,}" for s in present if s != separator]
        log.warning(
            "column '%s': %r stands between labels (in %s rows of train)%s",
            column,
            separator,
            f"{with_separator[separator]:,}",
            "".join(f"; {other}" for other in others),
        )
    return LabelSetLayout(separator=separator, missing=missing)


def _name_indicators(data: DataConfig, train: Rows, columns: list[str] | None, layout: LabelSetLayout | None = None) -> LabelSets:
    """Return the labels of lists of 0 and 1, in their order; `columns` are the names if each label is a column."""
    if columns is None:
        assert layout is not None
        count = layout.indicators
        if data.labels is None:
            raise UserError(
                f"{train.where(0)}: column '{data.columns.label}' holds lists of 0 and 1, {count} a row: name the labels with data.labels, "
                f"a list of {count} in the order of the lists."
            )
        if len(data.labels) != count:
            raise UserError(
                f"data.labels names {len(data.labels)} labels ({join_names(map(str, data.labels))}), and the lists of 0 and 1 in column "
                f"'{data.columns.label}' have {count}."
            )
        columns = [str(i) for i in range(count)]
    setting = data.labels
    if isinstance(setting, list | tuple) and len(setting) == len(columns) and not {*map(canonical, setting)} & {*columns}:
        setting = dict(zip(columns, setting, strict=True))  # in the order of the columns, or of the lists
    name = ", ".join(label_columns(data.columns.label))
    classes = name_classes(setting, Column(name, columns))
    named_labels = labels.make_labels(classes, {}, name)
    if [values for _, values in classes] != [[column] for column in columns]:
        raise UserError(f"data.labels: give each of {join_names(columns)} one name, in this order.")
    return LabelSets(named_labels.names, named_labels.values, named_labels.spellings, LabelSetLayout(indicators=len(columns)))
