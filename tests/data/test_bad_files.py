"""Files that cannot be trained on: each gives one message that names the file, the place in it, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llm_lightning.config.compose import load_config
from llm_lightning.data.prepare import TokenizedDataset, prepare_dataset
from llm_lightning.errors import UserError

GOOD = "text,label\n" + "".join(f"a fine film {i},good\na dull film {i},bad\n" for i in range(10))
TABLE = ["task=finetune", "data=files", "data.columns.label=label", "data.train=train.csv", "data.validation=validation.csv"]
PLAIN = ["task=pretrain", "data=text", "data.train=train.txt"]

Files = dict[str, str | bytes]
BAD: list[tuple[str, Files, list[str], list[str]]] = [  # name, files, command line, what the message must hold
    (
        "missing column",
        {"train.csv": GOOD},
        ["data.columns.text=txt"],
        ["train.csv", "'txt'", "data.columns.text", "Did you mean 'text'?"],
    ),
    ("missing label column", {"train.csv": GOOD}, ["data.columns.label=lable"], ["train.csv", "data.columns.label", "'label'"]),
    ("empty file", {"train.csv": ""}, [], ["train.csv", "the file is empty"]),
    ("header alone", {"train.csv": "text,label\n"}, [], ["train.csv", "no rows"]),
    (
        "latin-1",
        {"train.csv": GOOD.encode() + "caf\u00e9,good\n".encode("latin-1")},
        [],
        ["train.csv, line 22", "0xe9", "UTF-8", "iconv"],
    ),
    (
        "too few fields",
        {"train.csv": GOOD + "alone\n"},
        [],
        ["train.csv, line 22", "1 field where there should be 2", "data.on_bad_row=skip"],
    ),
    ("too many fields", {"train.csv": GOOD + "a,b,c\n"}, [], ["train.csv, line 22", "3 fields where there should be 2"]),
    (
        "columns in one word",
        {"train.csv": "text,joy,fear\na,1,0\nb,0,1\n"},
        ["objective=multi_label", "data.columns.label=joy,fear"],
        ["there is no column 'joy,fear'", "'data.columns.label=[joy,fear]'"],
    ),
    ("rich text", {"train.csv": "{\\rtf1\\ansi a}"}, [], ["train.csv", "rich text of a word processor"]),
    ("empty text", {"train.csv": GOOD + " ,good\n"}, [], ["train.csv, line 22", "column 'text' is empty"]),
    ("empty label", {"train.csv": GOOD + "a film,\n"}, [], ["train.csv, line 22", "column 'label' is empty"]),
    (
        "unseen label",
        {"validation.csv": GOOD + "a film,ugly\n"},
        [],
        ["validation.csv, line 22", "'ugly'", "train does not have", "bad, good"],
    ),
    (
        "one class",
        {"train.csv": "text,label\na,good\nb,good\n"},
        [],
        ["train.csv", "only the label 'good'", "at least two classes"],
    ),
    (
        "text as label",
        {"train.csv": GOOD},
        ["data.columns.text=label", "data.columns.label=text"],
        ["20 different values in 20 rows"],
    ),
    ("label names", {"train.csv": GOOD}, ["data.labels=[yes,no,maybe]"], ["data.labels names 3", "has 2 (bad, good)"]),
    ("open quote", {"train.csv": GOOD + '"never closed,good\n'}, [], ["train.csv, line 22", "data.quotes=false"]),
    (
        "bad jsonl",
        {"train.jsonl": '{"text": "a", "label": 1}\n{"text": \n{"text": "b", "label": 0}\n'},
        ["data.train=train.jsonl"],
        ["train.jsonl, line 2", "not valid JSON"],
    ),
    (
        "jsonl of lists",
        {"train.jsonl": '{"text": "a", "label": 1}\n[1, 2]\n{"text": "b", "label": 0}\n'},
        ["data.train=train.jsonl"],
        ["train.jsonl, line 2", "expected an object, found list"],
    ),
    (
        "number as text",
        {"train.jsonl": '{"text": "a", "label": 1}\n{"text": 7, "label": 0}\n{"text": "b", "label": 0}\n'},
        ["data.train=train.jsonl"],
        ["train.jsonl, line 2", "'text' holds int"],
    ),
    (
        "json object",
        {"train.json": '{"text": {"0": "a"}}'},
        ["data.train=train.json"],
        ["train.json", "expected a list of objects, found dict"],
    ),
    (
        "damaged parquet",
        {"train.parquet": b"PAR1 no more"},
        ["data.train=train.parquet"],
        ["train.parquet", "cannot be read as parquet"],
    ),
    ("unknown ending", {"train.xls": "x"}, ["data.train=train.xls"], ["train.xls", "cannot read '.xls' files", ".csv"]),
    ("folder without tables", {"tables/notes.md": "x"}, ["data.train=tables"], ["data.train=", "no .csv", "in this folder"]),
    ("empty text file", {"train.txt": ""}, PLAIN, ["train.txt", "the file is empty"]),
    ("blank text file", {"train.txt": " \n\n \n"}, PLAIN, ["train.txt", "no text in the file"]),
    ("binary text file", {"train.txt": b"fine\nbroken \xff\n"}, PLAIN, ["train.txt, line 2", "0xff", "UTF-8"]),
    ("one word", {"train.txt": "word"}, PLAIN, ["train.txt", "too little text", "data.validation=<file>"]),
    (
        "hidden labels in train",
        {"train.csv": GOOD, "validation.csv": "text\na\n"},
        [],
        ["validation.csv", "data.columns.label", "the columns are text"],
    ),
]


def prepare(arguments: list[str], cache: Path) -> TokenizedDataset:
    config = load_config([*arguments, f"cache_dir={cache}", "model.tokenizer.vocab_size=300"])
    return prepare_dataset(config, "texts" if config.task == "finetune" else "stream", None)


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Files], None]:
    """Writes files into the working folder."""
    monkeypatch.chdir(tmp_path)

    def write(files: Files) -> None:
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)

    return write


@pytest.mark.parametrize(("name", "files", "arguments", "expected"), BAD, ids=[bad[0] for bad in BAD])
def test_bad_file(
    name: str, files: Files, arguments: list[str], expected: list[str], written: Callable[[Files], None], tmp_path: Path
) -> None:
    written({"train.csv": GOOD, "validation.csv": GOOD} | files)
    with pytest.raises(UserError) as error:
        prepare([*(TABLE if arguments is not PLAIN else []), *arguments], tmp_path / "cache")
    for part in expected:
        assert part in str(error.value)


def test_skipped_rows_are_counted_and_named(
    written: Callable[[Files], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written({"train.csv": GOOD + "alone\n ,good\n", "validation.csv": GOOD + "a film,ugly\n"})
    for start in ("cold", "warm cache"):
        caplog.clear()
        dataset = prepare([*TABLE, "data.on_bad_row=skip"], tmp_path / "cache")
        assert dataset.splits["train"].facts.skipped == 2, start
        assert dataset.splits["train"].facts.rows == len(dataset.splits["train"]) == 20
        assert dataset.splits["validation"].facts.skipped == 1
        assert "train: skipped 2 of 22 rows" in caplog.text
        assert "train.csv, line 22: 1 field" in caplog.text
        assert "validation.csv, line 22: column 'label' has the label 'ugly'" in caplog.text


def test_a_file_without_bad_rows_is_the_same_content(written: Callable[[Files], None], tmp_path: Path) -> None:
    """Another data.on_bad_row alone does not keep a run from being resumed."""
    written({"train.csv": GOOD, "validation.csv": GOOD + "alone\n"})
    skip, files = "data.on_bad_row=skip", [*TABLE, "data.validation=train.csv"]
    fingerprints = [
        prepare([*files, *setting], tmp_path / cache).fingerprints for cache in "ab" for setting in ([skip], [], [skip])
    ]
    assert all(found == fingerprints[0] for found in fingerprints)
    for _ in ("cold", "warm cache"):
        dataset = prepare([*TABLE, skip], tmp_path / "a")
        assert dataset.splits["validation"].facts.skipped == 1
        assert dataset.fingerprints["train"] == fingerprints[0]["train"]
        assert dataset.fingerprints["validation"] != fingerprints[0]["validation"]
        with pytest.raises(UserError, match=r"validation\.csv, line 22"):
            prepare(TABLE, tmp_path / "a")


def test_words_that_look_like_gaps_are_text(written: Callable[[Files], None], tmp_path: Path) -> None:
    written({"train.csv": GOOD + "NA,null\nnull,null\nNone,null\n", "validation.csv": GOOD})
    dataset = prepare(TABLE, tmp_path / "cache")
    assert dataset.splits["train"].facts.rows == 23
    assert dataset.label_names == ("bad", "good", "null")


def test_byte_order_mark_is_no_part_of_a_name(written: Callable[[Files], None], tmp_path: Path) -> None:
    written({"train.csv": b"\xef\xbb\xbf" + GOOD.encode(), "validation.csv": GOOD})
    assert prepare(TABLE, tmp_path / "cache").splits["train"].facts.rows == 20


def test_labels_that_are_numbers_keep_their_order(written: Callable[[Files], None], tmp_path: Path) -> None:
    rows = "text,label\n" + "".join(f"text {i},{i}\n" * 3 for i in range(12))
    written({"train.csv": rows, "validation.csv": rows})
    dataset = prepare(TABLE, tmp_path / "cache")
    assert dataset.label_names == tuple(map(str, range(12)))
    assert dataset.splits["train"].labels is not None
    assert dataset.splits["train"].labels[::3].tolist() == list(range(12))
