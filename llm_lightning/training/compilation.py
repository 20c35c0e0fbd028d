"""Apply torch.compile to a transformer's layers (`trainer.compile`) one by one: they are alike, so one compilation serves all."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from llm_lightning.data.datamodule import DataModule
from llm_lightning.models.layers import layers, undo_compile
from llm_lightning.training.throughput import Flops

PAYS = {"cuda": 1e17}
"""FLOPs of the layers in a run, by device, above which compiling saves more than the minute it takes. On a CPU compiled layers were 0.95 to
1.03 times as fast: there, only `trainer.compile=true` compiles."""


def pays(model: PreTrainedModel, data: DataModule, device: torch.device) -> bool:
    """Return whether the run is long enough to regain the time that compiling takes."""
    if device.type not in PAYS:
        return False
    if data.dataset.stream is None:
        tokens = float(data.plan.lengths.sum()) * data.total_steps / len(data.plan.epoch_plan(0))
    else:
        tokens = float(data.spec.tokens or data.spec.sequences * data.config.data.block_size) * data.total_steps
    return Flops.of(model, data.dataset.splits["train"].texts).token * tokens >= PAYS[device.type]


def keep_compiled_kernels(folder: Path) -> None:
    """Have compiled kernels kept in a folder, for the runs that follow, unless the user has named another."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


def start(model: nn.Module) -> None:
    """Compile the layers at their next call."""
    torch.compiler.reset()  # a process compiles a function for a limited number of models
    for layer in layers(model):
        layer.compile()


def stop(model: nn.Module) -> None:
    """Run the layers without compilation again."""
    for layer in layers(model):
        undo_compile(layer)
