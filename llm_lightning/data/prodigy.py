"""Leave out rows of Prodigy files that annotators rejected or ignored.

Prodigy writes every row that its annotators saw, with their verdict: `"answer": "accept"`, `"reject"` or `"ignore"`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

ANSWER = "answer"
ACCEPT, OTHERS = "accept", ("reject", "ignore")
BESIDE = frozenset(("_task_hash", "_input_hash", "spans", "tokens", "label", "options", "accept"))
"""Columns that distinguish a file of Prodigy from another with a column of this name."""


def has_answers(columns: Collection[str], used: Collection[str]) -> bool:
    """Return whether a file with these columns may be of Prodigy, and its answers are not among the `used` columns."""
    return ANSWER in columns and ANSWER not in used and not BESIDE.isdisjoint(columns)


def count_answers(answers: Counter[Any]) -> dict[str, int]:
    """Return the number of rejected and of ignored rows; empty if the answers are not those of Prodigy."""
    counts = {answer: count for answer, count in answers.items() if answer not in (None, "")}
    if not counts or not counts.keys() <= {ACCEPT, *OTHERS}:
        return {}
    return {answer: counts[answer] for answer in OTHERS if answer in counts}


def describe(counts: dict[str, int]) -> str:
    """Return a note on the rows that are left out."""
    words = {"reject": "rejected", "ignore": "ignored"}
    counts_in_words = " and ".join(f"{count:,} {words[answer]}" for answer, count in counts.items())
    return f"this is a file of Prodigy, and {counts_in_words} annotations (column '{ANSWER}') are left out"
