"""Read the rows of csv and tsv files in a known layout (`csv_layout.py` detects it).

`quotes` doubles quotes inside quotes (RFC 4180, Excel, pandas), `backslash_quotes` writes backslash and quote instead (Spark),
`backslashes` has no quotes, and a backslash before separators and line ends (MySQL's OUTFILE, Postgres' COPY), `plain` has neither
(data.quotes=false).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from llm_lightning.config.schema import DataConfig
from llm_lightning.data.lines import find_damage, open_lines
from llm_lightning.errors import UserError, join_names

MISSING = "\\N"
"""A missing value in files of MySQL, Postgres and Hive."""
OPEN_QUOTE = "a double quote opens a field and is not closed up to the end of the file"
OPEN_BACKSLASH = "a backslash at the end of the file"
_BACKSLASHES = re.compile(r'(\\+)"')
_UNKNOWN_ESCAPE = re.compile(r"""(?<!\\)(?:\\\\)*\\([^\\ntrbfvZN0"'\r\n])""")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "v": "\v", "0": ""}

csv.field_size_limit(2**31 - 1)  # the default, 128 KiB, refuses long documents


@dataclass(frozen=True)
class CsvLayout:
    """How the fields of a file are written, and their names."""

    delimiter: str
    names: tuple[str, ...]
    quoting: str
    """`quotes`, `backslash_quotes`, `backslashes` or `plain`."""
    start: int = 0
    """Lines before the first row: Excel's `sep=;`, blank lines, the header."""
    header: tuple[str, ...] | None = None
    """The header as written in the file; None for a file without a header."""
    drops_headers: bool = False
    """Whether rows that repeat the header are dropped, as in joined files. In a single column, or in rows to predict, they may be text."""
    strip_blanks: bool = False
    """Whether blanks follow the delimiters."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Record:
    """One row of a file: its fields, or the problem with it."""

    line: int
    fields: list[str]
    problem: str | None = None
    is_broken: bool = False
    """Whether the quotes cannot be parsed, so that the starts of rows are unclear."""
    is_no_text: bool = False
    """Whether it has bytes that cannot be decoded, which say nothing about the layout of the file."""


@dataclass(frozen=True)
class CsvText:
    """The lines of a file, or those at its front."""

    path: Path
    data: DataConfig
    front: tuple[str, ...] | None = None
    """The lines at the front of a stream; None for the whole file."""
    is_cut: bool = False
    """Whether the file has more lines after `front`."""

    def lines(self) -> Iterator[str]:
        return open_lines(self.path, self.data) if self.front is None else iter(self.front)

    @staticmethod
    def of_front(path: Path, data: DataConfig, size: int) -> CsvText:
        """Return the first `size` characters of a file, up to the end of a line."""
        front: list[str] = []
        for line in open_lines(path, data):
            if size <= 0:
                return CsvText(path, data, tuple(front), is_cut=True)
            front.append(line)
            size -= len(line)
        return CsvText(path, data, tuple(front))


def read_records(path: Path, data: DataConfig, layout: CsvLayout) -> Iterator[Record]:
    """Yield the rows of a file. A row whose number of fields is not the number of columns has a problem."""
    for record in split_records(CsvText(path, data), layout):
        if record.problem is None and layout.drops_headers and tuple(record.fields) == layout.header:
            continue
        yield record


def split_records(text: CsvText, layout: CsvLayout) -> Iterator[Record]:
    """Yield the rows of the text, those that repeat the header included."""
    width, names = len(layout.names), layout.names
    header = None if layout.header is None else sorted(layout.header)
    for line, number_of_lines, fields, error in split_rows(text, layout):
        if error is not None:
            yield Record(line, [], error, is_broken="carriage return" not in error)
            continue
        if layout.header and fields and fields[0] == f"\ufeff{layout.header[0]}":  # of a file that was appended to another
            fields[0] = layout.header[0]
        if not fields or (width > 1 and len(fields) == 1 and not fields[0].strip()):  # a blank line is no row
            continue
        if len(fields) > width and not any(field.strip() for field in fields[width:]):
            fields = fields[:width]
        elif len(fields) < width and not any(names[len(fields) :]):
            fields = [*fields, *[""] * (width - len(fields))]
        if len(fields) != width:
            yield Record(line, [], f"{len(fields)} field{'s' if len(fields) > 1 else ''} where there should be {width}")
        elif (
            number_of_lines > 1
            and layout.delimiter == "\t"
            and layout.quoting != "backslashes"
            and any("\t" in field and "\n" in field for field in fields)
        ):
            yield Record(line, [], f"a quoted field runs over {number_of_lines} lines and holds tabs", is_broken=True)
        elif header is not None and fields[0] in header and tuple(fields) != layout.header and sorted(fields) == header:
            raise UserError(
                f"{text.path}, line {line}: another header, with the columns in the order {join_names(fields)}; "
                f"files with different columns "
                f"were put together: give them as they were, in a list: data.train=[<file>,<file>]."
            )
        elif text.data.on_bad_row == "skip" and (problem := find_damage("".join(fields))) is not None:
            yield Record(line, [], problem, is_no_text=True)
        else:
            yield Record(line, fields)


def split_rows(text: CsvText, layout: CsvLayout) -> Iterator[tuple[int, int, list[str], str | None]]:
    """Yield (first line, number of lines, fields, problem) of each row after the header, including blank lines."""
    source: Iterator[str] = islice(text.lines(), layout.start, None)
    if layout.quoting == "backslashes":
        yield from _escaped_rows(source, layout)
        return
    if layout.quoting == "backslash_quotes":
        source = map(_double_quotes, source)
    mode: Any = csv.QUOTE_NONE if layout.quoting == "plain" else csv.QUOTE_MINIMAL
    reader = csv.reader(source, delimiter=layout.delimiter, quoting=mode, strict=True, skipinitialspace=layout.strip_blanks)
    while True:
        before = reader.line_num
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as problem:
            error = str(problem)
            if "new-line character" in error:
                error = "a carriage return inside the line, in a field without quotes"
            elif "unexpected end" in error:
                error = OPEN_QUOTE
            elif "expected after" in error:
                error = f"a double quote inside a quoted field ({error})"
            yield layout.start + before + 1, reader.line_num - before, [], error
            continue
        yield layout.start + before + 1, reader.line_num - before, fields, None


def _double_quotes(line: str) -> str:
    r"""Return a line with `""` for `\"`; backslashes before a quote are halved, and others stay (as Spark writes them)."""
    if '\\"' not in line:
        return line

    def double(match: re.Match[str]) -> str:
        count = len(match[1])
        return "\\" * (count // 2) + ('""' if count % 2 else '"')

    return _BACKSLASHES.sub(double, line)


def _escaped_rows(source: Iterator[str], layout: CsvLayout) -> Iterator[tuple[int, int, list[str], str | None]]:
    """Yield the rows, as `split_rows` does, of a file in which a backslash escapes the separator or line end after it."""
    line, first, row = layout.start, layout.start + 1, ""
    for text in source:
        line += 1
        row += text
        body = row.rstrip("\r\n")
        if body != row and _ends_open(body):
            continue
        fields: list[str] = []
        for part in body.split(layout.delimiter):
            if fields and _ends_open(fields[-1]):
                fields[-1] += layout.delimiter + part
            else:
                fields.append(part)
        strange = next((m[0] for field in fields for m in _UNKNOWN_ESCAPE.finditer(field) if m[1] != layout.delimiter), None)
        error = None if strange is None else f"{strange!r} is no escape"
        values = [field if field == MISSING else _unescape(field) for field in fields] if body else []
        yield first, line - first + 1, values, error
        first, row = line + 1, ""
    if row:
        yield first, line - first + 1, [], OPEN_BACKSLASH


def _ends_open(text: str) -> bool:
    """Return whether a text ends with an unescaped backslash."""
    return (len(text) - len(text.rstrip("\\"))) % 2 == 1


def _unescape(field: str) -> str:
    return re.sub(r"\\(.)", lambda m: _ESCAPES.get(m[1], m[1]), field, flags=re.DOTALL) if "\\" in field else field
