"""Score sentences by a language model: by pseudo-log-likelihood of a masked one, by log-likelihood of a causal one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from llm_lightning.data.encodings import Sequences
from llm_lightning.data.examples import Example
from llm_lightning.data.masking import IGNORED
from llm_lightning.errors import UserError
from llm_lightning.inference.likelihood import Likelihood
from llm_lightning.inference.loaded import LoadedModel
from llm_lightning.models.forward import log_likelihoods
from llm_lightning.models.positions import count_positions

AT_ONCE = 1 << 16  # tokens of masked copies that are laid out together


@dataclass(frozen=True)
class Sentence:
    """A sentence to score, the text before it, and its place in a file."""

    where: str
    text: str
    context: str | None = None
    span: tuple[int, int] | None = None
    """The characters whose tokens a masked model scores; None for the whole sentence."""


@dataclass(frozen=True)
class MaskedText:
    """The tokens of a sentence as a masked model reads them, and its scores."""

    tokens: list[int]
    second: int | None
    """The place of the first token behind the context."""
    places: np.ndarray
    """(scored,) the places of the tokens that are masked: those of the sentence or of its span, without special tokens."""
    scores: np.ndarray
    """(scored,) log p(token | all other tokens), in nats."""


@dataclass(frozen=True)
class MaskedScorer(LoadedModel):
    """A masked language model that scores sentences (Salazar et al. 2020): each token is masked in a copy of the sentence of its own.

    Copies of many sentences go through the model together, sorted by length and without padding.
    """

    shows_progress: bool = False

    def score(self, sentences: list[Sentence]) -> list[MaskedText]:
        """Return the tokens of each sentence and their scores. Either all sentences have a context or none.

        Raises UserError for a sentence that is longer than the model's positions, or has no token.
        """
        positions = count_positions(self.objective.model)
        texts = [self._encode(sentence, positions) for sentence in sentences]
        ends = np.cumsum([len(text.places) for text in texts])
        copies = ((text, place) for text in texts for place in text.places.tolist())
        scores: list[float] = []
        with tqdm(total=int(ends[-1]), unit="token", disable=not self.shows_progress, dynamic_ncols=True) as bar:
            for part in _cut(copies):
                scores += self._score_copies(part)
                bar.update(len(part))
        return [replace(text, scores=part) for text, part in zip(texts, np.split(np.array(scores), ends[:-1]), strict=True)]

    def _encode(self, sentence: Sentence, positions: int | None) -> MaskedText:
        """Return the tokens of a sentence, without scores. A context, or a span, needs a fast tokenizer."""
        tokenizer = self.objective.dataset.tokenizer
        texts = (sentence.text,) if sentence.context is None else (sentence.context, sentence.text)
        encoding = tokenizer(*texts, return_special_tokens_mask=True, return_offsets_mapping=tokenizer.is_fast, verbose=False)
        tokens, is_scored = encoding["input_ids"], ~np.array(encoding["special_tokens_mask"], dtype=bool)
        second = None
        if sentence.context is not None:
            parts = encoding.sequence_ids(0)
            is_scored &= np.array([part == 1 for part in parts])
            second = next((place for place, part in enumerate(parts) if part == 1), len(tokens))
        if sentence.span is not None:
            start, end = sentence.span
            is_scored &= np.array([last > start and first < end for first, last in encoding["offset_mapping"]])
        places = np.flatnonzero(is_scored)
        require_tokens(sentence, len(places), len(tokens), positions)
        return MaskedText(tokens, second, places, np.empty(0))

    def _score_copies(self, copies: list[tuple[MaskedText, int]]) -> list[float]:
        """Return the log-probability of the token that is masked in each copy: a text, and the place of the mask."""
        mask: int = self.objective.dataset.tokenizer.mask_token_id
        sequences = Sequences([], [Example(i, "") for i in range(len(copies))])
        for text, place in copies:
            sequences.tokens.append([*text.tokens[:place], mask, *text.tokens[place + 1 :]])
            targets = [IGNORED] * len(text.tokens)
            targets[place] = text.tokens[place]
            sequences.token_targets.append(targets)
            if text.second is not None:
                sequences.second.append(text.second)
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


def _cut(copies: Iterable[tuple[MaskedText, int]]) -> Iterator[list[tuple[MaskedText, int]]]:
    """Yield the copies in lists of at most AT_ONCE tokens."""
    part: list[tuple[MaskedText, int]] = []
    size = 0
    for text, place in copies:
        if part and size + len(text.tokens) > AT_ONCE:
            yield part
            part, size = [], 0
        part.append((text, place))
        size += len(text.tokens)
    if part:
        yield part
