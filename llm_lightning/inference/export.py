"""Weights, tokenizer and label names as a Hugging Face folder that plain `transformers` loads."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from llm_lightning.models.build import quiet_transformers


def export(model: PreTrainedModel, tokenizer: Any, folder: Path) -> None:
    """Write beside the folder, then put it in place of the old one: a kill leaves a whole export.

    To be called on every rank: a sharded model is gathered from all of them, and rank 0 writes.
    """
    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(model, options=whole) if isinstance(next(model.parameters()), DTensor) else None
    if torch.distributed.is_initialized() and torch.distributed.get_rank() > 0:
        return
    partial, old = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.old")
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    with quiet_transformers():
        model.save_pretrained(partial, state_dict=state)
        tokenizer.save_pretrained(partial)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
