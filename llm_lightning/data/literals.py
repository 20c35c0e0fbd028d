"""Parse lists and objects in a cell of text: as JSON, as Python prints them, and as numpy prints an array. All readers of cells use this.

A csv has no lists. pandas writes `str(value)` into the cell: `['joy', 'anger']` for a list, `['joy' 'anger']` for an array.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from itertools import pairwise
from typing import Any

QUOTED = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
ITEM = rf"(?:{QUOTED}|True|False|[-+]?\d+\.?\d*(?:e[-+]?\d+)?)"
NUMPY = re.compile(rf"\[\s*{ITEM}(?:\s+{ITEM})*\s*\]")
"""A one-dimensional array: items with blanks, and no commas, between them."""
TOKEN = re.compile(rf"({QUOTED})|\S")
CALL = re.compile(r"(?:\w+\.)?(array|tensor|Tensor|Index|Series|deque|dict_keys|dict_values|frozenset|set|tuple|list)\(")
"""How Python, numpy, PyTorch and pandas print a container with its type."""
R_VECTOR = re.compile(r"c\((.*)\)", re.DOTALL)
"""How R prints a vector of more than one item: c("joy", "anger")."""
R_TRUTH = re.compile(rf"({QUOTED})|\b(TRUE|FALSE)\b")
BETWEEN = re.compile(rf"({QUOTED})|\}}\s+(?=\{{)")
"""The gap between objects in an array, which has no comma."""
BARE = re.compile(r"\[([^\[\]]*)\]|\{([^{}]*)\}|(?:WrappedArray|ArraySeq|List|Vector)\(([^()]*)\)")
"""A list without quotes, as Spark, PostgreSQL and Scala print it."""
BROKEN = re.compile(r"\s*[\[({]+\s*['\"]")
"""The beginning of a list of texts; if the rest does not parse, a program cut it off or omitted a part (numpy's `...`)."""


def parse_structure(value: Any) -> Any:
    """Parse a list or an object, which text files hold as JSON or as Python prints it. Return other values unchanged."""
    return parse_literal(value) if isinstance(value, str) else value.tolist() if hasattr(value, "tolist") else value


def split_bare(text: str) -> list[str] | None:
    """Return the items of a list without quotes, as Spark, PostgreSQL and Scala print it; None for other text."""
    match = BARE.fullmatch(text.strip())
    if match is None or any(quote in text for quote in "'\""):
        return None
    return [item for item in map(str.strip, match[match.lastindex or 0].split(",")) if item]


def parse_literal(text: str) -> Any:
    """Return the list or dict that a text spells, or the text itself if it spells neither.

    Tuples become lists; sets become sorted lists, so that the result does not depend on the process.
    """
    stripped = text.strip()
    if vector := R_VECTOR.fullmatch(stripped):
        stripped = R_TRUTH.sub(lambda match: match[1] or match[2].title(), f"[{vector[1]}]")
    elif stripped[:1] not in ("[", "{", "(") and not CALL.match(stripped):
        return text
    try:
        value = json.loads(stripped)
    except (ValueError, RecursionError):
        value = _parse_python(stripped)
    return value if isinstance(value, list | dict) else text


def _parse_python(text: str) -> Any:
    """Return the list or dict of a Python literal; None for other text."""
    if NUMPY.fullmatch(text):
        text = f"[{', '.join(re.findall(ITEM, text))}]"
    elif text.startswith("[{"):
        text = BETWEEN.sub(lambda match: match[1] or "},", text)
    tokens = [match[1] for match in TOKEN.finditer(text)]
    if any(one and other for one, other in pairwise(tokens)):  # Python would join strings without a comma between them to one
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unknown escapes in the text
            value = ast.literal_eval(_Unwrapped().visit(ast.parse(text, mode="eval")))
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None
    if isinstance(value, set | frozenset):
        return sorted(value, key=lambda item: (str(type(item)), str(item)))
    return list(value) if isinstance(value, tuple) else value


class _Unwrapped(ast.NodeTransformer):
    """Puts the content of array(…), set(…), … in the place of the call."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if not CALL.match(ast.unparse(node)):
            return node
        return self.visit(node.args[0]) if node.args else ast.List([], ast.Load())
