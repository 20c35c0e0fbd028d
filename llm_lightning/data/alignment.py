"""Give the files of one split the same columns with the same types, by the meaning of their values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import xxhash

from llm_lightning.data.label_values import MISSING, canonical, parse_number
from llm_lightning.data.rows import Rows
from llm_lightning.data.tables import generate_table
from llm_lightning.errors import UserError, join_names

MANY = 50  # different values; a column with more holds text, not labels


def align(parts: list[Rows], labels: list[str], cache_dir: Path) -> list[Rows]:
    """Return the parts with equal columns and types, so that they form one table; `labels` are the columns of labels.

    A column that a part lacks is empty there. If types differ, labels become text, as in csv and json files (classes of a data set become
    their names, or their numbers if the other files have numbers), and other values become JSON. Raises UserError if labels are numbers
    in one file and words in another, as no file maps numbers to words.
    """
    if all(part.table.features == parts[0].table.features for part in parts):
        return parts
    columns = list(dict.fromkeys(name for part in parts for name in part.table.column_names))
    types = {name: _common_type(name, parts, name in labels) for name in columns}
    return [_convert(part, types, cache_dir) for part in parts]


def _common_type(name: str, parts: list[Rows], is_label: bool) -> Any:
    present = [part.table.features[name] for part in parts if name in part.table.features]
    if all(feature == present[0] for feature in present):
        return (
            present[0] if len(present) == len(parts) or isinstance(present[0], datasets.Value | datasets.Json) else datasets.Json()
        )
    if not is_label or not all(isinstance(feature, datasets.Value | datasets.ClassLabel) for feature in present):
        return datasets.Json()
    if all(isinstance(feature, datasets.ClassLabel) or feature.dtype != "string" for feature in present):
        classes = [feature for feature in present if isinstance(feature, datasets.ClassLabel)]
        if classes and all(feature == classes[0] for feature in classes):
            return classes[0]
        return datasets.Value("string")
    _require_same_labels(name, parts)
    return datasets.Value("string")


def _require_same_labels(name: str, parts: list[Rows]) -> None:
    """Raise UserError if one file has unnamed numbers as labels, and another has words."""
    numbers: tuple[Rows, list[str]] | None = None
    words: tuple[Rows, list[str]] | None = None
    for part in parts:
        feature = part.table.features[name]
        if isinstance(feature, datasets.ClassLabel):
            continue
        values = sorted({canonical(value) for value in part.table.unique(name)} - {"", *MISSING})
        if not values or len(values) > MANY:
            continue
        if all(parse_number(value) is not None for value in values):
            numbers = numbers or (part, values)
        elif not any(parse_number(value) is not None for value in values):
            words = words or (part, values)
    if numbers and words:
        raise UserError(
            f"column '{name}' has numbers at {numbers[0].where(0)} ({join_names(numbers[1], 4)}), and words at {words[0].where(0)} "
            f"({join_names(words[1], 4)}): nothing says which word a number is; write the same labels in both files."
        )


def _convert(part: Rows, types: dict[str, Any], cache_dir: Path) -> Rows:
    features = part.table.features
    if all(features.get(name) == feature for name, feature in types.items()):
        return replace(part, table=part.table.select_columns(list(types)))
    identity = xxhash.xxh3_128(f"{part.fingerprint} {types}".encode()).hexdigest()
    folder = cache_dir / "rows" / part.fingerprint
    return replace(part, table=generate_table(_converted_rows, types, folder, identity, table=part.table, target=types))


def _converted_rows(table: datasets.Dataset, target: dict[str, Any]) -> Iterator[dict[str, Any]]:
    features = table.features
    for batch in table.iter(1000):
        values = {
            name: _convert_values(batch[name], features[name], feature)
            if name in features
            else [None] * len(next(iter(batch.values())))
            for name, feature in target.items()
        }
        yield from (dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True))


def _convert_values(values: list[Any], before: Any, after: Any) -> list[Any]:
    if before == after or isinstance(after, datasets.ClassLabel):
        return values
    if isinstance(before, datasets.ClassLabel):
        return [None if value is None else before.int2str(value) if value >= 0 else str(value) for value in values]
    if isinstance(after, datasets.Value) and after.dtype == "string":
        return [None if value is None else canonical(value) if not isinstance(value, str) else value for value in values]
    return values
