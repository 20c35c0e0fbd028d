"""Streamed text: every document once before any twice, rows nearly full, readers apart, and a reader that goes on where it was."""

from __future__ import annotations

import gzip
import io
import pickle
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets.distributed import split_dataset_by_node
from lightning.fabric.utilities.apply_func import move_data_to_device
from pyarrow import feather
from torch.utils.data import DataLoader

from llm_lightning.config.schema import BatchConfig, DataConfig
from llm_lightning.data import csv_layout, streaming
from llm_lightning.data.collate import Collator, StepBatch
from llm_lightning.data.encodings.stream import Encoder
from llm_lightning.data.reader_state import ReaderState
from llm_lightning.data.sources import files
from llm_lightning.data.streaming import VALIDATION_DOCUMENTS, Reader, Stream, StreamedSteps, open_stream
from llm_lightning.errors import UserError

from .test_tokenizers import bpe

ROW = 64
DOCUMENTS = [f"document {i} " + "word " * (i % 40) for i in range(3000)]


@pytest.fixture
def stream(tmp_path: Path) -> Stream:
    for part in range(3):
        (tmp_path / f"{part}.csv").write_text("text\n" + "\n".join(DOCUMENTS[part * 1000 : (part + 1) * 1000]))
    files = [str(tmp_path / f"{part}.csv") for part in range(3)]
    (tmp_path / "v.csv").write_text("text\nvalidation\n")
    return open_stream(DataConfig(source="files", train=files, validation=str(tmp_path / "v.csv"), streaming=True))[0]


@pytest.fixture
def hub_stream(stream: Stream, tmp_path: Path) -> Stream:
    files = [str(tmp_path / f"{part}.csv") for part in range(3)]
    return Stream(datasets.load_dataset("csv", data_files=files, split="train", streaming=True), "text", "made up", "")


def reader(stream: Stream, index: int = 0, readers: int = 1, state: ReaderState | None = None) -> Reader:
    return Reader(stream, Encoder(bpe(), DataConfig(block_size=ROW)), ROW, seed=0, index=index, readers=readers, state=state)


def pieces(source: Reader, rows: int) -> list[tuple[int, ...]]:
    found = [source.row() for _ in range(rows)]
    assert all(sum(len(piece) - 1 for piece in row) <= ROW for row in found)
    return [tuple(piece.tolist()) for row in found for piece in row]


def expected() -> Counter[tuple[int, ...]]:
    encoder = Encoder(bpe(), DataConfig(block_size=ROW))
    return Counter(tuple(p) for text in DOCUMENTS for p in encoder.pieces(_example(text), encoder.tokenize([text])[0]))


def _example(text: str):  # type: ignore[no-untyped-def]
    from llm_lightning.data.examples import Example

    return Example(0, text)


def test_every_piece_comes_once_before_the_stream_begins_again(stream: Stream) -> None:
    source, seen = reader(stream), Counter[tuple[int, ...]]()
    while source.state.epoch == 0:
        row = [tuple(piece.tolist()) for piece in source.row()]
        seen.update(row)
    assert not seen - expected() - Counter(row)  # the last row may have pieces of the second time round
    left = Counter(tuple(piece.tolist()) for piece in source.state.pool)
    assert not expected() - (seen + left)


def test_rows_are_nearly_full_and_not_in_the_order_of_the_files(stream: Stream) -> None:
    source = reader(stream)
    rows = [source.row() for _ in range(200)]
    assert sum(len(piece) - 1 for row in rows for piece in row) / (200 * ROW) > 0.98
    order = list(expected())
    places = [order.index(tuple(row[0].tolist())) for row in rows[:50]]
    assert np.corrcoef(places, range(50))[0, 1] < 0.95


def test_readers_share_the_documents_out(stream: Stream) -> None:
    parts = [reader(stream, index, readers=2) for index in range(2)]
    found = [Counter(tuple(text_piece) for text_piece in pieces(part, 100)) for part in parts]
    assert not found[0] & found[1]


@pytest.mark.parametrize("rows", [0, 1, 7, 900])
@pytest.mark.parametrize(("index", "readers"), [(0, 1), (0, 2), (1, 2), (2, 3)])
def test_a_reader_goes_on_where_it_was(stream: Stream, rows: int, index: int, readers: int, tmp_path: Path) -> None:
    """Through a file, as a checkpoint does it; 900 rows are well into the second time round."""
    first = reader(stream, index, readers)
    pieces(first, rows)
    for more in (60, 1, 1, 60):  # and it goes on from the state of one that went on, were it but for a row
        torch.save(first.state.state_dict(), tmp_path / "state")
        ahead = pieces(first, more)
        state = ReaderState.from_state_dict(torch.load(tmp_path / "state", weights_only=True))
        first = reader(stream, index, readers, state)
        assert pieces(first, more) == ahead


@pytest.mark.parametrize(("index", "readers"), [(1, 2), (2, 3)])
def test_a_reader_of_the_hub_goes_on_where_it_was(hub_stream: Stream, index: int, readers: int) -> None:
    first = reader(hub_stream, index, readers)
    pieces(first, 7)
    state = ReaderState.from_state_dict(first.state.state_dict())
    assert pieces(reader(hub_stream, index, readers, state), 60) == pieces(first, 60)


def test_states_of_an_earlier_version_are_read(stream: Stream) -> None:
    source = reader(stream)
    pieces(source, 3)
    state = source.state
    old = {
        "documents": state.documents,
        "pool": [torch.from_numpy(piece) for piece in state.pool],
        "epoch": state.epoch,
        "drawn": 3,
    }
    assert pieces(reader(stream, state=ReaderState.from_state_dict(old)), 5) == pieces(source, 5)


def test_without_a_validation_split_the_first_documents_are_it(tmp_path: Path) -> None:
    (tmp_path / "all.txt").write_text("\n".join(DOCUMENTS))
    stream, rows = open_stream(DataConfig(source="text", document="line", train=str(tmp_path / "all.txt")))
    assert rows["validation"].table["text"][:] == [text.strip() for text in DOCUMENTS[:VALIDATION_DOCUMENTS]]
    assert next(iter(stream.documents))["text"] == DOCUMENTS[VALIDATION_DOCUMENTS].strip()


def test_a_stream_without_the_column_says_which_it_has(tmp_path: Path) -> None:
    (tmp_path / "all.jsonl").write_text('{"body": "one"}\n{"body": "two"}\n')
    with pytest.raises(UserError, match=r"all.jsonl: there is no column 'text' .* the columns are body"):
        open_stream(DataConfig(source="files", train=str(tmp_path / "all.jsonl"), streaming=True))


def streamed(stream: Stream, total: int, spec: BatchConfig, rank: int = 0, world: int = 1, **options: Any) -> StreamedSteps:
    states, start = options.get("states", {}), options.get("start", 0)
    encoder = Encoder(bpe(), DataConfig(block_size=ROW))
    return StreamedSteps(stream, encoder, Collator(next_token=True), ROW, spec, 0, start, total, rank, world, states)


def load(steps: StreamedSteps, workers: int) -> Iterator[StepBatch]:
    return iter(DataLoader(steps, batch_size=None, num_workers=workers))


def inputs(step: StepBatch) -> list[list[int]]:
    return [batch.input_ids.tolist() for batch in step.micro_batches]


class WithoutTensors(ForkingPickler):
    """What a loader process sends its objects with; refuses tensors."""

    def reducer_override(self, value: Any) -> Any:
        assert not isinstance(value, torch.Tensor)
        return NotImplemented


def test_a_step_carries_what_it_changed_of_its_reader_and_no_more(stream: Stream) -> None:
    """The first step fills the pool of 64 rows; after that the bytes follow from the step's own tokens."""
    for number, step in enumerate(streamed(stream, 100, BatchConfig(sequences=4))):
        WithoutTensors(io.BytesIO()).dump(step.change)
        assert number == 0 or len(pickle.dumps(step.change)) <= 16 * step.tokens + 4096
        assert len(pickle.dumps(step)) <= 48 * step.tokens + 8192 + (number == 0) * 10 * 64 * ROW


@pytest.mark.parametrize(("workers", "steps"), [(0, 1), (0, 9), (2, 5), (2, 85)])
def test_the_changes_of_the_steps_make_the_state_to_resume_from(stream: Stream, workers: int, steps: int) -> None:
    """85 steps of 32 rows are well into the second time round the documents."""
    spec, states = BatchConfig(sequences=32), {}
    whole = load(streamed(stream, steps + 6, spec), workers)
    for _ in range(steps):
        change = next(whole).change
        assert change is not None
        states.setdefault(change.reader, ReaderState()).apply(change)
    states = {index: ReaderState.from_state_dict(state.state_dict()) for index, state in states.items()}
    resumed = load(streamed(stream, steps + 6, spec, start=steps, states=states), workers)
    assert [inputs(step) for step in resumed] == [inputs(step) for step in whole]
    assert any(state.epoch for state in states.values()) == (steps == 85)


def test_a_device_gets_the_micro_batches_of_a_step_and_nothing_of_the_reader(stream: Stream) -> None:
    step = next(iter(streamed(stream, 1, BatchConfig(sequences=4))))
    moved = move_data_to_device(step, torch.device("meta"))
    assert moved.change is step.change
    assert {tensor.device.type for batch in moved.micro_batches for tensor in batch.tensors().values()} == {"meta"}


@pytest.mark.parametrize(
    ("spec", "world", "counts"),
    [
        (BatchConfig(sequences=7), 2, [1, 1]),
        (BatchConfig(sequences=7, micro_sequences=1), 2, [4, 3]),
        (BatchConfig(sequences=7, micro_sequences=2), 3, [2, 1, 1]),
        (BatchConfig(tokens=5 * ROW, micro_tokens=2 * ROW), 2, [2, 1]),
        (BatchConfig(sequences=1), 3, [1, 0, 0]),
        (BatchConfig(tokens=ROW, micro_sequences=4), 2, [1, 0]),
    ],
)
def test_every_rank_has_as_many_micro_batches(stream: Stream, spec: BatchConfig, world: int, counts: list[int]) -> None:
    rows = spec.sequences if spec.tokens is None else spec.tokens // ROW
    ranks = [list(streamed(stream, 3, spec, rank, world)) for rank in range(world)]
    for steps in zip(*ranks, strict=True):
        assert {len(step.micro_batches) for step in steps} == {max(counts)}
        assert [sum(not batch.blank for batch in step.micro_batches) for step in steps] == counts
        assert 0.9 * rows * ROW < sum(step.rank_targets for step in steps) <= rows * ROW
        assert all(len(batch.input_ids) == len(batch.targets) > 0 for step in steps for batch in step.micro_batches)


def test_documents_are_dealt_to_the_ranks_that_have_rows(stream: Stream) -> None:
    """One row a step on two ranks: the first reads what a single process would, and no document waits for the second."""
    spec = BatchConfig(sequences=1)
    alone, first = (list(streamed(stream, 20, spec, world=world)) for world in (1, 2))
    assert [inputs(step) for step in alone] == [inputs(step) for step in first]


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("c.jsonl.gz", gzip.compress("".join(f'{{"text": "document {i} é"}}\n' for i in range(1100)).encode(), mtime=0), {}),
        ("c.csv", b"text\n" + "".join(f"document {i} é\n" for i in range(1100)).encode("cp1252"), {"encoding": "cp1252"}),
        ("c.txt.gz", gzip.compress("".join(f"document {i} é\n" for i in range(1100)).encode(), mtime=0), {}),
    ],
)
def test_a_stream_is_read_from_compressed_files_and_in_its_encoding(
    name: str, content: bytes, options: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    source = "text" if ".txt" in name else "files"
    data = DataConfig(source=source, train=str(tmp_path / name), streaming=True, document="line", **options)
    rows = open_stream(data)[1]
    assert rows["validation"].table["text"][:] + rows["train"].table["text"][:] == [f"document {i} é" for i in range(1100)]


@pytest.mark.parametrize("name", ["c.csv", "c.jsonl"])
def test_a_stream_that_cannot_be_read_names_the_file(name: str, tmp_path: Path) -> None:
    lines = [f'{{"text": "document {i}é"}}\n' if name == "c.jsonl" else f"document {i}é\n" for i in range(1100)]
    (tmp_path / name).write_bytes(b"text\n" * (name == "c.csv") + "".join(lines).encode("latin-1"))
    with pytest.raises(UserError, match=rf"{name.replace('.', '[.]')}, line [12]: byte 0xe9 is not UTF-8; .*data.encoding=cp1252"):
        open_stream(DataConfig(source="files", train=str(tmp_path / name), streaming=True))


@pytest.mark.parametrize("readers", [1, 2, 3])
def test_no_document_of_the_validation_split_is_trained_on(readers: int, tmp_path: Path) -> None:
    for part in range(2):
        lines = "".join(f"document {i}\n" for i in range(part * 1500, (part + 1) * 1500))
        (tmp_path / f"{part}.txt").write_text(lines)
    data = DataConfig(source="text", document="line", train=[str(tmp_path / f"{part}.txt") for part in range(2)], streaming=True)
    stream, rows = open_stream(data)
    parts = [split_dataset_by_node(stream.documents, index, readers) for index in range(readers)]
    texts = [document["text"] for part in parts for document in part]
    assert sorted(texts + rows["validation"].table["text"][:]) == sorted(f"document {i}" for i in range(3000))


@pytest.mark.parametrize("readers", [1, 2, 3])
def test_no_document_of_the_validation_split_of_the_hub_is_trained_on(
    readers: int, hub_stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three shards: with as many readers each reads one, and `skip` would leave out a third of its documents from each."""
    monkeypatch.setattr(streaming, "_load_hub", lambda *_: hub_stream.documents)
    stream, rows = open_stream(DataConfig(source="hub", name="made/up", streaming=True))
    parts = [split_dataset_by_node(stream.documents, index, readers) for index in range(readers)]
    texts = [document["text"] for part in parts for document in part]
    assert sorted(texts + rows["validation"].table["text"][:]) == sorted(DOCUMENTS)
    first = reader(stream, readers - 1, readers)  # the first may have the validation split alone
    pieces(first, 7)
    state = ReaderState.from_state_dict(first.state.state_dict())
    assert pieces(reader(stream, readers - 1, readers, state), 60) == pieces(first, 60)


def test_a_file_is_streamed_by_its_name(tmp_path: Path) -> None:
    for name in ("train[1].jsonl", "train1.jsonl"):
        (tmp_path / name).write_text("".join(f'{{"text": "{name} {i}"}}\n' for i in range(1100)))
    stream, rows = open_stream(DataConfig(source="files", train=str(tmp_path / "train[1].jsonl"), streaming=True))
    assert next(iter(stream.documents))["text"] == "train[1].jsonl 1000"
    assert rows["train"].where(0) == f"{tmp_path / 'train[1].jsonl'}, line 1001"


CONTENTS = {
    "plain.tsv": (b'text\tid\n"quoted, not closed\t1\nNA\t2\n', {"quotes": False}),
    "names.csv": (b"one,a\ntwo,b\n", {"column_names": ["text", "id"]}),
    "gaps.csv": (b"id,text\n1,NA\n2,null\n3,None\n", {}),
    "semicolons.csv": ("id;text\n1;één, twee\n2;b\n".encode(), {}),
    "spark.csv": (b'id,text\n1,"he said \\"hi, you\\" twice"\n2,b\n', {}),
    "mysql.tsv": (b"text\tid\na\\\tb\\\nc\t1\n", {}),
    "mark.csv": ("id,text\n1,é\n".encode("utf-8-sig"), {}),
    "mark.jsonl": ('{"text": "é"}\n'.encode("utf-16"), {}),
    "utf8.csv": ("text\né ü\n".encode(), {"encoding": "cp1252"}),
    "utf8.jsonl": ('{"text": "é"}\n'.encode(), {"encoding": "cp1252"}),
    "japanese.csv": ("text\n日本\n".encode("iso2022_jp"), {"encoding": "iso2022_jp"}),
    "list.json": (b'[{"text": "a"}, {"text": "NA"}]', {}),
    "long.csv": (b'id,text\n1,"' + b"a \n" * 900_000 + b'"\n2,b\n', {}),
    "bad.jsonl": (b'{"text": "a"}\n{"text": 1}\n{"te\n{"text": "b"}\n', {"on_bad_row": "skip"}),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_files_are_streamed_as_they_are_read(name: str, tmp_path: Path) -> None:
    content, options = CONTENTS[name]
    (tmp_path / name).write_bytes(content)
    data = DataConfig(source="files", train=str(tmp_path / name), **options)
    rows = files.load(data, tmp_path / "cache")["train"].table
    expected = [row["text"] for row in rows if row["__problem__"] is None]
    streamed = replace(data, streaming=True, validation=data.train)
    assert open_stream(streamed)[1]["validation"].table["text"][:] == expected
    assert open_stream(streamed)[1]["train"].table["text"][:] == expected


def test_a_quote_that_is_not_closed_is_refused_before_all_of_the_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_layout, "FRONT", 1000)
    monkeypatch.setattr(csv_layout, "LONGEST_FRONT", 8000)
    (tmp_path / "a.tsv").write_text('text\tid\none\t1\n"two\t2\n' + "three\t3\n" * 10_000)
    data = DataConfig(source="files", train=str(tmp_path / "a.tsv"), validation=str(tmp_path / "a.tsv"), streaming=True)
    with pytest.raises(UserError, match=r"a.tsv, line 3: .* not closed for 8,000 characters; .* set data.quotes=false"):
        open_stream(data)
    assert open_stream(replace(data, quotes=False))[1]["train"].table["text"][1] == '"two'


def test_feather_files_and_files_of_several_kinds_are_one_stream(tmp_path: Path) -> None:
    feather.write_feather(pa.table({"text": ["a", "b"]}), tmp_path / "0.feather")
    (tmp_path / "1.csv").write_text("text\nc\n")
    (tmp_path / "2.jsonl.zst").write_bytes(pa.Codec("zstd").compress(b'{"text": "d"}\n', asbytes=True))
    names = [str(tmp_path / name) for name in ("0.feather", "1.csv", "2.jsonl.zst")]
    data = DataConfig(source="files", train=names, validation=names[1], streaming=True)
    assert open_stream(data)[1]["train"].table["text"][:] == ["a", "b", "c", "d"]


def test_a_whole_file_is_a_document_of_a_stream(tmp_path: Path) -> None:
    text = "a line of text\n" * 40_000
    (tmp_path / "a.txt").write_text(text)
    data = DataConfig(
        source="text", document="file", train=str(tmp_path / "a.txt"), validation=str(tmp_path / "a.txt"), streaming=True
    )
    assert open_stream(data)[1]["train"].table["text"][:] == [text]


@pytest.mark.parametrize(
    ("last", "skip", "message"),
    [
        ("1,2,3\n", False, r"line 100002: 3 fields where there should be 2\. Mend"),
        ('1,"a" b\n', True, r"line 100002: a double quote inside"),
    ],
)
def test_rows_that_are_broken_behind_the_front_are_named(last: str, skip: bool, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text\n" + "1,a document of text\n" * 100_000 + last)
    (tmp_path / "v.csv").write_text("id,text\n1,a\n")
    paths = {"train": str(tmp_path / "a.csv"), "validation": str(tmp_path / "v.csv")}
    stream, _ = open_stream(DataConfig(source="files", **paths, streaming=True, on_bad_row="skip" if skip else "error"))
    with pytest.raises(UserError, match=message):
        list(stream.documents)
