"""Examples to token sequences, once: flat files that every later start maps into memory.

A split is one array of tokens (two bytes each below 65,536 entries) and the lengths of its sequences. Flat, because a sequence
and a block of a stream are then both slices, read without copying; and because writing appends, memory stays bounded whatever the
corpus. The tokenizers library tokenises a batch on all cores.

The three encodings, named by the objective:

- `stream`: documents with an end-of-text token between them, for predicting the next token. A block of n+1 tokens has n targets,
  and neighbours share one token, so that every token is a target once.
- `documents`: whole documents with the tokenizer's special tokens, long ones cut to blocks.
- `texts`: one sequence an example (or a pair), cut at `block_size`, with its label.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from llm_lightning.config import DataConfig
from llm_lightning.data import examples, tokenizers
from llm_lightning.data.examples import Example, Skipped
from llm_lightning.data.labels import Labels
from llm_lightning.data.rows import Rows
from llm_lightning.errors import UserError

FORMAT = 1
BATCH = 1000

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Facts:
    """What was seen while a split was encoded."""

    rows: int
    bytes: int
    """UTF-8 bytes of the texts, for bits per byte."""
    truncated: int
    skipped: int
    skipped_first: list[str]


@dataclass(frozen=True)
class Encoded:
    """The sequences of a split: `tokens[offsets[i] : offsets[i] + lengths[i]]`."""

    tokens: np.ndarray
    """(total_tokens,) mapped into memory."""
    starts: np.ndarray
    """(sequences,) int64"""
    lengths: np.ndarray
    """(sequences,) int32"""
    labels: np.ndarray | None
    """(sequences,) int64"""
    second: np.ndarray | None
    """(sequences,) int32: where the second text of a pair begins."""
    facts: Facts
    fingerprint: str

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> np.ndarray:
        start = self.starts[index]
        return self.tokens[start : start + self.lengths[index]]


def encode(
    rows: Rows, data: DataConfig, tokenizer: Any, encoding: str, labels: Labels | None, cache_dir: Path, split: str
) -> Encoded:
    """The encoded split, from the cache where the same data, tokenizer and settings were encoded before."""
    settings = (data.columns, data.block_size, data.packing, data.on_bad_row, labels, encoding)
    identity = f"{FORMAT} {rows.fingerprint} {tokenizers.identity(tokenizer)} {settings}"
    folder = cache_dir / "encoded" / xxhash.xxh3_128(identity.encode()).hexdigest()
    if not (folder / "facts.json").is_file():
        log.info("encoding %s: %s rows", split, f"{len(rows):,}")
        _write(rows, data, tokenizer, encoding, labels, folder)
    encoded = _open(folder, data, encoding)
    _announce(encoded.facts, split, data)
    if len(encoded) == 0:
        raise UserError(f"{split}: no usable row is left of {len(rows)}.")
    return encoded


def _write(rows: Rows, data: DataConfig, tokenizer: Any, encoding: str, labels: Labels | None, folder: Path) -> None:
    """Encode into a temporary folder, then rename: a killed run leaves no half-written cache."""
    partial = folder.with_name(f"{folder.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    kind = np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32
    skipped, truncated, count, size = Skipped(), 0, 0, 0
    lengths: list[np.ndarray] = []
    extra: dict[str, list[int]] = {"labels": [], "second": []}
    stream = examples.read(rows, data, labels, skipped)
    with (partial / "tokens.bin").open("wb") as file:
        while batch := list(islice(stream, BATCH)):
            sequences, cut, seconds = _tokenize(batch, data, tokenizer, encoding)
            np.concatenate([np.asarray(s, dtype=kind) for s in sequences] or [np.empty(0, kind)]).tofile(file)
            lengths.append(np.array([len(s) for s in sequences], dtype=np.int32))
            if labels is not None:
                extra["labels"].extend(e.label for e in batch if e.label is not None)
            extra["second"].extend(seconds)
            truncated += cut
            count += len(batch)
            size += sum(len(e.text.encode()) + len((e.text_pair or "").encode()) for e in batch)
    np.save(partial / "lengths.npy", np.concatenate(lengths) if lengths else np.empty(0, np.int32))
    for name, values in extra.items():
        if values:
            np.save(partial / f"{name}.npy", np.array(values))
    facts = Facts(count, size, truncated, skipped.count, skipped.first)
    (partial / "facts.json").write_text(json.dumps(asdict(facts) | {"dtype": kind.__name__}))
    try:
        partial.rename(folder)
    except OSError:  # another process was quicker; its result is the same
        shutil.rmtree(partial)


def _tokenize(batch: list[Example], data: DataConfig, tokenizer: Any, encoding: str) -> tuple[list[list[int]], int, list[int]]:
    """Sequences of a batch, how many texts were cut, and where each second text begins."""
    if encoding == "texts":
        return _texts(batch, data, tokenizer)
    ids = tokenizer([e.text for e in batch], add_special_tokens=False, verbose=False)["input_ids"]
    if encoding == "stream":
        start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        if end is None:
            end = tokenizer.sep_token_id
        if start is None:
            start = end
        if data.packing == "concat":
            lead = [] if start == end else [start]
            return [[*lead, *document, end] for document in ids], 0, []
        return (
            [piece for document in ids for piece in _overlapping([start, *document, end], data.block_size + 1)],
            0,
            [],
        )
    before, after = _special(tokenizer)
    room = data.block_size - len(before) - len(after)
    return [[*before, *d[i : i + room], *after] for d in ids for i in range(0, max(len(d), 1), room)], 0, []


def _overlapping(document: list[int], longest: int) -> Iterator[list[int]]:
    """Pieces of at most `longest` tokens; each begins with the last token of the one before, so that every token is a target."""
    for start in range(0, max(len(document) - 1, 1), longest - 1):
        yield document[start : start + longest]


def _special(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens that the tokenizer puts before and after a text."""
    first = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    last = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    return [t for t in (first,) if t is not None], [t for t in (last,) if t is not None]


def _texts(batch: list[Example], data: DataConfig, tokenizer: Any) -> tuple[list[list[int]], int, list[int]]:
    pairs = [e.text_pair for e in batch] if data.columns.text_pair else None
    encoded = tokenizer(
        [e.text for e in batch], pairs, truncation=True, max_length=data.block_size, return_overflowing_tokens=False
    )
    sequences = encoded["input_ids"]
    full = [i for i, ids in enumerate(sequences) if len(ids) == data.block_size]
    whole = tokenizer([batch[i].text for i in full], pairs and [pairs[i] for i in full], verbose=False)["input_ids"] if full else []
    cut = sum(len(ids) > data.block_size for ids in whole)
    if pairs is None:
        return sequences, cut, []
    return sequences, cut, [_second(encoded.sequence_ids(i)) for i in range(len(batch))]


def _second(parts: list[int | None]) -> int:
    """Index of the first token of the second text: where token type 1 begins."""
    return next((i for i, part in enumerate(parts) if part == 1), len(parts))


def _open(folder: Path, data: DataConfig, encoding: str) -> Encoded:
    facts = json.loads((folder / "facts.json").read_text())
    dtype = np.dtype(facts.pop("dtype"))
    size = (folder / "tokens.bin").stat().st_size
    tokens = np.memmap(folder / "tokens.bin", dtype=dtype, mode="r") if size else np.empty(0, dtype)
    lengths = np.load(folder / "lengths.npy")
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)[:-1]]) if len(lengths) else np.empty(0, np.int64)
    if encoding == "stream" and data.packing == "concat":
        starts = np.arange(0, max(len(tokens) - 1, 0), data.block_size, dtype=np.int64)
        lengths = np.minimum(data.block_size + 1, len(tokens) - starts).astype(np.int32)
    optional = {
        name: np.load(folder / f"{name}.npy") if (folder / f"{name}.npy").is_file() else None for name in ("labels", "second")
    }
    return Encoded(tokens=tokens, starts=starts, lengths=lengths, facts=Facts(**facts), fingerprint=folder.name, **optional)


def _announce(facts: Facts, split: str, data: DataConfig) -> None:
    """Say what was left out or cut: nothing is dropped silently, from a warm cache neither."""
    if facts.skipped:
        named = "; ".join(facts.skipped_first)
        log.warning(
            "%s: skipped %s of %s rows: %s%s",
            split,
            facts.skipped,
            facts.skipped + facts.rows,
            named,
            "; …" if facts.skipped > len(facts.skipped_first) else "",
        )
    if facts.truncated:
        log.warning(
            "%s: %s of %s texts are longer than data.block_size=%s tokens and were cut",
            split,
            facts.truncated,
            facts.rows,
            data.block_size,
        )
