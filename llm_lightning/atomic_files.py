"""Replace files in one step, so that no reader and no killed run ever has half a file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Give the block a file to write beside `path`, and rename it to `path` at the end. If the block fails, `path` stays as it was.

    The file's name has the number of the process: several may write the same file at once, and the last one wins.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
