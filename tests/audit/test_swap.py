"""Swapped terms: whole words in the case of the text, and the predictions of copies against plain transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from llm_lightning.audit.swap import FLIPS, KEY, SHIFT, Swapper, read_swapper
from llm_lightning.errors import UserError

from .conftest import EXAMPLES, Audit, MakeClassifier, pick, write_pairs

PAIRS = [
    ("he", "she"),
    ("his", "her"),
    ("him", "her"),
    ("man", "woman"),
    ("old man", "old woman"),
    ("Christian", "Muslim"),
    ("Mr.", "Ms."),
]
SWAPPED = [
    ("He lost his hat.", "She lost her hat."),
    ("he said: HE IS HERE", "she said: SHE IS HERE"),  # no other word has `her` swapped
    ("The shepherd met a woman.", "The shepherd met a man."),
    ("An Old Man and an old man", "An Old Woman and an old woman"),
    ("her hat", "his hat"),  # the first of the pairs with it
    ("Mr. Lee is Christian, and christian too", "Ms. Lee is Muslim, and muslim too"),
    ("mankind, man-made", "mankind, woman-made"),
    ("nothing here", "nothing here"),
    ("he she he", "she he she"),
]


@pytest.mark.parametrize(("text", "swapped"), SWAPPED)
def test_terms_are_swapped_as_whole_words_in_their_case(text: str, swapped: str) -> None:
    assert Swapper.of_pairs(PAIRS).swap(text)[0] == swapped


def test_the_longest_term_is_swapped() -> None:
    swapper = Swapper.of_pairs([("old", "young"), ("old man", "old woman")])
    assert swapper.swap("the old man is old") == ("the old woman is young", {1: 1, 0: 1})


@given(st.lists(st.sampled_from(["he", "She", "KING", "queen", "the", "x.", "kıng", "ß", "İ", "\n"]), max_size=12))
def test_swapping_twice_is_the_text_itself(words: list[str]) -> None:
    swapper, text = Swapper.of_pairs([("he", "she"), ("king", "queen")]), " ".join(words)
    once, directions = swapper.swap(text)
    assert swapper.swap(once)[0].casefold() == text.casefold()
    assert (once != text) == bool(directions)


def test_directions_tell_which_term_a_text_has() -> None:
    swapper = Swapper.of_pairs([("he", "she"), ("his", "her")])
    assert swapper.swap("he and her")[1] == {0: 1, 1: -1}
    assert swapper.swap("he and she, he")[1] == {0: 0}


def rows_file(folder: Path) -> Path:
    texts = ["He is fine.", "she is fine", "A man came.", "The woman came.", "Nobody came.", "he and she"]
    file = folder / "rows.csv"
    file.write_text("text\n" + "".join(f'"{text}"\n' for text in texts))
    return file


def test_predictions_of_copies_are_compared(make_classifier: MakeClassifier, audit: Audit, tmp_path: Path) -> None:
    run, pairs = make_classifier({"she"}), write_pairs(tmp_path / "pairs.csv", [("he", "she"), ("man", "woman")])
    record = audit(run, f"{KEY}={pairs}", f"data.predict={rows_file(tmp_path)}", f"out={tmp_path}")
    flips, shifts = pick(record, KEY, FLIPS), pick(record, KEY, SHIFT)
    assert {name: (score["value"], score["count"]) for name, score in flips.items()} == {
        "all rows with a term": (2 / 5, 5),  # he and she has the disliked word either way
        "he – she": (2 / 3, 3),
        "man – woman": (0, 2),
    }
    reference = binomtest(2, 5).proportion_ci(method="wilson")
    assert flips["all rows with a term"]["interval"] == pytest.approx((reference.low, reference.high))
    score = shifts["he – she"]
    assert score["detail"] == "positive"
    assert score["value"] < -0.5  # from he to she, whichever a row has
    assert score["count"] == 2  # the row with both has no direction
    assert score["interval"][0] <= score["value"] <= score["interval"][1]
    measure = next(measure for measure in record["measures"] if measure["key"] == KEY)
    assert measure["facts"]["rows"] == 6
    assert measure["facts"]["rows_with_a_term"] == 5
    worst = measure["examples"][0]
    assert worst["where"].endswith(("rows.csv, line 2", "rows.csv, line 3"))
    assert {worst["before"].lower(), worst["after"].lower()} in ({"he is fine.", "she is fine."}, {"she is fine", "he is fine"})
    assert "negative" in worst["change"]
    assert "positive" in worst["change"]


def test_the_examples_are_swapped(make_classifier: MakeClassifier, audit: Audit, tmp_path: Path) -> None:
    words = [f"{KEY}={EXAMPLES}/swaps.csv", f"data.predict={EXAMPLES}/messages.csv", f"out={tmp_path}"]
    record = audit(make_classifier({"she"}), *words)
    assert pick(record, KEY, FLIPS)["all rows with a term"]["count"] == 7


BAD = [
    ("term,swap\nhe,He\n", "line 2: 'he' is its own counterpart"),
    ("term,swap\nzebra,okapi\n", "none of the 6 rows of data.predict="),
    ("a,b\nhe,she\n", "there is no column 'term'"),
    ("term,swap\nhe,\n", "line 2: column 'swap' is empty"),
]


@pytest.mark.parametrize(("content", "message"), BAD)
def test_wrong_pairs_are_refused(content: str, message: str, make_classifier: MakeClassifier, audit: Audit, tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text(content)
    with pytest.raises(UserError) as error:
        audit(make_classifier({"she"}), f"{KEY}={tmp_path}/pairs.csv", f"data.predict={rows_file(tmp_path)}", f"out={tmp_path}")
    assert message in str(error.value)


def test_a_plain_folder_has_no_rows_of_its_own(make_classifier: MakeClassifier, audit: Audit, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no test split to take rows from; give them by data\.predict=<file>"):
        audit(make_classifier({"she"}), f"{KEY}={EXAMPLES}/swaps.csv", f"out={tmp_path}")


def test_a_pair_listed_twice_is_one(tmp_path: Path) -> None:
    swapper = read_swapper(str(write_pairs(tmp_path / "pairs.csv", [("he", "she"), ("she", "he")])))
    assert swapper.swap("he") == ("she", {0: 1})
