"""Tables for tagging: lists in cells, a word a row, spans of characters, tags that are numbers."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import datasets
import pytest

from llm_lightning.config.compose import load_config
from llm_lightning.config.schema import ColumnsConfig, DataConfig
from llm_lightning.data import word_lists
from llm_lightning.data.encodings import words
from llm_lightning.data.sources import files
from llm_lightning.errors import UserError
from llm_lightning.inference.predict import rows_of
from llm_lightning.objectives.base import Objective
from llm_lightning.run import prepare

from ..conftest import QUIET

WORDS, TAGS = ["Anna", "left", "Rome"], ["B-per", "O", "B-geo"]
KAGGLE = "Sentence #,Word,POS,Tag\nSentence: 1,Anna,NNP,B-per\n,left,VBD,O\n,Rome,NNP,B-geo\nSentence: 2,He,PRP,O\n,slept,VBD,O\n"
REPEATED = "sentence_id,Word,Tag\n0,Anna,B-per\n0,left,O\n0,Rome,B-geo\n1,He,O\n1,slept,O\n"


def prepare_files(path: Path, cache: Path, *arguments: str) -> Objective:
    files = [f"data.train='{path}'", f"data.validation='{path}'"]
    command = ["task=finetune", "objective=tagging", "data=files", *files, "model.tokenizer.vocab_size=300", *arguments]
    return prepare(load_config([*QUIET, f"cache_dir={cache}", *command]))[1]


def read(objective: Objective) -> list[tuple[list[str], list[str]]]:
    """Words and tags as they are learnt."""
    names = objective.dataset.label_names
    assert names is not None
    return [(example.text, [names[tag] for tag in example.label]) for example in objective.dataset.examples("train")]


def columns(text: str, label: str, sentence: str | None = None) -> list[str]:
    more = [] if sentence is None else [f"data.columns.sentence='{sentence}'"]
    return [f"data.columns.text={text}", f"data.columns.label={label}", *more]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [("x.csv", KAGGLE, "Sentence #"), ("x.csv", REPEATED, "sentence_id"), ("x.tsv", REPEATED.replace(",", "\t"), "sentence_id")],
)
def test_rows_of_a_word_become_sentences(
    name: str, content: str, sentence: str, cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=f"each row of train has one tag.*data.columns.sentence='{sentence}'"):
        prepare_files(tmp_path / name, cache, *columns("Word", "Tag"))
    objective = prepare_files(tmp_path / name, cache, *columns("Word", "Tag", sentence))
    assert read(objective) == [(WORDS, TAGS), (["He", "slept"], ["O", "O"])]
    assert objective.dataset.rows["train"].where(1) == f"{tmp_path / name}, line 5"
    assert f"5 rows of a word are 2 sentences, by column '{sentence}'" in caplog.text
    data = objective.dataset.encoding.data
    assert [row[data.columns.text] for row in rows_of(tmp_path / name, data)] == [WORDS, ["He", "slept"]]
    (tmp_path / "plain.txt").write_text("Anna left\nHe slept\n")
    assert [row[data.columns.text] for row in rows_of(tmp_path / "plain.txt", data)] == ["Anna left", "He slept"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (REPEATED + "0,more,O\n", "line 7: sentence '0' .* goes on here behind other sentences"),
        (REPEATED.replace("0,Anna", ",Anna"), "line 2: column 'sentence_id' .* is empty, and no sentence has begun"),
        (REPEATED.replace("0,left,O", "0,left,"), "line 2: column 'Tag' is empty"),
        (REPEATED.replace("0,left,O", "0,,O"), "line 3: column 'Word' is empty"),
        (REPEATED.replace("0,left,O", "0,left"), "line 3: 2 fields where there should be 3"),
        (REPEATED.replace("0,Anna,", "0,,"), r"^\S+x\.csv, line 2: column 'Word' is empty"),
    ],
)
def test_rows_that_are_in_no_sentence_are_named(content: str, message: str, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        prepare_files(tmp_path / "x.csv", cache, *columns("Word", "Tag", "sentence_id"))


CELLS: list[tuple[str, Any, Any]] = [
    ("lists", WORDS, TAGS),
    ("JSON", json.dumps(WORDS), json.dumps(TAGS)),
    ("Python", str(WORDS), str(TAGS)),
    ("blanks", " ".join(WORDS), " ".join(TAGS)),
    ("text and list", " ".join(WORDS), TAGS),
]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
@pytest.mark.parametrize(("name", "words", "tags"), CELLS, ids=[cell[0] for cell in CELLS])
def test_cells_hold_lists_in_several_spellings(name: str, words: Any, tags: Any, kind: str, cache: Path, tmp_path: Path) -> None:
    path = tmp_path / f"x.{kind}"
    table = datasets.Dataset.from_list([{"tokens": words, "ner_tags": tags}] * 3)
    if kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, table)))
    elif kind == "parquet":
        table.to_parquet(path)
    elif "list" in name:
        pytest.skip("a csv has no lists")
    else:
        table.to_csv(path)
    assert read(prepare_files(path, cache, *columns("tokens", "ner_tags"))) == [(WORDS, TAGS)] * 3


def test_numbers_are_tags_and_data_labels_names_them(cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps({"tokens": WORDS, "ner_tags": [1, 0, 2]}))
    with caplog.at_level(logging.INFO):
        prepare_files(tmp_path / "x.jsonl", cache, *columns("tokens", "ner_tags"))
    assert "tags: they are numbers; name them" in caplog.text
    named = prepare_files(tmp_path / "x.jsonl", cache, *columns("tokens", "ner_tags"), "data.labels=[O,B-per,B-geo]")
    assert read(named) == [(WORDS, TAGS)]
    assert named.monitor == "validation/f1"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "Anna met", "label": [[0, 4, "PER"]]}, "holds spans of the text.*a list of words and a list of as many tags"),
        ({"text": "Anna met", "label": [{"start": 0, "end": 4, "label": "PER"}]}, "holds spans of the text"),
        ({"text": "Anna met", "label": {"entities": [[0, 4, "PER"]]}}, "holds spans of the text"),
        ({"text": "Anna met Bob", "label": ["B-per", "O"]}, r"line 1: 3 words \(column 'text'\) and 2 tags"),
        ({"text": "a good film", "label": "positive"}, "each row of train has one tag.*objective=classification"),
        ({"text": ["Anna", None], "label": ["B-per", "O"]}, "line 1: column 'text' holds NoneType among its words"),
        ({"text": ["An", "na", "met"], "label": [1, -100, 0]}, "line 1: the tag -100 stands for pieces of words"),
    ],
)
def test_rows_without_a_tag_for_each_word_are_refused(row: dict[str, Any], message: str, cache: Path, tmp_path: Path) -> None:
    other = row | {"label": "negative"} if isinstance(row["label"], str) else row
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, [row, other])))
    with pytest.raises(UserError, match=message):
        prepare_files(tmp_path / "x.jsonl", cache, *columns("text", "label"))


def test_words_without_a_token_are_counted(cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blank = {"tokens": ["Anna", "", "Rome"], "ner_tags": ["B-per", "O", "B-geo"]}
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, [blank, {"tokens": WORDS, "ner_tags": TAGS}])))
    prepare_files(tmp_path / "x.jsonl", cache, *columns("tokens", "ner_tags"))
    assert "train: in 1 of 2 rows a word has no token (it is blank, or" in caplog.text


def test_keys_that_a_source_does_not_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(KAGGLE)
    for keys, message in (
        (["objective=tagging", "data=files", "data.columns.tags=2"], "data.columns.tags=2: only data=conll"),
        (["objective=tagging", "data=conll", "data.columns.sentence=a"], "data.columns.sentence=a: only data=files or data=hub"),
        (["objective=classification", "data=files", "data.tags=io"], "data.tags=io: only objective=tagging"),
        (["objective=tagging", "data=files", "data.tags=IOB"], "data.tags=IOB: expected one of auto, iob1"),
    ):
        with pytest.raises(UserError, match=message):
            load_config(["task=finetune", *keys, f"data.train={tmp_path}/x.csv", "data.columns.label=Tag"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1]", ["[1]"]),
        ("(1, 2)", ["(1,", "2)"]),
        ("{1, 2}", ["{1,", "2}"]),
        ('{"a": 1}', ['{"a":', "1}"]),
        ('["a b", "c"]', ["a b", "c"]),
        ("['a', 'b']", ["a", "b"]),
        ("a  b", ["a", "b"]),
    ],
)
def test_text_is_a_list_of_words_only_if_all_are_text(text: str, expected: list[str]) -> None:
    assert word_lists.read_words(text) == expected
    assert words.Encoder.read_line(None, text) == text.split()  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", ["\n{}\n{}\n{}\n", "[{},\n{},\n{}]"])
def test_the_column_of_sentences_is_named_from_the_whole_file(layout: str, tmp_path: Path) -> None:
    rows = [{"sentence_id": i // 2, "text": f"w{i}", "tag": tag} for i, tag in enumerate(("B-X", "O", "O"))]
    (tmp_path / "t.jsonl").write_text(layout.format(*map(json.dumps, rows)))
    data = DataConfig(source="files", train=str(tmp_path / "t.jsonl"), columns=ColumnsConfig(text="text", label="tag"))
    with pytest.raises(UserError, match=r"data\.columns\.sentence='sentence_id'"):
        words.Encoder.find_labels(data, files.load(data, tmp_path / "cache")["train"])
