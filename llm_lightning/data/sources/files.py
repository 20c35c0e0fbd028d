"""Tables in files: csv, tsv, jsonl, json, parquet, arrow.

csv and jsonl are read here line by line, so that a bad row is reported with its file and line, then kept as Arrow in the cache;
parquet and arrow are read by `datasets` as they are. Every value is taken as it stands: "NA" and "null" are words, not gaps.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import datasets

from llm_lightning.config import DataConfig
from llm_lightning.data.labels import canonical
from llm_lightning.data.paths import content_hash, split_files
from llm_lightning.data.rows import LINE, PROBLEM, Rows, joined, require_columns
from llm_lightning.data.tables import generated
from llm_lightning.errors import UserError, listed

TABLES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".arrow")
csv.field_size_limit(2**31 - 1)  # the default, 128 KiB, refuses long documents


def load(data: DataConfig, cache_dir: Path, extra_columns: tuple[str, ...] = ()) -> dict[str, Rows]:
    """Rows of every split, with the columns that the config names."""
    return {split: joined([_read(f, data, cache_dir) for f in files]) for split, files in split_files(data, TABLES).items()}


def _read(path: Path, data: DataConfig, cache_dir: Path) -> Rows:
    kind = path.suffix.lower()
    if kind not in TABLES:
        raise UserError(f"{path}: cannot read '{kind}' files; data=files reads {listed(TABLES)} (plain text: data=text).")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty.")
    identity = content_hash([path], data.columns, data.column_names, data.delimiter, data.quotes)
    if kind in (".parquet", ".arrow"):
        return _arrow(path, data, identity, cache_dir)
    lists = _lists(path, data)
    types = {column: datasets.Json() if column in lists else "string" for column in _wanted(data)} | {
        LINE: "int64",
        PROBLEM: "string",
    }
    table = generated(rows, types, cache_dir / "rows" / identity, identity, path=path, data=data, lists=lists)
    if len(table) == 0:
        raise UserError(f"{path}: the file has a header and no rows.")
    lines = table.data.column(LINE)
    return Rows(table=table, fingerprint=identity, where=lambda i: f"{path}, line {lines[i].as_py()}")


def rows(path: Path, data: DataConfig, lists: Collection[str] | None) -> Iterator[dict[str, Any]]:
    """The file's rows; lists and objects may be in the columns `lists`, or, where that is None, in any."""
    readers = {".jsonl": _jsonl, ".json": _json}
    return readers.get(path.suffix.lower(), _csv)(path, data, lists)


def _lists(path: Path, data: DataConfig) -> list[str]:
    """The columns that hold lists or objects, as the first row has them."""
    if path.suffix.lower() not in (".json", ".jsonl"):
        return []
    first = next((row for row in rows(path, data, None) if row[PROBLEM] is None), {})
    return [column for column in _wanted(data) if isinstance(first.get(column), list | dict)]


def _wanted(data: DataConfig) -> list[str]:
    columns = (data.columns.text, data.columns.text_pair, data.columns.label)
    return [column for column in columns if column is not None]


def lines(path: Path) -> Iterator[str]:
    """The file's lines as text; a byte that is not UTF-8 is an error that names the line."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                if number == 1 and line[:2] in (b"\xff\xfe", b"\xfe\xff"):
                    raise UserError(f"{path}: this is UTF-16; convert the file (iconv -f utf-16 -t utf-8).") from None
                raise UserError(
                    f"{path}, line {number}: byte 0x{line[error.start]:02x} is not UTF-8; convert the file "
                    f"(iconv -f latin1 -t utf-8, for example)."
                ) from None


def _csv(path: Path, data: DataConfig, lists: Collection[str] | None) -> Iterator[dict[str, Any]]:
    delimiter = (data.delimiter or "").replace("\\t", "\t") or ("\t" if path.suffix.lower() == ".tsv" else ",")
    quoting: Any = csv.QUOTE_MINIMAL if data.quotes else csv.QUOTE_NONE
    reader = csv.reader(lines(path), delimiter=delimiter, quoting=quoting, strict=True)
    try:
        names = data.column_names or next(reader)
        require_columns(str(path), data, names)
        for number, fields in enumerate(reader):
            if number == 0 and fields == data.column_names:
                raise UserError(f"{path}: the first line names the columns; leave out data.column_names.")
            if not fields:  # a blank line is no row
                continue
            if len(fields) != len(names):
                yield _problem(data, reader.line_num, f"{len(fields)} fields where there should be {len(names)}")
                continue
            row = dict(zip(names, fields, strict=True))
            yield {column: row[column] for column in _wanted(data)} | {LINE: reader.line_num, PROBLEM: None}
    except StopIteration:
        return
    except csv.Error as error:
        raise UserError(
            f"{path}, line {reader.line_num}: {error}; if double quotes are plain characters in this file, set data.quotes=false."
        ) from None


def _jsonl(path: Path, data: DataConfig, lists: Collection[str] | None) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines(path), 1):
        if line.strip():
            yield from_line(line, data, number, str(path), lists)


def from_line(
    line: str, data: DataConfig, number: int, place: str = "standard input", lists: Collection[str] | None = None
) -> dict[str, Any]:
    """The row that a line of JSON is."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        return _problem(data, number, f"not valid JSON ({error.msg}, column {error.colno})")
    return _from_object(place, data, value, number, lists)


def _json(path: Path, data: DataConfig, lists: Collection[str] | None) -> Iterator[dict[str, Any]]:
    try:
        values = json.loads("".join(lines(path)))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {error.lineno}: not valid JSON ({error.msg}); one object a line belongs in a .jsonl file."
        ) from None
    if not isinstance(values, list):
        raise UserError(f"{path}: expected a list of objects, found {type(values).__name__}.")
    for number, value in enumerate(values, 1):
        yield _from_object(str(path), data, value, number, lists)


def _from_object(place: str, data: DataConfig, value: Any, number: int, lists: Collection[str] | None) -> dict[str, Any]:
    if not isinstance(value, dict):
        return _problem(data, number, f"expected an object, found {type(value).__name__}")
    if number == 1:
        require_columns(place, data, list(value))
    row: dict[str, Any] = {LINE: number, PROBLEM: None}
    for column in _wanted(data):
        item = value.get(column)
        if column == data.columns.label and isinstance(item, bool | int | float):
            item = canonical(item)
        elif item is not None and not isinstance(item, str) and not (lists is None or column in lists):
            return _problem(data, number, f"column '{column}' holds {type(item).__name__}, not text")
        row[column] = item
    return row


def _problem(data: DataConfig, number: int, problem: str) -> dict[str, Any]:
    """A row that is none: its values are not kept, so that nothing is learnt from them, label names neither."""
    return {**dict.fromkeys(_wanted(data)), LINE: number, PROBLEM: problem}


def batches(path: Path, data: DataConfig) -> Iterator[dict[str, Any]]:
    """The rows of a parquet or arrow file, read as they are asked for."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix.lower() == ".parquet":
        file = pq.ParquetFile(path)
        require_columns(str(path), data, file.schema_arrow.names)
        found = file.iter_batches(batch_size=1000, columns=_wanted(data))
    else:
        found = pa.ipc.open_stream(pa.memory_map(str(path)))
        require_columns(str(path), data, found.schema.names)
    for batch in found:
        yield from batch.select(_wanted(data)).to_pylist()


def _arrow(path: Path, data: DataConfig, identity: str, cache_dir: Path) -> Rows:
    try:
        if path.suffix.lower() == ".parquet":
            table = datasets.Dataset.from_parquet(str(path), cache_dir=str(cache_dir / "rows" / identity))
        else:
            table = datasets.Dataset.from_file(str(path))
    except Exception as error:  # pyarrow and datasets raise many kinds for a damaged file
        raise UserError(f"{path}: cannot be read as {path.suffix[1:]} ({str(error).splitlines()[0]}).") from error
    require_columns(str(path), data, table.column_names)
    return Rows(table=table, fingerprint=identity, where=lambda i: f"{path}, row {i + 1}")
