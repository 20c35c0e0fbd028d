"""Encode documents for predicting the next token, with an end-of-text token between them.

A block of n+1 tokens has n targets, and neighbours share one token, so that every token is a target once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from llm_lightning.config.schema import DataConfig
from llm_lightning.data.encodings import documents
from llm_lightning.data.examples import Example
from llm_lightning.data.labels import Labels

log = logging.getLogger(__name__)


class Encoder(documents.Encoder):
    """Encodes a document as blocks of n+1 tokens; with packing=concat as one piece, as the blocks are cut later from one stream."""

    next_token = True
    begins_documents = True

    def __init__(self, tokenizer: Any, data: DataConfig, labels: Labels | None = None) -> None:
        super().__init__(tokenizer, data, labels)
        self.one_stream = data.packing == "concat"
        self.end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
        self.start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else self.end
        if self.end is None:
            log.warning("%s has no end-of-text token: documents follow each other without one", type(tokenizer).__name__)

    def pieces(self, example: Example, ids: list[int]) -> Iterator[list[int]]:
        close = [self.end] if example.ends and self.end is not None else []
        if self.one_stream:
            lead = [self.start] if self.start is not None and self.start != self.end and not example.continues else []
            yield [*lead, *ids, *close]
            return
        # a piece begins with the last token of the one before, so that every token is a target
        lead = [self.last] if example.continues else [] if self.start is None else [self.start]
        document = [*lead, *ids, *close]
        block = self.data.block_size
        yield from (document[i : i + block + 1] for i in range(0, len(document) - 1, block))
