"""Label values as text: what counts as the same value, as a truth value, and as no value at all."""

from __future__ import annotations

import math
import unicodedata
from typing import Any

TRUTH = {"0": False, "false": False, "1": True, "true": True}
MISSING = ("nan", "NaN", "None", "null", "NULL", "<NA>", "NA", "N/A", "#N/A", "NaT")
"""How pandas, Python, JSON, SQL, R and Excel print a value that is not there."""


def canonical(value: Any) -> str:
    """Return a label value as text, without blanks around it: the same for 1, 1.0 and "1", and for true and "True".

    The text is empty where there is no value (null, NaN).
    """
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = str(value).strip()
    whole, dot, zeros = text.partition(".")
    return whole if dot and whole.lstrip("-").isdigit() and zeros.strip("0") == "" else text


def truth(value: Any) -> bool | None:
    """Return whether a value is true or false, written as 1, 1.0, true, True or TRUE; None where it is neither."""
    return TRUTH.get(canonical(value).lower())


def parse_number(value: Any) -> float | None:
    """Return the finite number that a value is or spells; None for others: truth values, and text that Python alone reads (1_000)."""
    if isinstance(value, bool | bytes) or (isinstance(value, str) and "_" in value):
        return None
    try:
        parsed = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return parsed if math.isfinite(parsed) else None


def fold(text: str) -> str:
    """Return a text without what people do not see as a difference: case, blanks, the composition of characters."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def is_unlabelled(value: Any) -> bool:
    """Return whether a value stands for a label that was held back: nothing or its name (None, nan), -1, or a list of such values."""
    if isinstance(value, list | tuple):
        return all(is_unlabelled(item) for item in value)
    return canonical(value) in ("", "-1", *MISSING)
