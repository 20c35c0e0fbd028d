"""Encode a text, or a pair of texts, as one sequence, cut at `data.block_size`, with one target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_lightning.config.schema import DataConfig
from llm_lightning.data import labels
from llm_lightning.data.encodings import NO_TOKEN, Encoding, Sequences
from llm_lightning.data.examples import BadRow, BadRows, Example
from llm_lightning.data.label_values import canonical, is_unlabelled
from llm_lightning.data.labels import Labels
from llm_lightning.data.rows import Rows
from llm_lightning.errors import join_names


class Encoder(Encoding):
    """Encodes a text and its class."""

    one_label = True

    @staticmethod
    def find_labels(data: DataConfig, train: Rows) -> Labels | None:
        return labels.find(data, train)

    @staticmethod
    def is_labelled(value: Any, extra: Mapping[str, Any]) -> bool:
        return not is_unlabelled(value)

    def read(self, text: Any, pair: Any, value: Any, extra: dict[str, Any] | None = None) -> tuple[str, str | None, Any]:
        return self._text(text), self._pair(pair), None if self.labels is None else self.label(self.labels, value)

    def label(self, classes: Labels, value: Any) -> Any:
        """Return the target for a value. Raises BadRow for a value without one."""
        return index(classes, self.data.columns.label, value)

    def __call__(self, batch: list[Example], bad: BadRows | None) -> Sequences:
        paired = batch[0].text_pair is not None
        pairs = [e.text_pair for e in batch] if paired else None
        size = self.data.block_size
        encoded = self.tokenizer(
            [e.text for e in batch], pairs, truncation=True, max_length=size, return_special_tokens_mask=paired
        )
        tokens = encoded["input_ids"]
        full = [i for i, ids in enumerate(tokens) if len(ids) == size]
        untruncated = (
            self.tokenizer([batch[i].text for i in full], pairs and [pairs[i] for i in full], verbose=False) if full else None
        )
        self.truncated += sum(len(ids) > size for ids in untruncated["input_ids"]) if untruncated else 0
        least = self.tokenizer.num_special_tokens_to_add(pair=paired)
        usable = [i for i, ids in enumerate(tokens) if len(ids) > least]
        for i in sorted({*range(len(batch))} - {*usable}):
            if bad is not None:
                bad.add(batch[i].row, NO_TOKEN)
        return Sequences(
            tokens=[tokens[i] for i in usable],
            examples=[batch[i] for i in usable],
            second=[_second(encoded, i) for i in usable] if paired else [],
            labels=[] if self.labels is None else [batch[i].label for i in usable],
        )


def index(classes: Labels, column: str | None, value: Any) -> int:
    """Return the index of a value's class. Raises BadRow for a value without a class."""
    if not canonical(value):
        raise BadRow(f"column '{column}' is empty")
    class_index = classes.index(value)
    if class_index is None:
        raise BadRow(f"column '{column}' has the label '{value}', which train does not have (it has {join_names(classes.values)})")
    return class_index


def _second(encoded: Any, i: int) -> int:
    """Return the index of the first token of the second text of sequence i: the start of token type 1."""
    if encoded.is_fast:
        return next((place for place, part in enumerate(encoded.sequence_ids(i)) if part == 1), len(encoded["input_ids"][i]))
    # a tokenizer in Python: the second text is the last run of tokens that are not special
    special = encoded["special_tokens_mask"][i]
    last = max(place for place, is_special in enumerate(special) if not is_special)
    return max((place + 1 for place, is_special in enumerate(special[:last]) if is_special), default=len(special))
