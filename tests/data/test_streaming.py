"""Streamed text: every document once before any twice, rows nearly full, readers apart, and a reader that goes on where it was."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from llm_lightning.config import DataConfig
from llm_lightning.data.encodings.stream import Encoder
from llm_lightning.data.streaming import HELD, Reader, Stream, opened
from llm_lightning.errors import UserError

from .test_tokenizers import bpe

ROW = 64
DOCUMENTS = [f"document {i} " + "word " * (i % 40) for i in range(3000)]


@pytest.fixture
def stream(tmp_path: Path) -> Stream:
    for part in range(3):
        (tmp_path / f"{part}.txt").write_text("\n".join(DOCUMENTS[part * 1000 : (part + 1) * 1000]))
    files = [str(tmp_path / f"{part}.txt") for part in range(3)]
    return Stream(datasets.load_dataset("text", data_files=files, split="train", streaming=True), "text", "made up", "")


def reader(stream: Stream, index: int = 0, readers: int = 1) -> Reader:
    return Reader(stream, Encoder(bpe(), DataConfig(block_size=ROW)), ROW, seed=0, index=index, readers=readers)


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
    while source.epoch == 0:
        row = [tuple(piece.tolist()) for piece in source.row()]
        seen.update(row)
    assert not seen - expected() - Counter(row)  # the last row may have pieces of the second time round
    left = Counter(tuple(piece.tolist()) for piece in source.pool)
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
        torch.save(first.state_dict(), tmp_path / "state")
        ahead = pieces(first, more)
        first = reader(stream, index, readers)
        first.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
        assert pieces(first, more) == ahead


def test_without_a_validation_split_the_first_documents_are_it(tmp_path: Path) -> None:
    (tmp_path / "all.txt").write_text("\n".join(DOCUMENTS))
    stream, rows = opened(DataConfig(source="text", document="line", train=str(tmp_path / "all.txt")))
    assert rows["validation"].table["text"][:] == DOCUMENTS[:HELD]
    assert next(iter(stream.documents))["text"] == DOCUMENTS[HELD]


def test_a_stream_without_the_column_says_which_it_has(tmp_path: Path) -> None:
    (tmp_path / "all.jsonl").write_text('{"body": "one"}\n{"body": "two"}\n')
    with pytest.raises(UserError, match=r"document 1: column 'text' is not there; there are body"):
        opened(DataConfig(source="files", train=str(tmp_path / "all.jsonl")))
