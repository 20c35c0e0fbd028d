"""Change texts in ways that should not change a prediction (CheckList; Ribeiro et al. 2020), and by a negation, which should.

A change depends on the seed, the row's number and its own name alone: it is the same on every rank and in every run. Each draws one of
its operations for a text and returns (text, operation); a text that an operation cannot change is returned as it is.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Callable

from llm_lightning.robustness.first_names import swap_names
from llm_lightning.robustness.negation import change_negation

Change = Callable[[str, random.Random], tuple[str, str]]

WORDS_PER_TYPO = 10
"""A text gets one typo for each that many of its words, and at least one."""
_LONG_WORD = re.compile(r"[^\W\d_]{4,}")
_WORD = re.compile(r"[^\W\d_][\w'’]*")
_KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def _list_neighbours() -> dict[str, str]:
    """Return, for each letter, the letters whose keys touch its key: beside it, and in the next rows, which are half a key to the right."""
    places = {letter: (row, column + row / 2) for row, letters in enumerate(_KEYS) for column, letter in enumerate(letters)}
    return {
        letter: "".join(
            other
            for other, (other_row, other_column) in places.items()
            if other != letter and abs(other_row - row) <= 1 and abs(other_column - column) <= 1
        )
        for letter, (row, column) in places.items()
    }


NEIGHBOURS = _list_neighbours()
"""Letter -> those around it on a QWERTY keyboard."""


def add_typos(text: str, rng: random.Random) -> tuple[str, str]:
    """Mistype words of at least four letters, each at one place and all in the same way: `swap` two letters, `drop` or `double` one, or
    hit the `neighbour` key. The first letter of a word stays."""
    operations = list(_TYPOS)
    rng.shuffle(operations)
    words = list(_LONG_WORD.finditer(text))
    count = max(1, round(len(text.split()) / WORDS_PER_TYPO))
    for operation in operations:
        places = [(word.start(), typed) for word in words if (typed := _TYPOS[operation](word.group(), rng)) is not None]
        if places:
            chosen = sorted(rng.sample(places, min(count, len(places))), reverse=True)
            for start, typed in chosen:
                end = _LONG_WORD.match(text, start)
                assert end is not None
                text = text[:start] + typed + text[end.end() :]
            return text, operation
    return text, "none"


def _swap(word: str, rng: random.Random) -> str | None:
    places = [i for i in range(1, len(word) - 1) if word[i].lower() != word[i + 1].lower()]
    if not places:
        return None
    i = rng.choice(places)
    return word[:i] + word[i + 1] + word[i] + word[i + 2 :]


def _drop(word: str, rng: random.Random) -> str | None:
    i = rng.randrange(1, len(word))
    return word[:i] + word[i + 1 :]


def _double(word: str, rng: random.Random) -> str | None:
    i = rng.randrange(1, len(word))
    return word[: i + 1] + word[i] + word[i + 1 :]


def _hit_neighbour(word: str, rng: random.Random) -> str | None:
    places = [i for i in range(1, len(word)) if word[i].lower() in NEIGHBOURS]
    if not places:
        return None
    i = rng.choice(places)
    typed = rng.choice(NEIGHBOURS[word[i].lower()])
    return word[:i] + (typed.upper() if word[i].isupper() else typed) + word[i + 1 :]


_TYPOS: dict[str, Callable[[str, random.Random], str | None]] = {
    "swap": _swap,
    "drop": _drop,
    "double": _double,
    "neighbour": _hit_neighbour,
}


def change_case(text: str, rng: random.Random) -> tuple[str, str]:
    """Write all letters `lower` or `upper`, or the first letter of each word in upper case (`title`)."""
    titled = _WORD.sub(lambda word: word.group()[0].upper() + word.group()[1:], text)
    changed = [
        (after, name) for name, after in (("lower", text.lower()), ("upper", text.upper()), ("title", titled)) if after != text
    ]
    return rng.choice(changed) if changed else (text, "none")


def change_punctuation(text: str, rng: random.Random) -> tuple[str, str]:
    """`drop` the punctuation at the end, or `add` a mark there: the last one again, or a full stop where there is none."""
    body = text.rstrip()
    stem = body
    while stem and unicodedata.category(stem[-1])[0] == "P":
        stem = stem[:-1]
    if not stem.strip():
        return text, "none"
    if stem == body:
        return f"{body}.", "add"
    return (stem.rstrip(), "drop") if rng.random() < 0.5 else (body + body[-1], "add")


CHANGES: dict[str, Change] = {
    "typos": add_typos,
    "case": change_case,
    "punctuation": change_punctuation,
    "names": swap_names,
    "negation": change_negation,
}
"""The names of `evaluate.invariance` -> the change of a text."""
DIRECTIONAL = ("negation",)
"""Changes that should change the prediction."""


def perturb(name: str, text: str, seed: int, row: int) -> tuple[str, str]:
    """Return (the changed text, the operation that changed it) of a row's text."""
    return CHANGES[name](text, random.Random(f"{seed} {row} {name}"))
