"""Stream text that does not fit on the disk: read, tokenize and pack it while training (`data.streaming=true`, for causal_lm).

    documents of one reader ─ tokenizer ─ pool of pieces ─ best fit ─ rows ─ this rank's part of a step

Streamed files are read like others, with the same encodings, separators, quotes and compression. The front of a file decides on the
layout of a table, and on whether the file is UTF-8, as a pass over a whole huge file would delay the start too long.

A reader is a process, or one of its loader workers; `datasets` deals the documents out to the readers. A reader's pool holds pieces of
documents for some 64 rows. A row starts with a piece drawn at random and is filled with the largest pieces that fit, so the pool is
also the shuffle buffer. The position in the documents and the pool are a reader's state (`reader_state.py`). Every checkpoint holds
the states of all readers, so a resume is exact, but needs the same number of readers: unlike with the plan, a streamed run cannot
resume on another number of devices. Beyond the pool, documents come in the order of the files: shuffle the files.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import xxhash
from datasets.distributed import split_dataset_by_node
from torch.utils.data import IterableDataset, get_worker_info

from llm_lightning.config.schema import BatchConfig, DataConfig
from llm_lightning.data.collate import Collator, MicroBatch, StepBatch, build_step_batch
from llm_lightning.data.encodings import Encoding
from llm_lightning.data.examples import Example
from llm_lightning.data.paths import split_files
from llm_lightning.data.plan import max_rows_at_once
from llm_lightning.data.prodigy import ANSWER
from llm_lightning.data.reader_state import Piece, ReaderChange, ReaderState
from llm_lightning.data.rows import LINE, PROBLEM, Rows, merge_notes, unused_columns
from llm_lightning.data.sources import text
from llm_lightning.data.sources.files import TABLES, Survey, kind_of, read_rows, survey_file
from llm_lightning.errors import UserError, first_line

log = logging.getLogger(__name__)

FORMAT = 2  # of the position in the documents
PLACE = "__place__"
"""A column beside a document: its file and line."""
VALIDATION_DOCUMENTS = 1000  # at the front, if no validation split is configured
SAMPLE_DOCUMENTS = 10_000  # after them, for training the tokenizer and for the preflight
POOL_ROWS = 64  # rows' worth of pieces to choose from
DOCUMENTS_AT_ONCE = 16  # tokenized together


@dataclass(frozen=True)
class Stream:
    """Documents that are read while training, and the column of their text."""

    documents: datasets.IterableDataset
    column: str
    name: str
    fingerprint: str
    """Identifies the files without reading them: by their sizes, or by the name of a data set on the hub."""


@dataclass(frozen=True)
class StreamedFile:
    """A file of a stream."""

    path: Path
    survey: Survey | None
    """The survey of a table, from its front; None for plain text."""
    skip: int = 0
    """Documents skipped at its front, which belong to the validation split."""


def open_stream(data: DataConfig) -> tuple[Stream, dict[str, Rows]]:
    """Return the training documents, and the rows of a sample of them and of the validation split.

    Raises UserError if there is no document.
    """
    name = str(data.name or data.train or data.dir)
    if data.source == "hub" and data.dir is None:
        return _open_hub(data, name)
    data = replace(data, columns=replace(data.columns, text_pair=None, label=None, sentence=None))  # a stream has only text
    files, paths = _open_files(data, "train"), _list_files(data)["train"]
    fingerprint = xxhash.xxh3_128_hexdigest(repr((FORMAT, [path.stat().st_size for path in paths])).encode())
    rows = {}
    if data.validation is not None:
        documents = (row for file in _open_files(data, "validation") for row in _read_documents(file, data))
        rows["validation"] = _as_rows(documents, data.columns.text, name, "validation")
    else:
        front, files = _take(files, data, VALIDATION_DOCUMENTS)
        rows["validation"] = _as_rows(front, data.columns.text, name, "validation, the first documents of the stream")
    if not files:
        raise UserError(f"{name}: no documents for train; the stream has too few: leave out data.streaming.")
    stream = Stream(_deal_files(files, data), data.columns.text, name, fingerprint)
    rows["train"] = _as_rows(stream.documents.take(SAMPLE_DOCUMENTS), stream.column, name, "train")
    return stream, rows


def _open_hub(data: DataConfig, name: str) -> tuple[Stream, dict[str, Rows]]:
    """Return the stream of a data set of the hub, and the rows of a sample and of the validation split."""
    fingerprint = f"{FORMAT} {data.name} {data.config} {data.train}"
    stream = Stream(_load_hub(data, data.train or "train"), data.columns.text, name, fingerprint)
    what, documents, size = "validation, the first documents of the stream", stream.documents, VALIDATION_DOCUMENTS
    if data.validation is not None:
        what, documents, size = "validation", _load_hub(data, data.validation), SAMPLE_DOCUMENTS
    rows = {"validation": _as_rows(_check(documents.take(size), stream), stream.column, name, what)}
    if data.validation is None:  # `skip` of `datasets` 5.2 leaves out a part of each reader's shards, not the first documents
        held_out = frozenset(xxhash.xxh3_64_intdigest(text.encode()) for text in rows["validation"].table[stream.column])
        stream = replace(
            stream, documents=stream.documents.filter(partial(_is_for_training, column=stream.column, held_out=held_out))
        )
    rows["train"] = _as_rows(_check(stream.documents.take(SAMPLE_DOCUMENTS), stream), stream.column, name, "train")
    return stream, rows


def _is_for_training(document: dict[str, Any], column: str, held_out: frozenset[int]) -> bool:
    """Return whether a document is not in the validation split, whose hashes are `held_out`."""
    value = document.get(column)
    return not isinstance(value, str) or xxhash.xxh3_64_intdigest(value.encode()) not in held_out


def _load_hub(data: DataConfig, split: str) -> datasets.IterableDataset:
    """Return the documents of a split, unread. Raises UserError if they cannot be opened."""
    try:
        return datasets.load_dataset(data.name, data.config, split=split, streaming=True)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"data.streaming: {data.name} cannot be opened ({first_line(error)}).") from error


def _list_files(data: DataConfig) -> dict[str, list[Path]]:
    """Return the files of train, and of validation if the config names it."""
    return split_files(replace(data, test=None), text.ENDINGS if data.source == "text" else TABLES)


def _open_files(data: DataConfig, split: str) -> list[StreamedFile]:
    """Return the files of a split, and log how each is read. Raises UserError for a file that cannot be read."""
    files: list[StreamedFile] = []
    notes: list[str] = []
    for path in _list_files(data)[split]:
        if path.stat().st_size == 0:
            raise UserError(f"{path}: the file is empty.")
        if data.source == "text":
            text.refuse_table(path, data)
            files.append(StreamedFile(path, None))
            notes += [f"{path}: {note}" for note in text.describe(path, data)]
            continue
        survey = survey_file(path, data)
        unused = unused_columns(survey.columns, [data.columns.text, *([ANSWER] if survey.answers else [])])
        notes += [f"{path}: {note}" for note in [*survey.notes, *unused]]
        files.append(StreamedFile(path, replace(survey, nested=[], items=None)))
    for note in merge_notes(notes):
        log.warning("%s: %s", split, note)
    return files


def _deal_files(files: list[StreamedFile], data: DataConfig) -> datasets.IterableDataset:
    """Return the documents of files. Each file is a shard, which `datasets` deals out and whose position it keeps."""
    return datasets.IterableDataset.from_generator(_read_files, gen_kwargs={"files": files, "data": data})


def _read_files(files: list[StreamedFile], data: DataConfig) -> Iterator[dict[str, Any]]:
    for file in files:
        yield from islice(_read_documents(file, data), file.skip, None)


def _take(files: list[StreamedFile], data: DataConfig, count: int) -> tuple[list[dict[str, Any]], list[StreamedFile]]:
    """Return the first `count` documents, and the files with the remaining documents."""
    front: list[dict[str, Any]] = []
    for i, file in enumerate(files):
        room = count - len(front)
        documents = list(islice(_read_documents(file, data), room + 1))
        front += documents[:room]
        if len(documents) > room:
            return front, [replace(file, skip=room), *files[i + 1 :]]
    return front, []


def _read_documents(file: StreamedFile, data: DataConfig) -> Iterator[dict[str, Any]]:
    """Yield the documents of a file with their places, without blank ones.

    Bad rows are left out and counted in the log under data.on_bad_row=skip. Raises UserError for the first one otherwise.
    """
    if file.survey is None:
        yield from _read_text(file.path, data)
        return
    column, bad, unit = data.columns.text, 0, "row" if kind_of(file.path, data) == "columnar" else "line"
    for row in read_rows(file.path, data, [column], file.survey):
        value, problem, place = row[column], row[PROBLEM], f"{file.path}, {unit} {row[LINE]}"
        if problem is None and not isinstance(value, str):
            problem = f"column '{column}' " + ("is empty" if value is None else f"holds {type(value).__name__}, not text")
        if problem is None:
            if value.strip():
                yield {column: value, PLACE: place}
            continue
        if data.on_bad_row == "error":
            raise UserError(f"{place}: {problem}. Mend the row, or leave such rows out with data.on_bad_row=skip.")
        bad += 1
        if bad == 1:
            log.warning("%s: %s; such rows are left out (data.on_bad_row=skip)", place, problem)
    if bad:
        log.warning("%s: %s bad rows were left out", file.path, f"{bad:,}")


def _read_text(path: Path, data: DataConfig) -> Iterator[dict[str, Any]]:
    """Yield the documents of a file of plain text."""
    pieces = text.documents(path, data)
    if data.document == "file":  # `pieces` are parts of one document
        file_text = "".join(piece["text"] for piece in pieces)
        pieces = iter([{"text": file_text, LINE: 1}] if file_text else [])
    for piece in pieces:
        yield {data.columns.text: piece["text"], PLACE: f"{path}, line {piece[LINE]}"}


def _as_rows(documents: Iterable[dict[str, Any]], column: str, name: str, what: str) -> Rows:
    """Read all documents that are not blank. Raises UserError if none is left."""
    filled = [row for row in documents if row[column].strip()]
    if not filled:
        raise UserError(f"{name}: no documents for {what}; the stream has too few: leave out data.streaming.")
    texts, places = [row[column] for row in filled], [row.get(PLACE) for row in filled]
    identity = xxhash.xxh3_128("\0".join(texts).encode()).hexdigest()
    table = datasets.Dataset.from_dict({column: texts})
    return Rows(table=table, fingerprint=identity, where=lambda i: places[i] or f"{name} ({what}), document {i + 1}")


def _check(documents: Iterable[dict[str, Any]], stream: Stream) -> Iterator[dict[str, Any]]:
    """Yield documents. Raises UserError if one cannot be read, or if its column is missing or holds no text."""
    number = 0
    try:
        for number, row in enumerate(documents, 1):
            value = row.get(stream.column)
            if not isinstance(value, str):
                problem = f"is not there; there are {', '.join(row)}"
                if stream.column in row:
                    problem = f"holds {type(value).__name__}, not text"
                raise UserError(f"{stream.name}, document {number}: column '{stream.column}' {problem} (data.columns.text).")
            yield row
    except (ValueError, OSError, EOFError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"{stream.name}: cannot be read behind document {number} of this reader ({first_line(error)}).") from error


class Reader:
    """Packs the documents of one reader into rows."""

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
        """`state` is the state of an earlier reader of the same index; without it the reader starts with its first document."""
        self.stream, self.encoder, self.row_size, self.seed, self.index = stream, encoder, row_size, seed, index
        self.state = ReaderState() if state is None else state.copy()
        self.documents = split_dataset_by_node(stream.documents, rank=index, world_size=readers)
        self.documents.set_epoch(self.state.epoch)
        if self.state.documents is not None:
            self.documents.load_state_dict(self.state.documents)
        self._texts: Iterator[str] | None = None
        self._rows: list[tuple[list[Piece], list[int]]] = []
        """For each row since the last change: the pieces added before it, and the places of its pieces."""

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
                self._texts = (row[self.stream.column] for row in _check(self.documents, self.stream))
            texts = list(islice(self._texts, DOCUMENTS_AT_ONCE))
            self.state.documents = self.documents.state_dict()  # taken after reading: before, `datasets` 5.2 forgets a loaded start
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
    """Pieces of a stream in the form of a `TokenizedSplit`, for the collator."""

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
    """Return the number of ranks with rows of a step. The others read no documents."""
    return min(world, rows_per_step(spec, row_size))


class StreamedSteps(IterableDataset[StepBatch]):
    """A rank's parts of the steps from `start` on. Workers take turns: step s is read by worker s modulo their number.

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
        """`states` of the readers at `start`; a reader without one starts anew. Reader r · workers + w is worker w of rank r."""
        self.stream, self.encoder, self.collator, self.row_size, self.spec = stream, encoder, collator, row_size, spec
        self.seed, self.start, self.total, self.rank, self.world, self.states = seed, start, total, rank, world, states

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[StepBatch]:
        info = get_worker_info()
        if info is not None:  # a forked process has none of the tokenizer's threads: it would wait for them for ever
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
            # private; read in torch 2.13: `datasets` asks for it, and would deal the documents of this reader out once more
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

    def _step(self, reader: Reader, rows: list[list[Piece]], step: int) -> StepBatch:
        """Collate a rank's rows of a step, in the order of their packing."""
        epoch, size = reader.state.epoch, max_rows_at_once(self.spec, self.row_size, self.world)
        data = StreamedSequences([piece for row in rows for piece in row])
        bounds = np.cumsum([0, *map(len, rows)])
        groups = [np.arange(bounds[i], bounds[min(i + size, len(rows))]) for i in range(0, len(rows), size)]
        batches = [self.collator(data, [group], epoch) for group in groups]
        batches += self._blanks(data, np.arange(bounds[1]), self._micro_batches - len(batches))
        return build_step_batch(batches, step, float(epoch), reader.change())

    def _blank_step(self, step: int) -> StepBatch:
        """Build the part of a rank that has no row: its tokens are token 0, which every vocabulary has."""
        data = StreamedSequences([np.zeros(2, np.int32)])
        return build_step_batch(self._blanks(data, np.arange(1), self._micro_batches), step, 0.0)

    @property
    def _micro_batches(self) -> int:
        """The number of micro-batches of every rank in a step: that of rank 0, whose share of the rows is the largest."""
        share = -(-rows_per_step(self.spec, self.row_size) // self.world)
        return -(-share // max_rows_at_once(self.spec, self.row_size, self.world))

    def _blanks(self, data: StreamedSequences, sequences: np.ndarray, count: int) -> list[MicroBatch]:
        return [replace(self.collator(data, [sequences], 0), blank=True) for _ in range(count)]
