"""Texts with planted copies and personal data."""

from __future__ import annotations

import csv
import random
import string
from collections.abc import Callable

import pytest

from ..conftest import DATA


def news() -> list[str]:
    """The rows of AG News, title and description."""
    file = DATA / "ag_news" / "train.csv"
    if not file.is_file():
        pytest.skip(f"{DATA} has no ag_news")
    with file.open(encoding="utf-8") as opened:
        return [f"{row['title']} {row['description']}" for row in csv.DictReader(opened)]


def shingles(text: str) -> set[tuple[str, ...]]:
    """The word 5-grams of a text, in plain Python; of a shorter text all its words."""
    words = "".join(c.lower() if (c.isascii() and c.isalnum()) or ord(c) > 127 else " " for c in text).split()
    return {tuple(words[i : i + 5]) for i in range(max(len(words) - 4, 1))} if words else set()


def similarity(first: str, second: str) -> float:
    one, other = shingles(first), shingles(second)
    return len(one & other) / max(len(one | other), 1)


def change(text: str, goal: float, rng: random.Random) -> str:
    """Replace words near the ends of a text and add some, one by one, as long as its similarity to the text stays at `goal` or above."""
    words, changed = text.split(), text
    while similarity(text, changed) >= goal:
        words = changed.split()
        word, place = "".join(rng.choices(string.ascii_lowercase, k=7)), rng.choice([0, len(words) - 1])
        trial = rng.choice([[*words[:place], word, *words[place + 1 :]], [word, *words], [*words, word]])
        if similarity(text, " ".join(trial)) < goal:
            break
        changed = " ".join(trial)
    return changed


def check_luhn(digits: str) -> str:
    """Append the digit that checks the others, by the sum over all of them (ISO/IEC 7812-1)."""
    return next(
        digits + str(last)
        for last in range(10)
        if not sum(sum(divmod(int(d) * (1 + i % 2), 10)) for i, d in enumerate(reversed(digits + str(last)))) % 10
    )


def check_iban(country: str, account: str) -> str:
    """Put the two digits that check an account (ISO 13616) behind the country."""
    number = int("".join(str(int(c, 36)) for c in f"{account}{country}00"))
    return f"{country}{98 - number % 97:02d}{account}"


def digits(rng: random.Random, count: int) -> str:
    return "".join(rng.choices(string.digits, k=count))


def secret(rng: random.Random, count: int, letters: str = string.ascii_letters + string.digits) -> str:
    return "".join(rng.choices(letters, k=count - 1)) + rng.choice(string.digits)


def spaced(text: str, sizes: tuple[int, ...], separator: str) -> str:
    parts = []
    for size in sizes:
        parts.append(text[:size])
        text = text[size:]
    return separator.join([*parts, *filter(None, [text])])


NAMES = ("anna", "b.lopez", "chen_wei", "d.o-hara", "eva+news", "farid99", "G.Smith", "jörg")
HOSTS = ("example.com", "mail.example.org", "uni-test.de", "firma.co.uk", "post.io", "EXAMPLE.NET")
MAKERS: dict[str, tuple[Callable[[random.Random], str], ...]] = {
    "email": (
        lambda rng: f"{rng.choice(NAMES)}@{rng.choice(HOSTS)}",
        lambda rng: f"<{rng.choice(NAMES)}@{rng.choice(HOSTS)}>",
        lambda rng: f"mailto:{rng.choice(NAMES)}@{rng.choice(HOSTS)}",
        lambda rng: f"{rng.choice(NAMES[:3])} [at] {rng.choice(HOSTS)}",
    ),
    "phone": (
        lambda rng: f"+1 ({rng.randint(201, 989)}) {rng.randint(200, 999)}-{digits(rng, 4)}",
        lambda rng: f"({rng.randint(201, 989)}) {rng.randint(200, 999)}-{digits(rng, 4)}",
        lambda rng: f"{rng.randint(201, 989)}-{rng.randint(200, 999)}-{digits(rng, 4)}",
        lambda rng: f"{rng.randint(201, 989)}.{rng.randint(200, 999)}.{digits(rng, 4)}",
        lambda rng: f"1-800-{rng.randint(200, 999)}-{digits(rng, 4)}",
        lambda rng: f"+44 20 {digits(rng, 4)} {digits(rng, 4)}",
        lambda rng: f"+49 {rng.randint(30, 99)} {digits(rng, 6)}",
        lambda rng: f"0{rng.randint(151, 179)}/{digits(rng, 7)}",
        lambda rng: f"+33 6 {digits(rng, 2)} {digits(rng, 2)} {digits(rng, 2)} {digits(rng, 2)}",
        lambda rng: f"+91{rng.randint(70, 99)}{digits(rng, 8)}",
        lambda rng: f"0041 44 {digits(rng, 3)} {digits(rng, 2)} {digits(rng, 2)}",
    ),
    "iban": (
        lambda rng: check_iban("DE", digits(rng, 18)),
        lambda rng: spaced(check_iban("DE", digits(rng, 18)), (4, 4, 4, 4, 4), " "),
        lambda rng: spaced(check_iban("GB", f"WEST{digits(rng, 14)}"), (4, 4, 4, 4, 4), " "),
        lambda rng: check_iban("NL", f"ABNA{digits(rng, 10)}").lower(),
        lambda rng: check_iban("FR", f"{digits(rng, 10)}{secret(rng, 11, string.ascii_uppercase)}{digits(rng, 2)}"),
    ),
    "card": (
        lambda rng: check_luhn(f"4{digits(rng, 14)}"),
        lambda rng: spaced(check_luhn(f"4{digits(rng, 14)}"), (4, 4, 4), " "),
        lambda rng: spaced(check_luhn(f"5{rng.randint(1, 5)}{digits(rng, 13)}"), (4, 4, 4), "-"),
        lambda rng: spaced(check_luhn(f"37{digits(rng, 12)}"), (4, 6), " "),
    ),
    "ip_address": (
        lambda rng: ".".join(str(rng.randint(11, 223) if i == 0 else rng.randint(10, 255)) for i in range(4)).replace(
            "127.", "128."
        ),
        lambda rng: "2001:db8:" + ":".join(f"{rng.randint(1, 65535):x}" for _ in range(6)),
        lambda rng: f"2001:db8::{rng.randint(4096, 65535):x}:{rng.randint(1, 9)}",
    ),
    "key": (
        lambda rng: f"AKIA{secret(rng, 16, string.ascii_uppercase + string.digits)}",
        lambda rng: f"ghp_{secret(rng, 36)}",
        lambda rng: f"sk-{secret(rng, 40)}",
        lambda rng: f"AIza{secret(rng, 35)}",
        lambda rng: f"eyJ{secret(rng, 20)}.eyJ{secret(rng, 30)}.{secret(rng, 40)}",
    ),
    "password": (
        lambda rng: f"password: {secret(rng, 10)}",
        lambda rng: f"password is {secret(rng, 9)}!",
        lambda rng: f"PWD={secret(rng, 8)}",
        lambda rng: f'"api_key": "{secret(rng, 24)}"',
        lambda rng: f"https://deploy:{secret(rng, 12)}@git.example.com/x",
    ),
}
"""Kind -> functions that make a datum of it."""


def plant(count: int, seed: int = 0) -> list[tuple[str, str, str]]:
    """Sentences of AG News with a datum at a random place: (sentence, kind, datum)."""
    rng = random.Random(seed)
    sentences = rng.sample(news(), count)
    planted = []
    for number, sentence in enumerate(sentences):
        kind = list(MAKERS)[number % len(MAKERS)]
        datum = rng.choice(MAKERS[kind])(rng)
        words = sentence.split()
        place = rng.randint(0, len(words))
        mark = rng.choice(["{}", "{}", "({})", "{},", "{}."])
        planted.append((" ".join([*words[:place], mark.format(datum), *words[place:]]), kind, datum))
    return planted
