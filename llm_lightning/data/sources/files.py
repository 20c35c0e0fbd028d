"""Load tables from files: csv, tsv, jsonl, json, parquet, arrow, also compressed.

All are read into one form and cached as Arrow, so that a bad row is reported with its file and line, and files of different kinds can
form one split. A column holds text, or, if one of its values is a list or an object, any JSON value. Values are not interpreted: "NA"
and "null" are words, not missing values.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import datasets

from llm_lightning.atomic_files import write_atomically
from llm_lightning.config.schema import DataConfig
from llm_lightning.data import csv_files, csv_layout, json_files, prodigy
from llm_lightning.data.alignment import align
from llm_lightning.data.csv_files import MISSING, CsvLayout
from llm_lightning.data.label_values import canonical
from llm_lightning.data.lines import describe_damage, detect_format, lines
from llm_lightning.data.parquet_files import ColumnarFile
from llm_lightning.data.paths import content_hash, ending, split_files
from llm_lightning.data.rows import (
    LINE,
    PROBLEM,
    MissingColumn,
    Rows,
    concatenate,
    label_columns,
    require_columns,
    take,
    unused_columns,
)
from llm_lightning.data.tables import generate_table
from llm_lightning.errors import UserError, join_names

__all__ = ["TABLES", "from_line", "lines", "load", "rows"]

CSV = (".csv", ".tsv", ".tab")
JSON = (".jsonl", ".ndjson", ".json")
COLUMNAR = (".parquet", ".arrow", ".feather")
TABLES = (*CSV, *JSON, *COLUMNAR)
FRONT = 1000  # values of a streamed jsonl file that are searched for its columns

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Survey:
    """The result of a pass over a whole file, or over the front of a stream."""

    columns: list[str]
    """The names of all columns."""
    nested: list[str] = field(default_factory=list)
    """Columns in which a value is a list or an object."""
    notes: list[str] = field(default_factory=list)
    layout: CsvLayout | None = None
    """The layout of a csv file; not cached, as only reading the file needs it."""
    items: list[tuple[int, Any, str | None]] | None = None
    """The values of a file that is one list, as `json_files.read_items` yields them; not cached either."""
    answers: dict[str, int] | None = None
    """The answers that leave a row of a Prodigy file out, with their number of rows; None before they were counted."""


def load(data: DataConfig, cache_dir: Path, extra_columns: tuple[str, ...] = ()) -> dict[str, Rows]:
    """Return the rows of every split, with the columns that the config names, and the `extra_columns` that a file has.

    A column of labels among `extra_columns` holds text to learn, not names: its JSON values keep their spelling.

    A test split may lack the label's column. It is returned without it, and is not evaluated.
    """
    splits = split_files(data, TABLES)
    return {split: _load_split(split, files, data, cache_dir, extra_columns) for split, files in splits.items()}


def _load_split(split: str, files: list[Path], data: DataConfig, cache_dir: Path, extra_columns: tuple[str, ...]) -> Rows:
    try:
        parts = [_read(file, data, cache_dir, extra_columns) for file in files]
        return concatenate(align(parts, label_columns(data.columns.label), cache_dir))
    except MissingColumn as missing:
        if split != "test" or missing.key != "label":
            raise
        note, column = str(missing), missing.column
    present = [name for name in label_columns(data.columns.label) if name != column]
    unlabelled = replace(data, columns=replace(data.columns, label=present or None))
    part = _load_split(split, files, unlabelled, cache_dir, extra_columns)
    return replace(part, notes=(*part.notes, note))


def _read(path: Path, data: DataConfig, cache_dir: Path, extra_columns: tuple[str, ...]) -> Rows:
    kind = kind_of(path, data)
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty.")
    identity = content_hash([path], data.columns, data.column_names, data.delimiter, data.quotes, data.encoding, extra_columns)
    folder = cache_dir / "rows" / identity
    if kind == "columnar":
        file = ColumnarFile(path, _list_configured_columns(data))
        survey, features = Survey(list(file.features)), file.features
        require_columns(str(path), data, survey.columns)
    else:
        survey, features = _load_survey(folder) or _survey(path, data, kind), {}
    survey = _with_answers(path, data, kind, survey)
    table_identity = f"{identity}-accepted" if survey.answers else identity
    used = used_columns(data, survey.columns, extra_columns)
    types = {name: features.get(name, datasets.Json() if name in survey.nested else "string") for name in used}
    types |= {name: datasets.Json() for name in used if name not in _list_configured_columns(data)}
    types |= {LINE: "int64", PROBLEM: "string"}
    text_labels = [name for name in label_columns(data.columns.label) if name in extra_columns]
    table = generate_table(
        read_rows, types, folder, table_identity, path=path, data=data, used=used, survey=survey, text_labels=text_labels
    )
    _store(survey, folder)
    if len(table) == 0 and survey.answers:
        raise UserError(f"{path}: no annotation was accepted: {prodigy.describe(survey.answers)}.")
    if len(table) == 0:
        raise UserError(f"{path}: {'the file has a header and' if kind == 'csv' else 'there are'} no rows.")
    numbers, unit = table.data.column(LINE), "line" if kind != "columnar" else "row"
    unused = unused_columns(survey.columns, [*used, prodigy.ANSWER] if survey.answers else used)
    notes = tuple(f"{path}: {note}" for note in [*survey.notes, *_describe_answers(survey, data), *unused])
    return Rows(
        table=table,
        fingerprint=table_identity,
        where=lambda i: f"{path}, {unit} {numbers[i].as_py()}",
        notes=notes,
        columns=tuple(survey.columns),
    )


def kind_of(path: Path, data: DataConfig) -> str:
    """Return whether a file is read as `csv`, `json` or `columnar`. Raises UserError for an unknown ending."""
    suffix = ending(path)
    for kind, endings in {"csv": CSV, "json": JSON, "columnar": COLUMNAR}.items():
        if suffix in endings:
            return kind
    if data.delimiter is not None and suffix in ("", ".txt", ".text", ".dat", ".data", ".psv"):
        return "csv"
    advice = {".xls": "save the sheet as csv", ".xlsx": "save the sheet as csv", ".ods": "save the sheet as csv"}
    advice |= dict.fromkeys((".zip", ".tar", ".tgz", ".7z"), "unpack it")
    advice |= dict.fromkeys(("", ".txt", ".text", ".dat", ".data", ".psv"), "plain text: data=text; a table: set data.delimiter")
    raise UserError(
        f"{path}: cannot read '{suffix}' files; data=files reads {join_names(TABLES)} ({advice.get(suffix, 'plain text: data=text')})."
    )


def used_columns(data: DataConfig, present: list[str], extra_columns: tuple[str, ...]) -> list[str]:
    """Return the columns that the config names, then the `extra_columns` that a table has."""
    configured = _list_configured_columns(data)
    return [*configured, *(name for name in extra_columns if name in present and name not in configured)]


def _list_configured_columns(data: DataConfig) -> list[str]:
    columns = (data.columns.text, data.columns.text_pair, *label_columns(data.columns.label), data.columns.sentence)
    return list(dict.fromkeys(column for column in columns if column is not None))


def _survey(path: Path, data: DataConfig, kind: str, is_to_predict: bool = False) -> Survey:
    """Find the columns of a csv or json file, or of the front of a streamed one.

    Raises UserError if a column that the config names is in no row.
    """
    notes = [*detect_format(path, data.encoding, data.streaming).notes, *describe_damage(path, data)]
    if kind == "csv":
        layout = csv_layout.detect_layout(path, data, _list_configured_columns(data), is_to_predict)
        require_columns(str(path), data, list(layout.names))
        return Survey(list(layout.names), [], [*notes, *layout.notes], layout)
    columns: dict[str, None] = {}
    nested: dict[str, None] = {}
    inner = [name for name in _list_configured_columns(data) if "." in name]
    values = json_files.read_items(path, data)
    items = None if values is None else list(values)
    for _, value, _ in islice(json_files.read_lines(path, data), FRONT if data.streaming else None) if items is None else items:
        if isinstance(value, dict):
            columns.update(dict.fromkeys(value))
            nested.update({name: None for name, item in value.items() if isinstance(item, list | dict)})
            columns.update({name: None for name in inner if take(value, name) is not None})
            nested.update({name: None for name in inner if isinstance(take(value, name), list | dict)})
    for name in inner:
        if name in columns:
            columns.pop(name.partition(".")[0], None)  # only a part of this object is used
    if columns:
        require_columns(str(path), data, list(columns))
    return Survey(list(columns), list(nested), notes, items=items)


def _with_answers(path: Path, data: DataConfig, kind: str, survey: Survey) -> Survey:
    """Return the survey with the answers of Prodigy's annotators counted, in all rows or the front of a stream."""
    if survey.answers is not None:
        return survey
    if not prodigy.has_answers(survey.columns, _list_configured_columns(data)):
        return replace(survey, answers={})
    values: Iterator[Any]
    if kind == "columnar":
        values = (row[prodigy.ANSWER] for row in ColumnarFile(path).rows([prodigy.ANSWER]))
    elif kind == "csv":
        layout = survey.layout or csv_layout.detect_layout(path, data, _list_configured_columns(data))
        place = layout.names.index(prodigy.ANSWER)
        values = (record.fields[place] for record in csv_files.read_records(path, data, layout) if record.problem is None)
    else:
        items = json_files.read_values(path, data) if survey.items is None else survey.items
        values = (value.get(prodigy.ANSWER) for _, value, _ in items if isinstance(value, dict))
    front = islice(values, FRONT if data.streaming else None)
    return replace(survey, answers=prodigy.count_answers(Counter(value if value is None else str(value) for value in front)))


def _describe_answers(survey: Survey, data: DataConfig) -> list[str]:
    """Return a note on rows that Prodigy's annotators did not accept."""
    place = f" (of its first {FRONT:,} rows; later ones too)" if data.streaming else ""
    return [f"{prodigy.describe(survey.answers)}{place}"] if survey.answers else []


def _load_survey(folder: Path) -> Survey | None:
    """Load the survey that was stored with the rows in a folder of the cache; None if it is missing."""
    try:
        return Survey(**json.loads((folder / "survey.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _store(survey: Survey, folder: Path) -> None:
    file = folder / "survey.json"
    if not file.is_file():
        content = {"columns": survey.columns, "nested": survey.nested, "notes": survey.notes, "answers": survey.answers}
        with write_atomically(file) as partial:
            partial.write_text(json.dumps(content), encoding="utf-8")


def rows(path: Path, data: DataConfig, extra_columns: tuple[str, ...] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file to predict lazily, and log how the file is read."""
    survey = survey_file(path, data, is_to_predict=True)
    for note in survey.notes:
        log.warning("%s: %s", path, note)
    yield from read_rows(path, data, used_columns(data, survey.columns, extra_columns or ()), survey)


def survey_file(path: Path, data: DataConfig, is_to_predict: bool = False) -> Survey:
    """Survey a file of any kind. Raises UserError if a column that the config names is missing."""
    kind = kind_of(path, data)
    if kind == "columnar":
        survey = Survey(list(ColumnarFile(path, _list_configured_columns(data)).features))
    else:
        survey = _survey(path, data, kind, is_to_predict)
    require_columns(str(path), data, survey.columns or _list_configured_columns(data))
    if is_to_predict:  # each row has a prediction
        return survey
    survey = _with_answers(path, data, kind, survey)
    return replace(survey, notes=[*survey.notes, *_describe_answers(survey, data)])


def read_rows(
    path: Path, data: DataConfig, used: list[str], survey: Survey, text_labels: Collection[str] = ()
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file with the columns `used`, `LINE` and `PROBLEM`; of a Prodigy file only accepted rows."""
    kind, left_out = kind_of(path, data), survey.answers or {}
    if kind == "columnar":
        columns = [*used, prodigy.ANSWER] if left_out else used
        for number, row in enumerate(ColumnarFile(path, _list_configured_columns(data)).rows(columns), 1):
            if not left_out or row.pop(prodigy.ANSWER) not in left_out:
                yield row | {LINE: number, PROBLEM: None}
    elif kind == "csv":
        layout = survey.layout or csv_layout.detect_layout(path, data, _list_configured_columns(data))
        yield from _csv_rows(path, data, used, layout, left_out)
    else:
        for number, value, problem in json_files.read_values(path, data) if survey.items is None else survey.items:
            if not left_out or not isinstance(value, dict) or str(value.get(prodigy.ANSWER)) not in left_out:
                yield _from_value(value, problem, data, number, used, survey.nested, text_labels)


def _csv_rows(
    path: Path, data: DataConfig, used: list[str], layout: CsvLayout, left_out: Collection[str]
) -> Iterator[dict[str, Any]]:
    extra = set(used) - set(_list_configured_columns(data))
    places = [(name, layout.names.index(name)) for name in used]
    answer = layout.names.index(prodigy.ANSWER) if left_out else 0
    for record in csv_files.read_records(path, data, layout):
        if left_out and record.problem is None and record.fields[answer] in left_out:
            continue
        if record.is_broken:  # after the front of a stream: a file that was surveyed whole has no such row
            raise UserError(f"{path}, line {record.line}: {record.problem}; mend the line, or leave out data.streaming.")
        if record.problem is not None:
            yield _problem(used, record.line, record.problem)
            continue
        row: dict[str, Any] = {LINE: record.line, PROBLEM: None}
        for name, place in places:
            value = record.fields[place]
            row[name] = None if value == MISSING or (name in extra and not value) else value
        yield row


def from_line(line: str, data: DataConfig, number: int, extra_columns: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the row in a line of JSON."""
    value, problem = json_files.parse(line)
    used = used_columns(data, list(value) if isinstance(value, dict) else [], extra_columns)
    return _from_value(value, problem, data, number, used, used)


def _from_value(
    value: Any,
    problem: str | None,
    data: DataConfig,
    number: int,
    used: list[str],
    nested: list[str],
    text_labels: Collection[str] = (),
) -> dict[str, Any]:
    if problem is None and not isinstance(value, dict):
        problem = f"expected an object, found {type(value).__name__}"
    if problem is not None:
        return _problem(used, number, problem)
    row: dict[str, Any] = {LINE: number, PROBLEM: None}
    configured, labels = _list_configured_columns(data), label_columns(data.columns.label)
    for name in used:
        item = take(value, name)
        if (name in labels or name == data.columns.sentence) and isinstance(item, bool | int | float):
            item = json.dumps(item) if name in text_labels else canonical(item)
        elif item is not None and not isinstance(item, str) and name in configured and name not in nested:
            return _problem(used, number, f"column '{name}' holds {type(item).__name__}, not text")
        row[name] = item
    return row


def _problem(used: list[str], number: int, problem: str) -> dict[str, Any]:
    """Return the row for a problem. It keeps no values, so that neither texts nor label names are learnt from it."""
    return {**dict.fromkeys(used), LINE: number, PROBLEM: problem}
