"""Text that a model writes: what an encoder-decoder makes of a source, and how a decoder goes on with a prompt.

Hugging Face's own `generate` does it, which wants padded rows: sources are padded behind, prompts before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedModel

from llm_lightning.data.collate import MicroBatch
from llm_lightning.models.forward import is_unpadded, padded


def written(model: PreTrainedModel, batch: MicroBatch, **settings: Any) -> list[list[int]]:
    """The tokens that an encoder-decoder writes for each source of a batch; `settings` are those of generate."""
    found = model.generate(**padded(model, batch), **settings)  # type: ignore[operator]
    return [row[1:] for row in found.tolist()]  # the first begins the text, and is none of it


def continued(model: PreTrainedModel, prompts: list[list[int]], pad: int, **settings: Any) -> list[list[int]]:
    """The tokens that a decoder writes behind each prompt, of any lengths; `settings` are those of generate."""
    longest = max(map(len, prompts))
    device = model.device
    ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    with as_published(model):
        found = model.generate(input_ids=ids, attention_mask=mask, pad_token_id=pad, **settings)  # type: ignore[operator]
    return found[:, longest:].tolist()


def until(tokens: list[int], ends: set[int]) -> list[int]:
    """The tokens before the first that ends a text."""
    return tokens[: next((i for i, token in enumerate(tokens) if token in ends), len(tokens))]


@contextlib.contextmanager
def as_published(model: PreTrainedModel) -> Iterator[None]:
    """While it lasts, the model takes padded rows and keeps keys and values, as transformers has it."""
    if not is_unpadded(model):
        yield
        return
    flat = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(flat)
