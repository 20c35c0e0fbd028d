"""Text that a model writes: what an encoder-decoder makes of a source, and how a decoder goes on with a prompt.

Hugging Face's own `generate` does it, which wants padded rows: sources are padded behind, prompts before.
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
from llm_lightning.models.batch_form import is_unpadded, published_attention
from llm_lightning.models.forward import padded
from llm_lightning.models.positions import positions_of

AT_ONCE = 16  # prompts that are gone on with together


def write_targets(model: PreTrainedModel, batch: MicroBatch, **settings: Any) -> list[list[int]]:
    """The tokens that an encoder-decoder writes for each source of a batch; `settings` are those of generate.

    A model that is sharded over ranks is called by all of them as often, each with a batch of its own.
    """
    found = model.generate(**padded(model, batch), **_together(model), **settings)  # type: ignore[operator]
    return [row[1:] for row in found.tolist()]  # the first begins the text, and is none of it


def continue_prompts(
    model: PreTrainedModel, prompts: list[list[int]], pad: int, shared: bool = False, **settings: Any
) -> dict[int, list[int]]:
    """The tokens that a decoder writes behind each prompt, of any number and lengths, by the prompt's place.

    `settings` are those of generate. Prompts of like lengths are gone on with together. `shared`: every rank is called with the same
    prompts, and goes on with its share of them, in the same groups as one process, so that the texts are the same. Where the model has a
    limit of positions, a group writes at the most as many tokens as are left behind its longest prompt, which has to leave one.
    """
    limit = positions_of(model.config)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    groups = [order[start : start + AT_ONCE] for start in range(0, len(order), AT_ONCE)]
    rank, world = (distributed.rank(), distributed.world_size()) if shared else (0, 1)
    found: dict[int, list[int]] = {}
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
            whole = model.generate(**arguments)  # type: ignore[operator]
        if not is_blank:
            found |= zip(part, whole[:, longest:].tolist(), strict=True)
    return {i: found[i] for i in sorted(found)}


def end_tokens(generation: GenerationConfig) -> set[int]:
    """Return the tokens at which a model's generation ends: none, one or several."""
    ends = generation.eos_token_id
    return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)


@dataclass(frozen=True)
class Fitted:
    """Prompts that leave a model room to write."""

    prompts: list[list[int]]
    cut: int
    """Prompts of which only the last tokens are left."""
    short: int
    """Prompts behind which there is room for fewer tokens than were asked for."""

    def describe(self, model_config: Any, new_tokens: int) -> str:
        """Return what was cut, as a sentence; an empty text where nothing was."""
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
    """Cut prompts at their beginning, to `longest` tokens and so that an eighth of the positions, or `new_tokens`, are left behind them."""
    limit = positions_of(model_config)
    bounds = [longest] if longest is not None else []
    bounds += [limit - max(1, min(new_tokens, limit // 8))] if limit is not None else []
    if not bounds:
        return Fitted(prompts, 0, 0)
    fitted = [prompt[-min(bounds) :] for prompt in prompts]
    short = 0 if limit is None else sum(len(prompt) + new_tokens > limit for prompt in fitted)
    return Fitted(fitted, sum(len(prompt) > min(bounds) for prompt in prompts), short)


def _together(model: PreTrainedModel) -> dict[str, Any]:
    """Return what generate needs to know of a model that is sharded: every rank runs it until the longest text of all is done.

    transformers 5.23 finds this out by itself for FSDP1 alone. Its generate calls encoders on their own, not through the whole model,
    whose remaining parameters (embeddings, head) are therefore gathered here.
    """
    if not isinstance(model, FSDPModule):
        return {}
    model.unshard()
    return {"synced_gpus": distributed.world_size() > 1}


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
    model.set_attn_implementation(published_attention(model))
    try:
        yield
    finally:
        model.set_attn_implementation(flat)
