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

AT_ONCE = 16  # prompts that are gone on with together


def written(model: PreTrainedModel, batch: MicroBatch, **settings: Any) -> list[list[int]]:
    """The tokens that an encoder-decoder writes for each source of a batch; `settings` are those of generate."""
    found = model.generate(**padded(model, batch), **settings)  # type: ignore[operator]
    return [row[1:] for row in found.tolist()]  # the first begins the text, and is none of it


def continued(model: PreTrainedModel, prompts: list[list[int]], pad: int, **settings: Any) -> list[list[int]]:
    """The tokens that a decoder writes behind each prompt, of any number and lengths; `settings` are those of generate.

    Prompts of like lengths are gone on with together.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), AT_ONCE):
        part = order[start : start + AT_ONCE]
        longest = len(prompts[part[-1]])
        rows = [(prompts[i], longest - len(prompts[i])) for i in part]
        ids = torch.tensor([[pad] * before + prompt for prompt, before in rows], device=model.device)
        mask = torch.tensor([[0] * before + [1] * len(prompt) for prompt, before in rows], device=model.device)
        with as_published(model):
            whole = model.generate(input_ids=ids, attention_mask=mask, pad_token_id=pad, **settings)  # type: ignore[operator]
        for i, tokens in zip(part, whole[:, longest:].tolist(), strict=True):
            found[i] = tokens
    return found


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
