"""Count the FLOPs of training a model, and measure the device's peak to compare them with."""

from __future__ import annotations

import itertools
import json
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llm_lightning.atomic_files import write_atomically
from llm_lightning.models.layers import layers


@dataclass(frozen=True)
class Flops:
    """FLOPs of a forward and backward pass in matrix products (Chowdhery et al. 2022, appendix B), per token and per target.

    A weight costs 2 forward; backward 2 for its input's gradient, if a layer below is trained, and 2 for its own, if it is trained.
    """

    token: float
    """FLOPs of a token in the transformer."""
    target: float
    """FLOPs of a target in the head. In an encoder-decoder, whose targets are tokens too: the decoder's cost minus the encoder's."""

    @staticmethod
    def of(model: PreTrainedModel, lengths: np.ndarray) -> Flops:
        """Return the FLOPs of a model; `lengths` are those of its attention's sequences. Zero if unknown: experts are no linear modules."""
        if any(parameter.ndim > 2 for layer in layers(model) for parameter in layer.parameters()):
            return Flops(0.0, 0.0)
        config: Any = model.config
        if not config.is_encoder_decoder:  # of models of text and images, the part for text
            config = config.get_text_config()
        base: Any = model.base_model
        decoder = base.decoder if config.is_encoder_decoder else None
        of_targets = {id(module) for part in (getattr(base, "pooler", None), decoder) if part for module in part.modules()}
        of_targets.add(id(getattr(model, "get_output_embeddings", lambda: None)()))  # T5 has it in its base model
        of_tokens = {id(module) for module in base.modules()} - of_targets
        windows = dict(zip(map(id, layers(base)), _windows(config), strict=False))
        spans = {window: _span(lengths if decoder is None else lengths / 2, window) for window in set(windows.values())}
        token = target = 0.0
        below = False  # whether anything before is trained
        for name, module in model.named_modules():
            if name.endswith("original_module") or ".original_module." in name:
                continue  # peft trains a copy of it
            cost = 0.0
            if isinstance(module, nn.Linear | Conv1D):
                size = module.in_features * module.out_features if isinstance(module, nn.Linear) else module.weight.numel()
                cost = size * (2.0 + 2.0 * below + 2.0 * module.weight.requires_grad)
            elif id(module) in windows:
                backward = below or any(parameter.requires_grad for parameter in module.parameters())
                cost = (12.0 if backward else 4.0) * _width(config) * spans[windows[id(module)]]
            below |= any(parameter.requires_grad for parameter in module.parameters(recurse=False))
            if id(module) in of_tokens:
                token += cost
            else:
                target += cost
        return Flops(token, target if decoder is None else target - token)

    def __call__(self, tokens: float, targets: float) -> float:
        return self.token * tokens + self.target * targets


def _width(config: Any) -> int:
    """Return the width of all heads together: an average token's attention takes 4 · width · tokens it attends to, and twice that backward.

    In an encoder-decoder each of the two texts is about half of a sequence; the decoder's cross-attention is left out.
    """
    heads: int = getattr(config, "num_attention_heads", 0)  # there are models without attention
    return heads * (getattr(config, "head_dim", None) or config.hidden_size // max(heads, 1))


def _span(lengths: np.ndarray, window: int | None) -> float:
    """Return the number of tokens that an average token attends to."""
    spans = np.minimum(lengths, np.inf if window is None else window)
    return float((lengths * spans.astype(np.float64)).sum() / max(lengths.sum(), 1))


def _windows(config: Any) -> Iterator[int | None]:
    """Yield, for each layer, the largest number of tokens that a token attends to; None for all."""
    window = getattr(config, "sliding_window", None)
    if window is not None and config.model_type == "modernbert":
        window = 2 * window + 1  # the window extends to both sides
    for kind in getattr(config, "layer_types", None) or itertools.repeat("sliding_attention"):
        yield window if kind == "sliding_attention" else None


@dataclass(frozen=True)
class Peak:
    """The fastest matrix product measured on a device, in FLOP/s."""

    flops: float | None = None

    @staticmethod
    def of(device: torch.device, precision: str, cache: Path) -> Peak:
        """Return the best peak ever measured on this machine's device: other programs can only make it look slower."""
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
        key = f"{platform.node()}, {device.type}, {name}, {precision}"
        file = cache / "peak_flops.json"
        stored_peaks = json.loads(file.read_text()) if file.is_file() else {}
        best = max(Peak.measure(device, precision).flops or 0.0, stored_peaks.get(key, 0.0))
        if best > stored_peaks.get(key, 0.0):
            cache.mkdir(parents=True, exist_ok=True)
            with write_atomically(file) as partial:
                partial.write_text(json.dumps(stored_peaks | {key: best}, indent=2))
        return Peak(best)

    @staticmethod
    def measure(device: torch.device, precision: str, seconds: float = 0.15) -> Peak:
        """Time a square matrix product in the training precision; takes about 0.2 s."""
        size = 8192 if device.type == "cuda" else 1024
        dtype = torch.bfloat16 if "bf16" in precision else torch.float16 if precision.startswith("16") else torch.float32
        a = torch.randn(size, size, device=device, dtype=dtype)  # random: zeros multiply faster
        best, until = float("inf"), time.perf_counter() + seconds
        while time.perf_counter() < until or best == float("inf"):
            started = time.perf_counter()
            a @ a
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            best = min(best, time.perf_counter() - started)
        return Peak(2.0 * size**3 / best)
