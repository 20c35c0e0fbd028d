"""Tag schemes: recognised from sets of tags, spans as seqeval finds them, neighbours that a scheme does not have."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_lightning.data.tag_schemes import LETTERS, ROLES, TagScheme, count_transitions, recognize, refine
from llm_lightning.errors import UserError

TAGS = [  # tags, their scheme: (name, separator, whether the letter is a suffix, the tag outside)
    ("O B-PER I-PER B-LOC", ("iob2", "-", False, "O")),
    ("O B-PER", ("iob2", "-", False, "O")),
    ("O I-PER I-LOC", ("iob2", "-", False, "O")),
    ("O B-ORG-GPE I-ORG-GPE", ("iob2", "-", False, "O")),
    ("O B_GPE_LOC I_GPE_LOC", ("iob2", "_", False, "O")),
    ("O B.PER I.PER", ("iob2", ".", False, "O")),
    ("O PER-B PER-I LOC-B", ("iob2", "-", True, "O")),
    ("O ORG-GPE-B ORG-GPE-I", ("iob2", "-", True, "O")),
    ("O PER_B PER_I", ("iob2", "_", True, "O")),
    ("o b-per i-per", ("iob2", "-", False, "o")),
    ("OTHER B-PER I-PER", ("iob2", "-", False, "OTHER")),
    ("O B I", ("iob2", "", False, "O")),
    ("O BPER IPER BLOC ILOC", ("iob2", "", False, "O")),
    ("B-NP I-NP B-VP", ("iob2", "-", False, "O")),
    ("O B-PER I-PER X [PAD]", None),
    ("O B-PER I-PER B-LOC I-LOC X [PAD]", ("iob2", "-", False, "O")),
    ("O S-LOC B-ORG I-ORG E-ORG", ("iobes", "-", False, "O")),
    ("O S-LOC", ("iobes", "-", False, "O")),
    ("O U-LOC B-ORG I-ORG L-ORG", ("bilou", "-", False, "O")),
    ("O U-LOC", ("bilou", "-", False, "O")),
    ("O B-NAME M-NAME E-NAME S-NAME", ("bmes", "-", False, "O")),
    ("B M E S", ("bmes", "", False, "O")),
    ("O B-PER M-PER E-PER W-PER", ("bmewo", "-", False, "O")),
    ("BB_O_PER EE_O_PER WW_O_BOS MM_O B_PER M_PER E_PER W_PER", ("bmewo", "_", False, "O")),
    ("O I-PER E-PER", ("ioe2", "-", False, "O")),
    ("O PER LOC", ("io", "", False, "O")),
    ("DET NOUN VERB PUNCT X", None),
    ("NN VBD DT -LRB- PRP$ . ,", None),
    ("NN-TL NN-HL VB", None),
    ("N V A O E S U L M ^ # @", None),  # parts of speech in tweets: O is a pronoun
    ("O NOUN VERB", None),
    ("S-PRO A-PRO V", None),
    ("0 1 2", None),
    ("O B-PER I_PER", None),  # mixed
]


@pytest.mark.parametrize(("tags", "expected"), TAGS, ids=[tags for tags, _ in TAGS])
def test_a_scheme_is_recognised_from_its_tags(tags: str, expected: tuple[str, str, bool, str] | None) -> None:
    scheme = recognize(tags.split())
    assert scheme == (None if expected is None else TagScheme(*expected))


def test_a_configured_scheme_has_to_fit() -> None:
    assert recognize(["O", "B-PER", "I-PER"], "none") is None
    assert recognize(["PER", "LOC", "OTHER"], "io") == TagScheme("io", "", outside="OTHER")
    assert recognize(["O", "I-PER", "I-LOC"], "io") == TagScheme("io", "-")
    assert recognize(["O", "B-PER", "I-PER"], "bioes") == TagScheme("iobes")
    for tags, setting in ((["O", "S-PER", "B-PER"], "iob2"), (["DET", "NOUN"], "iobes"), (["O", "U-PER"], "bmes")):
        with pytest.raises(UserError, match=f"data.tags={setting}: the tags .* are not of this scheme"):
            recognize(tags, setting)


TRUE = {
    "iob2": ["B-PER I-PER O B-LOC B-LOC I-LOC O", "O O B-ORG I-ORG I-ORG", "B-MISC O B-PER B-PER"],
    "iob1": ["I-PER I-PER O I-LOC B-LOC I-LOC O", "O O I-ORG I-ORG I-ORG", "I-MISC O I-PER B-PER"],
    "ioe2": ["I-PER E-PER O E-LOC I-LOC E-LOC O", "O O I-ORG I-ORG E-ORG", "E-MISC O E-PER E-PER"],
    "iobes": ["B-PER E-PER O S-LOC B-LOC E-LOC O", "O O B-ORG I-ORG E-ORG", "S-MISC O S-PER S-PER"],
    "bilou": ["B-PER L-PER O U-LOC B-LOC L-LOC O", "O O B-ORG I-ORG L-ORG", "U-MISC O U-PER U-PER"],
    "bmewo": ["B-PER E-PER O W-LOC B-LOC E-LOC O", "O O B-ORG M-ORG E-ORG", "W-MISC O W-PER W-PER"],
}
PREDICTED = {
    "iob2": ["B-PER I-PER O B-LOC I-LOC I-LOC O", "O B-ORG I-ORG I-ORG I-ORG", "B-MISC O B-PER B-LOC"],
    "iob1": ["I-PER I-PER O I-LOC I-LOC I-LOC O", "O I-ORG I-ORG I-ORG I-ORG", "I-MISC O I-PER I-LOC"],
    "ioe2": ["I-PER E-PER O I-LOC I-LOC E-LOC O", "O I-ORG I-ORG I-ORG E-ORG", "E-MISC O E-PER E-LOC"],
    "iobes": ["B-PER E-PER O B-LOC I-LOC E-LOC O", "O B-ORG I-ORG I-ORG E-ORG", "S-MISC O S-PER S-LOC"],
    "bilou": ["B-PER L-PER O B-LOC I-LOC L-LOC O", "O B-ORG I-ORG I-ORG L-ORG", "U-MISC O U-PER U-LOC"],
    "bmewo": ["B-PER E-PER O B-LOC M-LOC E-LOC O", "O B-ORG M-ORG M-ORG E-ORG", "W-MISC O W-PER W-LOC"],
}
BROKEN = {
    "iob2": ["I-PER I-PER O I-LOC B-LOC I-ORG O", "O O I-ORG I-ORG I-ORG", "I-MISC O B-PER I-PER"],
    "iobes": ["I-PER E-PER O B-LOC B-LOC I-LOC O", "O O B-ORG S-ORG E-ORG", "E-MISC O S-PER I-PER"],
}
STRICT_F1 = 0.4615384615384615
"""Of seqeval 1.2.2 for TRUE and PREDICTED in each scheme: f1_score(true, predicted, mode="strict", scheme=IOB2) and so on."""
DEFAULT_F1 = {"iob2": 0.5714285714285714, "iobes": 0.75}
"""Of seqeval 1.2.2 for TRUE and BROKEN: f1_score(true, broken)."""


def f1(scheme: TagScheme, true: list[str], predicted: list[str]) -> float:
    pairs = [(scheme.spans(a.split()), scheme.spans(b.split())) for a, b in zip(true, predicted, strict=True)]
    return 2 * sum(len(a & b) for a, b in pairs) / sum(len(a) + len(b) for a, b in pairs)


def turn(rows: list[str]) -> list[str]:
    """Write the letters behind the types."""
    return [" ".join("-".join(reversed(tag.split("-"))) for tag in row.split()) for row in rows]


@pytest.mark.parametrize("name", TRUE)
def test_f1_is_that_of_seqeval(name: str) -> None:
    assert f1(TagScheme(name), TRUE[name], PREDICTED[name]) == pytest.approx(STRICT_F1, abs=1e-15)
    assert f1(TagScheme(name, is_suffix=True), turn(TRUE[name]), turn(PREDICTED[name])) == pytest.approx(STRICT_F1, abs=1e-15)
    if name in BROKEN:
        assert f1(TagScheme(name), TRUE[name], BROKEN[name]) == pytest.approx(DEFAULT_F1[name], abs=1e-15)


def test_the_spans_of_broken_tags_are_those_of_seqeval() -> None:
    tags = " ".join(BROKEN["iobes"][:1]).split()
    assert TagScheme("iobes").spans(tags) == {("PER", 0, 2), ("LOC", 3, 4), ("LOC", 4, 6)}
    assert TagScheme("iobes").spans(BROKEN["iobes"][1].split()) == {("ORG", 2, 3), ("ORG", 3, 4), ("ORG", 4, 5)}


RANDOM_F1 = {
    "iob2": (0.5796761323632951, 0.43988711194731894),
    "iobes": (0.5840168736817437, 0.4302932182047131),
}
"""Of seqeval 1.2.2 for the sentences of `draw_sentences`: with valid tags in strict mode, and with broken tags in the default mode."""


def draw_sentences(name: str) -> tuple[list[str], list[str], list[str]]:
    """Return 500 random sentences of twelve tags: true tags, predicted ones with some other types and lengths, and broken ones."""
    rng, types = random.Random(0), (None, "PER", "LOC", "ORG")
    letters = ["O", *(f"{letter}-{kind}" for letter in LETTERS[name] for kind in types[1:])]

    def write(spans: list[tuple[str | None, int]]) -> list[str]:
        tags = []
        for kind, length in spans:
            roles = "B" + "I" * (length - 1) if name == "iob2" else "S" if length == 1 else "B" + "I" * (length - 2) + "E"
            tags += ["O" if kind is None else f"{role}-{kind}" for role in roles]
        return tags

    rows: tuple[list[str], list[str], list[str]] = [], [], []
    for _ in range(500):
        spans = [(rng.choice(types), length) for length in rng.choice(((3, 1, 2, 3, 1, 2), (2, 2, 2, 3, 3), (1, 1, 1, 3, 3, 3)))]
        changed = [(rng.choice(types) if rng.random() < 0.3 else kind, length) for kind, length in spans]
        if rng.random() < 0.3:
            rng.shuffle(changed)
        true = write(spans)
        broken = [rng.choice(letters) if rng.random() < 0.3 else tag for tag in true]
        for row, tags in zip(rows, (true, write(changed), broken), strict=True):
            row.append(" ".join(tags))
    return rows


@pytest.mark.parametrize("name", RANDOM_F1)
def test_f1_of_random_sentences_is_that_of_seqeval(name: str) -> None:
    true, predicted, broken = draw_sentences(name)
    scores = f1(TagScheme(name), true, predicted), f1(TagScheme(name), true, broken)
    assert scores == pytest.approx(RANDOM_F1[name], abs=1e-12)


def test_spans_without_letters_are_runs_and_without_types_have_no_name() -> None:
    assert TagScheme("io", "").spans(["PER", "PER", "LOC", "O", "LOC"]) == {("PER", 0, 2), ("LOC", 2, 3), ("LOC", 4, 5)}
    assert TagScheme("iob2", "").spans(["B", "I", "B", "O", "I"]) == {("", 0, 2), ("", 2, 3), ("", 4, 5)}
    assert TagScheme("bmes", "").spans(["S", "B", "M", "E", "B", "E"]) == {("", 0, 1), ("", 1, 4), ("", 4, 6)}


@pytest.mark.parametrize(
    ("tags", "completed"),
    [
        ("O B-PER", "I-PER"),
        ("O PER_B", "PER_I"),
        ("O S-LOC B-PER", "B-LOC I-LOC E-LOC S-PER I-PER E-PER"),
        ("O U-LOC", "B-LOC I-LOC L-LOC"),
        ("O B-PER M-PER", "E-PER S-PER"),
        ("o b-per", "i-per"),
        ("O PER", ""),
        ("O B", "I"),
    ],
)
def test_tags_are_completed_by_those_of_the_scheme(tags: str, completed: str) -> None:
    scheme = recognize(tags.split())
    assert scheme is not None
    assert scheme.complete(set(tags.split())) == {*tags.split(), *completed.split()}


def is_valid(name: str, before: tuple[str, str], after: tuple[str, str]) -> bool:
    """Whether a scheme has two neighbours, each (role, type); written from the definition of each scheme."""
    (a, kind), (b, other) = before, after
    goes_on = a in "BI" and b in "IE" and kind == other
    if name == "iob2":
        return b != "I" or (a in "BI" and kind == other)
    if name == "iob1":
        return b != "B" or (a in "BI" and kind == other)
    if name == "ioe2":
        return a != "I" or (b in "IE" and kind == other)
    if name == "ioe1":
        return a != "E" or (b in "IE" and kind == other)
    return goes_on if a in "BI" or b in "IE" else True


NAMES = ["iob1", "iob2", "ioe1", "ioe2", "iobes", "bilou", "bmes", "bmewo"]


@given(
    st.sampled_from(NAMES),
    st.lists(st.lists(st.tuples(st.integers(0, 4), st.sampled_from("ab")), min_size=1, max_size=8), max_size=5),
)
def test_invalid_neighbours_are_counted_as_a_loop_counts_them(name: str, drawn: list[list[tuple[int, str]]]) -> None:
    letters = LETTERS[name]
    sentences = [[f"{letters[i]}-{kind}" if i < len(letters) else "O" for i, kind in sentence] for sentence in drawn]
    names = ["O", *(f"{letter}-{kind}" for letter in letters for kind in "ab")]
    expected = 0
    for sentence in sentences:
        pairs = [("O", ""), *((ROLES[tag[0]], tag[2:]) for tag in sentence), ("O", "")]
        expected += sum(not is_valid(name, *pair) for pair in pairwise(pairs))
    tags = np.array([names.index(tag) for sentence in sentences for tag in sentence], np.int64)
    rows = np.repeat(np.arange(len(sentences)), [len(sentence) for sentence in sentences])
    assert count_transitions(TagScheme(name), names, tags, rows).count_invalid(name) == expected


@pytest.mark.parametrize("name", ["iob1", "iob2", "ioe2"])
def test_schemes_with_the_same_tags_are_told_apart_by_the_sentences(name: str) -> None:
    sentences = [row.split() for row in TRUE[name]]
    names = sorted({tag for sentence in sentences for tag in sentence})
    scheme = recognize(names)
    assert scheme is not None
    tags = np.array([names.index(tag) for sentence in sentences for tag in sentence], np.int64)
    rows = np.repeat(np.arange(len(sentences)), [len(sentence) for sentence in sentences])
    assert refine(scheme, count_transitions(scheme, names, tags, rows)).name == name
