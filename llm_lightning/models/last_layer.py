"""Compute the last layer behind its attention only at the positions that the head reads: the others do not influence the loss.

Each token sees the whole text through the keys and values of the layer's attention, which is therefore computed in full. The residual
sum of the output projection, the feed-forward and the norms work on each token alone. Results and gradients are the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from llm_lightning.data.collate import rounded
from llm_lightning.models.layers import is_compiled, layers
from llm_lightning.models.recompute import recomputes

_BERT, _LLAMA = ("attention.self", "attention.self"), ("input_layernorm", "self_attn")
PARTS = {
    **dict.fromkeys(("bert", "electra", "roberta", "xlm-roberta", "camembert"), _BERT),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _LLAMA),
    "distilbert": ("attention", "attention"),
    "modernbert": ("attn_norm", "attn"),
}
"""Model type -> names in a layer: the first module that needs every token, and the attention that ends this part."""


@contextlib.contextmanager
def restrict_last_layer(model: PreTrainedModel, places: Tensor | None, tokens: int) -> Iterator[Callable[[Tensor], Tensor]]:
    """Restrict the last layer to `places` (n,) of a flat batch of `tokens` tokens; None: no restriction.

    Yields a function from the transformer's last hidden states (1, rows, hidden) to those of the places (n, hidden).
    """
    layer = layers(model.base_model)[-1]
    names = PARTS.get(model.config.model_type)
    compiled = is_compiled(layer)  # new hooks would recompile it at each step
    recomputed = recomputes(model) and model.training  # the recomputation comes after the hooks are removed
    if places is None or names is None or compiled or recomputed or 2 * len(places) > tokens:
        yield lambda hidden: hidden[0, :tokens] if places is None else hidden[0, places]
        return
    rounded_places = F.pad(places, (0, rounded(len(places)) - len(places)))  # few shapes, as of whole batches
    every_token: list[Tensor] = []
    """The layer's input, while its attention needs all of it."""

    def narrow(module: nn.Module, args: Any, kwargs: Any) -> Any:
        every_token.append(args[0])
        return (args[0].index_select(1, rounded_places), *args[1:]), kwargs

    def widen(module: nn.Module, args: Any, kwargs: Any) -> Any:
        return (every_token.pop(), *args[1:]), kwargs

    def narrow_result(module: nn.Module, args: Any, result: Any) -> Any:
        return (result[0].index_select(1, rounded_places), *result[1:])

    first, attention = (layer.get_submodule(name) for name in names)
    hooks = (
        layer.register_forward_pre_hook(narrow, with_kwargs=True),
        first.register_forward_pre_hook(widen, with_kwargs=True),
        attention.register_forward_hook(narrow_result),
    )
    try:
        yield lambda hidden: hidden[0, : len(places)]
    finally:
        for hook in hooks:
            hook.remove()
