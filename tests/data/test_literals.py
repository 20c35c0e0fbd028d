"""Cells of text that hold a list: what was written by JSON, Python or numpy is read back, and nothing else is taken for a list."""

from __future__ import annotations

import json
import string
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_lightning.data.literals import parse_literal

ITEMS = st.text(string.ascii_letters + " ,|;'\"\\[]()é", min_size=1, max_size=8)


@given(st.lists(ITEMS, max_size=5))
def test_a_list_of_texts_is_read_back_however_it_was_written(items: list[str]) -> None:
    for text in (json.dumps(items), str(items), str(tuple(items))):
        assert parse_literal(text) == items
    array = str(np.array(items, dtype=object)) if items else "[]"
    assert parse_literal(array) == items


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (str(np.array([1, 0, 1])), [1, 0, 1]),
        (str(np.array([1.0, 0.0, -1.5])), [1.0, 0.0, -1.5]),
        (str(np.array([True, False])), [True, False]),
        (repr(np.array(["joy", "anger"])), ["joy", "anger"]),
        (repr(np.array(["joy", "anger"], dtype=object)), ["joy", "anger"]),
        (str(np.array([f"label{i}" for i in range(40)])), [f"label{i}" for i in range(40)]),  # over several lines
        ("{'joy', 'anger'}", ["anger", "joy"]),
        ("set()", []),
        ("{'joy': 1, 'anger': 0}", {"joy": 1, "anger": 0}),
        ('[["B-PER", "O"], []]', [["B-PER", "O"], []]),
        (str(np.array([{"a": "} {"}, {"b": 1}], dtype=object)), [{"a": "} {"}, {"b": 1}]),
        (str({"a": np.array(["])", "array([1])"], dtype=object), "b": np.array([3])}), {"a": ["])", "array([1])"], "b": [3]}),
    ],
)
def test_other_spellings(text: str, value: Any) -> None:
    assert parse_literal(text) == value


@pytest.mark.parametrize(
    "text",
    [
        *(
            "joy",
            "",
            "[joy, anger]",
            "['joy' 'anger', 'fear']",
            "['joy', 'anger'",
            "(laughs) hello",
            "('joy')",
            "[1] See there",
            "[nan]",
        ),
        *(str(np.arange(2000)), "[" * 3000, "[open('x')]", "[0] * 9", "'joy', 'anger'"),
    ],
)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert parse_literal(text) == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (
            str({"text": np.array(["array([1])"], dtype=object), "answer_start": np.array([5])}),
            {"text": ["array([1])"], "answer_start": [5]},
        ),
        (str(np.array([{"a": "} {"}, {"a": "b"}], dtype=object)).replace("}, {'", "}\n {'"), [{"a": "} {"}, {"a": "b"}]),
        ("[{'a': set()}]", [{"a": []}]),
        ("np.array([1, 2])", [1, 2]),
    ],
)
def test_arrays_inside_of_objects_and_objects_inside_of_arrays(text: str, value: Any) -> None:
    assert parse_literal(text) == value
