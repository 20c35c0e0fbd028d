"""BERT's masking (Devlin et al. 2019): 15% of the tokens, of those 80% masked, 10% random, 10% kept."""

from __future__ import annotations

import numpy as np
import pytest

from llm_lightning.data.masking import IGNORED, Masking

VOCABULARY, MASK, CLS, SEP = 1000, 4, 2, 3


def masking(**changes: object) -> Masking:
    special = np.zeros(VOCABULARY, bool)
    special[[0, CLS, SEP, MASK]] = True
    continues = np.zeros(VOCABULARY, bool)
    continues[500:] = True
    settings = {"probability": 0.15, "whole_words": False, "seed": 0} | changes
    return Masking(mask_id=MASK, vocabulary=VOCABULARY, special=special, continues=continues, **settings)  # type: ignore[arg-type]


def sequences(count: int = 400, length: int = 100) -> np.ndarray:
    tokens = np.random.default_rng(1).integers(10, VOCABULARY, (count, length))
    tokens[:, 0], tokens[:, -1] = CLS, SEP
    return tokens


@pytest.mark.parametrize("whole_words", [False, True])
def test_shares(whole_words: bool) -> None:
    mask = masking(whole_words=whole_words)
    tokens = sequences()
    inputs, targets = map(np.stack, zip(*(mask(row, 0, i) for i, row in enumerate(tokens)), strict=True))
    chosen = targets != IGNORED
    assert not chosen[:, [0, -1]].any()  # special tokens are never guessed
    assert chosen[:, 1:-1].mean() == pytest.approx(0.15, abs=0.01)
    assert (inputs[chosen] == MASK).mean() == pytest.approx(0.8, abs=0.02)
    assert (inputs[chosen] == tokens[chosen]).mean() == pytest.approx(0.1, abs=0.015)
    assert np.array_equal(targets[chosen], tokens[chosen])
    assert np.array_equal(inputs[~chosen], tokens[~chosen])


def test_whole_words_are_masked_together() -> None:
    mask, tokens = masking(whole_words=True), sequences()
    for i, row in enumerate(tokens):
        chosen = mask(row, 0, i)[1] != IGNORED
        for position in range(2, len(row) - 1):
            if row[position] >= 500:  # continues the word before it
                assert chosen[position] == chosen[position - 1]


def test_masks_follow_seed_epoch_and_sequence_alone() -> None:
    row = sequences(1)[0]
    again = [masking()(row, epoch=3, index=7)[1] for _ in range(2)]
    assert np.array_equal(*again)
    others = [masking()(row, 4, 7), masking()(row, 3, 8), masking(seed=1)(row, 3, 7)]
    assert all(not np.array_equal(again[0], other[1]) for other in others)


def test_a_short_sequence_has_a_target() -> None:
    row = np.array([CLS, 77, SEP])
    assert all((masking()(row, epoch, 0)[1] != IGNORED).sum() == 1 for epoch in range(50))
    assert (masking()(np.array([CLS, SEP]), 0, 0)[1] == IGNORED).all()
