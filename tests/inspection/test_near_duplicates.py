"""Near duplicates against the exact similarity of all pairs, computed with plain sets."""

from __future__ import annotations

import random

import numpy as np
import pytest

from llm_lightning.inspection.near_duplicates import AT_ONCE, PERMUTATIONS, Reader, find_near_duplicates, sign
from llm_lightning.inspection.overlap import Evaluation
from llm_lightning.inspection.shingles import hash_shingles

from .planted import change, news, shingles, similarity

TEXTS = [
    *("", "one", "One, two!", "a b c d e", "a b c d e f", "a b c d e\0f", "  ", "…", "naïve café déjà vu encore une fois"),
    *(
        "東京は日本の首都です",
        "東京は日本の首都である",
        "Москва — столица России, и самый большой город",
        "x " * 400,
        "\ud800 half a pair of it",
    ),
    *("a b c d e a b c d e", "1,5 2.5", "don't stop me now please"),
]


def reader(texts: list[str]) -> Reader:
    return lambda numbers: [texts[number] for number in numbers]


def split_characters(text: str) -> str:
    """Put blanks around the characters that are words of their own."""
    return "".join(f" {c} " if 0x3000 <= ord(c) < 0xD800 else c for c in text)


@pytest.mark.parametrize("words", [5, 13])
def test_shingles_are_those_of_plain_sets(words: int) -> None:
    """Two texts have as many different shingles, alone and in common, as the sets of their words have."""

    def plain(text: str) -> set[tuple[str, ...]]:
        parts = "".join(c.lower() if (c.isascii() and c.isalnum()) or ord(c) > 127 else " " for c in split_characters(text)).split()
        return {tuple(parts[i : i + words]) for i in range(max(len(parts) - words + 1, 1))} if parts else set()

    hashed = hash_shingles(TEXTS, words)
    for i, first in enumerate(TEXTS):
        for j, second in enumerate(TEXTS):
            common = len(np.intersect1d(hashed.of(i), hashed.of(j)))
            assert common == len(plain(first) & plain(second)), (first, second)


def test_signatures_agree_as_often_as_texts_are_similar() -> None:
    rng = random.Random(0)
    base = [f"w{rng.randrange(10**6)}" for _ in range(AT_ONCE + 2000)]  # longer than what is computed together
    texts = [" ".join(base), " ".join([*base[: len(base) // 2], *(f"v{i}" for i in range(len(base) // 2))])]
    signatures = sign(hash_shingles(texts))
    agreement = (signatures[0] == signatures[1]).mean()
    expected = similarity(*texts)
    assert abs(agreement - expected) < 4 * (expected * (1 - expected) / PERMUTATIONS) ** 0.5
    assert (sign(hash_shingles(texts[1:])) == signatures[1]).all()


def test_planted_copies_are_found_and_nothing_else() -> None:
    """All pairs at 0.8 or above by plain sets, among 1,000 rows and their changed copies of many similarities."""
    rng = random.Random(0)
    originals = rng.sample(news(), 1000)
    copies = [change(text, rng.uniform(0.6, 1.0), rng) for text in originals]
    texts = originals + copies
    rng.shuffle(texts)
    sets = [shingles(text) for text in texts]
    holders: dict[tuple[str, ...], list[int]] = {}
    for number, part in enumerate(sets):
        for shingle in part:
            holders.setdefault(shingle, []).append(number)
    candidates = {(i, j) for numbers in holders.values() for i in numbers for j in numbers if i < j}
    exact = {(i, j): len(sets[i] & sets[j]) / len(sets[i] | sets[j]) for i, j in candidates}
    similar = {pair for pair, index in exact.items() if index >= 0.8}
    assert len(similar) > 300
    pairs = find_near_duplicates(reader(texts), len(texts))
    found = {(pair.first, pair.second) for pair in pairs}
    assert len(found & similar) >= 0.95 * len(similar)
    assert len(found & similar) >= 0.99 * len(found)
    assert all(pair.jaccard == pytest.approx(exact[pair.first, pair.second]) for pair in pairs)


def test_a_text_in_thousands_of_copies_is_compared_with_few() -> None:
    """A phrase that begins every row makes no quadratic number of pairs, and each copy is found."""
    texts = ["the same eight words stand in every row"] * 3000
    pairs = find_near_duplicates(reader(texts), len(texts))
    assert {pair.second for pair in pairs} == set(range(1, 3000))
    assert len(pairs) < 30 * len(texts)


def test_texts_without_words_are_like_none() -> None:
    assert find_near_duplicates(reader(["", "…", "!!", ""]), 4) == []
    assert find_near_duplicates(reader([]), 0) == []


def test_phrases_of_an_evaluation_are_found() -> None:
    words = [f"w{i}" for i in range(60)]
    evaluation = Evaluation([" ".join(words[:30]), " ".join(words[40:52]), "three short words"])
    texts = [
        " ".join(["x", *words[5:25], "y"]),  # 20 words are 8 13-grams
        " ".join(words[5:17]),  # 12 words
        "Three short words!",
        " ".join(["x", *words[40:52]]),  # 12 words of a text of 12 words, inside a longer one
        "",
    ]
    assert [(o.text, o.other, o.shared) for o in evaluation.find(texts)] == [(0, 0, 8), (2, 2, 1)]
    assert list(Evaluation([]).find(texts)) == []
