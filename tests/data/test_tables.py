"""Tables of any kind, compressed or not, are one table: types are decided over whole files, and files of a split by what they mean."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pytest

from llm_lightning.config import compose
from llm_lightning.config.schema import ColumnsConfig, DataConfig
from llm_lightning.data.prepare import prepare_dataset
from llm_lightning.data.rows import PROBLEM, Rows
from llm_lightning.data.sources import files, parallel, self_instruct, text
from llm_lightning.errors import UserError

from ..conftest import TINY_GPT


def load(
    train: Path | list[Path], cache: Path, extra_columns: tuple[str, ...] = (), label: str | None = "label", **settings: Any
) -> Rows:
    names = [str(path) for path in train] if isinstance(train, list) else str(train)
    data = DataConfig(source="files", train=names, columns=ColumnsConfig(text="text", label=label), **settings)
    return files.load(data, cache, extra_columns)["train"]


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def zstd(content: bytes) -> bytes:
    half = len(content) // 2  # two frames, as parallel writers make them
    return b"".join(pa.Codec("zstd").compress(part, asbytes=True) for part in (content[:half], content[half:]))


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": lambda content: gzip.compress(content[:10]) + gzip.compress(content[10:]),
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd,
}
TEXTS = [f"line {i} of naïve 好 text" for i in range(60)]
PLAIN = {
    "csv": "text,label\n" + "".join(f"{text},{i % 2}\n" for i, text in enumerate(TEXTS)),
    "tsv": "text\tlabel\n" + "".join(f"{text}\t{i % 2}\n" for i, text in enumerate(TEXTS)),
    "jsonl": "".join(json.dumps({"text": text, "label": i % 2}) + "\n" for i, text in enumerate(TEXTS)),
    "json": json.dumps([{"text": text, "label": i % 2} for i, text in enumerate(TEXTS)], indent=1),
}


@pytest.mark.parametrize("packed", COMPRESS)
@pytest.mark.parametrize("kind", PLAIN)
def test_a_compressed_table_is_the_table(kind: str, packed: str, tmp_path: Path) -> None:
    """Also under a name that does not say that it is compressed, and in a folder."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in (f"a.{kind}.{packed}", f"b.{kind}"):
        (folder / name).write_bytes(COMPRESS[packed](PLAIN[kind].encode()))
    for train, times in ((folder / f"a.{kind}.{packed}", 1), (folder / f"b.{kind}", 1), (folder, 2)):
        rows = load(train, tmp_path / "cache")
        assert rows.table["text"][:] == TEXTS * times
        assert rows.table["label"][:] == [str(i % 2) for i in range(60)] * times


@pytest.mark.parametrize("packed", COMPRESS)
def test_compressed_text_is_the_text(packed: str, tmp_path: Path) -> None:
    content = "".join(f"{line}\n" for line in TEXTS).encode()
    for name in (f"a.txt.{packed}", "train.de", f"train.en.{packed}", "b.txt"):
        (tmp_path / name).write_bytes(COMPRESS[packed](content))
    for name in (f"a.txt.{packed}", "b.txt"):
        data = DataConfig(source="text", train=str(tmp_path / name), document="line")
        loaded = text.load(data, tmp_path / "cache")
        assert loaded["train"].table["text"][:] == TEXTS
    data = DataConfig(source="parallel", train=str(tmp_path / "train"), columns=ColumnsConfig(text="en", label="de"))
    assert parallel.load(data, tmp_path / "cache")["train"].table["en"][:] == TEXTS


@pytest.mark.parametrize("packed", COMPRESS)
def test_a_damaged_compressed_file_is_named(packed: str, tmp_path: Path) -> None:
    content = COMPRESS[packed](PLAIN["csv"].encode())
    for name, damaged in {"cut": content[:-12], "changed": content[:60] + b"????" + content[64:]}.items():
        (tmp_path / f"{name}.csv.{packed}").write_bytes(damaged)
        with pytest.raises(UserError, match=rf"{name}\.csv\.{packed}"):
            load(tmp_path / f"{name}.csv.{packed}", tmp_path / "cache")


MESSAGES = [{"role": "user", "content": "12"}, {"role": "assistant", "content": "null"}]
SHAPES: dict[str, list[Any]] = {  # values of the column `text`, of which the first row is none like the others
    "null first": [None, "a", "b"],
    "lists later": ["true", MESSAGES, "12", [1, 2.5, None], {"a": {"b": []}}, "null", '{"a": 1}'],
    "text later": [MESSAGES, "a", None],
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_types_are_those_of_all_rows(name: str, kind: str, tmp_path: Path) -> None:
    rows = [{"text": value, "label": "a"} for value in SHAPES[name]]
    path = write_jsonl(tmp_path / "t.jsonl", rows)
    if kind == "json":
        path = tmp_path / "t.json"
        path.write_text(json.dumps(rows))
    loaded = load(path, tmp_path / "cache")
    assert loaded.table["text"][:] == SHAPES[name]
    assert loaded.table[PROBLEM][:] == [None] * len(rows)


def test_a_column_may_be_missing_from_some_rows(tmp_path: Path) -> None:
    """And from the first; a column that no row has is an error that names those there are."""
    path = write_jsonl(tmp_path / "t.jsonl", [{"label": 1, "id": 0}, {"text": "a", "label": True}, {"text": "b"}])
    rows = load(path, tmp_path / "cache", ("tools",))
    assert rows.table["text"][:] == [None, "a", "b"]
    assert rows.table["label"][:] == ["1", "True", None]  # which labels.py takes as one
    assert rows.notes == (f"{path}: 1 column is not used: id",)
    with pytest.raises(UserError, match=r"t\.jsonl: there is no column 'lable'.*label, id, text"):
        load(path, tmp_path / "cache", label="lable")


def test_extra_columns_hold_any_json(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"x": None, "y": [1, 0.1]}}}]
    rows = [{"text": "a", "tools": tools}, {"text": "b", "tools": "12", "system": "null"}, {"text": "c"}]
    write_jsonl(tmp_path / "t.jsonl", rows)
    loaded = load(tmp_path / "t.jsonl", tmp_path / "cache", ("tools", "system", "history"), label=None)
    assert loaded.table["tools"][:] == [tools, "12", None]
    assert loaded.table["system"][:] == [None, "null", None]
    assert "history" not in loaded.table.column_names


def test_extra_columns_of_parquet_have_no_keys_of_other_rows(tmp_path: Path) -> None:
    """Parquet gives each object the keys of all: a chat template would show them."""
    calls = [[{"name": "f", "arguments": {"city": "Oslo"}}], [{"name": "g", "arguments": {"deg": 3}}], None]
    datasets.Dataset.from_dict({"text": ["a", "b", "c"], "tools": calls}).to_parquet(tmp_path / "t.parquet")
    loaded = load(tmp_path / "t.parquet", tmp_path / "cache", ("tools",), label=None)
    assert loaded.table["tools"][:] == calls


def test_json_is_read_by_its_content(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    lines, whole, spread = "\n".join(map(json.dumps, rows)), json.dumps(rows), json.dumps(rows, indent=2)
    for number, (name, content) in enumerate(
        [("t.json", lines), ("t.jsonl", whole), ("t.jsonl", spread), ("t.json", "\ufeff" + spread)]
    ):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / name).write_text(content)
        loaded = load(tmp_path / str(number) / name, tmp_path / "cache")
        assert loaded.table["text"][:] == ["a", "b"]
        assert loaded.table[PROBLEM][:] == [None, None]


BAD_LINES = {
    r'{"text": "cut \ud83d", "label": "a"}': "half a character (\\ud83d)",
    r'{"text": [{"content": "\udc00"}], "label": "a"}': "half a character (\\udc00)",
    '{"text": 7, "label": "a"}': "'text' holds int, not text",
    '{"text": true, "label": "a"}': "'text' holds bool, not text",
    '["a", "b"]': "expected an object, found list",
    '{"text": "a", "label"': "not valid JSON",
    "{": "the line is '{' alone; write each object on one line",
    '{"text": "a", "label": "b"},': "a comma stands behind the object",
    "[" * 100_000: "cannot be read",
    '{"text": "a", "label": ' + "9" * 5000 + "}": "cannot be read",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=list(BAD_LINES.values()))
def test_a_bad_line_of_json_is_named_and_the_others_are_read(line: str, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "\\ud83d\\ude00 fine", "label": "a"}\n' + line + '\n{"text": "b", "label": NaN}\n')
    rows = load(tmp_path / "t.jsonl", tmp_path / "cache")
    problems = rows.table[PROBLEM][:]
    if '"content"' in line:
        rows.table["text"][:]
    assert (problems[0], problems[2]) == (None, None)
    assert BAD_LINES[line] in problems[1]
    assert (rows.table["text"][0], rows.table["text"][2]) == ("😀 fine", "b")
    assert rows.table["label"][2] in (None, "")
    assert rows.where(1).endswith("t.jsonl, line 2")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"data": [{"text": "a"}]}', "lists of objects in 'data'"),
        ('{"text": {"0": "a"}, "label": {"0": 1}}', "orient='records'"),
        ("<html>\n</html>", "web page"),
        ('[{"text": "a"}', "not valid JSON"),
    ],
)
def test_json_of_another_shape_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(UserError, match=message):
        load(tmp_path / "t.json", tmp_path / "cache")


def test_parquet_of_pandas_is_read_beside_csv_and_jsonl(tmp_path: Path) -> None:
    """Large strings, categories, an index, missing values: the same text as in the other files."""
    frame = pd.DataFrame({"text": ["a", None, "c"], "label": pd.Categorical(["x", "y", "x"]), "id": [1, 2, 3]}, index=[7, 8, 9])
    frame.to_parquet(tmp_path / "1.parquet")
    pd.DataFrame({"text": pd.array(["d"], dtype="string"), "label": ["y"]}).to_feather(tmp_path / "2.feather")
    (tmp_path / "3.csv").write_text("text,label\ne,x\n")
    write_jsonl(tmp_path / "4.jsonl", [{"text": "f", "label": "y"}])
    rows = load(tmp_path, tmp_path / "cache")
    assert rows.table["text"][:] == ["a", None, "c", "d", "e", "f"]
    assert rows.table["label"][:] == ["x", "y", "x", "y", "x", "y"]
    assert rows.where(1) == f"{tmp_path}/1.parquet, row 2"
    assert rows.where(5) == f"{tmp_path}/4.jsonl, line 1"
    assert rows.notes == (f"{tmp_path}/1.parquet: 2 columns are not used: id, __index_level_0__",)


def test_labels_of_several_files_are_aligned_by_meaning(tmp_path: Path) -> None:
    lists = write_jsonl(tmp_path / "lists.jsonl", [{"text": "a", "label": ["joy", "fear"]}])
    words = write_jsonl(tmp_path / "words.jsonl", [{"text": "b", "label": "joy"}])
    (tmp_path / "words.csv").write_text("text,label\nc,fear\n")
    datasets.Dataset.from_dict({"text": ["d"], "label": [["joy"]]}).to_parquet(tmp_path / "lists.parquet")
    rows = load([lists, words, tmp_path / "words.csv", tmp_path / "lists.parquet"], tmp_path / "cache")
    assert rows.table["label"][:] == [["joy", "fear"], "joy", "fear", ["joy"]]

    (tmp_path / "numbers.csv").write_text("text,label\ne,1\nf,0.0\n")
    datasets.Dataset.from_dict({"text": ["g", "h"], "label": [1, 0]}).to_parquet(tmp_path / "numbers.parquet")
    pd.DataFrame({"text": ["i", "j"], "label": [1.0, None]}).to_parquet(tmp_path / "floats.parquet")
    rows = load([tmp_path / "numbers.csv", tmp_path / "numbers.parquet", tmp_path / "floats.parquet"], tmp_path / "cache")
    assert rows.table["label"][:] == ["1", "0.0", "1", "0", "1", None]

    classes = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["fear", "joy"])})
    datasets.Dataset.from_dict({"text": ["k"], "label": [1]}, features=classes).to_parquet(tmp_path / "classes.parquet")
    rows = load([tmp_path / "classes.parquet", tmp_path / "words.csv"], tmp_path / "cache")
    assert rows.table["label"][:] == ["joy", "fear"]

    with pytest.raises(UserError, match=r"'label' has numbers at .*numbers\.parquet.* and words at .*words\.csv.*fear"):
        load([tmp_path / "numbers.parquet", tmp_path / "words.csv"], tmp_path / "cache")


def test_numbers_as_text_stay_numbers_beside_text(tmp_path: Path) -> None:
    """So that they are refused as no text, and not learnt as text because another file has text there."""
    datasets.Dataset.from_dict({"text": [1], "label": ["a"]}).to_parquet(tmp_path / "1.parquet")
    (tmp_path / "2.csv").write_text("text,label\n2,a\n")
    assert load(tmp_path, tmp_path / "cache").table["text"][:] == [1, "2"]


def test_a_column_that_a_file_lacks_is_named_with_the_file(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "1.jsonl", [{"text": "a", "label": "x"}])
    write_jsonl(tmp_path / "2.jsonl", [{"text": "a"}])
    with pytest.raises(UserError, match=r"2\.jsonl: there is no column 'label'"):
        load(tmp_path, tmp_path / "cache")
    data = DataConfig(source="files", train=f"{tmp_path}/1.jsonl", test=f"{tmp_path}/2.jsonl", columns=ColumnsConfig(label="label"))
    test = files.load(data, tmp_path / "cache")["test"]
    assert test.table["text"][:] == ["a"]
    assert "there is no column 'label'" in test.notes[0]


def test_self_instruct_names_bad_lines(tmp_path: Path) -> None:
    good = {"instruction": "say hi", "instances": [{"input": "", "output": "hi"}]}
    (tmp_path / "t.jsonl").write_text(json.dumps(good) + '\n{"instruction": "\\ud83d"}\n')
    rows = self_instruct.load(DataConfig(source="self_instruct", train=str(tmp_path / "t.jsonl")), tmp_path / "cache")["train"]
    assert rows.table[PROBLEM][0] is None
    assert "half a character" in rows.table[PROBLEM][1]


@pytest.mark.parametrize(
    "instances",
    [[{"input": "", "output": ["x"]}], [{"input": 1, "output": "x"}], [{"output": "x"}], {"input": "", "output": "x"}, ["x"], None],
)
def test_self_instruct_reads_text_alone(instances: Any, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"instruction": "say hi", "instances": instances}) + "\n[]\n")
    rows = self_instruct.load(DataConfig(source="self_instruct", train=str(tmp_path / "t.jsonl")), tmp_path / "cache")["train"]
    assert rows.table["output"][:] == [None, None]
    assert all(rows.table[PROBLEM])


def test_labels_that_are_text_stay_as_json_writes_them(tmp_path: Path) -> None:
    values = [True, 1.0, 42, "x"]
    write_jsonl(tmp_path / "t.jsonl", [{"prompt": "a", "completion": value} for value in values])
    overrides = [f"data.train={tmp_path}/t.jsonl", f"data.validation={tmp_path}/t.jsonl", f"cache_dir={tmp_path}/cache"]
    overrides += ["data.columns.text=prompt", "data.columns.label=completion", *TINY_GPT]
    prepared = prepare_dataset(
        compose.load_config(["task=finetune", "objective=instruction", "data=chat", *overrides]), "chat", None
    )
    answers = [example.text.messages[-1]["content"] for example in prepared.examples("train")]
    assert answers == ["true", "1.0", "42", "x"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.jsonl", '{"text": "a story"}\n'),
        ("c.jsonl.gz", gzip.compress(b'{"text": "a story"}\n' * 3, mtime=0)),
        ("c.csv", "text\na story\n"),
        ("c.txt", '{"text": "a story"}\n' * 3),
        ("c.parquet", b"PAR1"),
    ],
)
def test_a_table_is_no_text(name: str, content: str | bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"this is a table.*data=files"):
        text.load(DataConfig(source="text", train=str(tmp_path / name)), tmp_path / "cache")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PAR1xxxx", "parquet"),
        (b"%PDF-1.7\n", "PDF"),
        (b"fine\n\0\0\0\n", r"line 2: a NUL byte"),
        (gzip.compress(b"PK\x03\x04 xxxxxxxxxxx", mtime=0), "archive"),
        ("caf\u00e9\n".encode("latin-1"), r"data\.encoding=cp1252 reads 'café'"),
    ],
)
def test_what_is_no_text_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        text.load(DataConfig(source="text", train=str(tmp_path / "t.txt")), tmp_path / "cache")


def test_plain_text_is_the_same_in_every_encoding_and_with_every_line_end(tmp_path: Path) -> None:
    content = "one café\ntwo – three\n\nfour\n"
    variants = {
        "utf-8": content.encode(),
        "windows": content.replace("\n", "\r\n").encode(),
        "mac": content.replace("\n", "\r").encode(),
        "utf-16": content.replace("\n", "\r\n").encode("utf-16"),
        "cp1252": content.encode("cp1252"),
    }
    for name, encoded in variants.items():
        (tmp_path / f"{name}.txt").write_bytes(encoded)
        data = DataConfig(source="text", train=str(tmp_path / f"{name}.txt"), encoding="cp1252" if name == "cp1252" else None)
        (tmp_path / "held.txt").write_text("x")
        data = DataConfig(**{**vars(data), "validation": str(tmp_path / "held.txt")})
        assert text.load(data, tmp_path / "cache")["train"].table["text"][:] == [content], name


def test_text_that_may_be_a_table_is_said(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("".join(f"ham\ta text {i}\n" for i in range(30)))
    data = DataConfig(source="text", train=str(tmp_path / "t.txt"), document="line")
    assert "has 1 tabs" in text.load(data, tmp_path / "cache")["train"].notes[0]


PAIRS = [{"id": i, "translation": {"en": f"a dog {i}", "de": f"ein Hund {i}"}} for i in range(12)]


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "translation", "hub"])
def test_values_inside_of_objects_are_columns(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = datasets.Features({"id": datasets.Value("int64"), "translation": datasets.Translation(["en", "de"])})
    table = datasets.Dataset.from_list(PAIRS, features if kind in ("translation", "hub") else None)
    path = tmp_path / f"train.{kind if kind.startswith('json') else 'parquet'}"
    if kind.startswith("json"):
        path.write_text(json.dumps(PAIRS) if kind == "json" else "".join(json.dumps(row) + "\n" for row in PAIRS))
    else:
        table.to_parquet(path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict(train=table, validation=table))
    files = (
        ["data=hub", "data.name=some/pairs"] if kind == "hub" else ["data=files", f"data.train={path}", f"data.validation={path}"]
    )
    command = ["task=finetune", "objective=translation", *files, f"cache_dir={tmp_path}/cache", "model.tokenizer.vocab_size=300"]
    with pytest.raises(UserError, match=r"no column 'en'.* Set data\.columns\.text=translation\.en\."):
        prepare_dataset(compose.load_config([*command, "data.columns.text=en", "data.columns.label=de"]), "translation", None)
    with pytest.raises(UserError, match=r"no column 'translation\.fr'"):
        prepare_dataset(
            compose.load_config([*command, "data.columns.text=translation.fr", "data.columns.label=translation.de"]),
            "translation",
            None,
        )
    learnt = prepare_dataset(
        compose.load_config([*command, "data.columns.text=translation.en", "data.columns.label=translation.de"]),
        "translation",
        None,
    )
    assert [(example.text, example.label) for example in learnt.examples("train")] == [
        (row["translation"]["en"], row["translation"]["de"]) for row in PAIRS
    ]
    assert [note.rpartition(": ")[2] for note in learnt.rows["train"].notes] == ["id"]


@pytest.mark.parametrize(
    ("front", "is_named"), [("<!DOCTYPE html>\n", True), ("<?xml version='1.0'?>\n", True), ("<a> wrote:\n", False)]
)
def test_marks_that_would_be_learnt_are_named(front: str, is_named: bool, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(front + "once upon a time\n" * 40)
    notes = text.load(DataConfig(source="text", train=str(tmp_path / "t.txt")), tmp_path / "cache")["train"].notes
    assert any("a web page or an XML file" in note for note in notes) == is_named
