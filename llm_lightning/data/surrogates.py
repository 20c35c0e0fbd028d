"""Find half of a surrogate pair in text: JSON may spell one, and no tokenizer can read it."""

from __future__ import annotations

import re
from typing import Any

_SURROGATE = re.compile("[\ud800-\udfff]")


def find_surrogate(value: Any) -> str | None:
    """Return the first half of a surrogate pair in a text, or in the texts and keys of a list or a mapping; None without one."""
    if isinstance(value, str):
        match = None if value.isascii() else _SURROGATE.search(value)
        return None if match is None else match[0]
    parts = value if isinstance(value, list | tuple) else [*value, *value.values()] if isinstance(value, dict) else ()
    for part in parts:
        if (half := find_surrogate(part)) is not None:
            return half
    return None
