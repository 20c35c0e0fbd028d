"""Examples to token sequences, once: flat files that every later start maps into memory.

A split is one array of tokens (two bytes each below 65,536 entries) and the lengths of its sequences. Flat, because a sequence
and a block of a stream are then both slices, read without copying; and because writing appends: a batch holds a megabyte of text at
the most, so memory is bounded whatever the corpus. The tokenizers library tokenises a batch on all cores.

The three encodings, named by the objective:

- `stream`: documents with an end-of-text token between them, for predicting the next token. A block of n+1 tokens has n targets,
  and neighbours share one token, so that every token is a target once.
- `documents`: whole documents with the tokenizer's special tokens, long ones cut to blocks.
- `texts`: one sequence an example (or a pair), cut at `block_size`, with its label.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from tokenizers import Tokenizer

from llm_lightning.config import DataConfig
from llm_lightning.data import examples, tokenizers
from llm_lightning.data.examples import BadRows, Example
from llm_lightning.data.labels import Labels
from llm_lightning.data.rows import Rows
from llm_lightning.errors import UserError

FORMAT = 3
BATCH_ROWS, BATCH_CHARACTERS = 1000, 1 << 20  # the tokenizers library needs some hundred bytes a character

NO_TOKEN = "the text has no token of the tokenizer's (it may be made of invisible characters)"

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
    """The sequences of a split: `tokens[starts[i] : starts[i] + lengths[i]]`."""

    tokens: np.ndarray
    """(total_tokens,) mapped into memory."""
    starts: np.ndarray
    """(sequences,) int64"""
    lengths: np.ndarray
    """(sequences,) int32"""
    inputs: np.ndarray
    """(sequences,) int32: tokens that the model is given; of a stream's n+1 tokens it is given n."""
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
    """The encoded split, from the cache where the same data, tokenizer and settings were encoded before.

    Written into a folder of its own, then renamed: a killed run leaves no half-written cache.
    """
    one_stream = encoding == "stream" and data.packing == "concat"
    settings = (data.columns, data.block_size, one_stream, data.on_bad_row, labels, encoding)
    identity = f"{FORMAT} {rows.fingerprint} {tokenizers.identity(tokenizer)} {settings}"
    folder = cache_dir / "encoded" / xxhash.xxh3_128(identity.encode()).hexdigest()
    if not _whole(folder):
        log.info("encoding %s: %s rows", split, f"{len(rows):,}")
        partial = folder.with_name(f"{folder.name}.{os.getpid()}")
        try:
            _write(rows, data, Encoder(tokenizer, encoding, data.block_size, one_stream), labels, partial)
            with contextlib.suppress(OSError):  # another process was quicker; its result is the same
                partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    encoded = _open(folder, data.block_size, encoding, one_stream)
    _announce(encoded.facts, split, data)
    if len(encoded) == 0:
        raise UserError(f"{split}: no usable row is left of {len(rows)}.")
    return encoded


def _whole(folder: Path) -> bool:
    """Whether the cache holds the split; a folder that cannot be read is made anew."""
    try:
        json.loads((folder / "facts.json").read_text())
        return True
    except FileNotFoundError:
        return False
    except ValueError:
        shutil.rmtree(folder)
        return False


class Encoder:
    """Examples to token sequences, in one of the three encodings."""

    def __init__(self, tokenizer: Any, encoding: str, block_size: int, one_stream: bool) -> None:
        self.tokenizer, self.encoding, self.block_size, self.one_stream = tokenizer, encoding, block_size, one_stream
        self.truncated = 0
        """Texts cut so far."""
        self._last = 0  # token before a document's next piece
        self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.no_truncation()  # which many checkpoints bring along, and which would drop the rest of a document
        self._backend.no_padding()
        end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else end
        first = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
        last = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
        self.start, self.end = start, end
        self.before, self.after = [t for t in (first,) if t is not None], [t for t in (last,) if t is not None]

    def __call__(self, batch: list[Example], bad: BadRows | None) -> Sequences:
        """The sequences of a batch of examples; an example without any token goes to `bad`, or, in a stream, is passed over."""
        return self._texts(batch, bad) if self.encoding == "texts" else self._documents(batch, bad)

    def _documents(self, batch: list[Example], bad: BadRows | None) -> Sequences:
        found = Sequences([], [], [])
        for example, ids in zip(batch, self.tokenize([e.text for e in batch]), strict=True):
            if ids:
                found.tokens.extend(self._pieces(example, ids))
                found.examples.append(example)
                self._last = ids[-1]
            elif bad is not None:
                bad.add(example.row, NO_TOKEN)
        return found

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        """Token ids without special tokens, on all cores; without the offsets that transformers' own call computes."""
        return [found.ids for found in self._backend.encode_batch_fast(texts, add_special_tokens=False)]

    def _pieces(self, example: Example, ids: list[int]) -> Iterator[list[int]]:
        if self.encoding == "documents":
            room = self.block_size - len(self.before) - len(self.after)
            yield from ([*self.before, *ids[i : i + room], *self.after] for i in range(0, len(ids), room))
            return
        close = [self.end] if example.ends else []
        if self.one_stream:
            lead = [self.start] if self.start != self.end and not example.continues else []
            yield [*lead, *ids, *close]
        else:  # a piece begins with the last token of the one before, so that every token is a target
            document = [self._last if example.continues else self.start, *ids, *close]
            yield from (document[i : i + self.block_size + 1] for i in range(0, len(document) - 1, self.block_size))

    def _texts(self, batch: list[Example], bad: BadRows | None) -> Sequences:
        assert bad is not None
        paired = batch[0].text_pair is not None
        pairs = [e.text_pair for e in batch] if paired else None
        encoded = self.tokenizer([e.text for e in batch], pairs, truncation=True, max_length=self.block_size)
        tokens = encoded["input_ids"]
        full = [i for i, ids in enumerate(tokens) if len(ids) == self.block_size]
        whole = self.tokenizer([batch[i].text for i in full], pairs and [pairs[i] for i in full], verbose=False) if full else None
        self.truncated += sum(len(ids) > self.block_size for ids in whole["input_ids"]) if whole else 0
        least = self.tokenizer.num_special_tokens_to_add(pair=paired)
        kept = [i for i, ids in enumerate(tokens) if len(ids) > least]
        for i in sorted({*range(len(batch))} - {*kept}):
            bad.add(batch[i].row, NO_TOKEN)
        second = [_second(encoded.sequence_ids(i)) for i in kept] if paired else []
        return Sequences([tokens[i] for i in kept], second, [batch[i] for i in kept])


@dataclass(frozen=True)
class Sequences:
    """What a batch of examples became."""

    tokens: list[list[int]]
    second: list[int]
    """Where the second text of each pair begins; empty where there are no pairs."""
    examples: list[Example]
    """Those that were used."""


def _second(parts: list[int | None]) -> int:
    """Index of the first token of the second text: where token type 1 begins."""
    return next((i for i, part in enumerate(parts) if part == 1), len(parts))


def _write(rows: Rows, data: DataConfig, encoder: Encoder, labels: Labels | None, folder: Path) -> None:
    folder.mkdir(parents=True)
    kind = np.uint16 if len(encoder.tokenizer) <= 1 << 16 else np.uint32
    bad, count, size = BadRows(rows, data), 0, 0
    lengths: list[np.ndarray] = []
    extra: dict[str, list[int]] = {"labels": [], "second": []}
    with (folder / "tokens.bin").open("wb") as file:
        for batch in _batches(examples.read(rows, data, labels, bad)):
            found = encoder(batch, bad)
            np.fromiter(chain.from_iterable(found.tokens), dtype=kind).tofile(file)
            lengths.append(np.array([len(s) for s in found.tokens], dtype=np.int32))
            extra["second"].extend(found.second)
            extra["labels"].extend(e.label for e in found.examples if e.label is not None)
            count += sum(not e.continues for e in found.examples)
            size += sum(len(e.text.encode()) + len((e.text_pair or "").encode()) for e in found.examples)
    np.save(folder / "lengths.npy", np.concatenate(lengths) if lengths else np.empty(0, np.int32))
    for name, values in extra.items():
        if values:
            np.save(folder / f"{name}.npy", np.array(values))
    facts = Facts(count, size, encoder.truncated, bad.count, bad.first)
    (folder / "facts.json").write_text(json.dumps(asdict(facts) | {"dtype": kind.__name__}))


def _batches(stream: Iterator[Example]) -> Iterator[list[Example]]:
    """Examples in batches of bounded size, each told whether its document ends with it."""
    batch: list[Example] = []
    size = 0
    for example, following in pairwise(chain(stream, [None])):
        assert example is not None
        batch.append(replace(example, ends=False) if following is not None and following.continues else example)
        size += len(example.text)
        if len(batch) == BATCH_ROWS or size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _open(folder: Path, block_size: int, encoding: str, one_stream: bool) -> Encoded:
    facts = json.loads((folder / "facts.json").read_text())
    dtype = np.dtype(facts.pop("dtype"))
    size = (folder / "tokens.bin").stat().st_size
    tokens = np.memmap(folder / "tokens.bin", dtype=dtype, mode="r") if size else np.empty(0, dtype)
    lengths = np.load(folder / "lengths.npy")
    if one_stream:
        starts = np.arange(0, max(len(tokens) - 1, 0), block_size, dtype=np.int64)
        lengths = np.minimum(block_size + 1, len(tokens) - starts).astype(np.int32)
    else:
        starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)[:-1]]) if len(lengths) else np.empty(0, np.int64)
    optional = {
        name: np.load(folder / f"{name}.npy") if (folder / f"{name}.npy").is_file() else None for name in ("labels", "second")
    }
    return Encoded(
        tokens=tokens,
        starts=starts,
        lengths=lengths,
        inputs=lengths - 1 if encoding == "stream" else lengths,
        facts=Facts(**facts),
        fingerprint=folder.name,
        **optional,
    )


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
