"""Text that does not fit on the disk: read, tokenised and packed while training (`data.streaming=true`, for causal_lm).

    documents of one reader ─ tokenizer ─ pool of pieces ─ best fit ─ rows ─ this rank's part of a step

A reader is a process, or one of its loader workers; `datasets` deals the documents out to them. Its pool holds the pieces of some
rows' worth of documents: a row begins with a piece drawn at random and is filled with the largest that fit, so the pool is the
shuffle buffer too. The state of a reader is the position in its documents and the pool; it goes into every checkpoint, and a resume
is exact. It is tied to the number of readers: the plan's freedom to go on on other devices is what streaming gives up, and documents
come in the order of the files but for the pool: shuffle the files.
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
from llm_lightning.data.collate import Collator, Step, as_step
from llm_lightning.data.encodings import Encoding
from llm_lightning.data.examples import Example
from llm_lightning.data.paths import split_files
from llm_lightning.data.plan import cut
from llm_lightning.data.rows import Rows
from llm_lightning.data.sources.files import TABLES
from llm_lightning.data.sources.text import ENDINGS
from llm_lightning.errors import UserError

log = logging.getLogger(__name__)

HELD = 1000  # documents at the front that are validation where none is given
SAMPLE = 10_000  # documents behind them that the tokenizer is trained on, and the preflight looks at
POOL_ROWS = 64  # rows' worth of pieces to choose from
READ = 16  # documents that are tokenised at once

State = dict[str, Any]


@dataclass(frozen=True)
class Stream:
    """Documents without an end in sight, and where to find their text."""

    documents: datasets.IterableDataset
    column: str
    name: str
    fingerprint: str
    """Which files it is, without reading them: their sizes, or the name of a data set on the hub."""


def opened(data: DataConfig) -> tuple[Stream, dict[str, Rows]]:
    """(the training documents, rows of a sample of them and of the other splits). Raises UserError where there are none."""
    train = Stream(_open(data), data.columns.text, str(data.name or data.train or data.dir), _identify(data))
    rows = {}
    if data.validation is not None:
        held = _open(replace(data, train=data.validation))
        rows["validation"] = _rows(held.take(SAMPLE) if data.source == "hub" else held, train, "validation")
    else:
        rows["validation"] = _rows(train.documents.take(HELD), train, "validation, the first documents of the stream")
        train = replace(train, documents=train.documents.skip(HELD))
    rows["train"] = _rows(train.documents.take(SAMPLE), train, "train")
    return train, rows


def _identify(data: DataConfig) -> str:
    if data.source == "hub" and data.dir is None:
        return f"{data.name} {data.config} {data.train}"
    return xxhash.xxh3_128_hexdigest(repr([file.stat().st_size for file in _files(data)]).encode())


def _files(data: DataConfig) -> list[Path]:
    return split_files(replace(data, validation=None, test=None), ENDINGS if data.source == "text" else TABLES)["train"]


def _open(data: DataConfig) -> datasets.IterableDataset:
    try:
        if data.source == "hub" and data.dir is None:
            return datasets.load_dataset(data.name, data.config, split=data.train or "train", streaming=True)
        plain, files = data.source == "text", _files(data)
        kinds = {"text"} if plain else {file.suffix.lower().lstrip(".") for file in files}
        if len(kinds) != 1:
            raise UserError(f"data.train={data.train}: files of several kinds ({', '.join(sorted(kinds))}) cannot be one stream.")
        kind = {"jsonl": "json", "tsv": "csv"}.get(kind := kinds.pop(), kind)
        options: dict[str, Any] = {}
        if plain:
            options["sample_by"] = {"file": "document", "blank_line": "paragraph", "line": "line"}[data.document]
        elif kind == "csv":
            options["delimiter"] = data.delimiter or ("\t" if Path(files[0]).suffix.lower() == ".tsv" else ",")
        return datasets.load_dataset(kind, data_files=[str(file) for file in files], split="train", streaming=True, **options)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"data.streaming: {data.name or data.train} cannot be opened ({str(error).splitlines()[0]}).") from error


def _rows(documents: datasets.IterableDataset, stream: Stream, what: str) -> Rows:
    texts = [text for text in _texts(iter(documents), stream) if text.strip()]
    if not texts:
        raise UserError(f"{stream.name}: no documents for {what}; the stream has too few: leave out data.streaming.")
    identity = xxhash.xxh3_128("\0".join(texts).encode()).hexdigest()
    table = datasets.Dataset.from_dict({stream.column: texts})
    return Rows(table=table, fingerprint=identity, where=lambda i: f"{stream.name} ({what}), document {i + 1}")


def _texts(documents: Iterator[dict[str, Any]], stream: Stream) -> Iterator[str]:
    for number, row in enumerate(documents, 1):
        text = row.get(stream.column)
        if not isinstance(text, str):
            found = (
                f"holds {type(text).__name__}, not text" if stream.column in row else f"is not there; there are {', '.join(row)}"
            )
            raise UserError(f"{stream.name}, document {number}: column '{stream.column}' {found} (data.columns.text).")
        yield text


class Reader:
    """One reader's documents as packed rows."""

    def __init__(self, stream: Stream, encoder: Encoding, row_size: int, seed: int, index: int, readers: int) -> None:
        self.stream, self.encoder, self.row_size, self.seed, self.index = stream, encoder, row_size, seed, index
        self.documents = split_dataset_by_node(stream.documents, rank=index, world_size=readers)
        self.epoch = self.drawn = 0
        self.pool: list[np.ndarray] = []
        self._source: Iterator[str] | None = None
        self._position: State | None = (
            None  # in the documents; None at their start. Asked of `datasets` before it has read, it forgets
        )

    def row(self) -> list[np.ndarray]:
        """Pieces of n+1 tokens that fill a row of n: one drawn at random, then the largest that fit."""
        self._fill()
        rng = np.random.default_rng([self.seed, self.index, self.drawn])
        self.drawn += 1
        lengths = np.array([len(piece) - 1 for piece in self.pool])
        chosen, room = [int(rng.integers(len(lengths)))], self.row_size
        while True:
            room -= lengths[chosen[-1]]
            lengths[chosen[-1]] = self.row_size + 1  # gone
            fitting = np.flatnonzero(lengths <= room)
            if len(fitting) == 0:
                break
            chosen.append(int(fitting[lengths[fitting].argmax()]))
        row = [self.pool[i] for i in chosen]
        for i in sorted(chosen, reverse=True):
            self.pool[i] = self.pool[-1]
            self.pool.pop()
        return row

    def _fill(self) -> None:
        """Read until the pool has some rows' worth of pieces; a stream that ends is begun again."""
        wanted, begun = POOL_ROWS * self.row_size, -1
        size = sum(map(len, self.pool))
        while size < wanted:
            if self._source is None:
                self._source = _texts(iter(self.documents), self.stream)
            texts = list(islice(self._source, READ))
            self._position = self.documents.state_dict()
            if not texts:
                if begun == self.epoch and not self.pool:
                    raise UserError(
                        f"{self.stream.name}: reader {self.index} has no document; lower data.workers or trainer.devices."
                    )
                self._source, self._position, self.epoch = None, None, self.epoch + 1
                self.documents.set_epoch(self.epoch)
                begun = self.epoch
                continue
            examples = [Example(0, text) for text in texts if text.strip()]
            pieces = [np.array(piece) for piece in self.encoder(examples, None).tokens]
            self.pool.extend(pieces)
            size += sum(map(len, pieces))

    def state_dict(self) -> State:
        """Plain containers and tensors: a checkpoint is read with weights_only=True."""
        pool = [torch.from_numpy(piece) for piece in self.pool]
        return {"documents": self._position, "pool": pool, "epoch": self.epoch, "drawn": self.drawn}

    def load_state_dict(self, state: State) -> None:
        self.documents.set_epoch(state["epoch"])
        if state["documents"] is not None:
            self.documents.load_state_dict(state["documents"])
        self.pool = [piece.numpy() for piece in state["pool"]]
        self.epoch, self.drawn, self._source, self._position = state["epoch"], state["drawn"], None, state["documents"]


class Drawn:
    """Pieces as the sequences that a collator takes, like an encoded split."""

    labels = second = token_targets = None

    def __init__(self, pieces: list[np.ndarray]) -> None:
        self.pieces = pieces
        self.inputs = np.array([len(piece) - 1 for piece in pieces])

    def __getitem__(self, index: int) -> np.ndarray:
        return self.pieces[index]


class StreamedSteps(IterableDataset[Step]):
    """A rank's parts of the steps from `start` on. With workers they take turns: step s is read by worker s modulo their number."""

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
        states: dict[int, State],
    ) -> None:
        """`states` has every reader's state where the run goes on; reader r · workers + w is worker w of rank r."""
        self.stream, self.encoder, self.collator, self.row_size, self.spec = stream, encoder, collator, row_size, spec
        self.seed, self.start, self.total, self.rank, self.world, self.states = seed, start, total, rank, world, states

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[Step]:
        info = get_worker_info()
        if info is not None:  # the threads of the process that it was forked from are not there: waiting for them would never end
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
            torch.utils.data._utils.worker._worker_info = None  # or datasets would deal its part of the documents out once more
        workers, mine = (1, 0) if info is None else (info.num_workers, info.id)
        worker = (self.start + mine) % workers
        reader = Reader(self.stream, self.encoder, self.row_size, self.seed, self.rank * workers + worker, self.world * workers)
        if reader.index in self.states:
            reader.load_state_dict(self.states[reader.index])
        rows = self.spec.sequences if self.spec.tokens is None else max(1, self.spec.tokens // self.row_size)
        share = (rows + self.world - 1 - self.rank) // self.world
        for step in range(self.start + mine, self.total, workers):
            drawn = [reader.row() for _ in range(share)]
            data = Drawn([piece for row in drawn for piece in row])
            ends = np.cumsum([len(row) for row in drawn])
            places = np.split(np.arange(len(data.pieces)), ends[:-1])
            batches = [
                self.collator(data, part, reader.epoch) for part in cut(places, data.inputs, replace(self.spec, tokens=None))
            ]
            yield as_step(batches, step, float(reader.epoch), reader=(reader.index, reader.state_dict()))
