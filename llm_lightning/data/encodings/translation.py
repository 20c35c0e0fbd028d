"""Encode a source text and its target text as one sequence, the source first."""

from __future__ import annotations

from typing import Any

from llm_lightning.config.schema import DataConfig
from llm_lightning.data.encodings import NO_TOKEN, Encoding, Sequences, text_of
from llm_lightning.data.examples import BadRows, Example
from llm_lightning.data.labels import Labels
from llm_lightning.data.languages import has_languages, set_languages
from llm_lightning.data.rows import Rows
from llm_lightning.errors import UserError


class Encoder(Encoding):
    """Encodes source and target, each with the tokenizer's special tokens and cut at a block.

    The tokenizer's `text_target` gives a target its beginning and end: its language and the end-of-text token, if the tokenizer has them.
    """

    translates = True
    label_is_text = True

    def __init__(self, tokenizer: Any, data: DataConfig, labels: Labels | None = None) -> None:
        super().__init__(tokenizer, data, labels)
        if tokenizer.eos_token_id is None:
            raise UserError(
                f"objective=translation: {type(tokenizer).__name__} has no end-of-text token, so that a translation would never end; "
                f"choose another model, or model.tokenizer.kind=bpe."
            )
        set_languages(tokenizer, data.languages)
        self.ends_texts = has_languages(tokenizer)
        """Whether the tokenizer ends targets itself, with a language after the end-of-text token in mBART."""
        self.special = frozenset(tokenizer.all_special_ids)

    @staticmethod
    def find_labels(data: DataConfig, train: Rows) -> Labels | None:
        return Labels((), ())

    def read(self, text: Any, pair: Any, value: Any, extra: dict[str, Any] | None = None) -> tuple[str, None, str | None]:
        return self._text(text), None, None if self.labels is None else text_of(self.data.columns.label, value)

    def __call__(self, batch: list[Example], bad: BadRows | None) -> Sequences:
        sequences, size, prefix = Sequences([], []), self.data.block_size, self.data.prefix or ""
        sources = self.tokenizer([prefix + example.text for example in batch], verbose=False)["input_ids"]
        targets: list[list[int]] = [[] for _ in batch]
        if self.labels is not None:
            targets = self.tokenizer(text_target=[example.label for example in batch], verbose=False)["input_ids"]
        for example, source, target in zip(batch, sources, targets, strict=True):
            if not source:
                if bad is not None:
                    bad.add(example.row, NO_TOKEN)
                continue
            self.truncated += len(source) > size or len(target) > size
            source = self._cut(source, size)
            if self.labels is not None and not self.ends_texts and target[-1:] != [self.tokenizer.eos_token_id]:
                target = [*target, self.tokenizer.eos_token_id]
            sequences.tokens.append([*source, *self._cut(target, size)])
            sequences.second.append(len(source))
            sequences.examples.append(example)
        return sequences

    def _cut(self, tokens: list[int], size: int) -> list[int]:
        """Return at most `size` tokens. The special tokens at the end stay."""
        if len(tokens) <= size:
            return tokens
        end = next((place for place in reversed(range(len(tokens))) if tokens[place] not in self.special), -1) + 1
        ending = tokens[end:]
        return [*tokens[: size - len(ending)], *ending] if len(ending) < size else tokens[:size]
