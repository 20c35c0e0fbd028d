"""Find personal data and secrets in a text by patterns, each checked by its checksum or its rules, so that other numbers are no alarm.

A finding tells the kind and the place, never the text. Names and addresses have no pattern: `presidio-analyzer` finds some of them.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """A place in a text that holds personal data of a kind."""

    kind: str
    start: int
    end: int


def find_personal_data(text: str) -> list[Finding]:
    """Return the personal data of a text, in its order; of places that overlap the first kind of KINDS counts."""
    findings: list[Finding] = []
    if not _MAY_HOLD.search(text):
        return findings
    for kind, (pattern, is_valid) in KINDS.items():
        for match in pattern.finditer(text):
            start, end = match.span("datum") if "datum" in pattern.groupindex else match.span()
            overlaps = any(start < other.end and other.start < end for other in findings)
            if not overlaps and (is_valid is None or is_valid(text[start:end])):
                findings.append(Finding(kind, start, end))
    return sorted(findings, key=lambda finding: finding.start)


def passes_luhn(digits: str) -> bool:
    """Return whether the last digit of a number checks the others (ISO/IEC 7812-1, annex B)."""
    values = [int(digit) for digit in reversed(digits)]
    doubled = (2 * value - 9 * (value > 4) for value in values[1::2])
    return (sum(values[::2]) + sum(doubled)) % 10 == 0


def is_card(text: str) -> bool:
    """Return whether a text is the number of a payment card: 13 to 19 digits, an issuer's prefix, a right checksum."""
    digits = re.sub(r"[ -]", "", text)
    return 13 <= len(digits) <= 19 and digits[0] in "3456" and len(set(digits)) > 1 and passes_luhn(digits)


def is_iban(text: str) -> bool:
    """Return whether a text is an IBAN: its country's length, and remainder 1 modulo 97 (ISO 13616-1, ISO/IEC 7064)."""
    code = re.sub(r"[ -]", "", text).upper()
    if len(code) != IBAN_LENGTHS.get(code[:2]):
        return False
    return int("".join(str(int(character, 36)) for character in code[4:] + code[:4])) % 97 == 1


def is_phone(text: str) -> bool:
    """Return whether a text has as many digits as a phone number (E.164: at most 15), and not the shape of a date or an amount."""
    digits = re.sub(r"\D", "", text)
    if _DATE.fullmatch(text.strip()):
        return False
    return (8 if text.startswith(("+", "00")) else 9) <= len(digits) <= 15 and len(set(digits)) > 2


def is_social_security_number(text: str) -> bool:
    """Return whether a number of the USA is one that is given out: no part is zero, and the area is below 900 and not 666."""
    area, group, serial = text.split("-")
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


def is_address(text: str) -> bool:
    """Return whether a text is the address of a computer on the internet, and not a private or reserved one."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return address.is_global and not address.is_multicast


def is_secret(text: str) -> bool:
    """Return whether a value behind `password:` looks like one: no placeholder, with a digit or a sign, or of many letters."""
    if text.strip("*<>{}[]$x.").lower() in ("", "your_password", "yourpassword", "password", "changeme", "example", "none", "null"):
        return False
    return bool(re.search(r"\d|[^\w\s]", text)) and len(text) >= 6


IBAN_LENGTHS = {
    **{
        "AD": 24,
        "AE": 23,
        "AL": 28,
        "AT": 20,
        "AZ": 28,
        "BA": 20,
        "BE": 16,
        "BG": 22,
        "BH": 22,
        "BR": 29,
        "BY": 28,
        "CH": 21,
        "CR": 22,
    },
    **{
        "CY": 28,
        "CZ": 24,
        "DE": 22,
        "DK": 18,
        "DO": 28,
        "EE": 20,
        "EG": 29,
        "ES": 24,
        "FI": 18,
        "FO": 18,
        "FR": 27,
        "GB": 22,
        "GE": 22,
    },
    **{
        "GI": 23,
        "GL": 18,
        "GR": 27,
        "GT": 28,
        "HR": 21,
        "HU": 28,
        "IE": 22,
        "IL": 23,
        "IQ": 23,
        "IS": 26,
        "IT": 27,
        "JO": 30,
        "KW": 30,
    },
    **{
        "KZ": 20,
        "LB": 28,
        "LC": 32,
        "LI": 21,
        "LT": 20,
        "LU": 20,
        "LV": 21,
        "LY": 25,
        "MC": 27,
        "MD": 24,
        "ME": 22,
        "MK": 19,
        "MR": 27,
    },
    **{
        "MT": 31,
        "MU": 30,
        "NL": 18,
        "NO": 15,
        "PK": 24,
        "PL": 28,
        "PS": 29,
        "PT": 25,
        "QA": 29,
        "RO": 24,
        "RS": 22,
        "SA": 24,
        "SC": 31,
    },
    **{
        "SE": 24,
        "SI": 19,
        "SK": 24,
        "SM": 27,
        "ST": 25,
        "SV": 28,
        "TL": 23,
        "TN": 24,
        "TR": 26,
        "UA": 29,
        "VA": 22,
        "VG": 24,
        "XK": 20,
    },
}
"""Country -> characters of its IBANs (SWIFT's IBAN registry)."""


def _build_iban_pattern() -> re.Pattern[str]:
    """Return a pattern that matches as many characters behind a country as its IBANs have, with blanks or hyphens between."""
    countries: dict[int, list[str]] = {}
    for country, length in IBAN_LENGTHS.items():
        countries.setdefault(length, []).append(country)
    options = (f"(?:{'|'.join(names)})\\d\\d(?:[ -]?[A-Za-z0-9]){{{length - 4}}}" for length, names in countries.items())
    return re.compile(rf"(?<!\w)(?:{'|'.join(options)})(?!\w)", re.IGNORECASE)


_DATE = re.compile(r"\d{1,4}([./-])\d{1,2}\1\d{1,4}|(19|20)\d\d[ -]+(19|20)\d\d")
_MAY_HOLD = re.compile(
    r"@|\d\D{0,3}\d|AKIA|ASIA|-----BEGIN|passw|pwd|secret|token|api[_-]?key|gh[pousr]_|xox[baprs]-|AIza|eyJ", re.IGNORECASE
)

KINDS: dict[str, tuple[re.Pattern[str], Callable[[str], bool] | None]] = {
    "private_key": (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"), None),
    "key": (
        re.compile(
            r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36,}\b|\bgithub_pat_\w{40,}|\bsk-[A-Za-z0-9_-]{20,}|\bAIza[\w-]{35}\b"
            r"|\bxox[baprs]-[A-Za-z0-9-]{10,}|\bhf_[A-Za-z0-9]{30,}|\bglpat-[\w-]{20,}|\b[sr]k_live_[A-Za-z0-9]{16,}"
            r"|\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}"
        ),
        None,
    ),
    "password": (
        re.compile(
            r"(?:password|passwd|passwort|pwd|passphrase|secret|api[_-]?key|access[_-]?token)\s*(?:is|[:=])\s*[\"']?(?P<datum>[^\s\"',;]+)",
            re.IGNORECASE,
        ),
        is_secret,
    ),
    "email": (re.compile(r"(?<![\w.+-])[A-Za-z0-9._%+-]+@(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)+[A-Za-z]{2,24}\b"), None),
    "iban": (_build_iban_pattern(), is_iban),
    "card": (re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-])"), is_card),
    "social_security_number": (re.compile(r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])"), is_social_security_number),
    "ip_address": (
        re.compile(r"(?<![\w.:])(?:(?:\d{1,3}\.){3}\d{1,3}|(?:[0-9A-Fa-f]{0,4}:){3,7}[0-9A-Fa-f]{1,4})(?![\w:]|\.\d)"),
        is_address,
    ),
    "phone": (
        re.compile(
            r"(?<![\w.,+$€£/-])(?:\+|00)\d{1,3}[ .-]?(?:\(0?\d{1,5}\)[ .-]?)?\d{1,5}(?:[ ./-]?\d{2,5}){1,4}(?![\w%€]|[.,]\d)"
            r"|(?<![\w.,+$€£/-])(?:1[ .-])?\(?[2-9]\d{2}\)?[ .-]\d{3}[ .-]\d{4}(?![\w%€]|[.,]\d)"
            r"|(?<![\w.,+$€£/-])\(?0\d{1,5}\)?[ ./-]\d{2,5}(?:[ ./-]?\d{2,5}){1,3}(?![\w%€]|[.,]\d)"
        ),
        is_phone,
    ),
}
"""Kind -> its pattern, and the check of what it matches; a group `datum` is the part that counts."""


def count_kinds(findings: Iterator[Finding] | list[Finding]) -> dict[str, int]:
    """Return the number of findings of each kind."""
    counts: dict[str, int] = {}
    for finding in findings:
        counts[finding.kind] = counts.get(finding.kind, 0) + 1
    return counts
