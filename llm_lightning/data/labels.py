"""Find the labels of a data set: by the config, by the data set's features, or by the values in the training split."""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import datasets

from llm_lightning.config.schema import DataConfig
from llm_lightning.data.examples import BadRow
from llm_lightning.data.label_names import Class, Column, mapping_example, name_classes
from llm_lightning.data.label_values import MISSING, TRUTH, canonical, fold, is_invisible, parse_number, strip_invisible, truth
from llm_lightning.data.literals import parse_literal
from llm_lightning.data.rows import PROBLEM, Rows
from llm_lightning.errors import UserError, join_names

log = logging.getLogger(__name__)

MANY = 10
"""Number of classes up to which a column counts as labels, whatever its number of rows."""
SENTENCE, LONG = 4, 40
"""Average words and characters of a value, from which on a column of hardly repeated values holds text."""
UNDECIDED = ("-", "--", "?")
"""Labels of undecided rows, as in SNLI. As tags of words they may stand outside of spans."""
BLOCK = 10_000  # values that are counted at a time
SHOWN = 5  # groups of labels that are named in a warning


@dataclass(frozen=True)
class Labels:
    """The classes: `names` for people and exports, `values` as written in the data, in the same order."""

    names: tuple[str, ...]
    values: tuple[str, ...]
    spellings: tuple[tuple[str, int], ...] = ()
    """Further values, each with the index of its class."""

    def index(self, value: Any) -> int | None:
        """Return the class index of a raw value, which is a value or a name; None for other values."""
        return self._indices.get(canonical(value))

    @cached_property
    def _indices(self) -> dict[str, int]:
        """The class index of each value and name, built once. It is not a field, so that `repr`, a part of cache keys, does not change."""
        indices = {name: i for i, name in reversed(list(enumerate(self.names)))}  # of equal names the first counts
        indices |= {value: i for i, value in reversed(list(enumerate(self.values)))} | dict(self.spellings)
        if _is_boolean(self.values):
            place = {truth(value): i for i, value in enumerate(self.values)}
            for text, is_true in TRUTH.items():
                for spelling in (text, text.title(), text.upper()):
                    indices.setdefault(spelling, place[is_true])
        return indices


def find(
    data: DataConfig,
    train: Rows,
    several: Callable[[Any], Iterable[Any]] | None = None,
    complete: Callable[[set[str]], set[str]] = lambda values: values,
) -> Labels:
    """Return the classes of a data set. `several` splits the value of a row with several labels; `complete` adds implied classes.

    Raises UserError for a single class, and if `data.labels` does not fit the values of the column.
    """
    column = data.columns.label
    assert column is not None
    feature = train.table.features[column]
    feature = getattr(feature, "feature", feature) if several else feature  # the feature of a list's items
    if isinstance(feature, datasets.ClassLabel):
        return _of_features(data, feature.names, column)
    if several is None and not isinstance(feature, datasets.Value):
        raise UserError(f"{train.where(0)}: column '{column}' holds {_describe_lists(train, column)}.")
    counts = count_labels(train, column, several)
    if several is None:
        _require_plain(train, column, counts)
    merged = _merge_booleans(complete(set(counts)), counts, column)
    if len(merged) < 2:
        _raise_first_problem(train, column, several)
        what = f"only the label '{next(iter(merged))}'" if merged else "no label"
        raise UserError(f"{train.where(0)}: column '{column}' of train has {what}; classification needs at least two classes.")
    if data.labels is None:
        _require_labels(train, column, counts, several is not None)
    key: Callable[[str], Any] = truth if _is_boolean(merged) else _by_value
    classes = name_classes(data.labels, Column(column, sorted(merged, key=key)))
    _name_doubts(counts, merged, classes, column, (*MISSING, *UNDECIDED) if several is None else MISSING)
    return make_labels(classes, merged, column)


def make_labels(classes: list[Class], merged: dict[str, list[str]], column: str) -> Labels:
    """Build the labels of named classes. `merged` holds further spellings of each value. Raises UserError for a single class."""
    if len(classes) < 2:
        raise UserError(f"column '{column}' has only the class '{classes[0][0]}'; classification needs at least two.")
    first = tuple(values[0] if values else name for name, values in classes)
    spellings = [
        (spelling, i)
        for i, (_, values) in enumerate(classes)
        for value in values
        for spelling in [value, *merged.get(value, [])]
        if spelling != first[i]
    ]
    return Labels(names=tuple(name for name, _ in classes), values=first, spellings=tuple(spellings))


def count_labels(rows: Rows, column: str, several: Callable[[Any], Iterable[Any]] | None = None) -> Counter[str]:
    """Return how often each label occurs; `several` splits the value of a row."""
    counts: Counter[str] = Counter()
    padded = 0
    for value, count in count_values(rows, column):
        padded += count if several is None and isinstance(value, str) and value != strip_invisible(value) else 0
        try:
            names = several(value) if several else [value]
        except BadRow:  # reported, or counted, when the row is read
            continue
        for name in names:
            counts[canonical(name)] += count
    if padded:
        log.warning("column '%s' has blanks or invisible characters around %s labels; they do not count", column, f"{padded:,}")
    del counts[""]
    return counts


def count_values(rows: Rows, column: str) -> Iterator[tuple[Any, int]]:
    """Yield (value, count) of a column; a value may come again. Memory is bounded by a block of the table."""
    import pyarrow.compute as pc

    table = rows.table.select_columns([column])
    if not isinstance(rows.table.features[column], datasets.Value | datasets.ClassLabel):
        for block in table.iter(batch_size=BLOCK):
            yield from ((value, 1) for value in block[column])
        return
    for block in table.with_format("arrow").iter(batch_size=BLOCK):
        yield from ((pair["values"], pair["counts"]) for pair in pc.value_counts(block[column]).to_pylist())


def _of_features(data: DataConfig, names: list[str], column: str) -> Labels:
    """Return the labels of a data set with named numbers; `data.labels` may map the names or the numbers."""
    numbers = {name: str(i) for i, name in enumerate(names)}
    setting = data.labels
    if isinstance(setting, dict):
        setting = {names[int(v)] if (v := canonical(value)) in numbers.values() else v: name for value, name in setting.items()}
    elif setting is not None and len(setting) != len(names):
        raise UserError(
            f"data.labels names {len(setting)} classes ({join_names(map(str, setting))}), "
            f"and the data set has {len(names)} ({join_names(names)})."
        )
    classes = name_classes(setting, Column(column, [canonical(name) for name in names]))
    numbered = [(name, [numbers.get(value, value) for value in values]) for name, values in classes]
    return make_labels(numbered, {}, column)


def _require_plain(train: Rows, column: str, counts: Counter[str]) -> None:
    """Raise UserError if each value is a list, or an object, written as text."""
    kinds = {type(parse_literal(value)) for value in counts}
    if len(kinds) == 1 and kinds <= {list, dict}:
        example, kind = next(iter(counts)), "lists" if list in kinds else "objects"
        raise UserError(
            f"{train.where(0)}: column '{column}' holds {kind} as text ({_cut(example)}); write the label alone, or choose "
            f"objective=multi_label, which learns several labels a row."
        )


def _describe_lists(train: Rows, column: str) -> str:
    """Return a clause on values that are neither text nor numbers, with advice."""
    if any(isinstance(value, dict) for value in train.table[column]):
        return "objects, not labels; objects {label: whether it applies} are learnt by objective=multi_label"
    if all(len(value) == 1 for value in train.table[column] if isinstance(value, list)):
        return "lists, of one label each; write the label without a list (pandas: df[column].str[0])"
    return "lists; objective=multi_label learns several labels a row, and objective=tagging a tag for each word"


def _require_labels(train: Rows, column: str, counts: Counter[str], has_several: bool) -> None:
    """Raise UserError if the values are text or measurements, not labels; warn of many values for the number of rows."""
    total = sum(counts.values())
    if len(counts) <= max(MANY, total // 2):
        return
    words, size = (sum(map(measure, counts)) / len(counts) for measure in (lambda value: len(value.split()), len))
    unit = "labels" if has_several else "rows"
    number = f"{train.where(0)}: column '{column}' has {len(counts)} different values in {total} {unit}"
    if words >= SENTENCE or size > LONG:
        raise UserError(
            f"{number}, and they read like text ('{_cut(next(iter(counts)))}'); set data.columns.label to the labels' column, "
            f"or list the classes in data.labels."
        )
    if not has_several and all(parse_number(value) is not None for value in counts) and any("." in value for value in counts):
        raise UserError(f"{number}, and they are numbers: objective=regression learns those; or list the classes in data.labels.")
    log.warning("%s: many classes for so little data; if they are no labels, set data.columns.label to another column", number)


def _merge_booleans(values: set[str], counts: Counter[str], column: str) -> dict[str, list[str]]:
    """Return each value with its further spellings. Values that are all true or false become one value each."""
    if not values or _is_boolean(values) or not all(truth(value) is not None for value in values):
        return {value: [] for value in values}
    merged: dict[str, list[str]] = {}
    for is_true in (False, True):
        spellings = sorted((v for v in values if truth(v) is is_true), key=lambda v: (-counts[v], v))
        if spellings:
            merged[spellings[0]] = spellings[1:]
    log.warning("column '%s' writes true and false in several ways, which are the same: %s", column, _numbers(counts))
    return merged


def _name_doubts(counts: Counter[str], values: Iterable[str], classes: list[Class], column: str, missing: Iterable[str]) -> None:
    """Warn of classes that differ only in case or blanks, and of classes named like a missing value."""
    of_value = {value: name for name, values in classes for value in values}
    alike: dict[str, list[str]] = defaultdict(list)
    present = [value for value in values if counts[value]]  # without tags that only their scheme implies
    for value in sorted(present, key=lambda value: (-counts[value], value)):
        alike[fold(value)].append(value)
    groups = [group for group in alike.values() if len({of_value[value] for value in group}) > 1]
    if groups:
        commonest = {value: group[0] for group in alike.values() for value in group}
        log.warning(
            "column '%s' of train has labels that differ only in case, blanks or the like: %s; they are different classes. "
            "To make them one: %s",
            column,
            "; ".join(" and ".join(f"{_show(value)} ({counts[value]:,})" for value in group) for group in groups[:SHOWN]),
            mapping_example(commonest, commonest.values()),
        )
    for value in missing:
        if of_value.get(value) == value:
            log.warning(
                "column '%s' of train has the label '%s' (%s times), as programs write a value that is missing; it is a class",
                column,
                value,
                f"{counts[value]:,}",
            )


def _raise_first_problem(train: Rows, column: str, several: Callable[[Any], Iterable[Any]] | None) -> None:
    """Raise UserError for the first malformed row, as such rows may be the reason for missing labels."""
    problems = train.table[PROBLEM][:] if PROBLEM in train.table.column_names else []
    for row, problem in enumerate(problems):
        if problem is not None:
            raise UserError(f"{train.where(row)}: {problem}; without such rows there are not two classes.")
    for row, value in enumerate(train.table[column] if several else []):
        try:
            several(value)  # type: ignore[misc]
        except BadRow as problem:
            raise UserError(f"{train.where(row)}: {problem}; without such rows there are not two classes.") from None


def _is_boolean(values: Iterable[str]) -> bool:
    return sorted(str(truth(value)) for value in values) == ["False", "True"]


def _by_value(value: str) -> tuple[int, float, list[Any], str]:
    """Return a sort key: numbers by size, then text, with the numbers in it by size: class9 before class10."""
    parsed = parse_number(value)
    if parsed is not None:
        return 0, parsed, [], value
    parts = re.split(r"(\d+)", value)  # text and digits in turn, so that like is compared with like
    return 1, 0.0, [int(part) if i % 2 else part for i, part in enumerate(parts)], value


def _show(value: str) -> str:
    """Return a label in quotes, with codes for invisible characters."""
    return repr(value) if any(is_invisible(character) and character != " " for character in value) else f"'{value}'"


def _numbers(counts: Counter[str]) -> str:
    return join_names(f"'{value}' ({count:,})" for value, count in counts.most_common())


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}…"
