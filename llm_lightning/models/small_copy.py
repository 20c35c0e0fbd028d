"""Build a small model of the same kind as a large one, to test the kind at a cost that does not grow with the model.

The copy has the class and the settings of the model, fewer and narrower layers, and random weights. Settings that decide how tokens see
each other stay: kinds of layers and their order, head size, rotary share, groups of heads, biases. Sliding windows, chunks and caps of
logits become so small that they affect the short sequences of a check.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

VOCABULARY = 160
WINDOW = 6
"""Tokens of a sliding window or a chunk. Even, as some models halve it."""
HEAD_SIZE = 32
POSITIONS = 64
"""Positions of models with a position table."""
CAP = 2.0
"""Largest logit of models that cap logits: products of a small model's random weights have this size."""
EXPERTS = 4
WHOLE = 30_000_000
"""Parameters up to which a copy of the full model is tried if its kind cannot be made smaller."""

_LAYERS = ("num_hidden_layers", "num_layers", "encoder_layers", "decoder_layers", "num_decoder_layers")
_HEADS = ("num_attention_heads", "encoder_attention_heads", "decoder_attention_heads")
_INNER: tuple[str, ...] = ("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "moe_intermediate_size")
_INNER += ("ffn_hidden_size", "shared_expert_intermediate_size", "intermediate_size_mlp", "n_inner")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k")


def build_small_copies(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Yield small models of the same class in fp32 on the CPU, in evaluation mode, with the attention that transformers gives them.

    The first is the smallest; the next ones keep more of the model, for classes whose sizes depend on each other in ways that `shrink`
    does not know. Their weights are the same at each call, and torch's generators do not change. Raises the first error of the model's
    own class if no copy can be built, or ValueError if the copy would be large.
    """
    first: Exception | None = None
    built = False
    for config in _smaller_configs(model):
        try:
            with torch.device("meta"):
                size = _build(type(model), copy.deepcopy(config)).num_parameters()
            if size > WHOLE:
                raise ValueError(f"no small copy of it could be made ({size:,} parameters)")
            with torch.random.fork_rng(devices=[]), torch.device("cpu"):
                torch.manual_seed(0)
                small = _build(type(model), config)
        except Exception as error:  # any error of a model's code
            first = first or error
            continue
        randomize(small)
        built = True
        yield small.eval()
    if not built and first is not None:
        raise first


def _smaller_configs(model: PreTrainedModel) -> Iterator[Any]:
    """Yield configs of copies, the smallest first, up to the model's own if it is small."""
    for head_size in (HEAD_SIZE, None):
        with contextlib.suppress(Exception):  # a config may refuse sizes that another accepts
            yield shrink(model.config, head_size)
    if model.num_parameters() <= WHOLE:
        yield _copy(model.config)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide messages of transformers and torch about a small copy, which the user does not know of."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def shrink(config: Any, head_size: int | None = HEAD_SIZE) -> Any:
    """Return a copy of a model's config with few and narrow layers, a small vocabulary, and windows of `WINDOW` tokens.

    Heads have at most `head_size` elements; None leaves their size.
    """
    small = _copy(config)
    _limit(small, ("vocab_size",), VOCABULARY)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if isinstance(getattr(small, name, None), int) and getattr(small, name) >= VOCABULARY:
            setattr(small, name, 0)
    if small.pad_token_id is None:
        small.pad_token_id = 0
    if small.is_encoder_decoder and getattr(small, "decoder_start_token_id", None) is None:
        small.decoder_start_token_id = small.pad_token_id
    heads = getattr(small, "num_attention_heads", None)
    width = getattr(small, "hidden_size", None)
    if isinstance(heads, int) and isinstance(width, int) and heads > 4:
        groups = getattr(small, "num_key_value_heads", None)
        size = width // heads
        if head_size is not None and not _has_sized_rope(small):
            size = min(size, head_size)
            _limit(small, ("head_dim", "attention_head_size", "d_kv"), head_size)
        _limit(small, ("rotary_dim",), size // 2)
        for name, value in list(vars(small).items()):  # embeddings and poolers that are as wide as the layers
            if value == width and isinstance(value, int) and not any(part in name for part in ("position", "vocab", "max")):
                setattr(small, name, 4 * size)
        small.hidden_size = 4 * size
        for name in _HEADS:
            _limit(small, (name,), 4)
        if isinstance(groups, int) and groups > 1:
            small.num_key_value_heads = 4 if groups >= heads else 2
    _limit(small, _INNER, 96)
    _limit(small, _EXPERTS, EXPERTS)
    _limit(small, _EXPERTS_PER_TOKEN, 2)
    _limit(small, ("n_group", "topk_group"), 1)
    _drop_layers(small)
    _limit_positions(small)
    for name, value in list(vars(small).items()):
        if _is_window(name, value):
            setattr(small, name, min(value, WINDOW))
        elif "softcap" in name and isinstance(value, float):
            setattr(small, name, CAP)
    return small


def _is_window(name: str, value: Any) -> bool:
    """Return whether a setting is the size of a window or a chunk of tokens."""
    is_name = name.endswith("window") or name in ("local_attention", "attention_chunk_size", "window_size", "sliding_window_size")
    return is_name and isinstance(value, int) and not isinstance(value, bool) and value > 0


def _has_sized_rope(config: Any) -> bool:
    """Return whether settings list numbers for rotary frequencies or parts of heads, and so fit only one size of heads."""
    if hasattr(config, "qk_rope_head_dim"):
        return True
    text = repr([value for key, value in vars(config).items() if key.startswith("rope")])
    return any(name in text for name in ("short_factor", "mrope_section"))


def _limit_positions(config: Any) -> None:
    """Limit positions: a check's document exceeds the original positions of a scaled RoPE, all documents together a position table."""
    ropes = [value for key, value in vars(config).items() if key.startswith("rope") and isinstance(value, dict)]
    ropes += [value for rope in list(ropes) for value in rope.values() if isinstance(value, dict)]
    for rope in ropes:
        if "original_max_position_embeddings" in rope:
            rope["original_max_position_embeddings"] = 8
    positions = getattr(config, "max_position_embeddings", None)
    if not ropes and isinstance(positions, int) and positions > 0:  # a table of fewer rows than a document has tokens grows
        config.max_position_embeddings = POSITIONS


def _drop_layers(config: Any) -> None:
    """Keep the fewest layers with one of each kind, and at least four."""
    for name in _LAYERS:
        count = getattr(config, name, None)
        if not isinstance(count, int) or count <= 4:
            continue
        layers = max([4, *_least_layers(config, count)])
        if layers >= count:
            continue
        for key, value in list(vars(config).items()):
            if isinstance(value, list | tuple) and len(value) == count:
                setattr(config, key, value[:layers])
        setattr(config, name, layers)


def _least_layers(config: Any, count: int) -> Iterator[int]:
    """Yield numbers of layers that must stay, of `count`: up to the first of each kind, and a period of periodic settings."""
    for key, value in vars(config).items():
        if isinstance(value, list | tuple) and len(value) == count:
            kinds = [repr(kind) for kind in value]
            yield max(kinds.index(kind) for kind in kinds) + 1
        periodic = any(part in key for part in ("every_n", "interval", "period", "pattern", "offset"))
        if periodic and isinstance(value, int) and not isinstance(value, bool):
            yield min(value + 1, count)


def _limit(config: Any, names: tuple[str, ...], most: int) -> None:
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > most:
            setattr(config, name, most)


def _copy(config: Any) -> Any:
    """Return a copy of a config without the settings of the model's weights: quantization, and our attention."""
    copied = copy.deepcopy(config)
    copied.__dict__.pop("quantization_config", None)
    copied._attn_implementation_internal = None  # private, as is `_from_config`; read in transformers 5.23
    return copied


def _build(kind: type[PreTrainedModel], config: Any) -> PreTrainedModel:
    if config.get_text_config() is not config:
        raise ValueError("it reads more than text")
    return kind._from_config(config, dtype=torch.float32)


@torch.no_grad()
def randomize(model: nn.Module) -> None:
    """Draw new values for every parameter, so that none is zero, attention is far from uniform, and positions matter."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() < 2:
            parameter.add_(0.2 * noise)  # norms stay near their values
        else:
            parameter.copy_(noise / math.sqrt(parameter.shape[-1]))
