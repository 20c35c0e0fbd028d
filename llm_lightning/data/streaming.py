"""Text that does not fit on the disk: read, tokenized and packed while training (`data.streaming=true`, for causal_lm).

    documents of one reader ─ tokenizer ─ pool of pieces ─ best fit ─ rows ─ this rank's part of a step

A reader is a process, or one of its loader workers; `datasets` deals the documents out to the readers. A reader's pool holds pieces of
documents for some 64 rows. A row starts with a piece drawn at random and is filled with the largest pieces that fit, so the pool is
also the shuffle buffer. The position in the documents and the pool are a reader's state (`reader_state.py`). Every checkpoint holds
the states of all readers, so a resume is exact, with the same number of readers: a stream gives up the plan's freedom to resume on
another number of devices. Beyond the pool, documents come in the order of the files: shuffle the files.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import xxhash
from datasets.distributed import split_dataset_by_node
from torch.utils.data import IterableDataset, get_worker_info

from llm_lightning.config import BatchConfig, DataConfig
from llm_lightning.data.collate import Collator, MicroBatch, Step, as_step
from llm_lightning.data.encodings import Encoding
from llm_lightning.data.examples import Example
from llm_lightning.data.paths import ending, split_files
from llm_lightning.data.plan import most_rows
from llm_lightning.data.reader_state import Piece, ReaderChange, ReaderState
from llm_lightning.data.rows import Rows
from llm_lightning.data.sources.files import TABLES
from llm_lightning.data.sources.text import ENDINGS, refuse_table
from llm_lightning.errors import UserError

log = logging.getLogger(__name__)

VALIDATION_DOCUMENTS = 1000  # at the front, where no validation split is given
SAMPLE_DOCUMENTS = 10_000  # behind them: the tokenizer is trained on these, and the preflight looks at them
POOL_ROWS = 64  # rows' worth of pieces to choose from
DOCUMENTS_AT_ONCE = 16  # that are tokenized together


@dataclass(frozen=True)
class Stream:
    """Documents that are read while training, and the column that holds their text."""

    documents: datasets.IterableDataset
    column: str
    name: str
    fingerprint: str
    """Which files it is, without reading them: their sizes, or the name of a data set on the hub."""


def open_stream(data: DataConfig) -> tuple[Stream, dict[str, Rows]]:
    """Return the training documents, and the rows of a sample of them and of the validation split.

    Raises UserError if there is no document.
    """
    train = Stream(_load_documents(data), data.columns.text, str(data.name or data.train or data.dir), _identify(data))
    rows = {}
    if data.validation is not None:
        documents = _load_documents(replace(data, train=data.validation))
        rows["validation"] = _read_rows(
            documents.take(SAMPLE_DOCUMENTS) if data.source == "hub" else documents, train, "validation"
        )
    else:
        documents = train.documents.take(VALIDATION_DOCUMENTS)
        rows["validation"] = _read_rows(documents, train, "validation, the first documents of the stream")
        train = replace(train, documents=train.documents.skip(VALIDATION_DOCUMENTS))
    rows["train"] = _read_rows(train.documents.take(SAMPLE_DOCUMENTS), train, "train")
    return train, rows


def _identify(data: DataConfig) -> str:
    """Return which files `data.train` names, without reading them."""
    if data.source == "hub" and data.dir is None:
        return f"{data.name} {data.config} {data.train}"
    return xxhash.xxh3_128_hexdigest(repr([file.stat().st_size for file in _files(data)]).encode())


def _files(data: DataConfig) -> list[Path]:
    """Return the files of `data.train`."""
    files = split_files(replace(data, validation=None, test=None), ENDINGS if data.source == "text" else TABLES)["train"]
    for file in files if data.source == "text" else []:
        refuse_table(file, data)
    return files


def _load_documents(data: DataConfig) -> datasets.IterableDataset:
    """Return the documents of `data.train`, unread. Raises UserError where they cannot be opened."""
    try:
        if data.source == "hub" and data.dir is None:
            return datasets.load_dataset(data.name, data.config, split=data.train or "train", streaming=True)
        plain, files = data.source == "text", _files(data)
        kinds = {"text"} if plain else {ending(file).lstrip(".") for file in files}
        if len(kinds) != 1:
            raise UserError(f"data.train={data.train}: files of several kinds ({', '.join(sorted(kinds))}) cannot be one stream.")
        kind = {"jsonl": "json", "ndjson": "json", "tsv": "csv", "tab": "csv"}.get(kind := kinds.pop(), kind)
        options: dict[str, Any] = {}
        if data.encoding is not None and kind in ("text", "csv", "json"):
            options["encoding"] = data.encoding
        if plain:
            options["sample_by"] = {"file": "document", "blank_line": "paragraph", "line": "line"}[data.document]
        elif kind == "csv":
            options["delimiter"] = data.delimiter or ("\t" if ending(files[0]) in (".tsv", ".tab") else ",")
        return datasets.load_dataset(kind, data_files=[str(file) for file in files], split="train", streaming=True, **options)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"data.streaming: {data.name or data.train} cannot be opened ({str(error).splitlines()[0]}).") from error


def _read_rows(documents: datasets.IterableDataset, stream: Stream, what: str) -> Rows:
    """Read all documents, leaving out blank ones. Raises UserError where none is left."""
    texts = [text for text in _read_texts(iter(documents), stream) if text.strip()]
    if not texts:
        raise UserError(f"{stream.name}: no documents for {what}; the stream has too few: leave out data.streaming.")
    identity = xxhash.xxh3_128("\0".join(texts).encode()).hexdigest()
    table = datasets.Dataset.from_dict({stream.column: texts})
    return Rows(table=table, fingerprint=identity, where=lambda i: f"{stream.name} ({what}), document {i + 1}")


def _read_texts(documents: Iterator[dict[str, Any]], stream: Stream) -> Iterator[str]:
    """Yield the text of each document. Raises UserError where the column is missing or holds no text."""
    for number, row in enumerate(_read_documents(documents, stream), 1):
        text = row.get(stream.column)
        if not isinstance(text, str):
            problem = f"is not there; there are {', '.join(row)}"
            if stream.column in row:
                problem = f"holds {type(text).__name__}, not text"
            raise UserError(f"{stream.name}, document {number}: column '{stream.column}' {problem} (data.columns.text).")
        yield text


def _read_documents(documents: Iterator[dict[str, Any]], stream: Stream) -> Iterator[dict[str, Any]]:
    """Yield the documents. Raises UserError where a file cannot be read: bytes that are not UTF-8, JSON that is broken."""
    number = 0
    try:
        for row in documents:
            yield row
            number += 1
    except (ValueError, OSError, EOFError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{stream.name}: cannot be read behind document {number} of this reader ({reason}).") from error


class Reader:
    """Turns the documents of one reader into packed rows."""

    def __init__(
        self,
        stream: Stream,
        encoder: Encoding,
        row_size: int,
        seed: int,
        index: int,
        readers: int,
        state: ReaderState | None = None,
    ) -> None:
        """`state` is where an earlier reader of the same index was; without it the reader starts with its first document."""
        self.stream, self.encoder, self.row_size, self.seed, self.index = stream, encoder, row_size, seed, index
        self.state = ReaderState() if state is None else state.copy()
        self.documents = split_dataset_by_node(stream.documents, rank=index, world_size=readers)
        self.documents.set_epoch(self.state.epoch)
        if self.state.documents is not None:
            self.documents.load_state_dict(self.state.documents)
        self._texts: Iterator[str] | None = None
        self._rows: list[tuple[list[Piece], list[int]]] = []
        """Of each row since the last change: the pieces added before it, and the places of its own."""

    def row(self) -> list[Piece]:
        """Return pieces of n+1 tokens that fill a row of n: one drawn at random, then the largest that fit."""
        added = self._fill()
        rng = np.random.default_rng([self.seed, self.index, self.state.rows])
        lengths = np.array([len(piece) - 1 for piece in self.state.pool])
        chosen, room = [int(rng.integers(len(lengths)))], self.row_size
        while True:
            room -= lengths[chosen[-1]]
            lengths[chosen[-1]] = self.row_size + 1  # longer than any room: not chosen again
            fitting = np.flatnonzero(lengths <= room)
            if len(fitting) == 0:
                break
            chosen.append(int(fitting[lengths[fitting].argmax()]))
        self._rows.append((added, chosen))
        return self.state.take(chosen)

    def change(self) -> ReaderChange:
        """Return the change that the rows since the last call made in the state."""
        change = ReaderChange.of_rows(self.index, self._rows, self.state)
        self._rows = []
        return change

    def _fill(self) -> list[Piece]:
        """Read until the pool has enough pieces to choose from, and return the new ones. A stream that ends starts again."""
        added: list[Piece] = []
        restarted_in = -1
        size = sum(map(len, self.state.pool))
        while size < POOL_ROWS * self.row_size:
            if self._texts is None:
                self._texts = _read_texts(iter(self.documents), self.stream)
            texts = list(islice(self._texts, DOCUMENTS_AT_ONCE))
            self.state.documents = self.documents.state_dict()  # before it has read, `datasets` 5.2 forgets where it was to start
            if not texts:
                if restarted_in == self.state.epoch and not self.state.pool:
                    raise UserError(
                        f"{self.stream.name}: reader {self.index} has no document; lower data.workers or trainer.devices."
                    )
                self._texts, self.state.documents, self.state.epoch = None, None, self.state.epoch + 1
                self.documents.set_epoch(self.state.epoch)
                restarted_in = self.state.epoch
                continue
            examples = [Example(0, text) for text in texts if text.strip()]
            pieces = [np.array(piece, dtype=np.int32) for piece in self.encoder(examples, None).tokens]
            self.state.pool.extend(pieces)
            added.extend(pieces)
            size += sum(map(len, pieces))
        return added


class StreamedSequences:
    """Pieces of a stream in the form that a collator takes, like an encoded split."""

    labels = second = token_targets = None

    def __init__(self, pieces: list[Piece]) -> None:
        self.pieces = pieces
        self.inputs = np.array([len(piece) - 1 for piece in pieces])

    def __getitem__(self, index: int) -> Piece:
        return self.pieces[index]


def rows_per_step(spec: BatchConfig, row_size: int) -> int:
    """Return the rows of a streamed step, over all ranks. Each counts as full."""
    return spec.sequences if spec.tokens is None else max(1, spec.tokens // row_size)


def reading_ranks(spec: BatchConfig, row_size: int, world: int) -> int:
    """Return how many ranks have rows of a step. The others read no documents."""
    return min(world, rows_per_step(spec, row_size))


class StreamedSteps(IterableDataset[Step]):
    """A rank's parts of the steps from `start` on. With workers they take turns: step s is read by worker s modulo their number.

    Every rank has the same number of micro-batches in each step: it follows from the batch spec and the number of ranks, as each row
    counts as full. A rank that has fewer rows adds blank micro-batches.
    """

    def __init__(
        self,
        stream: Stream,
        encoder: Encoding,
        collator: Collator,
        row_size: int,
        spec: BatchConfig,
        seed: int,
        start: int,
        total: int,
        rank: int,
        world: int,
        states: dict[int, ReaderState],
    ) -> None:
        """`states` are those of the readers at `start`; one that has none starts anew. Reader r · workers + w is worker w of rank r."""
        self.stream, self.encoder, self.collator, self.row_size, self.spec = stream, encoder, collator, row_size, spec
        self.seed, self.start, self.total, self.rank, self.world, self.states = seed, start, total, rank, world, states

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[Step]:
        info = get_worker_info()
        if info is not None:  # a forked process has none of the tokenizer's threads: it would wait for them for ever
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
            # private, as in torch 2.13: `datasets` asks for it, and would deal the documents of this reader out once more
            torch.utils.data._utils.worker._worker_info = None
        workers, worker = (1, 0) if info is None else (info.num_workers, info.id)
        steps = range(self.start + worker, self.total, workers)
        rows, ranks = rows_per_step(self.spec, self.row_size), reading_ranks(self.spec, self.row_size, self.world)
        if self.rank >= ranks:
            yield from map(self._blank_step, steps)
            return
        index = self.rank * workers + (self.start + worker) % workers
        state = self.states.get(index)
        reader = Reader(self.stream, self.encoder, self.row_size, self.seed, index, ranks * workers, state)
        share = len(range(self.rank, rows, self.world))
        for step in steps:
            yield self._step(reader, [reader.row() for _ in range(share)], step)

    def _step(self, reader: Reader, rows: list[list[Piece]], step: int) -> Step:
        """Collate a rank's rows of a step, in the order in which they were taken."""
        epoch, size = reader.state.epoch, most_rows(self.spec, self.row_size, self.world)
        data = StreamedSequences([piece for row in rows for piece in row])
        bounds = np.cumsum([0, *map(len, rows)])
        groups = [np.arange(bounds[i], bounds[min(i + size, len(rows))]) for i in range(0, len(rows), size)]
        batches = [self.collator(data, [group], epoch) for group in groups]
        batches += self._blanks(data, np.arange(bounds[1]), self._micro_batches - len(batches))
        return as_step(batches, step, float(epoch), reader.change())

    def _blank_step(self, step: int) -> Step:
        """Build the part of a rank that has no row: its tokens are token 0, which every vocabulary has."""
        data = StreamedSequences([np.zeros(2, np.int32)])
        return as_step(self._blanks(data, np.arange(1), self._micro_batches), step, 0.0)

    @property
    def _micro_batches(self) -> int:
        """The number of micro-batches that every rank has in a step: that of rank 0, whose share of the rows is the largest."""
        share = -(-rows_per_step(self.spec, self.row_size) // self.world)
        return -(-share // most_rows(self.spec, self.row_size, self.world))

    def _blanks(self, data: StreamedSequences, sequences: np.ndarray, count: int) -> list[MicroBatch]:
        return [replace(self.collator(data, [sequences], 0), blank=True) for _ in range(count)]
