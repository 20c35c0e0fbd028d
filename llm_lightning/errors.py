"""The one exception that means "the user can fix this": printed without a traceback, exit code 2."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in the configuration or the data; its message says what is wrong, where, and what to do."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the valid name closest to `name`, or an empty string where none is close."""
    close = difflib.get_close_matches(name, list(valid), n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


def listed(names: Iterable[str], most: int = 12) -> str:
    """Names joined by commas, cut after `most` of them."""
    names = list(names)
    more = f", … ({len(names) - most} more)" if len(names) > most else ""
    return ", ".join(names[:most]) + more
