"""Read rows from lines of text: standard input, pipes, and files that are no tables.

A line is a row, blank ones included, so that the results stay aligned with the lines: `\\n` or `\\r\\n` ends a line, a `\\r` inside is
white space, and the last line needs no end. Standard input and pipes may hold JSON rows instead, as a .jsonl file does.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from llm_lightning.config.schema import DataConfig, expand_home
from llm_lightning.data.lines import advise_encoding, detect_format, read_lines
from llm_lightning.data.rows import LINE, PROBLEM, require_columns
from llm_lightning.data.sources import files
from llm_lightning.errors import UserError

EMPTY = "__empty__"
"""Column of rows from lines of plain text, and of no others. It marks a blank line, whose result is an error that never ends the run."""
STANDARD_INPUT = ("-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")
_OBJECT = re.compile(r'\s*\{\s*(?:"(?:[^"\\]|\\.)*"\s*:|\}\s*$)')
"""The beginning of a line that is meant as a JSON object; `{NAME} said hello` is text."""
_PEEKED = 10  # lines that are read to find out whether a stream holds JSON rows, if the first are damaged

Row = dict[str, Any]
log = logging.getLogger(__name__)


def read_stream(stream: Iterable[bytes], data: DataConfig, place: str, extra_columns: tuple[str, ...] = ()) -> Iterator[Row]:
    """Yield the rows of standard input or a pipe, read once.

    If the first line that is not blank is a JSON object, all lines are JSON rows: blank lines are skipped, a damaged one has a PROBLEM.
    Otherwise lines are text, except JSON objects with the column of the text. Raises UserError if the JSON rows lack a column, or if the
    lines look like a csv file.
    """
    lines = _decode_lines(stream, data, place)
    head, is_json = [], False
    for line in lines:
        head.append(line)
        if line[1].strip():
            is_json = _OBJECT.match(line[1]) is not None
            first = _read_object(line[1]) if is_json else None
            if first is not None:
                require_columns(place, data, list(first))
            if not is_json or first is not None or len(head) >= _PEEKED:
                break
    if not is_json:
        yield from _read_text(chain(head, lines), data, place, has_objects=True)
        return
    for number, text, problem in chain(head, lines):
        if problem is not None:
            yield {LINE: number, PROBLEM: problem}
        elif text.strip():
            yield files.from_line(text, data, number, extra_columns)


def read_plain_text(path: Path, data: DataConfig) -> Iterator[Row]:
    """Yield a row for each line of a file, read like a file of training text. Raises UserError if the lines look like a table."""
    text_format = detect_format(path, data.encoding)
    for note in text_format.notes:
        log.warning("%s: %s", path, note)
    texts = enumerate(read_lines(path, text_format), 1)
    lines = ((number, _without_end(line), problem and problem.removesuffix(".")) for number, (line, problem) in texts)
    yield from _read_text(lines, data, str(path), has_objects=False)


def _read_text(lines: Iterable[tuple[int, str, str | None]], data: DataConfig, place: str, has_objects: bool) -> Iterator[Row]:
    column = data.columns.text
    for number, text, problem in lines:
        row = (_read_object(text) or {}) if (has_objects or number == 1) and _OBJECT.match(text) else {}
        if number == 1:
            _require_text(text, row if not has_objects else {}, column, place)
        if column in row:
            yield files.from_line(text, data, number)
        else:
            yield {column: text, LINE: number, PROBLEM: problem, EMPTY: problem is None and not text.strip()}


def _require_text(first: str, row: Row, column: str, place: str) -> None:
    """Raise UserError if the first line belongs to a table under another name: its rows would be predicted with their syntax."""
    if column in row:
        raise UserError(
            f"{place}: the lines are JSON objects with the column '{column}': give the file a name that ends in .jsonl."
        )
    for delimiter in ",;\t|":
        names = [name.strip(" \r\"'") for name in first.split(delimiter)]
        if len(names) > 1 and column in names:
            raise UserError(
                f"{place}: the first line is the header of a table (it names the column '{column}'); give the table as a file that ends "
                f"in .csv or .tsv: data.predict=<file>."
            )


def _read_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _decode_lines(stream: Iterable[bytes], data: DataConfig, place: str) -> Iterator[tuple[int, str, str | None]]:
    """Yield (number, text without its line end, the problem with its bytes). A line that is not UTF-8 is read in data.encoding, if set.

    Raises UserError if the stream is not text at all.
    """
    for number, line in enumerate(stream, 1):
        if number == 1:
            _require_text_bytes(line, place)
        try:
            yield number, _without_end(line.decode("utf-8-sig" if number == 1 else "utf-8")), None
        except UnicodeDecodeError as error:
            try:
                yield number, _without_end(line.decode(data.encoding or "utf-8")), None
            except UnicodeDecodeError:
                names = " or ".join(["UTF-8", *([data.encoding.upper()] if data.encoding else [])])
                advice = advise_encoding([line.rstrip(b"\r\n")]).removesuffix(".")
                yield number, "", f"byte 0x{line[error.start]:02x} is not {names}; {advice}"


def _without_end(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r")


def _require_text_bytes(first: bytes, place: str) -> None:
    if first[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{place}: this is UTF-16; convert it (iconv -f utf-16 -t utf-8).")
    if b"\0" in first:
        raise UserError(f"{place}: this is no text (there is a NUL byte in line 1).")


def read_prompt(key: str, source: str) -> str:
    """Return all of a file, or of standard input for -, as a prompt, without a byte order mark. Raises UserError if it is not UTF-8."""
    is_standard = source in STANDARD_INPUT
    try:
        content = sys.stdin.buffer.read() if is_standard else expand_home(source).read_bytes()
    except OSError as error:
        raise UserError(f"{key}={source}: the file cannot be read ({error.strerror}).") from error
    _require_text_bytes(content, f"{key}={source}")
    try:
        prompt = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start]
        raise UserError(f"{key}={source}, line {line}: byte 0x{byte:02x} is not UTF-8 (iconv -f <encoding> -t utf-8).") from None
    if not prompt:
        raise UserError(f"{key}={source}: {'standard input' if is_standard else 'the file'} is empty.")
    return prompt
