"""Read json files: an object a line (jsonl), or one list of objects.

The content decides which of the two a file is, as both endings are used for both. NaN and Infinity, which Python writes although JSON
does not have them, are read as null.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from llm_lightning.config.schema import DataConfig
from llm_lightning.data.compression import ending
from llm_lightning.data.lines import find_damage, open_lines
from llm_lightning.data.surrogates import find_surrogate
from llm_lightning.errors import UserError, first_line, join_names

_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_values(path: Path, data: DataConfig) -> Iterator[tuple[int, Any, str | None]]:
    """Yield (line, value, problem) of every value of a jsonl file, and (number, value, problem) of every item of a json file.

    Raises UserError for a json file that is neither a list of objects nor a single row.
    """
    items = read_items(path, data)
    yield from read_lines(path, data) if items is None else items


def read_lines(path: Path, data: DataConfig) -> Iterator[tuple[int, Any, str | None]]:
    """Yield (line, value, problem) of every line that is not blank."""
    for number, line in enumerate(open_lines(path, data), 1):
        if line.strip():
            value, problem = parse(line.lstrip("\ufeff"))
            yield number, value, problem


def parse(text: str) -> tuple[Any, str | None]:
    """Return (value, None) for a line of JSON, or (None, problem)."""
    if (problem := find_damage(text)) is not None:
        return None, problem
    try:
        value = json.loads(text, parse_constant=lambda _: None)
    except json.JSONDecodeError as error:
        if text.strip() in ("{", "["):
            return None, f"the line is '{text.strip()}' alone; write each object on one line (jq -c . does)"
        if error.msg == "Extra data" and text[error.pos :].strip() == ",":
            return None, "a comma stands behind the object; lines have none"
        return None, f"not valid JSON ({error.msg}, column {error.colno})"
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; thousands of brackets
        return None, f"JSON that cannot be read ({first_line(error)})"
    problem = find_half_character(value) if has_escaped_surrogate(text) else None
    return (value, None) if problem is None else (None, problem)


def parse_document(path: Path, text: str) -> Any:
    """Return the value of a file that is one JSON document. Raises UserError if it is not JSON.

    Half characters are not searched for: they spoil one item, and not the file (see `find_half_character`).
    """
    try:
        return json.loads(text, parse_constant=lambda _: None)
    except json.JSONDecodeError as error:
        what = (
            "this is a web page; the download may have failed" if text.lstrip().startswith("<") else f"not valid JSON ({error.msg})"
        )
        raise UserError(f"{path}, line {error.lineno}: {what}; one object a line belongs in a .jsonl file.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: JSON that cannot be read ({first_line(error)}).") from None


def has_escaped_surrogate(text: str) -> bool:
    """Return whether a text of JSON may hold half a character, so that its values have to be checked."""
    return _ESCAPED_SURROGATE.search(text) is not None


def find_half_character(value: Any) -> str | None:
    """Return the problem with a JSON value whose text holds a lone surrogate, which no tokenizer can read; None without one."""
    try:
        half = find_surrogate(value)
    except RecursionError:
        return "JSON that cannot be read (too many brackets inside each other)"
    if half is None:
        return None
    code = ord(half)
    byte = f", or byte 0x{code - 0xDC00:02x} cannot be decoded" if 0xDC80 <= code <= 0xDCFF else ""  # as `lines` keeps it
    return f"half a character (\\u{code:04x}): a pair of surrogates was cut in two{byte}"


def read_items(path: Path, data: DataConfig) -> Iterator[tuple[int, Any, str | None]] | None:
    """Return an iterator of (number, value, problem) over the items of a file that is one JSON value; None for a value a line.

    Raises UserError for a value that is not a list of objects.
    """
    filled = list(islice((line for line in open_lines(path, data) if line.strip()), 2))
    if not filled:
        return None
    first, is_json = filled[0].lstrip("\ufeff \t"), ending(path) == ".json"
    value, problem = parse(first)
    if problem is not None:  # a value over several lines, or a damaged line
        is_document = is_json and (len(filled) == 1 or find_damage(first) is None)
        return _items(path, data) if first.startswith("[") or is_document else None
    if isinstance(value, list) and len(filled) == 1:
        return ((number, item, None) for number, item in enumerate(value, 1))
    return _items(path, data) if is_json and (not isinstance(value, dict) or len(filled) == 1) else None


def _items(path: Path, data: DataConfig) -> Iterator[tuple[int, Any, str | None]]:
    text = "".join(open_lines(path, data)).lstrip("\ufeff")
    values = parse_document(path, text)
    if isinstance(values, dict) and _is_row(values, data):
        values = [values]
    if isinstance(values, dict):
        raise UserError(f"{path}: expected a list of objects, found dict{_shape(values)}.")
    if not isinstance(values, list):
        raise UserError(f"{path}: expected a list of objects, found {type(values).__name__}.")
    has_escapes, is_damaged = has_escaped_surrogate(text), find_damage(text) is not None
    for number, value in enumerate(values, 1):
        problem = find_damage(json.dumps(value, ensure_ascii=False)) if is_damaged else None
        yield number, value, find_half_character(value) if has_escapes and problem is None else problem


def _is_row(values: dict[str, Any], data: DataConfig) -> bool:
    """Return whether an object that fills a file is a row: its text is text or a conversation, and not a column of texts."""
    text = values.get(data.columns.text)
    return isinstance(text, str) or (isinstance(text, list) and bool(text) and all(isinstance(item, dict) for item in text))


def _shape(values: dict[str, Any]) -> str:
    """Return advice, as a clause, on an object in place of a list of objects."""
    inside = [key for key, value in values.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if inside:
        return f" with lists of objects in {join_names(map(repr, inside), 4)}: write the list alone to a file"
    if values and all(isinstance(value, dict | list) for value in values.values()):
        return " of columns: write the table row by row (pandas: to_json(…, orient='records'))"
    return ""
