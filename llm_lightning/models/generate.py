"""Generate text: from a source by an encoder-decoder, or from a prompt by a decoder.

It calls Hugging Face's `generate`, which takes padded rows: sources are padded behind, prompts in front.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import GenerationConfig, PreTrainedModel

from llm_lightning import distributed
from llm_lightning.data.collate import MicroBatch
from llm_lightning.models import attention
from llm_lightning.models.batch_form import is_unpadded, published_attention
from llm_lightning.models.forward import padded
from llm_lightning.models.positions import positions_of

AT_ONCE = 16  # prompts that are continued together


def write_targets(model: PreTrainedModel, batch: MicroBatch, **settings: Any) -> list[list[int]]:
    """Return the tokens that an encoder-decoder writes for each source of a batch; `settings` are those of generate.

    All ranks of a sharded model call it equally often, each with its own batch.
    """
    written = model.generate(**padded(model, batch), **_together(model), **settings)  # type: ignore[operator]
    return [row[1:] for row in written.tolist()]  # the first is the start token, not text


def continue_prompts(
    model: PreTrainedModel, prompts: list[list[int]], pad: int, shared: bool = False, **settings: Any
) -> dict[int, list[int]]:
    """Return the tokens that a decoder writes behind each prompt, by the prompt's place; prompts may have any number and lengths.

    `settings` are those of generate. Prompts of similar lengths are continued together. `shared`: every rank passes the same prompts and
    continues its share of them, in the same groups as one process, so that the texts are the same. If the model has a limit of positions,
    a group writes at most as many tokens as fit behind its longest prompt, which must leave room for one.
    """
    limit = positions_of(model.config)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    groups = [order[start : start + AT_ONCE] for start in range(0, len(order), AT_ONCE)]
    rank, world = (distributed.rank(), distributed.world_size()) if shared else (0, 1)
    continuations: dict[int, list[int]] = {}
    for first in range(0, len(groups), world):
        is_blank = first + rank >= len(groups)
        if is_blank and not isinstance(model, FSDPModule):
            break
        part = groups[0 if is_blank else first + rank]
        longest = len(prompts[part[-1]])
        rows = [(prompts[i], longest - len(prompts[i])) for i in part]
        ids = torch.tensor([[pad] * before + prompt for prompt, before in rows], device=model.device)
        mask = torch.tensor([[0] * before + [1] * len(prompt) for prompt, before in rows], device=model.device)
        with as_published(model):
            arguments = {"input_ids": ids, "attention_mask": mask, "pad_token_id": pad, **_together(model), **settings}
            if limit is not None and arguments.get("max_new_tokens") is not None:
                arguments["max_new_tokens"] = min(arguments["max_new_tokens"], limit - longest)
            sequences = model.generate(**arguments)  # type: ignore[operator]
        if not is_blank:
            continuations |= zip(part, sequences[:, longest:].tolist(), strict=True)
    return {i: continuations[i] for i in sorted(continuations)}


def end_tokens(generation: GenerationConfig) -> set[int]:
    """Return the tokens at which a model's generation ends: none, one or several."""
    ends = generation.eos_token_id
    return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)


@dataclass(frozen=True)
class Fitted:
    """Prompts that leave a model room to write."""

    prompts: list[list[int]]
    cut: int
    """The number of prompts cut to their last tokens."""
    short: int
    """The number of prompts with room for fewer tokens behind them than requested."""

    def describe(self, model_config: Any, new_tokens: int) -> str:
        """Return a sentence about the cuts; an empty text without cuts."""
        parts = []
        if self.cut:
            parts.append(
                f"{self.cut} of {len(self.prompts)} prompts are longer than the model is given at once and lose their beginning"
            )
        if self.short:
            parts.append(
                f"behind {self.short} of {len(self.prompts)} prompts the model's {positions_of(model_config)} positions leave no room for "
                f"{new_tokens} tokens, and what is written there is shorter"
            )
        return "; ".join(parts)


def fit(model_config: Any, prompts: list[list[int]], new_tokens: int, longest: int | None = None) -> Fitted:
    """Cut prompts at their beginning, to `longest` tokens and so that `new_tokens`, or an eighth of the positions, fit behind them."""
    limit = positions_of(model_config)
    bounds = [longest] if longest is not None else []
    bounds += [limit - max(1, min(new_tokens, limit // 8))] if limit is not None else []
    if not bounds:
        return Fitted(prompts, 0, 0)
    fitted = [prompt[-min(bounds) :] for prompt in prompts]
    short = 0 if limit is None else sum(len(prompt) + new_tokens > limit for prompt in fitted)
    return Fitted(fitted, sum(len(prompt) > min(bounds) for prompt in prompts), short)


def _together(model: PreTrainedModel) -> dict[str, Any]:
    """Return generate's argument for a sharded model: every rank runs it until the longest text of all ranks is complete.

    transformers 5.23 sets it only for FSDP1. Its generate calls encoders directly, not through the whole model, whose remaining
    parameters (embeddings, head) are therefore gathered here.
    """
    if not isinstance(model, FSDPModule):
        return {}
    model.unshard()
    return {"synced_gpus": distributed.world_size() > 1}


def until(tokens: list[int], ends: set[int]) -> list[int]:
    """Return the tokens before the first one that ends a text."""
    return tokens[: next((i for i, token in enumerate(tokens) if token in ends), len(tokens))]


@contextlib.contextmanager
def as_published(model: PreTrainedModel) -> Iterator[None]:
    """Let the model take padded rows and store keys and values within, as in transformers."""
    if not is_unpadded(model):
        yield
        return
    model.set_attn_implementation(published_attention(model))
    try:
        yield
    finally:
        model.set_attn_implementation(attention.NAME)
