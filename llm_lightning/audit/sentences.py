"""Score sentences by a language model: by pseudo-log-likelihood of a masked one, by log-likelihood of a causal one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from llm_lightning.data.encodings import Sequences
from llm_lightning.data.examples import Example
from llm_lightning.data.masking import IGNORED
from llm_lightning.errors import UserError
from llm_lightning.inference.likelihood import Likelihood
from llm_lightning.inference.loaded import LoadedModel
from llm_lightning.models.forward import log_likelihoods
from llm_lightning.models.positions import count_positions

AT_ONCE = 1 << 18  # tokens of masked copies that are laid out together


@dataclass(frozen=True)
class Sentence:
    """A sentence to score, the text before it, and its place in a file."""

    where: str
    text: str
    context: str | None = None


@dataclass(frozen=True)
class MaskedText:
    """The tokens of a sentence as a masked model reads them, and its scores."""

    tokens: list[int]
    places: np.ndarray
    """(scored,) the places of the tokens that were masked: those of the sentence, without special tokens and without the context."""
    spans: list[tuple[int, int]]
    """The characters of each scored token in the sentence; empty if the tokenizer does not report them."""
    scores: np.ndarray
    """(scored,) log p(token | all other tokens), in nats."""


class MaskedScorer(LoadedModel):
    """A masked language model that scores sentences (Salazar et al. 2020): each token is masked in a copy of the sentence of its own.

    Copies of many sentences go through the model together, sorted by length: 1,000 pairs of 15 tokens are some 30 batches.
    """

    def score(self, sentences: list[Sentence]) -> list[MaskedText]:
        """Return the tokens of each sentence and their scores. Either all sentences have a context or none.

        Raises UserError for a sentence that is longer than the model's positions, or has no token.
        """
        positions = count_positions(self.objective.model)
        texts = [self._encode(sentence, positions) for sentence in sentences]
        copies = ((i, place) for i, (text, _) in enumerate(texts) for place in text.places.tolist())
        scores = np.concatenate([np.array(self._score_copies(part, texts)) for part in _cut(copies, texts)])
        ends = np.cumsum([len(text.places) for text, _ in texts])
        return [
            MaskedText(text.tokens, text.places, text.spans, part)
            for (text, _), part in zip(texts, np.split(scores, ends[:-1]), strict=True)
        ]

    def _encode(self, sentence: Sentence, positions: int | None) -> tuple[MaskedText, int | None]:
        """Return (the text without its scores, the place of the first token of the second text of a pair)."""
        tokenizer = self.objective.dataset.tokenizer
        has_context = sentence.context is not None
        texts = (sentence.context, sentence.text) if has_context else (sentence.text,)
        encoding = tokenizer(
            *texts, return_special_tokens_mask=True, return_offsets_mapping=tokenizer.is_fast, verbose=False, truncation=False
        )
        tokens, special = encoding["input_ids"], np.array(encoding["special_tokens_mask"], dtype=bool)
        parts = [int(has_context)] * len(tokens)
        if has_context:
            parts = [-1 if part is None else part for part in encoding.sequence_ids(0)]
        places = np.flatnonzero(~special & (np.array(parts) == int(has_context)))
        require_tokens(sentence, len(places), len(tokens), positions)
        spans = [encoding["offset_mapping"][place] for place in places] if tokenizer.is_fast else []
        return MaskedText(tokens, places, spans, np.empty(0)), int(places[0]) if has_context else None

    def _score_copies(self, copies: list[tuple[int, int]], texts: list[tuple[MaskedText, int | None]]) -> list[float]:
        """Return the log-probability of the token that is masked in each copy, given as (text, place)."""
        mask: int = self.objective.dataset.tokenizer.mask_token_id
        sequences = Sequences([], [Example(i, "") for i in range(len(copies))])
        for i, place in copies:
            text, second = texts[i]
            sequences.tokens.append([*text.tokens[:place], mask, *text.tokens[place + 1 :]])
            targets = [IGNORED] * len(text.tokens)
            targets[place] = text.tokens[place]
            sequences.token_targets.append(targets)
            if second is not None:
                sequences.second.append(second)
        return self.each(sequences, lambda batch: log_likelihoods(self.objective.model, batch).tolist())


class CausalScorer(Likelihood):
    """A causal language model that scores sentences. The first token is given the token that texts begin with, if the model has one."""

    def score(self, sentences: list[Sentence]) -> tuple[np.ndarray, np.ndarray]:
        """Return (log p of each sentence, or log p(sentence | context), in nats; the number of its scored tokens), both (sentences,).

        Raises UserError for a sentence that is longer than the model's positions, or has no token to score.
        """
        positions, parts = count_positions(self.objective.model), []
        for sentence in sentences:
            if sentence.context is not None:
                tokens, first = self.join_choice(sentence.context, sentence.text)
            else:
                start: int | None = self.objective.dataset.encoding.start  # type: ignore[attr-defined]
                lead = [] if start is None else [start]
                tokens, first = [*lead, *self.objective.dataset.encoding.tokenize([sentence.text])[0]], 1
            require_tokens(sentence, len(tokens) - first, len(tokens) - 1, positions)
            parts.append((tokens, first))
        return self.sums(parts), np.array([len(tokens) - first for tokens, first in parts])


def require_tokens(sentence: Sentence, scored: int, inputs: int, positions: int | None) -> None:
    """Raise UserError unless a sentence has a token to score and fits into the model's positions."""
    if scored < 1:
        raise UserError(f"{sentence.where}: the sentence {sentence.text[:60]!r} has no token to score. Remove the row.")
    if positions is not None and inputs > positions:
        raise UserError(f"{sentence.where}: the sentence has {inputs} tokens, and the model {positions} positions. Remove the row.")


def _cut(copies: Iterator[tuple[int, int]], texts: list[Any]) -> Iterator[list[tuple[int, int]]]:
    """Yield the copies in lists of at most AT_ONCE tokens."""
    part: list[tuple[int, int]] = []
    size = 0
    for i, place in copies:
        length = len(texts[i][0].tokens)
        if part and size + length > AT_ONCE:
            yield part
            part, size = [], 0
        part.append((i, place))
        size += length
    if part:
        yield part
