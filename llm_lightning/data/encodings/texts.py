"""Encode a text, or a pair of texts, as one sequence with one target.

A text longer than `data.block_size` is cut, or with `data.long=windows` becomes overlapping windows: a sequence then holds all windows
of a row, one behind the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

from llm_lightning.config.schema import DataConfig
from llm_lightning.data import labels
from llm_lightning.data.encodings import NO_TOKEN, Encoding, Sequences
from llm_lightning.data.examples import BadRow, BadRows, Example
from llm_lightning.data.label_values import canonical, is_unlabelled
from llm_lightning.data.labels import Labels
from llm_lightning.data.rows import Rows
from llm_lightning.data.windows import cut_to_windows, require_room, require_windows
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

    def __init__(self, tokenizer: Any, data: DataConfig, labels: Labels | None = None) -> None:
        super().__init__(tokenizer, data, labels)
        self._makes_windows = data.long == "windows"
        if self._makes_windows:
            require_windows(tokenizer, data)

    def read(self, text: Any, pair: Any, value: Any, extra: dict[str, Any] | None = None) -> tuple[str, str | None, Any]:
        first, second = self._text(text), self._pair(pair)
        if self._makes_windows and second is not None:
            sizes = [len(ids) for ids in self.tokenize([first, second])]
            require_room(sizes[0], sizes[1], self.tokenizer.num_special_tokens_to_add(pair=True), self.data)
        return first, second, None if self.labels is None else self.label(self.labels, value)

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
        lengths = map(len, untruncated["input_ids"]) if untruncated else ()
        long = {i: length for i, length in zip(full, lengths, strict=True) if length > size}
        windows = self._cut(batch, list(long)) if self._makes_windows else {}
        if not self._makes_windows:
            self.truncated += len(long)
            self.dropped += sum(long.values()) - size * len(long)
        least = self.tokenizer.num_special_tokens_to_add(pair=paired)
        usable = [i for i, ids in enumerate(tokens) if len(ids) > least]
        for i in sorted({*range(len(batch))} - {*usable}):
            if bad is not None:
                bad.add(batch[i].row, NO_TOKEN)
        return Sequences(
            tokens=[list(chain.from_iterable(windows[i][0])) if i in windows else tokens[i] for i in usable],
            examples=[batch[i] for i in usable],
            second=[windows[i][1] if i in windows else _second(encoded, i) for i in usable] if paired else [],
            labels=[] if self.labels is None else [batch[i].label for i in usable],
            windows=[[*map(len, windows[i][0] if i in windows else [tokens[i]])] for i in usable] if self._makes_windows else [],
        )

    def _cut(self, batch: list[Example], rows: list[int]) -> dict[int, tuple[list[list[int]], int]]:
        """Return (the tokens of each window, the start of the second text in each) of some examples of a batch, by their places."""
        if not rows:
            return {}
        paired = batch[0].text_pair is not None
        pairs: Any = [batch[i].text_pair for i in rows] if paired else None
        encoded = cut_to_windows(self.tokenizer, [batch[i].text for i in rows], pairs, self.data)
        windows: dict[int, tuple[list[list[int]], int]] = {}
        for place, (number, ids) in enumerate(zip(encoded["overflow_to_sample_mapping"], encoded["input_ids"], strict=True)):
            if rows[number] not in windows:
                windows[rows[number]] = [], _second(encoded, place) if paired else 0
            windows[rows[number]][0].append(ids)
        return windows


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
