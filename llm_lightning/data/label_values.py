"""Compare label values as text: equal values, truth values, numbers and missing values."""

from __future__ import annotations

import math
import unicodedata
from typing import Any

TRUTH = {"0": False, "false": False, "1": True, "true": True}
MISSING = ("nan", "NaN", "None", "null", "NULL", "<NA>", "NA", "N/A", "#N/A", "NaT")
"""How pandas, Python, JSON, SQL, R and Excel print a missing value."""


def is_invisible(character: str) -> bool:
    """Return whether a character is invisible: blanks, and the categories control, format (zero-width, marks) and separator."""
    return character.isspace() or unicodedata.category(character) in ("Cc", "Cf", "Zs", "Zl", "Zp")


def strip_invisible(text: str) -> str:
    """Return a text without blanks and invisible characters at its edges."""
    text = text.strip()
    if text.isascii():
        return text
    first, last = 0, len(text)
    while first < last and is_invisible(text[first]):
        first += 1
    while last > first and is_invisible(text[last - 1]):
        last -= 1
    return text[first:last]


def canonical(value: Any) -> str:
    """Return a label value as text: the same for 1, 1.0 and "1", and for true and "True".

    Blanks and invisible characters around it are left out. The text is empty for a missing value (null, NaN).
    """
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = strip_invisible(str(value))
    integer_part, dot, zeros = text.partition(".")
    return integer_part if dot and integer_part.lstrip("-").isdigit() and zeros.strip("0") == "" else text


def truth(value: Any) -> bool | None:
    """Return whether a value is true or false, written as 1, 1.0, true, True or TRUE; None if it is neither."""
    return TRUTH.get(canonical(value).lower())


def parse_number(value: Any) -> float | None:
    """Return the finite number that a value is or spells; None for others: truth values, and text that only Python reads (1_000)."""
    if isinstance(value, bool | bytes) or (isinstance(value, str) and "_" in value):
        return None
    try:
        parsed = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return parsed if math.isfinite(parsed) else None


def fold(text: str) -> str:
    """Return a text in a form that removes differences people do not notice.

    These are case (I and İ are the other case of the Turkish ı and i), blanks and invisible characters, the composition of characters,
    and the notation of numbers (01, +1, 1.50).
    """
    if len(text) < 16 and (number := parse_number(text)) is not None:  # longer texts are account numbers or the like
        return repr(number + 0.0)  # -0 is 0
    folded = unicodedata.normalize("NFKC", text).casefold().replace("i\u0307", "i").replace("\u0131", "i")
    return "".join(character for character in folded if not (is_invisible(character) or character in "\ufe0e\ufe0f"))


def is_unlabelled(value: Any) -> bool:
    """Return whether a value stands for a label that was held back: empty, a missing value (None, nan), -1, or a list of these."""
    if isinstance(value, list | tuple):
        return all(is_unlabelled(item) for item in value)
    return canonical(value) in ("", "-1", *MISSING)
