"""Values of labels, flags and numbers mean the same wherever they are read."""

from __future__ import annotations

from typing import Any

import datasets
import pytest

from llm_lightning.config.schema import ColumnsConfig, DataConfig
from llm_lightning.data.answers import is_answered, read_answers
from llm_lightning.data.conversations import Reader
from llm_lightning.data.encodings import scores, texts
from llm_lightning.data.label_values import canonical, parse_number, truth
from llm_lightning.data.labelled import drop_unlabelled
from llm_lightning.data.rows import Rows

FLAGS = [
    (True, True),
    (1, True),
    (1.0, True),
    ("1", True),
    ("1.0", True),
    ("TRUE", True),
    (" true", True),
    ("False", False),
    (0.0, False),
]


@pytest.mark.parametrize(("value", "expected"), FLAGS)
def test_truth_values_are_the_same_everywhere(value: Any, expected: bool) -> None:
    assert truth(value) is expected
    messages = [
        {"role": "user", "content": "a"},
        *({"role": "assistant", "content": "b", **more} for more in ({"weight": value}, {})),
    ]
    reader = Reader({})
    conversation = reader.conversation(reader.messages(messages, "messages"), {}, True)
    assert conversation.learnt == [False, expected, True]
    assert is_answered([], value) is expected
    if expected:
        assert read_answers([], "a", "answers", None, value) == []


NUMBERS = [
    *(
        (1, "1"),
        (1.0, "1"),
        ("1.00", "1"),
        (10**400, "1" + "0" * 400),
        (-3.0, "-3"),
        (True, "True"),
        (None, ""),
        (float("nan"), ""),
    ),
    (float("inf"), "inf"),
]


@pytest.mark.parametrize(("value", "text"), NUMBERS)
def test_numbers_have_one_text(value: Any, text: str) -> None:
    assert canonical(value) == text


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("1.5", 1.5),
        (" -2 ", -2.0),
        ("1e3", 1000.0),
        ("1_000", None),
        (True, None),
        ("nan", None),
        ("inf", None),
        (10**400, None),
        (None, None),
    ],
)
def test_numbers_are_finite_and_written_as_numbers(value: Any, number: float | None) -> None:
    assert parse_number(value) == number


def rows(values: list[Any]) -> Rows:
    return Rows(datasets.Dataset.from_dict({"text": ["a"] * len(values), "label": values}), "0", lambda i: f"file, line {i}")


@pytest.mark.parametrize("values", [["", None], ["nan", ""], ["None", "null"], ["-1", "NULL"], ["<NA>"]])
@pytest.mark.parametrize("encoder", [scores.Encoder, texts.Encoder])
def test_a_split_of_names_for_nothing_has_no_labels(values: list[Any], encoder: Any) -> None:
    data = DataConfig(source="files", columns=ColumnsConfig(text="text", label="label"))
    assert set(drop_unlabelled({"train": rows(["1", "2"]), "test": rows(values)}, data, encoder)) == {"train"}


@pytest.mark.parametrize("value", ["None", "-1"])
def test_names_that_train_has_are_labels(value: str) -> None:
    data = DataConfig(source="files", columns=ColumnsConfig(text="text", label="label"))
    splits = {"train": rows([value, "2"]), "test": rows([value])}
    assert drop_unlabelled(splits, data, texts.Encoder) == splits
