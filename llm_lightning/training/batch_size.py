"""Find the largest micro-batch that fits into memory (`batch.micro_tokens=auto`)."""

from __future__ import annotations

import lightning
import psutil
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from llm_lightning.data.collate import MicroBatch
from llm_lightning.data.datamodule import DataModule
from llm_lightning.errors import UserError
from llm_lightning.objectives.base import Objective
from llm_lightning.training.advice import advise_on_row

SHARE = 0.8
"""Share of the free memory that the plan uses; the rest is for short-lived tensors and fragments."""


class NoRoom(UserError):
    """Not a single row fits into the device's memory."""


def plan(objective: Objective, data: DataModule, trainer: lightning.Trainer) -> int:
    """Return the number of tokens that fit, by the bytes that autograd keeps of one longest row; these are counted, not guessed.

    Raises NoRoom if not even one row fits.
    """
    device = trainer.strategy.root_device
    objective.to(device).train()
    one, two = (_count_saved_bytes(objective, data.longest_rows(count), trainer) for count in (1, 2))
    row = max(two - one, 1)
    free = free_memory(device) - states(objective.model)
    rows = int(SHARE * free / row)
    length = len(data.longest_rows(1).input_ids)
    if rows < 1:
        advice = advise_on_row(data.longest_rows(1))[1]
        raise NoRoom(
            f"batch.micro_tokens=auto: a row of {length:,} tokens takes {row / 2**30:.2f} GiB to train on, and {max(free, 0) / 2**30:.2f} "
            f"GiB are left beside weights and optimizer; {advice}."
        )
    return rows * length


def states(model: nn.Module) -> int:
    """Return the bytes of the trained weights, their gradients and AdamW's two moments, all in fp32."""
    return 16 * sum(p.numel() for p in model.parameters() if p.requires_grad)


def free_memory(device: torch.device) -> float:
    """Return the free bytes of a device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def _count_saved_bytes(objective: Objective, batch: MicroBatch, trainer: lightning.Trainer) -> int:
    """Return the bytes that autograd keeps of a forward pass; each storage counts once."""
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = objective.transfer_batch_to_device(batch, objective.model.device, 0)
    with trainer.precision_plugin.forward_context(), saved_tensors_hooks(note, lambda tensor: tensor):
        loss = objective.loss_sum(batch)
    del loss
    return sum(storages.values())
