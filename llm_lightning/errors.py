"""The exceptions that end a run with one message and no traceback, each with its exit code."""

import difflib
import re
from collections.abc import Iterable

_CONTROLS = re.compile(r"\x1b(?!\[[0-9;]*m)|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f]")
"""Characters that a terminal obeys, except line feed, tab and the start of a colour."""


class RunError(Exception):
    """The run cannot continue for a known reason that needs no traceback: a full disk, a diverged loss."""

    exit_code = 1


class UserError(RunError):
    """A mistake in the configuration or the data; the message names the mistake, its place, and the remedy."""

    exit_code = 2


class Stopped(RunError):
    """A signal ended the run after its state was saved; the message says how to resume."""

    exit_code = 3


class Pruned(Stopped):
    """A sweep ended the run, because other runs were better at the same step."""


class OtherRankFailed(RunError):
    """Another rank has failed or stopped, and has printed why: this rank ends with the same exit code and prints nothing."""

    def __init__(self, exit_code: int, message: str = "") -> None:
        super().__init__(f"another rank has ended the run{message and ': '}{message}")
        self.exit_code = exit_code


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the valid name closest to `name`, or an empty string if none is close."""
    close = difflib.get_close_matches(name, list(valid), n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


def join_names(names: Iterable[str], most: int = 12) -> str:
    """Join names by commas, cut after `most` of them."""
    names = list(names)
    more = f", … ({len(names) - most} more)" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def first_line(error: BaseException, most: int = 300) -> str:
    """Return the first line of an exception's message, cut after `most` characters; its type if the message is empty."""
    lines = str(error).strip().splitlines()
    line = lines[0].strip().rstrip(".") if lines else type(error).__name__
    return line if len(line) <= most else f"{line[:most]}…"


def escape_controls(text: str) -> str:
    """Return a text with \\x1b for the characters that a terminal obeys: rows and names of labels may come from anyone."""
    return _CONTROLS.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
