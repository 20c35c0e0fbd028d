"""Encode examples to token sequences, once, in flat files that every later start maps into memory.

A split is one array of tokens (two bytes each below 65,536 entries) and the lengths of its sequences. It is flat because a sequence
and a block of a stream are then both slices, read without copying; and because writing appends: a batch holds at most a megabyte of
text, so memory is bounded for any corpus. The tokenizers library tokenises a batch on all cores.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import xxhash

from llm_lightning.config.schema import DataConfig
from llm_lightning.data import examples, tokenizers
from llm_lightning.data.encodings import Encoding, Sequences
from llm_lightning.data.examples import BadRows, Example
from llm_lightning.data.masking import IGNORED
from llm_lightning.data.rows import Rows
from llm_lightning.data.windows import overlap_of
from llm_lightning.errors import UserError

FORMAT = 5
BATCH_ROWS, BATCH_CHARACTERS = 1000, 1 << 20  # the tokenizers library needs some hundred bytes a character

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Facts:
    """Counts from the encoding of a split."""

    rows: int
    bytes: int
    """UTF-8 bytes of the texts, for bits per byte."""
    truncated: int
    skipped: int
    skipped_first: list[str]
    notes: dict[str, int] = field(default_factory=dict)
    """Clauses on parts of used rows that were left out, with the number of rows."""
    dropped: int = 0
    """Tokens that the truncated texts lost; 0 if they were not counted."""


@dataclass(frozen=True)
class TokenizedSplit:
    """The sequences of a split: `tokens[starts[i] : starts[i] + lengths[i]]`.

    With data.long=windows a sequence holds all windows of a row, one behind the other. So whatever plans, deals and counts sequences
    plans, deals and counts rows, and no row is ever parted.
    """

    tokens: np.ndarray
    """(total_tokens,) mapped into memory."""
    starts: np.ndarray
    """(sequences,) int64"""
    lengths: np.ndarray
    """(sequences,) int32"""
    inputs: np.ndarray
    """(sequences,) int32: tokens of the model's input; n of a stream's n+1 tokens."""
    labels: np.ndarray | None
    """(sequences, …) the target of each sequence, a number or numbers; None if tokens have targets."""
    second: np.ndarray | None
    """(sequences,) int32: the start of the second text of a pair."""
    token_targets: np.ndarray | None
    """(total_tokens,) int32, mapped into memory: the target of each token, IGNORED for a token without one."""
    rows: np.ndarray | None
    """(sequences,) int32: the row that each sequence is made of, or a part of; None for the blocks of one stream."""
    facts: Facts
    fingerprint: str
    windows: np.ndarray | None = None
    """(sequences + 1,) int64 bounds of each sequence's windows in `window_lengths`; None unless data.long=windows."""
    window_lengths: np.ndarray | None = None
    """(windows,) int32: tokens of each window of each sequence, in order."""

    @property
    def texts(self) -> np.ndarray:
        """(texts,) int32: tokens of each text that the model reads by itself: a window if there are windows, else a sequence."""
        return self.inputs if self.window_lengths is None else self.window_lengths

    @property
    def positions(self) -> np.ndarray:
        """(sequences,) int32: positions of each sequence on a device, as if its windows were padded to the longest of them."""
        if self.windows is None or self.window_lengths is None:
            return self.inputs
        longest = np.maximum.reduceat(self.window_lengths, self.windows[:-1])
        positions: np.ndarray = (np.diff(self.windows) * longest).astype(np.int32)
        return positions

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> np.ndarray:
        start = self.starts[index]
        return self.tokens[start : start + self.lengths[index]]


def encode(rows: Rows, data: DataConfig, encoding: Encoding, cache_dir: Path, split: str) -> TokenizedSplit:
    """Return the encoded split, from the cache if the same data, tokenizer and settings were encoded before.

    It is written into a folder of its own, then renamed: a killed run leaves no half-written cache. If no row is bad, the split and its
    fingerprint do not depend on data.on_bad_row: a run may be resumed with the other setting.
    """
    one_stream = bool(getattr(encoding, "one_stream", False))
    template = encoding.tokenizer.chat_template if encoding.templated else None
    marks = (data.languages, data.prefix) if encoding.translates else (sorted(data.roles.items()),) if encoding.templated else ()
    settings = (*marks, data.columns, data.block_size, data.overlap, one_stream, *([data.long] if data.long != "cut" else []))
    special = sorted((name, str(token)) for name, token in encoding.tokenizer.special_tokens_map.items())  # the ends of texts, say
    tokenizer = f"{tokenizers.identity(encoding.tokenizer)} {special}"
    identity = f"{FORMAT} {rows.fingerprint} {tokenizer} {type(encoding).__module__}"

    def folder_of(on_bad_row: str) -> Path:
        content = f"{identity} {(*settings, on_bad_row, encoding.labels, template)}"
        return cache_dir / "encoded" / xxhash.xxh3_128(content.encode()).hexdigest()

    folder, skipping = folder_of("error"), folder_of("skip")
    is_skipped = data.on_bad_row == "skip" and not _whole(folder)
    if is_skipped and _whole(skipping) and _count_skipped(skipping) > 0:
        folder = skipping
    elif not _whole(folder):
        log.info("encoding %s: %s rows", split, f"{len(rows):,}")
        partial = folder.with_name(f"{folder.name}.{os.getpid()}")
        try:
            _write(rows, data, encoding, partial)
            folder = skipping if _count_skipped(partial) > 0 else folder
            with contextlib.suppress(OSError):  # another process was quicker; its result is the same
                partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    encoded = _map_files(folder, data.block_size, encoding.next_token, one_stream)
    _announce(encoded.facts, split, data)
    _announce_windows(encoded, split, data)
    if len(encoded) == 0:
        raise UserError(f"{split}: no usable row is left of {len(rows)}.")
    return encoded


def _whole(folder: Path) -> bool:
    """Return whether the cache holds the split. A folder that cannot be read is deleted."""
    try:
        json.loads((folder / "facts.json").read_text())
        return True
    except FileNotFoundError:
        return False
    except ValueError:
        shutil.rmtree(folder)
        return False


def _count_skipped(folder: Path) -> int:
    return int(json.loads((folder / "facts.json").read_text())["skipped"])


def _write(rows: Rows, data: DataConfig, encoding: Encoding, folder: Path) -> None:
    folder.mkdir(parents=True)
    encoding.notes.clear()
    kind = np.uint16 if len(encoding.tokenizer) <= 1 << 16 else np.uint32
    bad, count, size, truncated, dropped = BadRows(rows, data), 0, 0, encoding.truncated, encoding.dropped
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("lengths", "rows", "second", "labels", "windows", "window_lengths")}
    with (folder / "tokens.bin").open("wb") as file, (folder / "token_targets.bin").open("wb") as targets:
        for batch in _batches(examples.read(rows, data, encoding, bad)):
            sequences = encoding(batch, bad)
            np.fromiter(chain.from_iterable(sequences.tokens), dtype=kind).tofile(file)
            np.fromiter(chain.from_iterable(sequences.token_targets), dtype=np.int32).tofile(targets)
            for name, values in arrays(sequences).items():
                parts[name].append(values)
            used = {id(example): example for example in sequences.examples}.values()
            count += sum(not example.continues for example in used)
            size += sum(map(_bytes, used))
    for name, arrays_ in parts.items():
        if arrays_ or name in ("lengths", "rows"):
            np.save(folder / f"{name}.npy", np.concatenate(arrays_) if arrays_ else np.empty(0, np.int32))
    lengths = np.load(folder / "lengths.npy")
    np.save(folder / "starts.npy", np.cumsum(lengths, dtype=np.int64) - lengths)
    cut = encoding.truncated - truncated
    facts = Facts(count, size, cut, bad.count, bad.first, dict(+encoding.notes), encoding.dropped - dropped)
    (folder / "facts.json").write_text(json.dumps(asdict(facts) | {"dtype": kind.__name__}))


def in_memory(sequences: Sequences, next_token: bool) -> TokenizedSplit:
    """Return sequences that are used once as an encoded split, without the cache."""
    arrays_by_name = arrays(sequences)
    lengths = arrays_by_name["lengths"]
    targets = np.fromiter(chain.from_iterable(sequences.token_targets), dtype=np.int32) if sequences.token_targets else None
    return TokenizedSplit(
        tokens=np.fromiter(chain.from_iterable(sequences.tokens), dtype=np.int32),
        starts=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)[:-1]]),
        lengths=lengths,
        inputs=lengths - 1 if next_token else lengths,
        labels=arrays_by_name.get("labels"),
        second=arrays_by_name.get("second"),
        token_targets=targets,
        rows=arrays_by_name["rows"],
        facts=Facts(len(sequences.examples), 0, 0, 0, []),
        fingerprint="",
        windows=_bounds(arrays_by_name.get("windows")),
        window_lengths=arrays_by_name.get("window_lengths"),
    )


def arrays(sequences: Sequences) -> dict[str, np.ndarray]:
    """Return the arrays of some sequences, by name: lengths, rows, second, labels; numbers of windows, and their lengths."""
    arrays_by_name = {
        "lengths": np.array([len(tokens) for tokens in sequences.tokens], dtype=np.int32),
        "rows": np.array([example.row for example in sequences.examples], dtype=np.int32),
    }
    if sequences.second:
        arrays_by_name["second"] = np.array(sequences.second, dtype=np.int32)
    if sequences.labels:
        arrays_by_name["labels"] = np.array(sequences.labels)
    if sequences.windows:
        arrays_by_name["windows"] = np.array([len(lengths) for lengths in sequences.windows], dtype=np.int32)
        arrays_by_name["window_lengths"] = np.fromiter(chain.from_iterable(sequences.windows), dtype=np.int32)
    return arrays_by_name


def _bounds(counts: np.ndarray | None) -> np.ndarray | None:
    return None if counts is None else np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def _bytes(example: Example) -> int:
    """Return the UTF-8 bytes of an example's text; 0 for conversations and words, whose bytes no figure needs."""
    return sum(len(text.encode()) for text in (example.text, example.text_pair) if isinstance(text, str))


def _batches(stream: Iterator[Example]) -> Iterator[list[Example]]:
    """Yield the examples in batches of bounded size. Each example knows whether its document ends with it."""
    batch: list[Example] = []
    size = 0
    for example, following in pairwise(chain(stream, [None])):
        assert example is not None
        batch.append(replace(example, ends=False) if following is not None and following.continues else example)
        size += len(example.text) + len(example.text_pair or "")
        if len(batch) == BATCH_ROWS or size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _map_files(folder: Path, block_size: int, next_token: bool, one_stream: bool) -> TokenizedSplit:
    facts = json.loads((folder / "facts.json").read_text())
    dtype = np.dtype(facts.pop("dtype"))
    size = (folder / "tokens.bin").stat().st_size
    tokens = np.memmap(folder / "tokens.bin", dtype=dtype, mode="r") if size else np.empty(0, dtype)
    lengths = _map_file(folder / "lengths.npy")
    if one_stream:
        starts = np.arange(0, max(len(tokens) - 1, 0), block_size, dtype=np.int64)
        lengths = np.minimum(block_size + 1, len(tokens) - starts).astype(np.int32)
    else:
        starts = _map_file(folder / "starts.npy")
    optional = {
        name: _map_file(folder / f"{name}.npy") if (folder / f"{name}.npy").is_file() else None
        for name in ("labels", "second", "windows", "window_lengths")
    }
    optional["windows"] = _bounds(optional["windows"])
    targeted = (folder / "token_targets.bin").stat().st_size
    return TokenizedSplit(
        tokens=tokens,
        starts=starts,
        lengths=lengths,
        inputs=lengths - 1 if next_token else lengths,
        token_targets=np.memmap(folder / "token_targets.bin", dtype=np.int32, mode="r") if targeted else None,
        rows=None if one_stream else _map_file(folder / "rows.npy"),
        facts=Facts(**facts),
        fingerprint=folder.name,
        **optional,
    )


def _map_file(file: Path) -> np.ndarray:
    """Map an array into memory, so that processes share its pages. Return a plain array, whose items are faster to read."""
    return np.asarray(np.load(file, mmap_mode="r"))


def _announce(facts: Facts, split: str, data: DataConfig) -> None:
    """Log the rows and texts that were left out or cut: none is dropped silently, also when the split comes from the cache."""
    if facts.skipped:
        first_rows = "; ".join(facts.skipped_first)
        log.warning(
            "%s: skipped %s of %s rows: %s%s",
            split,
            facts.skipped,
            facts.skipped + facts.rows,
            first_rows,
            "; …" if facts.skipped > len(facts.skipped_first) else "",
        )
    for note, number in facts.notes.items():
        log.warning("%s: in %s of %s rows %s", split, f"{number:,}", f"{facts.rows:,}", note)
    if facts.truncated:
        log.warning(
            "%s: %s of %s texts are longer than data.block_size=%s tokens and were cut%s",
            split,
            facts.truncated,
            facts.rows,
            data.block_size,
            f"; they lost {facts.dropped:,} tokens (data.long=windows reads all)" if facts.dropped else "",
        )


def _announce_windows(encoded: TokenizedSplit, split: str, data: DataConfig) -> None:
    """Log the number of texts that are read in windows."""
    if encoded.windows is None or len(encoded) == 0:
        return
    counts = np.diff(encoded.windows)
    log.info(
        "%s: %s of %s texts are longer than data.block_size=%s tokens: they are read in windows that share %s tokens, at most %s a text",
        split,
        f"{np.count_nonzero(counts > 1):,}",
        f"{len(encoded):,}",
        data.block_size,
        overlap_of(data),
        int(counts.max()),
    )


def label_counts(split: TokenizedSplit, classes: int) -> np.ndarray:
    """Return (classes,) how often each class is a target. Raises UserError for a target that is not a class."""
    if split.labels is not None and split.labels.ndim == 2:
        return split.labels.sum(0)
    targets = split.labels if split.labels is not None else split.token_targets[split.token_targets != IGNORED]  # type: ignore[index]
    if len(targets) and (targets.min() < 0 or targets.max() >= classes):
        raise UserError(f"labels from {targets.min()} to {targets.max()}, and there are {classes} classes")
    return np.bincount(targets, minlength=classes)
