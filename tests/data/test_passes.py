"""What is read at a start whose rows are in the cache, and what is read once where they are not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest

from llm_lightning.config.schema import ColumnsConfig, DataConfig
from llm_lightning.data import json_files, sentences
from llm_lightning.data.sources import files, hub, parallel


def count_calls(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[Any]:
    """Return a list that grows by the first argument of each call of a function."""
    calls: list[Any] = []
    function = getattr(module, name)
    monkeypatch.setattr(
        module, name, lambda *arguments, **options: (calls.append(arguments[0]), function(*arguments, **options))[1]
    )
    return calls


def test_a_list_in_one_line_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"text": f"row {i}"} for i in range(10)]))
    calls = count_calls(monkeypatch, json_files.json, "loads")
    data = DataConfig(source="files", train=str(tmp_path / "a.json"))
    table = files.load(data, tmp_path / "cache")["train"].table
    assert table["text"][:] == [f"row {i}" for i in range(10)]
    assert sum(str(text).startswith('[{"text"') for text in calls) == 1


def test_lines_of_a_translation_are_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for ending, content in {"en": "a\nb\n", "de": "c\nd\n"}.items():
        (tmp_path / f"t.{ending}").write_text(content)
    data = DataConfig(source="parallel", train=str(tmp_path / "t"), columns=ColumnsConfig(text="en", label="de"))
    first = parallel.load(data, tmp_path / "cache")["train"]
    calls = count_calls(monkeypatch, parallel, "open_lines")
    again = parallel.load(data, tmp_path / "cache")["train"]
    assert (first.table["de"][:], again.table["de"][:], calls) == (["c", "d"], ["c", "d"], [])


def test_sentences_are_grouped_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv").write_text("s,w,t\n" + "".join(f"{i // 2},word{i},O\n" for i in range(20)))
    data = DataConfig(source="files", train=str(tmp_path / "a.csv"), columns=ColumnsConfig(text="w", label="t", sentence="s"))
    rows = files.load(data, tmp_path)["train"]
    first = sentences.group(rows, data, tmp_path)
    calls = count_calls(monkeypatch, sentences, "group_rows")
    again = sentences.group(rows, data, tmp_path)
    assert not calls
    assert again.table[:] == first.table[:]
    assert again.where(3) == first.where(3) == f"{tmp_path / 'a.csv'}, line 8"
    assert again.notes == first.notes
    assert "20 rows of a word are 10 sentences" in again.notes[-1]
    assert again.table["w"][1] == ["word2", "word3"]
    other = replace(data, columns=replace(data.columns, sentence="w"))
    assert len(sentences.group(files.load(other, tmp_path)["train"], other, tmp_path)) == 20


def test_objects_of_the_hub_are_read_in_batches(tmp_path: Path) -> None:
    messages = [[{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": None}] for i in range(2500)]
    table = datasets.Dataset.from_dict({"messages": messages})
    data = DataConfig(source="hub", name="made/up", columns=ColumnsConfig(text="messages"))
    rows = hub._rows(data, table, "train", (), tmp_path)
    assert rows.table[2400]["messages"] == [{"role": "user", "content": "question 2400"}, {"role": "assistant"}]
    assert len(rows) == 2500


def test_a_test_split_without_one_of_two_label_columns_names_that_column(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,rain,snow\na,1,0\n")
    (tmp_path / "test.csv").write_text("text,rain\na,1\n")
    data = DataConfig(source="files", dir=str(tmp_path), columns=ColumnsConfig(text="text", label=["rain", "snow"]))
    rows = files.load(data, tmp_path / "cache")["test"]
    assert [name for name in rows.table.column_names if not name.startswith("__")] == ["text", "rain"]
    assert "there is no column 'snow'" in rows.notes[-1]
