"""A list of wrong labels changes train as an edit of its file by hand does, and nothing else; what does not fit is refused by line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from llm_lightning.data.prepare import TokenizedDataset
from llm_lightning.errors import UserError
from llm_lightning.reporting.data_card import data_card

from .test_folds import list_rows, prepare_files

Rows = list[dict[str, Any]]
TEXTS = ["a good film", "a bad film", "good", "bad", "the plot is bad", "the plot is good"] * 4
SENTENCES = [(["Ann", "met", "Bob"], ["B-person", "O", "B-person"]), (["in", "Rome"], ["O", "B-place"])] * 8


def write_rows(folder: Path, kind: str, rows: list[Any]) -> list[str]:
    """Write train as a file of a kind; return the words that read it, with a validation file that does not change."""
    folder.mkdir(exist_ok=True)
    if kind == "conll":
        for name, sentences in (("train", rows), ("validation", SENTENCES)):
            text = "\n\n".join("\n".join(f"{w} {t}" for w, t in zip(*sentence, strict=True)) for sentence in sentences)
            (folder / f"{name}.conll").write_text(f"{text}\n")
        return ["objective=tagging", "data=conll", f"data.dir={folder}"]
    for name, part in (("train", rows), ("validation", build_rows(kind))):
        if kind == "jsonl":
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
        else:
            with (folder / f"{name}.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, part[0])
                writer.writeheader()
                writer.writerows(part)
    objective = "classification" if kind == "csv" else "multi_label"
    label = "'[fun,sad]'" if kind == "indicators" else "label"
    return [f"objective={objective}", "data=files", f"data.dir={folder}", f"data.columns.label={label}".replace("'", "")]


def build_rows(kind: str) -> Rows:
    is_good = [("good" in text) for text in TEXTS]
    if kind == "csv":
        return [{"text": text, "label": "pos" if good else "neg"} for text, good in zip(TEXTS, is_good, strict=True)]
    if kind == "indicators":
        return [{"text": text, "fun": int(good), "sad": int(not good)} for text, good in zip(TEXTS, is_good, strict=True)]
    return [{"text": text, "label": ["fun"] if good else ["sad"]} for text, good in zip(TEXTS, is_good, strict=True)]


def prepare(words: list[str], cache: Path, *overrides: str) -> TokenizedDataset:
    return prepare_files(cache, *words, *overrides)


def write_list(file: Path, lines: list[dict[str, Any]], delimiter: str = ",") -> Path:
    with file.open("w", newline="", encoding="utf-8") as target:
        writer = csv.DictWriter(target, list(lines[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(lines)
    return file


def name(file: Path | str, row: int, label: str, suggested: str, **more: Any) -> dict[str, Any]:
    return {"file": str(file), "row": row, **more, "label": label, "suggested_label": suggested, "score": 0.01}


KINDS: dict[str, tuple[str, list[tuple[int, str, str]], list[tuple[int, Any]]]] = {
    "csv": ("train.csv", [(3, "neg", "pos"), (2, "pos", "neg")], [(1, {"label": "pos"}), (0, {"label": "neg"})]),
    "jsonl": (
        "train.jsonl",
        [(1, "", "sad"), (2, "sad", ""), (3, "fun", "sad")],
        [(0, {"label": ["fun", "sad"]}), (1, {"label": []}), (2, {"label": ["sad"]})],
    ),
    "indicators": ("train.csv", [(2, "", "sad"), (3, "sad", "")], [(0, {"sad": 1}), (1, {"sad": 0})]),
}
"""Kind of file -> its name, the lines of a list, and the same changes of its rows by hand."""


@pytest.mark.parametrize("kind", KINDS)
def test_other_labels_are_those_of_a_file_that_is_edited_by_hand(kind: str, tmp_path: Path, cache: Path) -> None:
    file, lines, edits = KINDS[kind]
    words = write_rows(tmp_path / "data", kind, build_rows(kind))
    wrong = write_list(tmp_path / "wrong.csv", [name(tmp_path / "data" / file, *line) for line in lines])
    edited = build_rows(kind)
    for row, change in edits:
        edited[row] |= change
    by_hand = prepare(write_rows(tmp_path / "edited", kind, edited), cache)
    before, after = prepare(words, cache), prepare(words, cache, f"data.relabel={wrong}")
    assert list_rows(after, "train") == list_rows(by_hand, "train") != list_rows(before, "train")
    assert after.splits["validation"].fingerprint == before.splits["validation"].fingerprint
    assert after.fingerprint != before.fingerprint
    assert data_card(after)["train"]["relabelled"] == len(edits)
    assert "relabelled" not in data_card(before)["train"]


@pytest.mark.parametrize("kind", KINDS)
def test_dropped_rows_are_those_of_a_file_without_them(kind: str, tmp_path: Path, cache: Path) -> None:
    file, lines, edits = KINDS[kind]
    words = write_rows(tmp_path / "data", kind, build_rows(kind))
    wrong = write_list(tmp_path / "wrong.csv", [name(tmp_path / "data" / file, *line) for line in lines])
    rest = [row for i, row in enumerate(build_rows(kind)) if i not in {i for i, _ in edits}]
    by_hand = prepare(write_rows(tmp_path / "edited", kind, rest), cache)
    after = prepare(words, cache, f"data.drop={wrong}")
    assert list_rows(after, "train") == list_rows(by_hand, "train")
    assert after.tokenizer.get_vocab() == by_hand.tokenizer.get_vocab()
    assert [after.rows["train"].where(i) for i in (0, 1)] != [prepare(words, cache).rows["train"].where(i) for i in (0, 1)]
    assert data_card(after)["train"]["dropped"] == len(edits)


def test_tags_of_words_change_by_the_number_of_the_word(tmp_path: Path, cache: Path) -> None:
    words = write_rows(tmp_path / "data", "conll", SENTENCES)
    lines = [(1, 2, "O", "B-place"), (1, 3, "B-person", "O"), (5, 1, "O", "B-person")]  # the second sentence starts on line 5
    train = tmp_path / "data" / "train.conll"
    wrong = write_list(tmp_path / "wrong.csv", [name(train, row, label, other, word=word) for row, word, label, other in lines])
    edited = [(["Ann", "met", "Bob"], ["B-person", "B-place", "O"]), (["in", "Rome"], ["B-person", "B-place"]), *SENTENCES[2:]]
    by_hand = prepare(write_rows(tmp_path / "edited", "conll", edited), cache)
    after = prepare(words, cache, f"data.relabel={wrong}")
    assert list_rows(after, "train") == list_rows(by_hand, "train")
    dropped = prepare(words, cache, f"data.drop={wrong}")
    assert list_rows(dropped, "train") == list_rows(prepare(words, cache), "train")[2:]


def test_both_lists_may_be_given_and_a_part_is_left_out_of_what_is_left(tmp_path: Path, cache: Path) -> None:
    words = write_rows(tmp_path / "data", "csv", build_rows("csv"))
    train = tmp_path / "data" / "train.csv"
    drop = write_list(tmp_path / "drop.csv", [name(train, 2, "pos", "")], delimiter=";")  # as a spreadsheet may save it
    relabel = write_list(tmp_path / "relabel.csv", [name(train, 5, "neg", "pos")])
    edited = build_rows("csv")[1:]
    edited[2]["label"] = "pos"
    by_hand = prepare(write_rows(tmp_path / "edited", "csv", edited), cache)
    after = prepare(words, cache, f"data.drop={drop}", f"data.relabel={relabel}")
    assert list_rows(after, "train") == list_rows(by_hand, "train")
    part = prepare(words, cache, f"data.drop={drop}", f"data.relabel={relabel}", "data.left_out=1/2")
    rows = [*list_rows(part, "train"), *list_rows(part, "left_out")]
    assert sorted(rows, key=repr) == sorted(list_rows(by_hand, "train"), key=repr)


def test_the_content_of_a_list_decides_and_not_its_path(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = write_rows(tmp_path / "data", "csv", build_rows("csv"))
    train = tmp_path / "data" / "train.csv"
    lines = [name(train, 3, "neg", "pos"), name(train, 2, "pos", "neg")]
    first = prepare(words, cache, f"data.relabel={write_list(tmp_path / 'a.csv', lines)}")
    monkeypatch.chdir(tmp_path)
    moved = [line | {"file": "data/train.csv", "score": 0.5} for line in reversed(lines)]
    assert prepare(words, cache, f"data.relabel={write_list(tmp_path / 'b.csv', moved)}").fingerprints == first.fingerprints
    assert prepare(words, cache, f"data.relabel={write_list(tmp_path / 'c.csv', moved[:1])}").fingerprints != first.fingerprints


def test_rows_of_validation_are_cut_before_train_changes(tmp_path: Path, cache: Path) -> None:
    words = [word for word in write_rows(tmp_path / "data", "csv", build_rows("csv")) if not word.startswith("data.dir")]
    words += [f"data.train={tmp_path}/data/train.csv"]
    before = prepare(words, cache)
    places = {split: [before.rows[split].where(i) for i in range(len(before.rows[split]))] for split in before.rows}
    row = int(places["train"][0].rpartition(" ")[2])
    train = tmp_path / "data" / "train.csv"
    label = build_rows("csv")[row - 2]["label"]
    after = prepare(words, cache, f"data.drop={write_list(tmp_path / 'drop.csv', [name(train, row, label, '')])}")
    assert [after.rows["validation"].where(i) for i in range(len(after.rows["validation"]))] == places["validation"]
    held = int(places["validation"][0].rpartition(" ")[2])
    wrong = write_list(tmp_path / "held.csv", [name(train, held, build_rows("csv")[held - 2]["label"], "")])
    with pytest.raises(UserError, match=rf"held.csv, line 2: row {held} of .* belongs to validation, and only train is changed"):
        prepare(words, cache, f"data.drop={wrong}")


TRAIN = "<train>"
ERRORS: dict[str, tuple[str, str, list[dict[str, Any]], str]] = {
    "a file": (
        "csv",
        "drop",
        [name("other.csv", 2, "pos", "")],
        "line 2: other.csv is not a file of train, which is read from .*train.csv",
    ),
    "a row": ("csv", "relabel", [name(TRAIN, 99, "pos", "neg")], "line 2: train has no row 99 of"),
    "a label": (
        "csv",
        "relabel",
        [name(TRAIN, 2, "pos", "neg"), name(TRAIN, 3, "pos", "neg")],
        "line 3: the label is 'pos', .* has 'neg'",
    ),
    "a dropped label": (
        "csv",
        "drop",
        [name(TRAIN, 2, "neg", "")],
        "line 2: the label is 'neg', and .*train.csv, line 2 has 'pos'",
    ),
    "an unknown label": (
        "csv",
        "relabel",
        [name(TRAIN, 2, "pos", "nge")],
        "line 2: .* holds 'nge', which is no label .* Did you mean 'neg'",
    ),
    "no suggestion": ("csv", "relabel", [name(TRAIN, 2, "pos", "")], "line 2: the column suggested_label is empty"),
    "a row twice": (
        "csv",
        "relabel",
        [name(TRAIN, 2, "pos", "neg")] * 2,
        "line 3: a line above changes the label of the row already",
    ),
    "no column": (
        "csv",
        "relabel",
        [{"file": TRAIN, "row": 2, "label": "pos"}],
        "there is no column suggested_label; the file has",
    ),
    "no file": ("csv", "drop", [name("", 2, "pos", "")], "line 2: the column file is empty"),
    "an absent label": ("jsonl", "relabel", [name(TRAIN, 1, "sad", "")], "line 2: the label is 'sad', and .* has fun"),
    "a label it has": ("jsonl", "relabel", [name(TRAIN, 1, "", "fun")], "line 2: the row has the label 'fun' already"),
    "no label": ("jsonl", "relabel", [name(TRAIN, 1, "", "")], "line 2: both labels are empty"),
    "a word": (
        "conll",
        "relabel",
        [name(TRAIN, 1, "O", "B-place", word=4)],
        "line 2: the column word holds '4', and .* has the words 1 to 3",
    ),
    "no word": ("conll", "relabel", [name(TRAIN, 1, "O", "B-place")], "line 2: the column word holds ''"),
    "every row": (
        "csv",
        "drop",
        [name(TRAIN, i + 2, row["label"], "") for i, row in enumerate(build_rows("csv"))],
        "names every row",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_a_line_that_does_not_fit_is_refused_with_file_and_line(case: str, tmp_path: Path, cache: Path) -> None:
    kind, setting, lines, message = ERRORS[case]
    words = write_rows(tmp_path / "data", kind, SENTENCES if kind == "conll" else build_rows(kind))
    file = str(next((tmp_path / "data").glob("train.*")))
    wrong = write_list(tmp_path / "wrong.csv", [line | {"file": line["file"].replace(TRAIN, file)} for line in lines])
    with pytest.raises(UserError, match=message) as error:
        prepare(words, cache, f"data.{setting}={wrong}")
    assert str(wrong) in str(error.value) or case == "every row"


def test_a_row_of_both_lists_and_a_file_that_is_no_csv_are_refused(tmp_path: Path, cache: Path) -> None:
    words = write_rows(tmp_path / "data", "csv", build_rows("csv"))
    wrong = write_list(tmp_path / "wrong.csv", [name(tmp_path / "data" / "train.csv", 2, "pos", "neg")])
    with pytest.raises(UserError, match=r"wrong.csv, line 2: data.drop leaves this row out \(.*wrong.csv, line 2\)"):
        prepare(words, cache, f"data.drop={wrong}", f"data.relabel={wrong}")
    (tmp_path / "latin.csv").write_bytes("file,row,label\nfür.csv,1,pos\n".encode("latin-1"))
    with pytest.raises(UserError, match="cannot be read as csv in UTF-8"):
        prepare(words, cache, f"data.drop={tmp_path / 'latin.csv'}")
