"""Mask the tokens that a masked language model has to predict (Devlin et al. 2019, section 3.1).

Masks depend on (seed, epoch, sequence) alone, and not on the batch, the rank or the worker of a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

IGNORED = -100
"""Target of a position without a prediction, as in Hugging Face's and PyTorch's losses."""


@dataclass(frozen=True)
class Masking:
    """Makes a share `probability` of the real tokens targets; 80% of these become the mask token, 10% a random one, 10% stay."""

    probability: float
    whole_words: bool
    mask_id: int
    vocabulary: int
    special: np.ndarray
    """(vocabulary,) bool: tokens that are never masked."""
    continues: np.ndarray
    """(vocabulary,) bool: tokens that belong to the word before them."""
    seed: int

    def __call__(self, tokens: np.ndarray, epoch: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (inputs, targets) of a sequence, both (time,). At least one token is a target, if any can be masked."""
        seed = self.seed if epoch >= 0 else 0  # evaluation is the same for every seed
        rng = np.random.default_rng([seed, epoch + 1, index])
        maskable = ~self.special[tokens]
        if not maskable.any():
            return tokens, np.full(len(tokens), IGNORED)
        # words are numbered; without whole-word masking every token is its own word
        starts = maskable & ~self.continues[tokens] if self.whole_words else maskable
        starts |= maskable & np.concatenate([[True], ~maskable[:-1]])
        word = np.where(maskable, np.cumsum(starts) - 1, -1)
        words = int(word.max()) + 1
        chosen_words = rng.random(words) < self.probability
        if not chosen_words.any():
            chosen_words[rng.integers(words)] = True
        chosen = maskable & chosen_words[word]
        action = rng.random(len(tokens))
        random = rng.integers(self.vocabulary, size=len(tokens))
        inputs = np.where(chosen & (action < 0.8), self.mask_id, tokens)
        inputs = np.where(chosen & (action >= 0.9), random, inputs)
        return inputs, np.where(chosen, tokens, IGNORED)
