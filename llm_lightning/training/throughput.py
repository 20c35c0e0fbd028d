"""Model FLOPs per token, and the ceiling they are held against."""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn


def flops_per_token(model: nn.Module, lengths: np.ndarray) -> float:
    """FLOPs of forward and backward for one token: 6 N + 12 L H Q T (Chowdhery et al. 2022, appendix B).

    N counts the parameters in matrix products: input embeddings are look-ups. T is the length that an average token attends over.
    A token of an encoder-decoder passes through about half of it.
    """
    config: Any = model.config
    looked_up = 0 if getattr(config, "tie_word_embeddings", False) and _has_token_head(model) else _input_embeddings(model)
    matrices = sum(p.numel() for p in model.parameters() if p.ndim >= 2) - looked_up
    span = float((lengths.astype(np.float64) ** 2).sum() / max(lengths.sum(), 1))
    whole = 6.0 * matrices + 12.0 * config.num_hidden_layers * config.hidden_size * span
    return whole / 2 if config.is_encoder_decoder else whole


def _has_token_head(model: nn.Module) -> bool:
    return getattr(model, "get_output_embeddings", lambda: None)() is not None


def _input_embeddings(model: Any) -> int:
    return int(model.get_input_embeddings().weight.numel())


@dataclass(frozen=True)
class Peak:
    """The fastest matrix product seen on a device, in FLOP/s."""

    flops: float | None = None

    @staticmethod
    def of(device: torch.device, precision: str, cache: Path) -> Peak:
        """The best that was ever measured on this machine's device: other programs can only have made it look slower."""
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
        key = f"{platform.node()}, {device.type}, {name}, {precision}"
        file = cache / "peak_flops.json"
        known = json.loads(file.read_text()) if file.is_file() else {}
        best = max(Peak.measure(device, precision).flops or 0.0, known.get(key, 0.0))
        if best > known.get(key, 0.0):
            cache.mkdir(parents=True, exist_ok=True)
            partial = file.with_name(f"{file.name}.{os.getpid()}")
            partial.write_text(json.dumps(known | {key: best}, indent=2))
            partial.replace(file)
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
