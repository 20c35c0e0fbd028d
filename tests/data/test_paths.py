"""A name in a config stands for the file of that very name, else for what matches it; what a folder holds besides is left out by name."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from llm_lightning.config.schema import DataConfig
from llm_lightning.data import paths
from llm_lightning.errors import UserError

TABLES = (".csv", ".jsonl", ".parquet")


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")


def names(found: list[Path], folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in found]


def test_a_file_is_taken_before_its_name_is_a_pattern(tmp_path: Path) -> None:
    touch(tmp_path, "d[1].csv", "d1.csv", "d2.csv", "[NLP] é/train (1).csv", "N/train (1).csv", "what?.csv", "whats.csv")
    for name in ("d[1].csv", "[NLP] é/train (1).csv", "what?.csv"):
        assert names(paths.match(tmp_path / name), tmp_path) == [name]
        assert names(paths.match(name, tmp_path), tmp_path) == [name]
    assert names(paths.match("d[12].csv", tmp_path), tmp_path) == ["d1.csv", "d2.csv"]
    assert names(paths.match("*.csv", tmp_path / "[NLP] é"), tmp_path) == ["[NLP] é/train (1).csv"]
    assert paths.match("nothing*.csv", tmp_path) == []
    (tmp_path / "d[1].csv").unlink()
    assert names(paths.match(tmp_path / "d[1].csv"), tmp_path) == ["d1.csv"]


def test_a_name_may_be_written_with_other_code_points(tmp_path: Path) -> None:
    touch(tmp_path, unicodedata.normalize("NFD", "données/é.csv"))
    assert len(paths.match(unicodedata.normalize("NFC", str(tmp_path / "données/é.csv")))) == 1


def test_the_home_folder_and_data_dir_are_where_names_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "home/x.csv", "dir[1]/x.csv", "dir1/x.csv")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert paths.match("~/x.csv") == [tmp_path / "home/x.csv"]
    data = DataConfig(source="files", dir=str(tmp_path / "dir[1]"), train="x.csv", validation="~/x.csv")
    found = paths.split_files(data, TABLES)
    assert names(found["train"] + found["validation"], tmp_path) == ["dir[1]/x.csv", "home/x.csv"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("trian.csv", r"no such file; did you mean 'train\.csv'"),
        ("nowhere/train.csv", r"the folder .*nowhere does not exist"),
        ("https://example.org/train.csv", "address; download the file"),
        ("pipe", "pipe"),
        ("empty", r"there is no \.csv, \.jsonl, \.parquet file in this folder"),
        ("other", r"there is no .* in this folder; there are README\.md, y\.txt"),
        ("[eo]*", "only folders match"),
    ],
)
def test_a_name_that_stands_for_no_file(name: str, message: str, tmp_path: Path) -> None:
    touch(tmp_path, "train.csv", "other/README.md", "other/y.txt")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=rf"data\.train=.*{message}"):
        paths.expand("data.train", name, TABLES, tmp_path)


SYSTEM = (
    ".DS_Store",
    "._x.csv",
    "~$x.csv",
    "Thumbs.db",
    "__MACOSX/x.csv",
    ".ipynb_checkpoints/x-checkpoint.csv",
    "sub/.hidden.csv",
)


def test_files_of_systems_and_of_other_kinds_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "x.csv", "sub/y.jsonl.gz", "README.md", "LICENSE", "a.txt", *SYSTEM)
    data = DataConfig(source="files", train=str(tmp_path))
    assert names(paths.split_files(data, TABLES)["train"], tmp_path) == ["sub/y.jsonl.gz", "x.csv"]
    assert "2 files are read" in caplog.text
    assert "7 hidden or system files" in caplog.text
    for kind in (".md", ".txt", "without an ending"):
        assert f"1 {kind}" in caplog.text
    assert names(paths.expand("data.train", f"{tmp_path}/*.csv"), tmp_path) == ["x.csv"]


def test_files_of_no_split_in_data_dir_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "train.csv", "dev.csv", "eval.csv", "sample.csv", "README.md", ".x.csv")
    assert set(paths.split_files(DataConfig(source="files", dir=str(tmp_path)), TABLES)) == {"train", "validation"}
    assert "not read, as no split is looked for under these names: eval.csv, sample.csv" in caplog.text
    caplog.clear()
    named = DataConfig(source="files", dir=str(tmp_path), train="train.csv", validation="dev.csv")
    paths.split_files(named, TABLES)
    assert caplog.text == ""


def test_a_file_that_is_named_twice_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a.csv", "b.csv")
    data = DataConfig(source="files", train=[f"{tmp_path}/*.csv", f"{tmp_path}/a.csv"])
    assert names(paths.split_files(data, TABLES)["train"], tmp_path) == ["a.csv", "b.csv", "a.csv"]
    assert f"read twice: {tmp_path}/a.csv" in caplog.text


def test_a_folder_with_other_splits_is_not_train(tmp_path: Path) -> None:
    touch(tmp_path, "train-00000-of-00001.parquet", "test-00000-of-00001.parquet")
    with pytest.raises(UserError, match=r"files of other splits too \(test-00000-of-00001\.parquet\); data\.dir="):
        paths.split_files(DataConfig(source="files", train=str(tmp_path)), TABLES)


LAYOUTS: dict[str, tuple[list[str], dict[str, list[str]]]] = {
    "plain": (
        ["train.csv", "dev.csv", "test.csv.gz", "train.md"],
        {"train": ["train.csv"], "validation": ["dev.csv"], "test": ["test.csv.gz"]},
    ),
    "hub": (
        ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet", "README.md"],
        {
            "train": ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
            "test": ["data/test-00000-of-00001.parquet"],
        },
    ),
    "folders": (
        ["train/a.jsonl", "train/b.jsonl", "validation/c.jsonl", "train/.d.jsonl"],
        {"train": ["train/a.jsonl", "train/b.jsonl"], "validation": ["validation/c.jsonl"]},
    ),
    "language": (["en/train.jsonl", "en/val.jsonl"], {"train": ["en/train.jsonl"], "validation": ["en/val.jsonl"]}),
    "numbered": (["train_1.csv", "train_2.csv", "my-test.csv"], {"train": ["train_1.csv", "train_2.csv"], "test": ["my-test.csv"]}),
    "words inside names": (["train.csv", "contest.csv", "develop.csv"], {"train": ["train.csv"]}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_folder_is_taken_as_it_is_laid_out(name: str, tmp_path: Path) -> None:
    written, expected = LAYOUTS[name]
    touch(tmp_path, *written)
    found = paths.split_files(DataConfig(source="files", dir=str(tmp_path)), TABLES)
    assert {split: names(files, tmp_path) for split, files in found.items()} == expected


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (["train.csv", "train.jsonl"], r"several files could be train \(train\.csv, train\.jsonl\)"),
        (["en/train.csv", "de/train.csv"], r"several files could be train \(de/train\.csv, en/train\.csv\)"),
        (["train_old.csv", "train_new.csv"], r"several files could be train"),
        (["train-00000-of-00003.csv", "train-00002-of-00003.csv"], r"1 of the 3 parts of train are missing"),
        (["a.csv"], r"there is no train file in it"),
    ],
)
def test_a_folder_that_leaves_it_open_is_refused(written: list[str], message: str, tmp_path: Path) -> None:
    touch(tmp_path, *written)
    with pytest.raises(UserError, match=message):
        paths.split_files(DataConfig(source="files", dir=str(tmp_path)), TABLES)


def test_the_identity_is_that_of_content_kind_and_settings(tmp_path: Path) -> None:
    touch(tmp_path, "a.csv", "b/c.csv", "a.jsonl")
    hashes = [paths.content_hash([tmp_path / name], "setting") for name in ("a.csv", "b/c.csv", "a.jsonl")]
    assert hashes[0] == hashes[1]
    assert len({*hashes, paths.content_hash([tmp_path / "a.csv"], "other")}) == 3
