"""Open files that may be compressed (gzip, bzip2, xz, zstd), by their first bytes and not by their name."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from pathlib import Path
from typing import Any

COMPRESSED = (".gz", ".gzip", ".bz2", ".xz", ".zst", ".zstd")
"""Endings that follow a file's own: `train.csv.gz` is a csv file."""
DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError)
"""Exceptions raised on reading a damaged compressed file."""


def ending(path: Path) -> str:
    """Return a file's ending in lower case, without endings of compression: `.csv` for `train.CSV.gz`; may be empty."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def stem(path: Path) -> str:
    """Return a file's name without the endings: `train` for `train.csv.gz`."""
    name = path.name
    while Path(name).suffix.lower() in COMPRESSED:
        name = Path(name).stem
    return Path(name).stem


def compression(head: bytes) -> str | None:
    """Return the compression of a file that begins with `head` (at least 10 bytes); None for an uncompressed file."""
    if head.startswith(b"\x1f\x8b"):
        return "gzip"
    if head.startswith(b"BZh") and head[4:10] in (b"1AY&SY", b"\x17rE8P\x90"):
        return "bzip2"
    if head.startswith(b"\xfd7zXZ\0"):
        return "xz"
    is_skippable_frame = head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F
    if head.startswith(b"\x28\xb5\x2f\xfd") or is_skippable_frame:
        return "zstd"
    return None


def open_file(path: Path) -> Any:
    """Open a file's bytes for reading, decompressed. Reading a damaged file raises one of `DAMAGED`."""
    with path.open("rb") as file:
        kind = compression(file.read(10))
    if kind == "gzip":
        return gzip.open(path)
    if kind == "bzip2":
        return bz2.open(path)
    if kind == "xz":
        return lzma.open(path)
    if kind == "zstd":
        import pyarrow  # brought by `datasets`; Python's own compression.zstd comes with 3.14

        return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"), 1 << 16)
    return path.open("rb")
