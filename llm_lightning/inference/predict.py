"""Predict labels, spans or text for the rows of files or of standard input, in their order.

Rows are read some thousands at a time, so that memory is bounded for files of any size. Within such a chunk sequences are sorted by
length and go through the model without padding; predictions are written in the order of the rows. After a kill or a bad row the next
run resumes behind the rows already written, except for standard input and pipes, which cannot be compared with the earlier input.
Every row has a result: a blank line of text has `error`.
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import xxhash
from tqdm import tqdm

from llm_lightning.atomic_files import write_atomically
from llm_lightning.config.checks.files import OUT
from llm_lightning.config.schema import DataConfig
from llm_lightning.data.compression import open_file
from llm_lightning.data.examples import BadRow, Example
from llm_lightning.data.lines import detect_format
from llm_lightning.data.paths import ending, expand, match
from llm_lightning.data.rows import LINE, PROBLEM
from llm_lightning.data.sentences import group_rows
from llm_lightning.data.sources import conll, files, squad
from llm_lightning.data.surrogates import find_surrogate
from llm_lightning.errors import UserError, join_names
from llm_lightning.inference.loaded import LoadedModel
from llm_lightning.inference.prediction_sets import PredictionSets
from llm_lightning.inference.text_rows import EMPTY, STANDARD_INPUT, read_plain_text, read_stream

CHUNK = 4096
FORMAT = 2  # version of how rows are counted: a partial output of another version is not resumed
PLAIN = ("", ".txt", ".text", ".md", ".rst")
"""Endings of text with a row a line; unknown endings are read in the same way, with a message."""

Row = dict[str, Any]


class Predict(Protocol):
    """A function that returns a prediction, or a text, for each row."""

    @property
    def extra_columns(self) -> tuple[str, ...]:
        """Return the columns that are read if rows have them, beside the columns of the config."""
        ...

    def __call__(self, rows: list[Row]) -> list[Row]: ...


@dataclass(frozen=True)
class Predictor(LoadedModel):
    """An objective that predicts labels, spans or text for rows of a table."""

    sets: PredictionSets | None = None
    """What adds prediction sets, if predict.coverage is set."""

    @property
    def extra_columns(self) -> tuple[str, ...]:
        return self.objective.dataset.encoding.extra_columns

    def __call__(self, rows: list[Row]) -> list[Row]:
        """Return a prediction for each row. A bad row has `error` with data.on_bad_row=skip, else it raises UserError."""
        examples, results = usable(rows, self._example, self.objective.dataset.encoding.data)
        if examples:
            answered = self._parts(list(examples.values()))
            answers = {example.row: self.objective.answer_row(example, parts) for example, parts in answered}
            results |= answers if self.sets is None else {row: self.sets.add(answer) for row, answer in answers.items()}
        return [results.get(number, {"error": "the text has no token of the tokenizer's"}) for number in range(len(rows))]

    def describe_cut(self) -> str | None:
        """Return how many texts were cut so far, in words; None if none was."""
        encoding = self.objective.dataset.encoding
        if not encoding.truncated:
            return None
        advice = "; data.long=windows reads all of a text" if encoding.dropped else ""
        size = encoding.data.block_size
        return f"{encoding.truncated:,} of the texts were longer than data.block_size={size} tokens and were cut{advice}"

    def _example(self, number: int, row: Row) -> Example:
        encoding = self.objective.dataset.encoding
        columns = encoding.data.columns
        pair = None if columns.text_pair is None else row.get(columns.text_pair)
        extra = {name: row[name] for name in encoding.extra_columns if row.get(name) is not None}
        text = row.get(columns.text)
        text = encoding.read_line(text) if EMPTY in row and isinstance(text, str) else text
        return Example(number, *encoding.read(text, pair, None, extra))

    def _parts(self, examples: list[Example]) -> Iterator[tuple[Example, list[Any]]]:
        """Yield (example, the predictions of its sequences)."""
        sequences = self.objective.dataset.encoding(examples, None)
        if not sequences.tokens:
            return
        parts = self.each(sequences, self.objective.predict)
        places: dict[int, list[int]] = {}
        for place, example in enumerate(sequences.examples):
            places.setdefault(example.row, []).append(place)
        by_row = {example.row: example for example in sequences.examples}
        yield from ((by_row[row], [parts[place] for place in where]) for row, where in places.items())


def usable(rows: list[Row], read: Callable[[int, Row], Any], data: DataConfig) -> tuple[dict[int, Any], dict[int, Row]]:
    """Return (`read` of each usable row, `error` of each other row), by the rows' numbers.

    Raises UserError for the first bad row, unless data.on_bad_row=skip.
    """
    values: dict[int, Any] = {}
    errors: dict[int, Row] = {}
    for number, row in enumerate(rows):
        if row.get(EMPTY):
            errors[number] = {"error": "the row is empty"}
            continue
        try:
            if find_surrogate(row) is not None:
                raise BadRow(
                    "it holds half of a surrogate pair (\\ud83d, for example, without its second half), which is no character"
                )
            if row.get(PROBLEM) is not None:
                raise BadRow(row[PROBLEM])
            values[number] = read(number, row)
        except BadRow as problem:
            if data.on_bad_row == "error":
                raise UserError(f"{row['where']}: {problem}. Mend the row, or go on without with data.on_bad_row=skip.") from None
            errors[number] = {"error": str(problem)}
    return values, errors


def write(predict: Predict, data: DataConfig, out: Path, model: str, shown: bool) -> tuple[int, int]:
    """Write a prediction for every row of `data.predict` (a file, a glob, or `-`) to `out`; return (rows, rows with an error).

    `model` names the weights: a partial output written by another model or for other files is not resumed.
    """
    if out.suffix not in OUT:
        raise UserError(f"out={out}: expected a name that ends in {join_names(OUT)}.")
    paths = paths_of("data.predict", str(data.predict))
    partial, identity_file = out.with_name(f"{out.name}.partial"), out.with_name(f"{out.name}.partial.json")
    identity = _identity(paths, model, data)
    done, errors = _read_progress(partial, identity_file, identity)
    out.parent.mkdir(parents=True, exist_ok=True)
    identity_file.write_text(json.dumps(identity), encoding="utf-8")
    rows = (row for path in paths for row in rows_of(path, data, predict.extra_columns))
    with partial.open("a", encoding="utf-8") as file, tqdm(initial=done, unit="row", disable=not shown, dynamic_ncols=True) as bar:
        number = sum(1 for _ in islice(rows, done))
        while chunk := list(islice(rows, CHUNK)):
            for prediction in predict(chunk):
                file.write(json.dumps({"row": number, **prediction}, ensure_ascii=False) + "\n")
                number += 1
                errors += "error" in prediction
            file.flush()
            os.fsync(file.fileno())
            bar.update(len(chunk))
    if number == 0:
        raise UserError(f"data.predict={data.predict}: there is no row in it.")
    if out.suffix == ".parquet":
        _to_parquet(partial, out)
        partial.unlink()
    else:
        partial.replace(out)
    identity_file.unlink()
    return number, errors


def paths_of(key: str, source: str) -> list[Path | None]:
    """Return the files, or the one pipe, that a key of the config names; None stands for standard input. Raises UserError for none."""
    if source in STANDARD_INPUT:
        return [None]
    matches = match(source)
    if len(matches) == 1 and _is_pipe(matches[0]):
        return list(matches)
    is_folder = len(matches) == 1 and matches[0].is_dir()
    return list(expand(key, source, (*files.TABLES, *conll.ENDINGS, *PLAIN) if is_folder else None))


def _is_pipe(path: Path) -> bool:
    return path.exists() and not path.is_file() and not path.is_dir()


def _identity(paths: list[Path | None], model: str, data: DataConfig) -> list[str]:
    stats = [
        f"stream {uuid.uuid4()}"  # differs from every earlier run
        if path is None or _is_pipe(path)
        else f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns}"
        for path in paths
    ]
    return [*stats, model, xxhash.xxh3_128(f"{FORMAT} {data!r}".encode(errors="surrogateescape")).hexdigest()]


def _read_progress(partial: Path, identity_file: Path, identity: list[str]) -> tuple[int, int]:
    """Return (rows, rows with an error) that an earlier run wrote for the same files and model; remove half a line at the end."""
    try:
        if json.loads(identity_file.read_text(encoding="utf-8")) != identity:
            raise ValueError
        rows = errors = 0
        with partial.open("rb+") as file:
            for line in file:
                rows += line.endswith(b"\n")
                if not line.endswith(b"\n"):
                    file.seek(-len(line), os.SEEK_END)
                    file.truncate()
                    break
                errors += "error" in json.loads(line)
        return rows, errors
    except (OSError, ValueError):
        partial.unlink(missing_ok=True)
        return 0, 0


def rows_of(path: Path | None, data: DataConfig, extra_columns: tuple[str, ...] = ()) -> Iterator[Row]:
    """Yield rows with their place in the file; values are not checked yet."""
    name = "standard input" if path is None else str(path)
    values = _values(path, data, extra_columns)
    if path is not None and data.columns.sentence is not None and data.source != "conll" and ending(path) in files.TABLES:
        values = (row for _, row in group_rows(values, data, lambda i: f"{name}, row {i + 1}"))
    for number, row in enumerate(values, 1):
        yield {"where": f"{name}, line {row.get(LINE, number)}", **row}


def _values(path: Path | None, data: DataConfig, extra_columns: tuple[str, ...]) -> Iterator[Row]:
    if path is None:
        return read_stream(sys.stdin.buffer, data, "standard input", extra_columns)
    if _is_pipe(path):
        return _read_pipe(path, data, extra_columns)
    if conll.is_to_predict(path, data):
        return conll.rows_to_predict(path, data)
    kind = ending(path)
    if data.source == "squad" and kind in (".json", ".jsonl"):
        return squad.rows_to_predict(path, data)
    if kind in files.TABLES:
        return files.rows(path, data, extra_columns)
    if kind not in PLAIN and not (data.source == "parallel" and kind == f".{data.columns.text}".lower()):
        _require_no_binary(path, kind, data)
        print(f"{path}: read as plain text, a row a line; tables end in {join_names(files.TABLES)}", file=sys.stderr)
    return read_plain_text(path, data)


def _read_pipe(path: Path, data: DataConfig, extra_columns: tuple[str, ...]) -> Iterator[Row]:
    """Yield the rows of a named pipe, or of a pipe of the shell: `<(zcat rows.jsonl.gz)`."""
    if ending(path) in files.TABLES and ending(path) != ".jsonl":
        raise UserError(f"data.predict={path}: a pipe holds plain text or JSON rows; write the table to a file first.")
    with path.open("rb") as stream:
        yield from read_stream(stream, data, str(path), extra_columns)


def _require_no_binary(path: Path, kind: str, data: DataConfig) -> None:
    text_format = detect_format(path, data.encoding)
    with open_file(path) as file:
        if text_format.encoding == "utf-8" and b"\0" in file.read(1 << 12):
            raise UserError(
                f"data.predict={path}: cannot read '{kind}' files; {join_names([*files.TABLES, *PLAIN[1:]])} can be read."
            )


def _to_parquet(lines: Path, out: Path) -> None:
    """Write the lines as a Parquet table, some thousands at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def chunks() -> Iterator[pa.Table]:
        with lines.open(encoding="utf-8") as file:
            while part := [json.loads(line) for line in islice(file, CHUNK)]:
                keys = dict.fromkeys(key for row in part for key in row)
                yield pa.table({key: pa.array([row.get(key) for row in part]) for key in keys})

    schema = pa.unify_schemas([chunk.schema for chunk in chunks()], promote_options="permissive")
    with write_atomically(out) as partial, pq.ParquetWriter(partial, schema) as writer:
        for chunk in chunks():
            columns = [chunk[name] if name in chunk.column_names else pa.nulls(len(chunk)) for name in schema.names]
            writer.write_table(pa.table(columns, names=schema.names).cast(schema))


def without_label(data: DataConfig) -> DataConfig:
    """Return the config without a label column, which files to predict need not have."""
    return replace(data, columns=replace(data.columns, label=None))
