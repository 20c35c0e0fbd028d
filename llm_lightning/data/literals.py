"""Lists and objects in a cell of text: as JSON, as Python prints them, and as numpy prints an array.

A csv has no lists. pandas writes `str(value)` into the cell: `['joy', 'anger']` for a list, `['joy' 'anger']` for an array.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from itertools import pairwise
from typing import Any

import numpy as np

QUOTED = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
ITEM = rf"(?:{QUOTED}|True|False|[-+]?\d+\.?\d*(?:e[-+]?\d+)?)"
NUMPY = re.compile(rf"\[\s*{ITEM}(?:\s+{ITEM})*\s*\]")
"""A one-dimensional array: items with blanks, and no commas, between them."""
TOKEN = re.compile(rf"({QUOTED})|\S")
NESTED = re.compile(rf"({QUOTED})|array\((\[(?:{QUOTED}|[^'\"])*?\])(?:,\s*dtype=['<\w.]+)?\)")
"""An array inside of a list or an object; a text is matched first, so that nothing changes in it."""
OBJECTS = re.compile(rf"({QUOTED})|\}}\s+\{{")
"""Two objects of an array, without a comma between them."""
WRAPPED = re.compile(r"(?:array|frozenset|set|tuple|list)\((.*?)(?:,\s*dtype=['<\w]+)?\)", re.DOTALL)


def parse_structure(value: Any) -> Any:
    """Return a list or an object, which text files hold as JSON or as Python prints it; other values as they are."""
    return parse_literal(value) if isinstance(value, str) else value.tolist() if isinstance(value, np.ndarray) else value


def parse_literal(text: str) -> Any:
    """Return the list or dict that a text spells, or the text itself where it spells neither.

    Tuples become lists; sets become sorted lists, so that the result does not depend on the process.
    """
    stripped = text.strip()
    if match := WRAPPED.fullmatch(stripped):
        stripped = match[1].strip() or "[]"
    if stripped[:1] not in ("[", "{", "("):
        return text
    try:
        value = json.loads(stripped)
    except (ValueError, RecursionError):
        value = _parse_python(stripped)
    return value if isinstance(value, list | dict) else text


def _parse_python(text: str) -> Any:
    """Return the list or dict of a Python literal; None where it is no such literal."""
    if NUMPY.fullmatch(text):
        text = f"[{', '.join(re.findall(ITEM, text))}]"
    text = NESTED.sub(lambda match: match[1] or match[2], text)
    text = OBJECTS.sub(lambda match: match[1] or "}, {", text)
    tokens = [match[1] for match in TOKEN.finditer(text)]
    if any(one and other for one, other in pairwise(tokens)):  # Python would join strings without a comma between them to one
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unknown escapes in the text
            value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None
    if isinstance(value, set | frozenset):
        return sorted(value, key=lambda item: (str(type(item)), str(item)))
    return list(value) if isinstance(value, tuple) else value
