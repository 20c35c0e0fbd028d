"""Identify the language of texts, if one of the packages for it is installed; this program ships none."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable

PACKAGES = ("py3langid", "langid")
"""Packages with a function `classify(text)`, which returns (language, score)."""


def load_identifier() -> Callable[[str], str] | None:
    """Return the function that tells the language of a text (`en`); None if no such package is installed."""
    name = next((name for name in PACKAGES if importlib.util.find_spec(name) is not None), None)
    if name is None:
        return None
    classify = importlib.import_module(name).classify
    return lambda text: str(classify(text)[0])
