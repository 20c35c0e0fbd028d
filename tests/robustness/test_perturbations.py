"""Changed texts are the same each time, differ as their operation says, and in nothing else."""

from __future__ import annotations

import random
import string
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_lightning.config.schema import PERTURBATIONS
from llm_lightning.robustness.first_names import GROUPS
from llm_lightning.robustness.negation import change_negation
from llm_lightning.robustness.perturbations import CHANGES, NEIGHBOURS, perturb

GROUP_OF = {name: group for group, names in GROUPS.items() for name in names.split()}
TEXTS = [
    "Mary thinks that this film is wonderful, and James does n't agree at all.",
    "NOT A SINGLE GOOD SCENE IN IT",
    "it was a slow , sad story of robert and his mother",
    "Straße, Übung — чужие слова остаются здесь?",
]


def test_a_change_depends_on_the_row_and_the_seed_alone() -> None:
    assert list(CHANGES) == list(PERTURBATIONS)
    for name in CHANGES:
        first = [perturb(name, TEXTS[0], seed, row) for seed in (0, 1) for row in range(30)]
        random.random()
        assert [perturb(name, TEXTS[0], seed, row) for seed in (0, 1) for row in range(30)] == first
        if name != "negation":  # which has one place
            assert len({*first[:30]}) > 1
            assert first[:30] != first[30:]


@given(st.sampled_from(TEXTS), st.integers(0, 10_000))
def test_a_typo_is_what_its_name_says(text: str, row: int) -> None:
    changed, operation = perturb("typos", text, 0, row)
    before, after = text.split(), changed.split()
    assert len(before) == len(after)
    wrong = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
    assert len(wrong) == max(1, round(len(before) / 10))
    for old, new in wrong:
        assert old[0] == new[0]
        assert {"swap": 0, "drop": -1, "double": 1, "neighbour": 0}[operation] == len(new) - len(old)
        if operation == "swap":
            assert Counter(old) == Counter(new)
        if operation == "neighbour":
            ((hit, typed),) = [pair for pair in zip(old, new, strict=True) if pair[0] != pair[1]]
            assert typed.lower() in NEIGHBOURS[hit.lower()]
            assert typed.isupper() == hit.isupper()
        if operation == "double":
            assert any(new[:i] + new[i + 1 :] == old and new[i] == new[i - 1] for i in range(1, len(new)))
        if operation == "drop":
            assert any(old[:i] + old[i + 1 :] == new for i in range(1, len(old)))


def test_neighbours_touch_each_other() -> None:
    assert set(NEIGHBOURS) == set(string.ascii_lowercase)
    assert set(NEIGHBOURS["g"]) == set("ftyhvb")
    assert set(NEIGHBOURS["a"]) == set("qwsz")
    assert all(key in NEIGHBOURS[other] for key, others in NEIGHBOURS.items() for other in others)


@given(st.sampled_from(TEXTS), st.integers(0, 10_000))
def test_case_and_punctuation_keep_the_letters(text: str, row: int) -> None:
    changed, operation = perturb("case", text, 0, row)
    assert changed != text
    assert changed.casefold() == text.casefold()
    assert {"lower": changed == text.lower(), "upper": changed == text.upper(), "title": changed[0].isupper()}[operation]
    marked, operation = perturb("punctuation", text, 0, row)
    assert marked != text
    assert marked.rstrip(".?") == text.rstrip(".?").rstrip()
    assert (len(marked) > len(text)) == (operation == "add")


@pytest.mark.parametrize("row", range(40))
def test_names_are_swapped_for_names_of_the_group_that_is_told(row: int) -> None:
    text = "Mary met James. MARY told Grace and Will about james, and James's dog."
    changed, operation = perturb("names", text, 0, row)
    pieces = (told.replace(".", " .").replace("'", " '").split() for told in (text, changed))
    swapped = {old: new for old, new in zip(*pieces, strict=True) if old != new}
    assert set(swapped) == {
        "Mary",
        "James",
        "MARY",
    }  # Grace and Will are words too; a lower-case name stands in a text with capitals
    assert swapped["MARY"] == swapped["Mary"].upper()
    for old in ("Mary", "James"):
        origin, gender = GROUP_OF[old]
        new_origin, new_gender = GROUP_OF[swapped[old]]
        assert new_gender == gender
        assert (new_origin == origin) == (operation == "same group")
    lower, _ = perturb("names", TEXTS[2], 0, row)
    assert lower.startswith("it was a slow , sad story of ")
    assert lower == lower.lower() != TEXTS[2]


def test_the_list_of_names_has_each_once() -> None:
    names = [name for names in GROUPS.values() for name in names.split()]
    assert len(names) == len({name.lower() for name in names})
    assert all(len(names.split()) >= 10 for names in GROUPS.values())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("it is a good film", "it is not a good film"),
        ("it is not a good film", "it is a good film"),
        ("it is n't good", "it is good"),
        ("You can't miss it", "You can miss it"),
        ("Won’t be missed", "Will be missed"),
        ("I cannot say it", "I can say it"),
        ("never a dull moment", "a dull moment"),
        ("THIS WAS GREAT", "THIS WAS NOT GREAT"),
        ("not only funny but was moving", "not only funny but was not moving"),
        ("a fine film", "a fine film"),
        ("a note on nothing", "a note on nothing"),
    ],
)
def test_a_negation_is_added_or_removed(text: str, expected: str) -> None:
    assert change_negation(text, random.Random(0))[0] == expected
