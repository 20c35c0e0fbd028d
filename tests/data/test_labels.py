"""Labels: which values are the same class, what the classes are called, and what is said where a guess would be dangerous."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from llm_lightning.config.compose import load_config
from llm_lightning.config.schema import ColumnsConfig, DataConfig
from llm_lightning.data import encodings, labels, word_lists
from llm_lightning.data.encodings import label_sets, scores, texts
from llm_lightning.data.examples import BadRow
from llm_lightning.data.label_values import canonical
from llm_lightning.data.labelled import drop_unlabelled
from llm_lightning.data.labels import Labels
from llm_lightning.data.prepare import prepare_dataset
from llm_lightning.data.rows import Rows
from llm_lightning.errors import UserError

DATA = DataConfig(source="files", columns=ColumnsConfig(label="label"))


def rows(values: list[Any], feature: Any = None, **columns: list[Any]) -> Rows:
    """A split whose column `label` has the values."""
    features = None if feature is None else datasets.Features({"text": datasets.Value("string"), "label": feature})
    table = datasets.Dataset.from_dict({"text": ["a text"] * len(values), "label": values, **columns}, features)
    return Rows(table, "", lambda i: f"train.csv, line {i + 2}")


def find(values: list[Any], names: Any = None, feature: Any = None) -> Labels:
    return labels.find(replace(DATA, labels=names), rows(values, feature))


# ---- one value, several spellings ----


def test_an_index_is_the_first_place_among_values_then_among_names() -> None:
    found = Labels(names=("bad", "good", "2", "same", "same"), values=("0", "2", "1", "3", "4"))
    shown = repr(found)
    assert [found.index(value) for value in ("bad", "2", 2.0, "same", "4", "ugly", None)] == [0, 1, 1, 3, 4, None, None]
    assert found.index(True) is found.index("True") is None  # these are numbers
    assert repr(found) == shown
    assert found == Labels(found.names, found.values)


@pytest.mark.parametrize("train", [["True", "False"], [True, False], ["true", "false"], [1, 0], [1.0, 0.0], ["TRUE", "FALSE"]])
def test_truth_values_are_the_same_however_they_are_written(train: list[Any]) -> None:
    found = find(train * 3)
    for true, false in (("True", "False"), (True, False), ("true", "false"), (1, 0), ("1.0", "0.0"), ("TRUE", "FALSE"), ("1", "0")):
        assert [found.index(false), found.index(true)] == [0, 1]
    assert found.names in (("False", "True"), ("false", "true"), ("0", "1"), ("FALSE", "TRUE"))


def test_truth_values_in_several_spellings_are_two_classes(caplog: pytest.LogCaptureFixture) -> None:
    found = find(["True"] * 3 + ["true", "0", "false", "false"])
    assert found.names == ("false", "True")
    assert [found.index(value) for value in ("True", "true", "1", "0", "false", False)] == [1, 1, 1, 0, 0, 0]
    assert "'True' (3), 'false' (2), 'true' (1), '0' (1)" in caplog.text


def test_true_and_false_among_other_classes_stay_text() -> None:
    assert find(["true", "false", "half-true"] * 3).names == ("false", "half-true", "true")


@pytest.mark.parametrize(
    ("values", "warning"),
    [
        (["spam"] * 20 + ["Spam "] * 12 + ["ham"], "'spam' (20) and 'Spam' (12)"),
        (["New York"] * 3 + ["new  york"] * 2 + ["Bonn"], "'New York' (3) and 'new  york' (2)"),
        (["a", "A", "b", "c"], "'data.labels={A: A, a: A, b: b, c: c}'"),
        (["Stra\u00dfe", "STRASSE", "Weg"], "'STRASSE' (1) and 'Stra\u00dfe' (1)"),
        (["caf\u00e9", "cafe\u0301", "bar"], "'cafe\u0301' (1) and 'caf\u00e9' (1)"),
        (["\u0130yi", "iyi", "k\u00f6t\u00fc"], "'iyi' (1) and '\u0130yi' (1)"),
        (["ILIK", "\u0131l\u0131k", "sicak"], "'ILIK' (1) and '\u0131l\u0131k' (1)"),
        (["po\u200bs", "pos", "neg"], r"'pos' (1) and 'po\u200bs' (1)"),
        (["\u2764\ufe0f", "\u2764", "x"], "'\u2764' (1) and '\u2764\ufe0f' (1)"),
        (["01", "1", "2"], "'01' (1) and '1' (1)"),
        (["+1", "1", "-1"], "'+1' (1) and '1' (1)"),
        (["a ", "b", "b "], "blanks or invisible characters around 2 labels"),
        (["pos\u200b", "pos", "\ufeffneg", "neg\u200e"], "blanks or invisible characters around 3 labels"),
        (["a", "b", "nan"], "the label 'nan' (1 times)"),
        (["entailment", "neutral", "-"], "the label '-' (1 times)"),
    ],
)
def test_doubtful_spellings_are_named_with_their_counts(values: list[str], warning: str, caplog: pytest.LogCaptureFixture) -> None:
    find(values)
    assert warning in caplog.text


def test_tags_that_only_their_scheme_has_are_no_doubtful_spellings(caplog: pytest.LogCaptureFixture) -> None:
    column = rows([["B-PER", "O"], ["b-per", "O"]] * 4)
    labels.find(DATA, column, word_lists.read_items, complete=lambda tags: tags | {"I-PER", "I-per", "B-per"})
    assert "'B-PER' (4) and 'b-per' (4); they" in caplog.text
    assert "(0)" not in caplog.text
    assert "'data.labels={O: O, B-PER: B-PER, b-per: B-PER}'" in caplog.text


def test_plain_labels_need_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert find(["neg", "pos", "C", "C++"] * 5).names == ("C", "C++", "neg", "pos")
    assert find(["10", "9", "-1"] * 5).names == ("-1", "9", "10")
    assert caplog.text == ""


# ---- names ----


@pytest.mark.parametrize(
    ("values", "names", "expected"),
    [
        (["neg", "pos"], {"neg": "Negative", "pos": "Positive"}, {"neg": "Negative", "pos": "Positive"}),
        (["neg", "pos"], {"pos": "Positive", "neg": "Negative"}, {"neg": "Negative", "pos": "Positive"}),
        (["0", "1"], {1: "yes", 0: "no"}, {"0": "no", "1": "yes"}),
        ([True, False], {True: "yes", False: "no"}, {"True": "yes", "False": "no", "1": "yes"}),
        (["spam", "Spam", "ham"], {"spam": "spam", "Spam": "spam", "ham": "ham"}, {"spam": "spam", "Spam": "spam", "ham": "ham"}),
        (["neg", "pos"], ["negative", "positive"], {"neg": "negative", "pos": "positive"}),
        (["neg", "pos"], ["pos", "neg"], {"neg": "neg", "pos": "pos"}),
        (["neg", "pos"], ["Pos", "Neg"], {"neg": "Neg", "pos": "Pos"}),
        (["0", "1"], ["negative", "positive"], {"0": "negative", "1": "positive"}),
        (["10", "9"], ["nine", "ten"], {"9": "nine", "10": "ten"}),
        ([0, 2], ["no", "maybe", "yes"], {"0": "no", "2": "yes"}),
        (["neg", "pos"], ["neg", "neutral", "pos"], {"neg": "neg", "pos": "pos"}),
    ],
)
def test_each_value_has_the_name_that_the_setting_gives_it(values: list[Any], names: Any, expected: dict[str, str]) -> None:
    found = find(values * 3, names)
    assert {value: found.names[found.index(value)] for value in expected} == expected  # type: ignore[index]
    given = names if isinstance(names, list) else [names[key] for key in names]
    assert list(found.names) == list(dict.fromkeys(given))  # also the order is the setting's
    for value, name in expected.items():
        assert found.index(value) == found.index(name)


@pytest.mark.parametrize(
    ("values", "names", "message"),
    [
        (["neg", "pos"], ["positive", "negative"], r"'neg' would be called 'positive'.*\{neg: negative, pos: positive\}"),
        (["Positive", "negative"], ["neg", "pos"], r"'Positive' would be called 'neg'"),
        (["neg", "neutral", "pos"], ["neg", "pos", "neu"], r"does not name 'neutral'"),
        (["a", "b"], ["x", "y", "z"], r"names 3 classes \(x, y, z\), and column 'label' has 2 \(a, b\)"),
        (["1", "2"], ["x", "y", "z"], r"names 3 classes \(x, y, z\), and column 'label' has 2 \(1, 2\)"),
        (["a", "b"], ["x", "x"], "names 'x' twice"),
        (["neg", "pos"], {"neg": "Negative", "poss": "Positive"}, r"no name for the value 'pos'.*Did you mean 'poss'"),
        (["0", "1"], {"Negative": 0, "Positive": 1}, r"\{0: Negative, 1: Positive\}"),
        (["neg", "pos"], {"neg": 1, "pos": 0}, r"for an order: data.labels=\[pos, neg\]"),
        (["a", "b"], {"a": "x", "b": "x"}, "only the class 'x'"),
        (["a", "b"], {"a": "x", "b": None}, "no name for the value 'b'"),
    ],
)
def test_names_that_would_be_wrong_are_refused(values: list[str], names: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find(values * 3, names)


SPELLINGS = [["neg", "Neg"], ["New York", "new york"], ["Food, drink", "food, drink"], ["it's", "It's"], ["a: b", "A: b"]]


@pytest.mark.parametrize("values", SPELLINGS)
def test_a_mapping_that_a_message_shows_works_when_pasted(values: list[str], caplog: pytest.LogCaptureFixture) -> None:
    find([*values, "x", values[0]])
    (argument,) = shlex.split(caplog.text.strip().partition("To make them one: ")[2])
    assert load_config([argument]).data.labels == {values[0]: values[0], values[1]: values[0], "x": "x"}


def test_a_renaming_in_sorted_order_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llm_lightning")
    find(["0", "1"] * 3, ["negative", "positive"])
    assert "0 → negative, 1 → positive" in caplog.text
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
    find(["no", "yes"] * 3, ["nein", "ja"])
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and "no → nein, yes → ja" in r.getMessage()]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (None, {0: "neg", 1: "pos"}),
        (["pos", "neg"], {0: "neg", 1: "pos"}),
        (["negative", "positive"], {0: "negative", 1: "positive"}),
        ({"pos": "Good", "neg": "Bad"}, {0: "Bad", 1: "Good"}),
        ({0: "Bad", 1: "Good"}, {0: "Bad", 1: "Good"}),
    ],
)
def test_names_of_a_data_set_that_has_names(names: Any, expected: dict[int, str]) -> None:
    found = find([0, 1, 1], names, datasets.ClassLabel(names=["neg", "pos"]))
    assert {value: found.names[found.index(value)] for value in (0, 1)} == expected  # type: ignore[index]


# ---- how many classes ----


@pytest.mark.parametrize(
    ("values", "warning"),
    [
        ([f"intent_{i}" for i in range(12)], "12 different values in 12 rows"),
        ([f"card {i}" for i in range(77)], "77 different values in 77 rows"),
        ([f"intent_{i % 12}" for i in range(60)], ""),
    ],
)
def test_many_classes_in_few_rows_are_learnt(values: list[str], warning: str, caplog: pytest.LogCaptureFixture) -> None:
    assert len(find(values).names) == len(set(values))
    assert warning in caplog.text
    assert bool(warning) == bool(caplog.text)


def test_twelve_tags_in_twelve_sentences_are_learnt(caplog: pytest.LogCaptureFixture) -> None:
    sentences = rows([[f"T{i}" for i in range(12)]] * 12)
    assert len(labels.find(DATA, sentences, word_lists.read_items).names) == 12
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([f"this film was number {i} of them" for i in range(30)], "30 different values in 30 rows, and they read like text"),
        ([f"{i / 7:.3f}" for i in range(30)], "they are numbers: objective=regression"),
        (["['joy', 'anger']", "['joy']"], "lists as text.*objective=multi_label"),
        (['{"label": "joy"}', '{"label": "anger"}'], "objects as text.*write the label alone"),
        (["joy", "joy"], "only the label 'joy'"),
        (["", None], "no label"),
    ],
)
def test_columns_that_hold_no_classes_are_refused(values: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find(values)


# ---- several labels ----


def decode(values: list[Any], names: Any = None, columns: dict[str, list[Any]] | None = None) -> list[set[str]]:
    """The names of the labels that each row is to be given."""
    data = replace(DATA, labels=names, columns=ColumnsConfig(label=list(columns) if columns else "label"))
    train = rows(values, None, **(columns or {}))
    encoder = object.__new__(label_sets.Encoder)
    encoder.data = data
    encoder.labels = label_sets.Encoder.find_labels(data, train)
    assert encoder.labels is not None
    given = [list(row) for row in zip(*columns.values(), strict=True)] if columns else train.table["label"]
    targets = [encoder.label(encoder.labels, value) for value in given]
    return [{encoder.labels.names[i] for i in np.flatnonzero(row)} for row in targets]


SETS = [{"joy", "anger"}, {"joy"}, set(), {"anger"}]
ORDERED = [["joy", "anger"], ["joy"], [], ["anger"]]


@pytest.mark.parametrize(
    "write",
    [
        lambda row: row,
        str,
        lambda row: str(tuple(row)),
        lambda row: str(set(row)),
        lambda row: str(np.array(row, dtype=object)),
        lambda row: "[" + ", ".join(row) + "]",
        lambda row: "{" + ",".join(row) + "}",
        ",".join,
        ", ".join,
        "|".join,
        " | ".join,
        ";".join,
        lambda row: ",".join(row) or "nan",
        lambda row: "|".join(row) or "None",
        lambda row: ";".join(row) or None,
        "\n".join,
        lambda row: str({label: int(label in row) for label in ("joy", "anger")}),
        lambda row: f"Index({row}, dtype='object')",
        lambda row: f"frozenset({{{str(row)[1:-1]}}})" if row else "frozenset()",
        lambda row: "c(" + ", ".join(f'"{label}"' for label in row) + ")",
        lambda row: "WrappedArray(" + ", ".join(row) + ")",
    ],
)
def test_every_spelling_of_several_labels_is_understood(write: Callable[[list[str]], Any]) -> None:
    assert decode([write(row) for row in ORDERED] * 2) == SETS * 2


@pytest.mark.parametrize(
    "write",
    [
        list,
        str,
        lambda row: str(np.array(row)),
        lambda row: f"tensor({row})",
        lambda row: ",".join(map(str, row)),
        lambda row: " ".join(map(str, row)),
    ],
)
@pytest.mark.parametrize("kind", [int, bool, float])
def test_lists_of_0_and_1_have_the_names_that_the_config_gives(write: Callable[[list[Any]], Any], kind: type) -> None:
    table = [[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]]
    values = [write([kind(item) for item in row]) for row in table]
    names = ["rain", "snow", "wind"]
    expected = [{name for name, item in zip(names, row, strict=True) if item} for row in table]
    assert decode(values, names) == expected
    assert decode(values, {0: "rain", 1: "snow", 2: "wind"}) == expected
    with pytest.raises(UserError, match=r"lists of 0 and 1, 3 a row: name the labels with data\.labels"):
        decode(values)
    with pytest.raises(UserError, match=r"data\.labels names 2 labels \(a, b\), and the lists .* have 3"):
        decode(values, ["a", "b"])


@pytest.mark.parametrize("true_false", [(1, 0), ("1", "0"), (True, False), ("True", "False"), ("1.0", "0.0"), ("TRUE", "FALSE")])
def test_a_column_for_each_label(true_false: tuple[Any, Any]) -> None:
    rain, snow = [1, 0, 1, 0], [0, 0, 1, 1]
    columns = {name: [true_false[1 - item] for item in column] for name, column in {"rain": rain, "snow": snow}.items()}
    expected = [{"rain"}, set(), {"rain", "snow"}, {"snow"}]
    assert decode([""] * 4, None, columns) == expected
    assert decode([""] * 4, ["Regen", "Schnee"], columns) == [
        {{"rain": "Regen", "snow": "Schnee"}[n] for n in row} for row in expected
    ]


@pytest.mark.parametrize(
    ("values", "names", "columns", "message"),
    [
        ([], None, {"rain": ["1", "0"], "snow": ["", "1"]}, "column 'snow' is empty; write 0 or 1"),
        ([], None, {"rain": ["1", "0"], "snow": ["2", "1"]}, "column 'snow' holds '2', which is neither 0 nor 1"),
        ([[1, 0, 1]] * 20 + [[1, 0]], ["a", "b", "c"], None, "holds 2 values, not the 3 values 0 or 1"),
        ([[1, 0, 1]] * 20 + [[1, 0, -1]], ["a", "b", "c"], None, "value 3 holds '-1'"),
        (["['joy']", "['anger']", "['joy', 'anger'"], None, None, r"cannot be read as a list"),
        (["joy", "anger", "{'joy': 0.3}"], None, None, "the label 'joy' has 0.3, which is neither 0 nor 1"),
    ],
)
def test_rows_without_a_clear_answer_are_bad(values: list[Any], names: Any, columns: Any, message: str) -> None:
    with pytest.raises(BadRow, match=message):
        decode(values or [""] * 2, names, columns)


@pytest.mark.parametrize("values", [["0", "1"], [1, 0], [True, False], ["True", "False"]])
def test_one_column_of_0_and_1_is_not_several_labels(values: list[Any]) -> None:
    with pytest.raises(UserError, match=r"'data\.columns\.label=\[label,…\]', or choose objective=classification"):
        decode(values * 3)


def test_a_label_that_only_the_held_out_rows_have_is_known(tmp_path: Path) -> None:
    """Of 40 labels with a row each, four lie in the part of train that becomes validation."""
    (tmp_path / "train.jsonl").write_text("".join(f'{{"text": "a b {i}", "label": ["l{i}", "all"]}}\n' for i in range(40)))
    given = ["task=finetune", "objective=multi_label", "data=files", f"data.dir={tmp_path}", "data.columns.label=label"]
    dataset = prepare_dataset(
        load_config([*given, f"cache_dir={tmp_path}/cache", "model.tokenizer.vocab_size=300"]), "label_sets", None
    )
    assert len(dataset.label_names or ()) == 41
    assert [len(dataset.splits[split]) for split in ("train", "validation")] == [36, 4]
    assert all(part.labels.sum(1).tolist() == [2] * len(part) for part in dataset.splits.values())  # type: ignore[union-attr]


def test_numbers_of_labels_are_no_lists_of_0_and_1() -> None:
    assert decode([[0], [1], [0, 1], []]) == [{"0"}, {"1"}, {"0", "1"}, set()]
    assert decode(["0", "1", "0,1", ""]) == [{"0"}, {"1"}, {"0", "1"}, set()]
    assert decode([[3, 1], [2, 0], [0, 1]]) == [{"3", "1"}, {"2", "0"}, {"0", "1"}]


@pytest.mark.parametrize(
    "values", [[[1, 0, -100], [0, 1, 0]], [[2, 0, 1], [0, 1, 0]], [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]], [[1, None, 0], [0, 1, 0]]]
)
def test_numbers_for_each_label_are_no_names(values: list[list[Any]]) -> None:
    for names in (None, ["rain", "snow", "wind"]):
        with pytest.raises(UserError, match=r"lists of 3 numbers a row that are neither 0 and 1 nor numbers of labels"):
            decode(values * 10, names)


def test_a_comma_in_a_label_where_another_separator_is_there(caplog: pytest.LogCaptureFixture) -> None:
    assert decode(["Food, drink|Travel", "Travel", "Food, drink", "Food, drink|Art"]) == [
        {"Food, drink", "Travel"},
        {"Travel"},
        {"Food, drink"},
        {"Food, drink", "Art"},
    ]
    assert "'|' stands between labels (in 2 rows of train); ',' is part of a label in 3" in caplog.text
    decode(["joy", "nan", "anger"])
    assert "'nan' (1 rows of train): no label applies" in caplog.text


# ---- numbers ----


@pytest.mark.parametrize(("value", "expected"), [("3.5", 3.5), (3, 3.0), (" -1e2 ", -100.0), (0, 0.0)])
def test_scores(value: Any, expected: float) -> None:
    assert read_score(value) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("3,5", "no number; write 3.5"),
        ("n/a", "holds 'n/a'"),
        (True, "'True'"),
        (canonical(True), "'True'"),
        ("", "is empty"),
        (None, "is empty"),
        *((value, "no number") for value in ("1_000", "nan", "inf", "1,234.5", [1.0])),
    ],
)
def test_what_is_no_score(value: Any, message: str) -> None:
    with pytest.raises(BadRow, match=message):
        read_score(value)


def read_score(value: Any) -> float:
    encoder = object.__new__(scores.Encoder)
    encoder.data = DATA
    return encoder.label(Labels((), ()), value)


# ---- labels that were held back ----


@pytest.mark.parametrize("hidden", [[""] * 3, [None] * 3, [-1] * 3, ["-1"] * 3, [-1.0, None, float("nan")]])
@pytest.mark.parametrize("encoder", [texts.Encoder, scores.Encoder, label_sets.Encoder])
def test_a_split_without_labels_is_not_evaluated(
    hidden: list[Any], encoder: type[encodings.Encoding], caplog: pytest.LogCaptureFixture
) -> None:
    splits = {"train": rows(["0", "1"]), "validation": rows(["1", "0"]), "test": rows(hidden)}
    assert set(drop_unlabelled(splits, DATA, encoder)) == {"train", "validation"}
    assert "test has no labels (column 'label'" in caplog.text
    assert "it is not evaluated" in caplog.text
    splits = {"train": rows(["0", "1"]), "validation": rows(hidden)}
    assert set(drop_unlabelled(splits, DATA, encoder)) == {"train"}  # a part of train is cut off then
    with pytest.raises(UserError, match=r"data\.validation: train\.csv, line 2: .*the weights are chosen by labels"):
        drop_unlabelled(splits, replace(DATA, validation="v.csv"), encoder)


def test_splits_with_labels_stay(caplog: pytest.LogCaptureFixture) -> None:
    for values, train in ((["", "1"], ["0", "1"]), (["-1", "-1"], ["-1", "1"]), ([-1, -1], [-1, 1])):
        splits = {"train": rows(train), "test": rows(values)}
        assert set(drop_unlabelled(splits, DATA, texts.Encoder)) == {"train", "test"}
    assert caplog.text == ""


def test_a_test_file_without_the_column_of_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for split, lines in {"train": ["text,rain,snow", "a b,1,0", "c d,0,1"], "test": ["text", "a", "b"]}.items():
        (tmp_path / f"{split}.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "validation.jsonl").write_text('{"text": "b a", "rain": true, "snow": 0}\n')
    given = ["task=finetune", "objective=multi_label", "data=files", f"data.dir={tmp_path}", "data.columns.label=[rain,snow]"]
    dataset = prepare_dataset(
        load_config([*given, f"cache_dir={tmp_path}/cache", "model.tokenizer.vocab_size=300"]), "label_sets", None
    )
    assert set(dataset.splits) == {"train", "validation"}
    assert dataset.label_names == ("rain", "snow")
    assert dataset.splits["train"].labels.tolist() == [[1, 0], [0, 1]]  # type: ignore[union-attr]
    assert dataset.splits["validation"].labels.tolist() == [[1, 0]]  # type: ignore[union-attr]
    assert dataset.example("train", 1).label == [0, 1]
    assert "test has no labels (there is no column 'rain', 'snow'): it is not evaluated" in caplog.text
    assert "test.csv: there is no column 'rain' (data.columns.label); the columns are text" in caplog.text


def test_text_needs_no_labels(tmp_path: Path) -> None:
    """Pretraining on a table that has a column of labels, all of them empty."""
    (tmp_path / "t.csv").write_text("text,label\n" + "".join(f"a line of text, {i};,\n".replace(", ", " ") for i in range(30)))
    config = load_config(
        ["task=pretrain", "data=files", f"data.train={tmp_path}/t.csv", "data.columns.label=label", f"cache_dir={tmp_path}/cache"]
    )
    dataset = prepare_dataset(config, "stream", None)
    assert dataset.splits["train"].facts.rows + dataset.splits["validation"].facts.rows == 30


def test_the_index_is_looked_up_and_not_searched_for() -> None:
    """Comparing a value with 100,000 classes took 1.5 ms a row."""

    class Counted(str):
        compared = 0

        def __eq__(self, other: object) -> bool:
            Counted.compared += 1
            return super().__eq__(other)

        __hash__ = str.__hash__

    values = tuple(Counted(i) for i in range(2000))
    found = Labels(values, values)
    assert [found.index(str(i)) for i in range(2000)] == list(range(2000))
    assert Counted.compared < 20_000


def test_numbers_in_labels_are_sorted_by_their_size() -> None:
    assert labels.find(DATA, rows(["class10", "class9", "2", "10", "class1"] * 2)).names == (
        "2",
        "10",
        "class1",
        "class9",
        "class10",
    )


def test_labels_by_number_as_a_model_config_has_them_are_answered_with_their_order() -> None:
    with pytest.raises(UserError, match=r"data\.labels=\[neg, pos\]"):
        labels.find(replace(DATA, labels={0: "neg", 1: "pos"}), rows(["pos", "neg"]))


def test_rows_that_cannot_be_read_are_why_there_are_no_labels() -> None:
    with pytest.raises(UserError, match=r"line 2: .*cannot be read as a list"):
        label_sets.Encoder.find_labels(DATA, rows(["['joy', 'ang", "['joy', 'fe"]))


def test_choices_of_label_studio_are_labels() -> None:
    assert label_sets.split_labels('{"choices": ["joy", "fear"]}', label_sets.LabelSetLayout()) == ["joy", "fear"]


def test_a_cache_key_has_the_same_notation_of_labels_in_every_version() -> None:
    notation = label_sets.LabelSetLayout(separator="|", missing=("",))
    assert repr(notation) == "Layout(separator='|', missing=('',), indicators=0)"


@pytest.mark.parametrize("value", ["['B-PER' 'O' ... 'O']", "[0 1 ... 0]", "['B-PER', 'O"])
def test_a_part_of_a_list_of_tags_is_no_tags(value: str) -> None:
    with pytest.raises(BadRow, match="cannot be read as a list"):
        word_lists.read_tags(value)
    assert word_lists.read_tags("[B-PER, O]") == ["B-PER", "O"]


def test_labels_with_blanks_between_them_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    label_sets.Encoder.find_labels(DATA, rows(["joy anger", "joy", "anger"]))
    assert "no row of train has more than one label (such as 'joy anger')" in caplog.text
    caplog.clear()
    label_sets.Encoder.find_labels(DATA, rows(["mixed joy,anger", "joy", "anger"]))
    assert "more than one label" not in caplog.text
