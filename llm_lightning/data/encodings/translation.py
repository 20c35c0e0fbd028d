"""A text and the text that is to be written of it: one sequence, the first text and then the second."""

from __future__ import annotations

from typing import Any

from llm_lightning.config import DataConfig
from llm_lightning.data.encodings import NO_TOKEN, Encoding, Sequences, text_of
from llm_lightning.data.examples import BadRows, Example
from llm_lightning.data.labels import Labels
from llm_lightning.data.rows import Rows


class Encoder(Encoding):
    """Source and target, each with the tokenizer's special tokens and cut at a block; the target ends with the end-of-text token."""

    translates = True
    label_is_text = True

    @staticmethod
    def find_labels(data: DataConfig, train: Rows) -> Labels | None:
        return Labels((), ())

    def read(self, text: Any, pair: Any, value: Any, extra: dict[str, Any] | None = None) -> tuple[str, None, str | None]:
        return self._text(text), None, None if self.labels is None else text_of(self.data.columns.label, value)

    def __call__(self, batch: list[Example], bad: BadRows | None) -> Sequences:
        found, size = Sequences([], []), self.data.block_size
        sources = self.tokenizer([example.text for example in batch], verbose=False)["input_ids"]
        targets: list[list[int]] = [[] for _ in batch]
        if self.labels is not None:
            targets = self.tokenizer(text_target=[example.label for example in batch], verbose=False)["input_ids"]
        end = self.tokenizer.eos_token_id
        for example, source, target in zip(batch, sources, targets, strict=True):
            if not source:
                if bad is not None:
                    bad.add(example.row, NO_TOKEN)
                continue
            self.truncated += len(source) > size or len(target) > size
            if len(source) > size:
                source = [*source[: size - 1], source[-1]]  # the last is the one that ends a text, where the tokenizer has such
            if self.labels is not None:
                target = [*(target[:-1] if target[-1:] == [end] else target)[: size - 1], end]
            found.tokens.append([*source, *target])
            found.second.append(len(source))
            found.examples.append(example)
        return found
