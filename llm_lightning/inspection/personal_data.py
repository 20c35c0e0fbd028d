"""Find personal data and secrets in texts by patterns, each checked by its checksum or its rules, so that other numbers are no alarm.

A finding tells the kind and the place, never the text. Names and postal addresses have no pattern: `presidio-analyzer` finds some of
them. Texts are searched together, in one buffer: a pattern runs only around a sign of its kind (an @, a run of digits), which a simple
search finds.
"""

from __future__ import annotations

import ipaddress
import re
import string
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

END = "\0"
"""Stands between the texts of a buffer; no pattern matches it."""
GROUP = 1 << 20  # characters that are searched together
WORD = 200  # characters in which a word ends, or it is cut


@dataclass(frozen=True)
class Finding:
    """A place in a text that holds personal data of a kind."""

    kind: str
    start: int
    end: int


Finder = Callable[[Sequence[str]], Iterator[tuple[int, list[Finding]]]]
"""Yields (number of a text, its findings in order) of the texts with personal data."""


@dataclass(frozen=True)
class Detector:
    """How data of a kind is found."""

    kind: str
    sign: re.Pattern[str] | tuple[str, ...]
    """A part that all such data has, or one of several words in lower case; the pattern is searched around it."""
    pattern: re.Pattern[str]
    """A group `datum` is the part that counts."""
    is_valid: Callable[[str], bool] | None = None
    """The check of what the pattern matches."""
    before: int = 40
    """Characters of the data that may stand before the sign."""
    after: int = 100
    """Characters of the data that may stand behind the beginning of the sign."""

    def find(self, buffer: str, lower: str) -> Iterator[Finding]:
        """Yield the findings in a buffer of texts, in order; `lower` is the buffer in lower case."""
        for start, end in self._windows(buffer, lower):
            for match in self.pattern.finditer(buffer, start, end):
                span = match.span("datum") if "datum" in self.pattern.groupindex else match.span()
                if self.is_valid is None or self.is_valid(buffer[slice(*span)]):
                    yield Finding(self.kind, *span)

    def _windows(self, buffer: str, lower: str) -> Iterator[tuple[int, int]]:
        """Yield (start, end) of the parts of a buffer around the signs; they do not overlap, and end before a blank."""
        begin, stop = 0, -1
        for sign_start, sign_end in self._signs(buffer, lower):
            start = sign_start - self.before
            if start > stop >= 0:
                yield max(begin, 0), stop
            if start > stop:
                begin = start
            end = max(sign_start + self.after, sign_end)
            gap = _GAP.search(buffer, end, end + WORD)
            stop = min(end, len(buffer)) if gap is None else gap.start()
        if stop >= 0:
            yield max(begin, 0), stop

    def _signs(self, buffer: str, lower: str) -> Iterator[tuple[int, int]]:
        """Yield (start, end) of the signs, in order."""
        if isinstance(self.sign, re.Pattern):
            yield from (match.span() for match in self.sign.finditer(buffer))
            return
        places: list[tuple[int, int]] = []
        for word in self.sign:  # a search for a word is many times faster than one for a pattern
            start = lower.find(word)
            while start >= 0:
                places.append((start, start + len(word)))
                start = lower.find(word, start + len(word))
        yield from sorted(places)


def find_personal_data(texts: Sequence[str]) -> Iterator[tuple[int, list[Finding]]]:
    """Yield (number of a text, its findings in order) of the texts with personal data.

    Of places that overlap, that of the first detector counts.
    """
    begin = size = 0
    for end, text in enumerate(texts, 1):
        size += len(text)
        if size >= GROUP or end == len(texts):
            for number, findings in _search(texts[begin:end]):
                yield begin + number, findings
            begin, size = end, 0


def _search(texts: Sequence[str]) -> Iterator[tuple[int, list[Finding]]]:
    """Yield (number of a text, its findings) of texts that are joined in one buffer."""
    buffer = END.join([text.replace(END, " ") for text in texts])
    lower = buffer.lower()
    if len(lower) != len(buffer):  # İ has two characters in lower case
        lower = buffer.translate(_LOWER)
    starts = np.cumsum([0, *(len(text) + 1 for text in texts)])
    found_by_text: dict[int, list[Finding]] = defaultdict(list)
    for detector in DETECTORS:
        for finding in detector.find(buffer, lower):
            number = int(np.searchsorted(starts, finding.start, "right")) - 1
            findings = found_by_text[number]
            place = Finding(finding.kind, finding.start - int(starts[number]), finding.end - int(starts[number]))
            if not any(place.start < other.end and other.start < place.end for other in findings):
                findings.append(place)
    for number, findings in sorted(found_by_text.items()):
        yield number, sorted(findings, key=lambda finding: finding.start)


def mask(text: str, find: Finder = find_personal_data) -> str:
    """Return a text with `[kind]` in the place of the personal data that `find` finds."""
    pieces, end = [], 0
    for _, findings in find([text]):
        for finding in findings:
            pieces += [text[end : finding.start], f"[{finding.kind}]"]
            end = max(end, finding.end)
    return "".join([*pieces, text[end:]])


def passes_luhn(digits: str) -> bool:
    """Return whether the last digit of a number checks the others (ISO/IEC 7812-1, annex B)."""
    values = [int(digit) for digit in reversed(digits)]
    doubled = (2 * value - 9 * (value > 4) for value in values[1::2])
    return (sum(values[::2]) + sum(doubled)) % 10 == 0


def is_card(text: str) -> bool:
    """Return whether a text is the number of a payment card: an issuer's prefix, as many digits as it gives out, a right checksum."""
    digits = re.sub(r"\D", "", text)
    return _CARD.fullmatch(digits) is not None and len(set(digits)) > 1 and passes_luhn(digits)


def is_iban(text: str) -> bool:
    """Return whether a text is an IBAN: its country's length, and remainder 1 modulo 97 (ISO 13616-1, ISO/IEC 7064)."""
    code = re.sub(r"[ -]", "", text).upper()
    if len(code) != IBAN_LENGTHS.get(code[:2]):
        return False
    return int("".join(str(int(character, 36)) for character in code[4:] + code[:4])) % 97 == 1


def is_phone(text: str) -> bool:
    """Return whether a text has as many digits as a phone number (E.164: at most 15), and not the shape of a date or of years."""
    digits = re.sub(r"\D", "", text)
    if _DATE.fullmatch(text.strip()):
        return False
    return 7 <= len(digits) <= 15 and len(set(digits)) > 2


def is_social_security_number(text: str) -> bool:
    """Return whether a number of the USA is one that is given out: no part is zero, and the area is below 900 and not 666."""
    area, group, serial = text.split("-")
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


def is_address(text: str) -> bool:
    """Return whether a text is the address of a computer, and not one that all have (127.0.0.1), a mask, or a version (1.2.0.4)."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if address.version == 6:
        return not (address.is_loopback or address.is_unspecified) and any(character.isdigit() for character in text)
    parts = text.split(".")
    is_version = max(map(len, parts)) == 1 and len(set(parts)) > 1
    return parts[0] not in ("0", "127", "255") and not is_version


def is_secret(text: str) -> bool:
    """Return whether a value behind `password is` looks like one: at least six characters with a digit or a sign, no placeholder."""
    inner = text.strip("*<>{}[]()$%.!?:\"'`")
    if inner.lower() in PLACEHOLDERS or len(inner) < 6 or "://" in inner:
        return False
    return bool(re.search(r"\d|[^\w\s.'’-]|_", inner))


def is_password(text: str) -> bool:
    """Return whether a value behind `password:` looks like one: at least four characters, no placeholder."""
    inner = text.strip("*<>{}[]()$%.!?:\"'`")
    return len(inner) >= 4 and inner.lower() not in PLACEHOLDERS and "://" not in inner


_PLACEHOLDERS = (
    "your_password yourpassword your-password password passwort changeme example required none null string redacted hidden secret "
    "your_api_key your-api-key your_token undefined false true optional"
)
PLACEHOLDERS = frozenset(_PLACEHOLDERS.split())
"""Words that stand where a password would."""

_LENGTHS = (
    "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 DO28 EE20 EG29 ES24 FI18 FO18 FR27 GB22 "
    "GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 "
    "MK19 MR27 MT31 MU30 NL18 NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 SA24 SC31 SE24 SI19 SK24 SM27 ST25 SV28 TL23 TN24 TR26 UA29 "
    "VA22 VG24 XK20"
)
IBAN_LENGTHS = {entry[:2]: int(entry[2:]) for entry in _LENGTHS.split()}
"""Country -> characters of its IBANs (SWIFT's IBAN registry)."""


def _build_iban_pattern() -> re.Pattern[str]:
    """Return a pattern that matches as many characters behind a country as its IBANs have, with blanks or hyphens between."""
    countries: dict[int, list[str]] = {}
    for country, length in IBAN_LENGTHS.items():
        countries.setdefault(length, []).append(country)
    options = (f"(?:{'|'.join(names)})\\d\\d(?:[ -]?[A-Za-z0-9]){{{length - 4}}}" for length, names in countries.items())
    return re.compile(rf"(?<!\w)(?:{'|'.join(options)})(?!\w)", re.IGNORECASE)


_LOWER = {ord(letter): letter.lower() for letter in string.ascii_uppercase}
_CARD = re.compile(
    r"4\d{12}(?:\d{3}){0,2}|3[47]\d{13}|3(?:0[0-5]|[68]\d)\d{11}|35\d{14}|(?:5[1-5]|2[2-7])\d{14}|6(?:011|[245]\d\d)\d{12,15}"
    r"|(?:50|5[6-9]|6\d)\d{14}(?:\d{2,3})?"
)
"""Visa, American Express, Diners Club, JCB, Mastercard, Discover and UnionPay, Maestro."""
_GAP = re.compile(r"[\s\0]")
_DATE = re.compile(r"\d{1,4}([./-])\d{1,2}\1\d{1,4}|(19|20)\d\d[ -]+(19|20)\d\d")
_PASSWORD_NAME = r"(?:pass(?:word|wd|wort|phrase|code)|pwd|kennwort|contraseña|mot de passe)"
_SECRET_NAME = (
    rf"(?:{_PASSWORD_NAME}|(?:api|secret|access|private)[ _-]?key|(?:client[ _-]?)?secret|(?:access|auth|api|bearer)[ _-]?token|token|"
    r"\bpass(?=\s*[:=]))"
)
_SECRET_SIGNS = ("pass", "pwd", "kennwort", "contrase", "secret", "token", "key")
_AT, _DOT = r" ?[\[({<] ?(?:at|@) ?[\])}>] ?", r"(?: ?[\[({<] ?(?:dot|\.) ?[\])}>] ?| dot |\.)"
_DIGITS = re.compile(r"\d(?:[ ./()-]{0,3}\d){6}")
_NOT_BEFORE, _NOT_BEHIND = r"(?<![\w.,+$€£/-])", r"(?![\w%€]|[.,-]\d)"
_ALONE = rf"{_NOT_BEFORE}(?<!\d )"  # of numbers with blanks, which a number before them may be a part of

DETECTORS = (
    Detector(
        "private_key",
        re.compile("-----BEGIN"),
        re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----(?:[^\0]*?-----END [A-Z ]*PRIVATE KEY(?: BLOCK)?-----)?"),
        before=0,
        after=8000,
    ),
    Detector(
        "key",
        (
            *("akia", "asia", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "sk-", "aiza", "xox", "hf_", "glpat-"),
            *("k_live_", "k_test_", "eyj", "npm_", "sg.", "ya29."),
        ),
        re.compile(
            r"(?<![A-Za-z0-9])(?:(?:AKIA|ASIA)[0-9A-Z]{16}\b|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{40,}|sk-[A-Za-z0-9_-]{20,}"
            r"|AIza[\w-]{30,}|xox[abeprs]-[A-Za-z0-9-]{10,}|hf_[A-Za-z0-9]{20,}|glpat-[\w-]{20,}|[spr]k_(?:live|test)_[A-Za-z0-9]{10,}"
            r"|npm_[A-Za-z0-9]{30,}|SG\.[\w-]{16,}\.[\w-]{16,}|ya29\.[\w-]{20,}|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,})"
        ),
        before=2,
        after=300,
    ),
    Detector(
        "password",
        _SECRET_SIGNS,
        re.compile(rf"{_PASSWORD_NAME}\w*[\"'`]?\s*[:=]+>?\s*[\"'`]?(?P<datum>[^\s\"'`,;\0]+)", re.IGNORECASE),
        is_password,
    ),
    Detector(
        "password",
        _SECRET_SIGNS,
        re.compile(
            rf"{_SECRET_NAME}\w*[\"'`]?,?(?:\s*[:=]+>?|\s+(?:(?:is|was|ist|est|es|to|set to)[: ])?)\s*[\"'`(]?(?P<datum>[^\s\"'`,;\0]+)",
            re.IGNORECASE,
        ),
        is_secret,
    ),
    Detector("password", re.compile("://"), re.compile(r"://[^\s/:@\0]+:(?P<datum>[^\s/@\0]+)@"), before=0),
    Detector(
        "email",
        re.compile("@"),
        re.compile(r"(?<![\w.+-])[\w.%+-]{1,64}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,9}[^\W\d_]{2,24}\b"),
        before=70,
    ),
    Detector(
        "email",
        re.compile(r"[\[({<] ?(?:at|@|AT) ?[\])}>]"),
        re.compile(rf"(?<![\w.%+-])[\w.%+-]{{1,64}}{_AT}[\w-]{{1,63}}(?:{_DOT}[\w-]{{1,63}}){{1,9}}", re.IGNORECASE),
        before=70,
    ),
    Detector("iban", re.compile(r"(?<=[A-Za-z]{2})\d\d(?:[ -]?[A-Za-z0-9]){9}"), _build_iban_pattern(), is_iban, before=2),
    Detector(
        "card",
        re.compile(r"\d(?:[ .-]?\d){12}"),
        re.compile(
            r"(?<![\w.,-])(?:\d{4}(?P<gap>[ .-])\d{4}(?P=gap)\d{4}(?P=gap)\d{4}|\d{4}(?P<space>[ -])\d{6}(?P=space)\d{4,5}|\d{13,19})"
            r"(?![\w-]|\.\d)"
        ),
        is_card,
        before=0,
    ),
    Detector(
        "social_security_number",
        re.compile(r"\d{3}-\d\d-\d{4}"),
        re.compile(r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])"),
        is_social_security_number,
        before=0,
    ),
    Detector(
        "ip_address",
        re.compile(r"\d\.\d{1,3}\.\d{1,3}\.\d"),
        re.compile(r"(?<![\w.])(?<![vV]ersion )(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)"),
        is_address,
        before=2,
    ),
    Detector(
        "ip_address",
        re.compile(r":[0-9A-Fa-f]{0,4}:"),
        re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])"),
        is_address,
    ),
    Detector(
        "phone",
        _DIGITS,
        re.compile(
            r"(?<![\w+])\(?\+\d(?:[ ./()-]{0,3}\d){6,14}(?!\d|[.,]\d)"  # +44 20 7946 0958, (+1) 555-123-4567
            rf"|{_ALONE}00[1-9]\d(?:[ ./()-]{{0,3}}\d){{6,12}}{_NOT_BEHIND}"  # 0049 30 123456
            rf"|{_NOT_BEFORE}(?:1[ .-])?(?:\(\d{{3}}\)[ .-]?|\d{{3}}[.-])\d{{3}}[ .-]\d{{4}}{_NOT_BEHIND}"  # (555) 123-4567
            rf"|{_ALONE}(?:1 )?[2-9]\d\d \d{{3}}[ -]\d{{4}}{_NOT_BEHIND}"  # 555 123 4567
            rf"|{_NOT_BEFORE}\(\d{{2,5}}\)[ -]?\d{{3,5}}[ .-]?\d{{3,5}}{_NOT_BEHIND}"  # (11) 91234-5678
            rf"|{_ALONE}\(?0\d{{1,5}}\)?(?: ?[./-] ?| )\d{{2,8}}(?:[ ./-]?\d{{2,5}}){{0,3}}{_NOT_BEHIND}"  # 020 7946 0958, 030/1234567
            rf"|{_NOT_BEFORE}0[1-9]\d{{8,9}}{_NOT_BEHIND}"  # 07700900123
            rf"|{_ALONE}(?:1[3-9]\d[ -]\d{{4}}[ -]\d{{4}}|[6-9]\d{{4}}[ -]\d{{5}}){_NOT_BEHIND}"  # 138 1234 5678, 98765 43210
            rf"|{_NOT_BEFORE}8 ?\(\d{{3}}\) ?\d{{3}}-\d\d-\d\d{_NOT_BEHIND}"  # 8 (495) 123-45-67
        ),
        lambda text: is_phone(text) and (text.lstrip("(").startswith(("+", "00")) or len(re.sub(r"\D", "", text)) >= 9),
        before=2,
    ),
    Detector(
        "phone",
        _DIGITS,
        re.compile(
            r"(?:phone|tel|telephone|fax|mobile|cell|call|whatsapp|ring|dial|reached)\b[^\d\0]{0,20}?(?<![\w$€£.,])"
            r"(?P<datum>\(?\d(?:[ ./()-]{0,2}\d){6,14})(?![\w%€]|[.,-]\d)",
            re.IGNORECASE,
        ),
        is_phone,
    ),
)
"""The detectors, the surest first."""
