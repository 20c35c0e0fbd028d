"""Likelihood of text under a causal model: bits per byte of files of any length, and the likeliest of several continuations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any

import numpy as np

from llm_lightning.config.schema import DataConfig
from llm_lightning.data.encodings import Sequences, text_of
from llm_lightning.data.examples import BadRow, Example
from llm_lightning.data.literals import parse_structure
from llm_lightning.data.masking import IGNORED
from llm_lightning.errors import UserError
from llm_lightning.inference.loaded import LoadedModel
from llm_lightning.models.forward import log_likelihoods
from llm_lightning.objectives.language import bits_per_byte, perplexity

AT_ONCE = 1 << 16  # tokens that are laid out together

Scored = tuple[list[int], int]
"""Tokens, and the place of the first one that counts: the tokens before it are context."""


class Likelihood(LoadedModel):
    """A causal objective that measures the likelihood of text."""

    def of_text(self, pieces: Iterable[tuple[str, bool]], window: int, stride: int) -> dict[str, float]:
        """Return perplexity per token and bits per byte of pieces (text, whether it continues the piece before). See `windows`."""
        encoding, tokens, size, documents, total = self.objective.dataset.encoding, 0, 0, 0, 0.0
        start: int = encoding.start  # type: ignore[attr-defined]
        history, waiting, waiting_tokens = [start], [], 0
        for text, continues in pieces:
            (ids,) = encoding.tokenize([text])
            history = history if continues else [start]
            for part in windows([*history, *ids], len(history), window, stride):
                waiting.append(part)
                waiting_tokens += len(part[0])
                if waiting_tokens >= AT_ONCE:
                    total += float(self.sums(waiting).sum())
                    waiting, waiting_tokens = [], 0
            history = [*history, *ids][-(window - stride + 1) :]
            tokens, size, documents = tokens + len(ids), size + len(text.encode()), documents + (not continues)
        total += float(self.sums(waiting).sum()) if waiting else 0.0
        if tokens == 0:
            raise UserError("evaluate.text: there is no text in it.")
        return {
            "loss": -total / tokens,
            "perplexity": perplexity(-total / tokens),
            "bits_per_byte": bits_per_byte(-total, size),
            "tokens": tokens,
            "bytes": size,
            "documents": documents,
        }

    def of_choices(self, rows: Iterable[dict[str, Any]], data: DataConfig) -> dict[str, float]:
        """Return the accuracy of the likeliest choice, of the likeliest per byte (longer choices are less likely), and of guessing.

        The choices are a list in the column of the second text; the label is a choice or its number.
        """
        right: list[float] = []
        right_by_byte: list[float] = []
        chance: list[float] = []
        rows = iter(rows)
        while chunk := list(islice(rows, 256)):
            questions = [self._choices(row, data) for row in chunk]
            sums = iter(self.sums(list(chain.from_iterable(parts for parts, _, _ in questions))).tolist())
            for parts, sizes, label in questions:
                likelihoods = np.array([next(sums) for _ in parts])
                right.append(int(likelihoods.argmax()) == label)
                right_by_byte.append(int((likelihoods / sizes).argmax()) == label)
                chance.append(1 / len(parts))
        if not right:
            raise UserError("evaluate.choices: there is no row in it.")
        figures = {"accuracy": right, "accuracy_per_byte": right_by_byte, "guessing": chance}
        return {name: float(np.mean(values)) for name, values in figures.items()} | {"rows": len(right)}

    def _choices(self, row: dict[str, Any], data: DataConfig) -> tuple[list[Scored], list[int], int]:
        """Return (the scored tokens of each choice, the bytes of each choice, the number of the right one)."""
        columns = data.columns
        try:
            context, choices = text_of(columns.text, row.get(columns.text)), parse_structure(row.get(str(columns.text_pair)))
            if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c.strip() for c in choices):
                raise BadRow(f"column '{columns.text_pair}' is no list of at least two texts")
            label = row.get(str(columns.label))
            if label not in choices and str(label) not in map(str, range(len(choices))):
                raise BadRow(f"column '{columns.label}' holds {label!r}, which is neither a choice nor the number of one")
        except BadRow as problem:
            raise UserError(f"{row['where']}: {problem}. Mend the row.") from None
        return (
            [self.join_choice(context, choice) for choice in choices],
            [len(choice.encode()) for choice in choices],
            choices.index(label) if label in choices else int(str(label)),
        )

    def join_choice(self, context: str, choice: str) -> Scored:
        """Return context and choice as tokens of one text; tokens that reach behind the end of the context belong to the choice."""
        tokenizer, start = self.objective.dataset.tokenizer, self.objective.dataset.encoding.start  # type: ignore[attr-defined]
        text = context + choice if context[-1:].isspace() or choice[:1].isspace() else f"{context} {choice}"
        if not tokenizer.is_fast:
            raise UserError(
                f"evaluate.choices: {type(tokenizer).__name__} has no fast form, which alone tells where a choice begins."
            )
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        before = sum(end <= len(context) for _, end in encoding["offset_mapping"])
        lead = [] if start is None else [start]
        return [*lead, *encoding["input_ids"]], before + len(lead)

    def sums(self, parts: list[Scored]) -> np.ndarray:
        """Return (parts,) Σ log p(token | tokens before it) over the tokens of each part that count."""
        sequences = Sequences(
            tokens=[tokens for tokens, _ in parts],
            examples=[Example(i, "", None, None) for i in range(len(parts))],
            token_targets=[[IGNORED] * first + tokens[first:] for tokens, first in parts],
        )
        return np.array(self.each(sequences, lambda batch: log_likelihoods(self.objective.model, batch).tolist()))


def windows(tokens: list[int], first: int, window: int, stride: int) -> Iterator[Scored]:
    """Yield the tokens from `first` on, each once, in windows of `window` inputs that move by `stride`.

    A token behind the first window has at least window - stride tokens of context. A smaller stride is nearer to the likelihood
    of the whole text, and takes longer.
    """
    while first < len(tokens):
        begin = max(0, first - 1 - (window - stride))
        end = min(begin + window + 1, len(tokens))
        yield tokens[begin:end], first - begin
        first = end
