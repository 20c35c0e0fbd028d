"""Read the answers of a question, in any shape that files use, as places in its context.

Invisible characters at the edges of an answer (blanks, line ends, zero-width characters, direction marks) are not part of it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import Any

import numpy as np

from llm_lightning.data.examples import BadRow
from llm_lightning.data.label_values import is_invisible, truth
from llm_lightning.data.literals import parse_structure

Answer = tuple[int, str]
"""The start of an answer in the context, in characters, and its text without invisible characters at the edges."""

ADVICE = "a question without an answer has an empty list of answers, or is_impossible: true"


def read_answers(value: Any, context: str, column: str | None, start: Any = None, is_impossible: Any = None) -> list[Answer]:
    """Return the answers of a row; an empty list if the row says that the question has no answer.

    `value` is {text: […], answer_start: […]}, a list of {text, answer_start}, one of these, a text or a list of texts; any of it may be
    JSON or Python inside a text. `start` and `is_impossible` are the values of the columns with these names, if the row has them. An
    offset may be missing, or -1, if the answer occurs once in the context. Raises BadRow if an answer is not at its offset, or if
    `is_impossible` contradicts the answers.
    """
    impossible = _flag(is_impossible)
    is_text = isinstance(value, str) and trim(value)[1] in context  # and no list, though it may begin with a bracket
    is_blank = value is None or (isinstance(value, str) and not value.strip() and start is None)
    pairs = [] if is_blank else list(_pairs(value if is_text else parse_structure(value), column, parse_structure(start)))
    if value is None and impossible is None:
        raise BadRow(f"column '{column}' has no answers; {ADVICE}")
    answers = []
    for text, place in pairs:
        if trim(text)[1]:
            answers.append(_place(text, place, context))
        elif not (impossible or place == -1):
            raise BadRow(f"an answer is empty; {ADVICE}")
    if impossible and answers:
        raise BadRow(f"is_impossible is true, and there is the answer '{answers[0][1]}'; take one of the two away")
    if impossible is False and not answers:
        raise BadRow(f"is_impossible is false, and there is no answer; {ADVICE}")
    return answers


def is_answered(value: Any, is_impossible: Any = None) -> bool:
    """Return whether a row has an answer, or says by `is_impossible` that its question has none."""
    value = parse_structure(value)
    value = value.get("text") if isinstance(value, dict) else value
    texts = value if isinstance(value, list | np.ndarray) else [value]
    texts = [text.get("text") if isinstance(text, dict) else text for text in texts]
    return truth(is_impossible) is True or any(text is not None and trim(str(text))[1] for text in texts)


def trim(text: str) -> tuple[int, str]:
    """Return (number of characters removed at the front, text without invisible characters at the edges)."""
    first, last = 0, len(text)
    while first < last and is_invisible(text[first]):
        first += 1
    while last > first and is_invisible(text[last - 1]):
        last -= 1
    return first, text[first:last]


def _flag(value: Any) -> bool | None:
    """Return `is_impossible`, which tables hold as text or as a number, as a truth value; None if it is empty."""
    if value is None or value != value or str(value).strip() == "":
        return None
    flag = {"yes": True, "no": False}.get(str(value).strip().lower(), truth(value))
    if flag is not None:
        return flag
    raise BadRow(f"is_impossible is '{value}'; expected true or false")


def _pairs(value: Any, column: str | None, start: Any) -> Iterator[tuple[str, int | None]]:
    """Yield (text, offset) of each answer, unchanged from the row."""
    if isinstance(value, dict):
        start = next((value[key] for key in ("answer_start", "answer_starts", "start") if value.get(key) is not None), start)
        value = value.get("text")
    value, start = (item.tolist() if isinstance(item, np.ndarray) else item for item in (value, start))
    items = value if isinstance(value, list) else [value]
    for item, place in zip(items, _offsets(start, len(items)), strict=True):
        if isinstance(item, dict):
            yield from _pairs(item, column, place)
        elif isinstance(item, str) or (isinstance(item, int) and not isinstance(item, bool)):
            yield str(item), place
        else:
            raise BadRow(f"column '{column}' holds no answers: expected {{text: […], answer_start: […]}}")


def _offsets(start: Any, count: int) -> list[int | None]:
    """Return the offsets of `count` answers. Raises BadRow for another number of offsets, and for offsets that are not integers."""
    starts = [None] * count if start is None else start if isinstance(start, list) else [start]
    if len(starts) != count:
        raise BadRow(f"there are {count} answers and {len(starts)} offsets")
    return [None if place is None or place != place or str(place).strip() == "" else _whole(place) for place in starts]


def _whole(place: Any) -> int:
    try:
        if not isinstance(place, bool) and float(place).is_integer():
            return int(float(place))
    except (TypeError, ValueError, OverflowError):
        pass
    raise BadRow(f"answer_start is {place!r}; expected a whole number")


def _place(raw: str, start: int | None, context: str) -> Answer:
    """Return the place of an answer. Raises BadRow, with a likely cause, if the answer is not at its offset."""
    lead, text = trim(raw)
    if start is not None and start >= 0:
        for at in (start + lead, start):  # files may have stripped the text, or the context, but not both
            if context[at : at + len(text)] == text:
                return at, text
    at = context.find(text)
    if at < 0:
        raise BadRow(f"the answer '{text}' is not in the context{_elsewhere(text, context)}")
    once = context.find(text, at + 1) < 0
    if start is None or start == -1:
        if not once:
            raise BadRow(f"the answer '{text}' is in the context more than once, and answer_start does not say which")
        return at, text
    if not 0 <= start <= len(context) - len(text):
        wrong = f"answer_start={start} with the answer '{text}' lies outside the context of {len(context)} characters"
    else:
        wrong = f"at answer_start={start} the context has '{context[start : start + len(text)]}' and not the answer '{text}'"
    raise BadRow(f"{wrong}, which is at {at}{_unit(text, start, context)}" if once else f"{wrong}{_unit(text, start, context)}")


def _unit(text: str, start: int, context: str) -> str:
    """Return a clause that names the unit in which the offset would be right."""
    places, place = [], context.find(text)
    while place >= 0:
        places.append(place)
        place = context.find(text, place + 1)
    units = {
        "bytes of UTF-8": lambda before: len(before.encode()),
        "units of UTF-16, as JavaScript and Java do": lambda before: len(before.encode("utf-16-le")) // 2,
        "characters of a text whose lines end in \\n, while these end in \\r\\n": lambda before: len(before.replace("\r\n", "\n")),
        "characters of a text whose lines end in \\r\\n, while these end in \\n": lambda before: len(before) + before.count("\n"),
    }
    for unit, size in units.items():
        if any(size(context[:at]) == start for at in places):
            return f" (it seems to count {unit}; expected are characters)"
    return ""


def _elsewhere(text: str, context: str) -> str:
    """Return a clause on how the answer differs from the context: in case, in blanks or in its Unicode form."""
    ways = {
        "in another Unicode form": lambda value: unicodedata.normalize("NFC", value),
        "with other blanks or line ends": lambda value: " ".join(value.split()),
        "in other upper and lower case": str.casefold,
    }
    return next((f" (it is there {way})" for way, change in ways.items() if change(text) in change(context)), "")
