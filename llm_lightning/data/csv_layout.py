"""Detect how other programs have written a csv or tsv file.

The layout is decided from the whole file, before the first row is read: the separator by the columns that the config names, the quoting
by which reading gives every row as many fields as the header. Notes report the recognised layout; an unrecognised one is refused.
For a streamed file (data.streaming), which may be very large, the first MiB decides, or more if a field is longer.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from llm_lightning.config.schema import DataConfig
from llm_lightning.data.compression import ending
from llm_lightning.data.csv_files import (
    MISSING,
    OPEN_BACKSLASH,
    OPEN_QUOTE,
    CsvLayout,
    CsvText,
    Record,
    split_records,
    split_rows,
)
from llm_lightning.data.lines import find_damage, open_lines
from llm_lightning.errors import UserError, join_names

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
BLANKS = " \t\r\n\ufeff\u200b\xa0\u3000"
"""Characters that are stripped from the names of columns."""
HEAD = 20  # lines at the front, one of which names the columns; some programs write titles and comments above it
FRONT = 1 << 20  # characters of a streamed file that decide on its layout
LONGEST_FRONT = 1 << 26  # if a quoted field takes most of it
_RULE = re.compile(r"\s*(:?-{3,}:?)?\s*")
"""A field of the line of dashes that SQL clients and Markdown draw under the header."""
_SEP_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
_JSON_LINE = re.compile(r'\s*(?:\{\s*"[^"]*"\s*:|\[\s*\{)')


def detect_layout(path: Path, data: DataConfig, configured: list[str], is_to_predict: bool = False) -> CsvLayout:
    """Return the layout of a file; `configured` are the columns that the config names. Raises UserError if no layout fits."""
    layout = _read_header(path, data, configured)
    text = _read_front(path, data, layout) if data.streaming else CsvText(path, data)
    if data.column_names is None and _has_row_names(text, layout):
        note = "the rows have a field more than the header, which counts them (as R writes row names) and is left out"
        layout = replace(layout, names=("", *layout.names), header=None, notes=(*layout.notes, note))
    layout = replace(layout, drops_headers=layout.header is not None and len(layout.header) > 1 and not is_to_predict)
    layout = _detect_quoting(text, layout, configured)
    return replace(layout, notes=tuple(f"{note} (seen at its front)" if text.is_cut else note for note in layout.notes))


def _read_header(path: Path, data: DataConfig, configured: list[str]) -> CsvLayout:
    """Return the layout by the config, the file's ending and its first line. Raises UserError for repeated names."""
    delimiter = (data.delimiter or "").replace("\\t", "\t") or ("\t" if ending(path) in (".tsv", ".tab") else ",")
    quoting, start, notes = "quotes" if data.quotes else "plain", 0, []
    front = list(islice(open_lines(path, data), 200))
    while start < len(front) and not front[start].strip():
        start += 1
    if start < len(front) and (match := _SEP_LINE.fullmatch(front[start])):
        delimiter = match[1] if data.delimiter is None else delimiter
        start += 1
    while start < len(front) and not front[start].strip():
        start += 1
    if start == len(front):
        raise UserError(f"{path}: the file has no header and no rows.")
    if front[start].lstrip()[:15].lower().startswith(("<!doctype html", "<html")):
        raise UserError(f"{path}: this is a web page and no table; the download may have failed.")
    if _JSON_LINE.match(front[start]):
        raise UserError(f"{path}: this is JSON, not csv: give the file the ending .jsonl (an object a line) or .json.")
    layout = CsvLayout(delimiter, tuple(data.column_names or ()), quoting, start)
    separators = [delimiter] if data.delimiter is not None else [delimiter, *(s for s in SEPARATORS if s != delimiter)]
    fitting = [s for s in separators if _fits(front, start, s, quoting, data, configured)]
    if not fitting and len(configured) > 1 and data.column_names is None:
        for line in range(start + 1, min(start + HEAD, len(front))):
            if fitting := [s for s in separators if _fits(front, line, s, quoting, data, configured)]:
                notes.append(f"the columns are named in line {line + 1}; above it, and left out, is {front[start].strip()[:60]!r}")
                start = line
                layout = replace(layout, start=start)
                break
    if fitting and fitting[0] != delimiter:
        notes.append(f"the fields are separated by {SEPARATORS[fitting[0]]}, as its first line shows")
        layout = replace(layout, delimiter=fitting[0])
    fields, size = _split(front, start, layout.delimiter, quoting)
    if not fields:
        raise UserError(f"{path}, line {start + 1}: the first row cannot be read: a carriage return inside it, or an open quote.")
    if data.column_names is None and (problem := find_damage("".join(fields))) is not None:
        raise UserError(f"{path}, line {start + 1}: {problem}, and this line names the columns; mend it, or set data.encoding.")
    if data.column_names is not None:
        if fields == data.column_names:
            raise UserError(f"{path}: the first line names the columns; leave out data.column_names.")
        return replace(layout, header=None, notes=tuple(notes))
    names = [name.strip(BLANKS) for name in fields]
    strip_blanks = len(fields) > 1 and all(name.startswith(" ") for name in fields[1:])
    if set(configured) <= set(fields) and not strip_blanks:
        names = fields  # as they are written
    elif changed := [name for name, stripped in zip(fields, names, strict=True) if name != stripped]:
        what = "blanks follow the separators, and are left out" if strip_blanks else "blanks around names are left out"
        notes.append(f"{what} (in the header: {join_names(map(repr, changed), 5)})")
    repeated = [name for name, count in Counter(names).items() if count > 1 and name]
    if used := [name for name in repeated if name in configured]:
        raise UserError(f"{path}: {names.count(used[0])} columns are named '{used[0]}'; give each a name of its own.")
    if repeated:
        notes.append(f"several columns share a name ({join_names(map(repr, repeated))}); none of them is used")
    header = tuple(name.strip(" ") for name in fields) if strip_blanks else tuple(fields)
    rule, height = _split(front, start + size, layout.delimiter, quoting)
    if len(rule) == len(names) > 1 and any("-" in field for field in rule) and all(map(_RULE.fullmatch, rule)):
        notes.append(f"line {start + size + 1}, of dashes under the header, is left out")
        size += height
    return CsvLayout(layout.delimiter, tuple(names), quoting, start + size, header, strip_blanks=strip_blanks, notes=tuple(notes))


def _fits(front: list[str], start: int, delimiter: str, quoting: str, data: DataConfig, configured: list[str]) -> bool:
    """Return whether `delimiter` gives a header with the config's columns; without a header, whether the first rows have as many fields."""
    if data.column_names is None:
        fields = _split(front, start, delimiter, quoting)[0]
        return set(configured) <= {name.strip(BLANKS) for name in fields} | set(fields)
    width, end = len(data.column_names), min(len(front), start + 20)
    while start < end:
        fields, size = _split(front, start, delimiter, quoting)
        if fields and len(fields) != width:
            return False
        start += size
    return True


def _split(front: list[str], start: int, delimiter: str, quoting: str) -> tuple[list[str], int]:
    """Return the fields of the row that begins at line `start`, and its number of lines."""
    mode: Any = csv.QUOTE_NONE if quoting == "plain" else csv.QUOTE_MINIMAL
    reader = csv.reader(iter(front[start:]), delimiter=delimiter, quoting=mode, skipinitialspace=False)
    try:
        fields = next(reader)
    except (csv.Error, StopIteration):
        return [], 1
    if any(field.lstrip().startswith('"') for field in fields[1:]) and mode == csv.QUOTE_MINIMAL:  # blanks before quotes
        again = next(csv.reader(iter(front[start:]), delimiter=delimiter, skipinitialspace=True))
        fields = [fields[0], *(f" {field}" for field in again[1:])]
    return fields, reader.line_num


def _read_front(path: Path, data: DataConfig, layout: CsvLayout) -> CsvText:
    """Return the front of a streamed file. Raises UserError for a quote that is not closed in `LONGEST_FRONT` characters."""
    size = FRONT
    while (text := CsvText.of_front(path, data, size)).is_cut and (line := _find_long_field(text, layout)):
        if size >= LONGEST_FRONT:
            raise UserError(
                f"{path}, line {line}: a double quote opens a field and is not closed for {size:,} characters{_advice(text, layout)}"
            )
        size *= 8
    return text


def _find_long_field(text: CsvText, layout: CsvLayout) -> int:
    """Return the line of a row that begins in the first half of a file's front and ends after it; 0 if no row does."""
    sizes, line = [len(row) for row in text.lines()], _try(text, layout).open_line
    return line if 2 * sum(sizes[: max(line - 1, 0)]) < sum(sizes) else 0


def _has_row_names(text: CsvText, layout: CsvLayout) -> bool:
    """Return whether each row has one field more than the header, and the first fields count the rows, from 0 or 1."""
    first = None
    for number, (_, _, fields, error) in enumerate(row for row in split_rows(text, layout) if row[2] or row[3]):
        if error is not None or len(fields) != len(layout.names) + 1 or not fields[0].isdecimal():
            return False
        first = int(fields[0]) if first is None else first
        if first not in (0, 1) or int(fields[0]) != first + number:
            return False
    return first is not None


def _detect_quoting(text: CsvText, layout: CsvLayout, configured: list[str]) -> CsvLayout:
    path, trial = text.path, _try(text, layout)
    if trial.problems:
        first, notes = trial.first, layout.notes
        alternatives = ["backslashes"] if layout.quoting == "plain" else ["backslash_quotes", "backslashes"]
        for quoting in alternatives if any("\\" in line for line in text.lines()) else []:
            other = _try(text, replace(layout, quoting=quoting))
            has_quotes = quoting == "backslashes" and other.enclosed  # quotes that would become part of the values
            if (
                not has_quotes
                and not other.first.is_broken
                and other.problems <= (other.rows // 20 if trial.first.is_broken else 0)
            ):
                how = "quotes inside fields" if quoting == "backslash_quotes" else "separators and line ends inside fields"
                layout = replace(layout, quoting=quoting, notes=(*notes, f"{how} are written with a backslash"))
                trial = other
                break
        else:
            if first.is_broken:
                raise UserError(f"{path}, line {first.line}: {first.problem}{_advice(text, layout)}")
    elif layout.quoting == "quotes" and any('\\"' in line for line in text.lines()):
        layout = replace(layout, notes=(*layout.notes, *_require_one_reading(text, layout)))
    return replace(layout, notes=(*layout.notes, *_describe(path, layout, trial, configured)))


def _require_one_reading(text: CsvText, layout: CsvLayout) -> list[str]:
    """Return a note on backslashes at the ends of fields, which Spark would have doubled.

    Raises UserError if reading a backslash before a quote as a quote gives other rows without a problem.
    """
    other = replace(layout, quoting="backslash_quotes")
    if _try(text, other).problems:
        return []
    doubled = 0
    for record, alternative in zip_longest(split_records(text, layout), split_records(text, other)):
        texts, others = ([] if r is None else [field.rstrip("\\") for field in r.fields] for r in (record, alternative))
        doubled += record is not None and alternative is not None and record.fields != alternative.fields
        if record is None or alternative is None or texts != others:
            line = (record or alternative).line
            raise UserError(
                f"{text.path}, line {line}: a backslash before a double quote: whether the quote ends the field, or is a part of it, "
                f"cannot be seen, as the rows are whole in both cases. Write quotes inside fields twice, and nothing before them."
            )
    return [f"{doubled:,} rows have fields that end with backslashes, which are taken as they stand"] if doubled else []


def _advice(text: CsvText, layout: CsvLayout) -> str:
    """Return advice on quotes that cannot be parsed. It suggests a setting only if that works."""
    plain = _try(text, replace(layout, quoting="plain"))
    if not plain.problems and not plain.enclosed:
        return "; double quotes are plain characters in this file: set data.quotes=false."
    return "; a double quote inside a quoted field is written twice, and one that opens a field has to close it. Mend the line."


@dataclass
class _Trial:
    """The result of reading a file, or its front, with one layout."""

    rows: int = 0
    problems: int = 0
    first: Record = field(default_factory=lambda: Record(0, []))
    """The first row with a problem."""
    repeated: int = 0
    """Repeated headers between the rows."""
    gaps: int = 0
    """Fields that hold `\\N`."""
    enclosed: frozenset[int] = frozenset()
    """Columns whose values all begin and end with a double quote."""
    apostrophes: frozenset[int] = frozenset()
    """Columns whose values all begin and end with an apostrophe."""
    open_line: int = 0
    """The first line of the row that ends after the file's front; 0 if no row does."""


def _try(text: CsvText, layout: CsvLayout) -> _Trial:
    trial = _Trial()
    enclosed, apostrophes = set(range(len(layout.names))), set(range(len(layout.names)))
    for record in split_records(text, layout):
        if text.is_cut and record.problem in (OPEN_QUOTE, OPEN_BACKSLASH):
            trial.open_line = record.line
        elif record.is_no_text:
            continue
        elif record.problem is not None:
            trial.problems += 1
            if trial.problems == 1 or (record.is_broken and not trial.first.is_broken):
                trial.first = record
            if record.is_broken:
                break
        elif layout.drops_headers and tuple(record.fields) == layout.header:
            trial.repeated += 1
        else:
            trial.rows += 1
            trial.gaps += record.fields.count(MISSING)
            enclosed -= {i for i in enclosed if not _is_enclosed(record.fields[i])}
            apostrophes -= {i for i in apostrophes if not _is_enclosed(record.fields[i], "'")}
    if trial.rows > 1:
        trial.enclosed, trial.apostrophes = frozenset(enclosed), frozenset(apostrophes)
    return trial


def _is_enclosed(field: str, quote: str = '"') -> bool:
    return len(field) > 1 and field[0] == field[-1] == quote


def _describe(path: Path, layout: CsvLayout, trial: _Trial, configured: list[str]) -> Iterator[str]:
    """Yield notes on a file that was read. Raises UserError if quotes would become part of the values."""
    for i in sorted(trial.enclosed):
        if layout.names[i] in configured and layout.quoting == "plain":
            raise UserError(
                f"{path}: all values of column '{layout.names[i]}' are in double quotes, which would become part of them; leave out "
                f"data.quotes=false."
            )
        if layout.names[i] in configured:
            yield f"all values of column '{layout.names[i]}' begin and end with a double quote, which is taken as a part of them"
    for i in sorted(trial.apostrophes):
        if layout.names[i] in configured:
            yield f"all values of column '{layout.names[i]}' begin and end with an apostrophe, which is taken as a part of them"
    if trial.repeated:
        yield f"the header stands again between the rows ({trial.repeated:,} times), and is left out there"
    if trial.gaps:
        yield f"{trial.gaps:,} field{'s hold' if trial.gaps > 1 else ' holds'} {MISSING}, taken as empty"
