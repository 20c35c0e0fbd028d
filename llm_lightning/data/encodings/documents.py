"""Encode documents with the tokenizer's special tokens. Long documents are cut to blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llm_lightning.config.schema import DataConfig
from llm_lightning.data.encodings import NO_TOKEN, Encoding, Sequences
from llm_lightning.data.examples import BadRows, Example
from llm_lightning.data.labels import Labels


class Encoder(Encoding):
    """Encodes a document as one or several sequences."""

    def __init__(self, tokenizer: Any, data: DataConfig, labels: Labels | None = None) -> None:
        super().__init__(tokenizer, data, labels)
        self.last = 0
        """The token before a document's next piece."""
        first = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
        last = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
        self.before, self.after = [t for t in (first,) if t is not None], [t for t in (last,) if t is not None]

    def __call__(self, batch: list[Example], bad: BadRows | None) -> Sequences:
        sequences = Sequences([], [])
        for example, ids in zip(batch, self.tokenize([e.text for e in batch]), strict=True):
            pieces = list(self.pieces(example, ids)) if ids else []
            if pieces:
                sequences.tokens.extend(pieces)
                sequences.examples.extend([example] * len(pieces))
                self.last = ids[-1]
            elif bad is not None:
                bad.add(example.row, NO_TOKEN)
        return sequences

    def pieces(self, example: Example, ids: list[int]) -> Iterator[list[int]]:
        room = self.data.block_size - len(self.before) - len(self.after)
        yield from ([*self.before, *ids[i : i + room], *self.after] for i in range(0, len(ids), room))
