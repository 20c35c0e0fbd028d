"""Cut a long text to overlapping windows, by the tokenizer itself: plain transformers makes the same windows of it.

Each window has the special tokens of a text. Of a pair the second text is cut, and each window begins with the whole first text.
"""

from __future__ import annotations

from typing import Any

from llm_lightning.config.schema import DataConfig
from llm_lightning.data.examples import BadRow
from llm_lightning.errors import UserError


def overlap_of(data: DataConfig) -> int:
    """Return the number of tokens that two neighbouring windows share."""
    return data.block_size // 4 if data.overlap is None else data.overlap


def cut_to_windows(tokenizer: Any, texts: list[str], pairs: list[str] | None, data: DataConfig, **options: Any) -> Any:
    """Return the tokenizer's encoding of all windows, in order; `overflow_to_sample_mapping` holds the text of each."""
    return tokenizer(
        texts,
        pairs,
        truncation=True if pairs is None else "only_second",
        max_length=data.block_size,
        stride=overlap_of(data),
        return_overflowing_tokens=True,
        **options,
    )


def require_windows(tokenizer: Any, data: DataConfig) -> None:
    """Raise UserError if the tokenizer makes no windows, or if a window has no room for a token beside those that it shares."""
    if not tokenizer.is_fast:
        raise UserError(
            f"data.long=windows: {type(tokenizer).__name__} has no fast form, which alone makes windows; choose a model with a fast "
            f"tokenizer (tokenizer.json), or data.long=cut."
        )
    room = data.block_size - tokenizer.num_special_tokens_to_add(pair=data.columns.text_pair is not None)
    if overlap_of(data) >= room:
        raise UserError(
            f"data.overlap={overlap_of(data)}: a window of data.block_size={data.block_size} tokens holds {room} of the text, so that "
            f"the next one would begin where it does; lower data.overlap, or raise data.block_size."
        )


def require_room(first: int, second: int, special: int, data: DataConfig) -> None:
    """Raise BadRow if a pair of texts with these numbers of tokens is too long for a sequence, and its first text for a window."""
    room = data.block_size - special - overlap_of(data) - 1
    if first + second + special > data.block_size and first > room:
        raise BadRow(
            f"the first text has {first} tokens and is repeated in each window, and data.block_size={data.block_size} with "
            f"data.overlap={overlap_of(data)} has room for {room}: make the long text the second (data.columns.text_pair), raise "
            f"data.block_size, or choose data.long=cut"
        )
