"""Count the positions of a model: the rows of its position table that a text can reach, observed in a trial run."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from llm_lightning.models.layers import layers

TOKENS = 4  # of the text in the trial run


class _Reached(Exception):
    """Ends the trial run before the first layer, when embeddings are complete."""


class _Lookups(TorchFunctionMode):
    """Record the tables with lookups of consecutive rows for one repeated token: these are position tables."""

    def __init__(self) -> None:
        super().__init__()
        self.limits: list[int] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.embedding:
            ids, table = (args[i] if len(args) > i else kwargs.get(name) for i, name in enumerate(("input", "weight")))
            rows = ids.reshape(-1)
            if len(rows) >= TOKENS and bool((rows[:TOKENS].diff() == 1).all()):
                self.limits.append(table.shape[0] - int(rows[0]))
        return function(*args, **kwargs)


def count_positions(model: PreTrainedModel) -> int | None:
    """Return how many tokens a text may have; None if the architecture sets no limit.

    A table may have rows that no text reaches (two in OPT and BART, the rows up to the padding's in RoBERTa), which the config does not
    tell. Models without a table (rotary or relative positions) have the limit in their config. Of an encoder-decoder it is the encoder's.
    """
    config_limit = positions_of(model.config)
    if hasattr(model, "hf_device_map") or model.device.type == "meta":
        return config_limit
    special = [getattr(model.config, f"{name}_token_id", None) for name in ("pad", "eos")]
    token = next(i for i in range(10, 20) if i not in special)  # not a special one: padding has no position in RoBERTa
    ids = torch.full((1, TOKENS), min(token, (getattr(model.config, "vocab_size", None) or 20) - 1), device=model.device)
    transformer: Any = model.get_encoder() if model.config.is_encoder_decoder else model.base_model
    lookups = _Lookups()
    hooks = [layer.register_forward_pre_hook(_stop) for layer in layers(model)]
    try:
        with contextlib.suppress(Exception), torch.no_grad(), lookups:  # if the trial fails, the limit of the config holds
            transformer(input_ids=ids)
    finally:
        for hook in hooks:
            hook.remove()
    limits = [*lookups.limits, *([] if config_limit is None else [config_limit])]
    return min(limits, default=None)


def positions_of(config: Any) -> int | None:
    """Return the number of positions in a config; None if it names none, or if positions are only relative."""
    # GPT-2 maps its name; XLNet answers -1
    limit = getattr(config, "max_position_embeddings", getattr(config, "max_seq_len", None))
    if getattr(config, "relative_attention", False) and not getattr(config, "position_biased_input", True):  # DeBERTa
        return None
    if not isinstance(limit, int) or limit <= 0:
        return None
    is_behind_padding = config.model_type in ("roberta", "xlm-roberta", "camembert")  # where positions begin behind the padding's
    return limit - config.pad_token_id - 1 if is_behind_padding else limit


def _stop(module: Any, args: Any) -> None:
    raise _Reached
