"""Add a negation to an English text, or remove one: for a sentiment, or another judgement, the prediction should then change."""

from __future__ import annotations

import random
import re

_AUXILIARIES = "is|are|was|were|will|would|can|could|should|has|have|had|does|do|did|must|may|might"
_SHORT = re.compile(rf"\b({_AUXILIARIES})\s?n['’]t\b", re.IGNORECASE)
"""`isn't`, also in pieces as treebanks write it: `is n't`."""
_IRREGULAR = re.compile(r"\b(ca|wo)\s?n['’]t\b|\b(can)not\b", re.IGNORECASE)
_FULL = {"ca": "can", "wo": "will"}
_WORD = re.compile(r"\s\b(?:not|never)\b(?!\s+(?:only|just|merely)\b)|\b(?:not|never)\b\s(?!(?:only|just|merely)\b)", re.IGNORECASE)
_ADDABLE = re.compile(rf"\b({_AUXILIARIES})\b(?!\s?n['’]t)(?!not)(?!\s+(?:not|never)\b)", re.IGNORECASE)


def change_negation(text: str, rng: random.Random) -> tuple[str, str]:
    """`remove` the first negation of a text, or `add` `not` behind its first auxiliary verb; a text with neither stays."""
    for pattern, replacement in ((_SHORT, r"\1"), (_IRREGULAR, _write_full), (_WORD, "")):
        removed, count = pattern.subn(replacement, text, count=1)
        if count:
            return removed, "remove"
    added, count = _ADDABLE.subn(lambda verb: f"{verb[1]} {'NOT' if verb[1].isupper() else 'not'}", text, count=1)
    return (added, "add") if count else (text, "none")


def _write_full(short: re.Match[str]) -> str:
    stem = short[1] or short[2]
    full = _FULL.get(stem.lower(), stem)
    return full.capitalize() if stem[0].isupper() else full
