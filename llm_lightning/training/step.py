"""Run an optimizer step: from the micro-batches of one rank to new weights.

A batch of the training loader is a whole step. Its gradient is that of one big batch: the sum of the losses of its targets, divided
by their number over all micro-batches and ranks; never a mean of means. `OptimizerStep.__call__` divides: its `loss_scale` is known before
the first micro-batch runs. Therefore optimization is manual, and we also clip ourselves (Lightning refuses to clip under fused AdamW with
mixed precision). Nothing here waits for the device.

`out_of_memory.py` cuts the micro-batches, and repeats a step that ran out of memory with smaller ones.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from llm_lightning.data.collate import MicroBatch, StepBatch
from llm_lightning.models import dropout, embedding
from llm_lightning.privacy.step import PrivateGradient
from llm_lightning.training import parallel
from llm_lightning.training.graphs import Graphs
from llm_lightning.training.memory import return_unused
from llm_lightning.training.out_of_memory import MemoryRetry

if TYPE_CHECKING:
    from llm_lightning.objectives.base import Objective


class OptimizerStep:
    """Takes the optimizer steps of a run: call it with the batch of each step."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._retry = MemoryRetry(objective, self._drop_graphs)
        self._graphs: Graphs | None = None
        self._private: PrivateGradient | None = None

    def __call__(self, batch: StepBatch) -> dict[str, Any]:
        """Train on the batch of a step. Return this rank's `loss_sum`, all ranks' `targets`, `gradient_norm` and `learning_rate`.

        Raises RunError if memory runs out and smaller micro-batches cannot help.
        """
        objective, trainer = self._objective, self._objective.trainer
        optimizer: Any = objective.optimizers()
        scheduler: Any = objective.lr_schedulers()

        global_targets = self._sum_over_ranks(batch.rank_targets)
        loss_scale = trainer.world_size / global_targets.clamp(min=1.0)  # DDP and FSDP2 average over ranks, and we want the sum
        if self._private is not None:
            loss_scale = torch.ones_like(loss_scale)
        loss_sum = self._retry.run_in_pieces(  # once; after an out-of-memory error again, with smaller micro-batches
            batch, lambda micro_batches: self._accumulate_gradients(micro_batches, batch.index, loss_scale)
        )

        if self._private is not None:
            self._private.finish(batch.index, trainer.world_size, lambda sums: trainer.strategy.reduce(sums, reduce_op="sum"))
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        gradient_norm = clip_gradients(objective.model, optimizer.optimizer, objective.clip_norm, scaler)
        learning_rate = optimizer.param_groups[0]["lr"]
        optimizer.step()
        if self._graphs is None:  # CUDA graphs keep the memory of gradients, and zero it themselves
            optimizer.zero_grad()
        scheduler.step()
        return_unused(objective.device, batch.index)
        return {"loss_sum": loss_sum, "targets": global_targets, "gradient_norm": gradient_norm, "learning_rate": learning_rate}

    def _accumulate_gradients(self, micro_batches: list[MicroBatch], step: int, loss_scale: Tensor) -> Tensor:
        """Add the gradients of a step's micro-batches to those of the parameters. Return the sum of the losses, not scaled."""
        objective, trainer = self._objective, self._objective.trainer
        dropout.seed(dropout.mix_seeds(objective.seed, step, objective.global_rank), objective.device)
        loss_sum = torch.zeros_like(loss_scale)
        if self._graphs is not None:
            for i, micro_batch in enumerate(micro_batches):
                loss_sum += self._graphs(micro_batch, loss_scale, first=i == 0)
            return loss_sum
        with (
            trainer.precision_plugin.forward_context()
        ):  # where our plugin casts; Lightning's own it has entered already, without harm
            for i, micro_batch in enumerate(micro_batches):
                is_last = i == len(micro_batches) - 1
                with parallel.gradient_sync(trainer.strategy, objective.model, is_last and self._private is None):
                    if self._private is None:
                        loss_sum += self._run_forward_backward(micro_batch, loss_scale, is_last)
                    else:
                        run = partial(self._run_forward_backward, loss_scale=loss_scale, is_last=False)
                        loss_sum += self._private.accumulate(micro_batch, run)
        return loss_sum

    def _run_forward_backward(self, batch: MicroBatch, loss_scale: Tensor, is_last: bool = True) -> Tensor:
        """Add the gradients of a micro-batch's scaled loss to those of the parameters. Return the loss, not scaled.

        `is_last`: whether ranks exchange gradients in this backward pass.
        """
        loss = self._objective.loss_sum(batch)
        if batch.blank:  # it runs so that all ranks gather a sharded model together
            loss = loss * 0.0
        self._retry.is_reducing = is_last
        self._objective.manual_backward(loss * loss_scale.to(loss.dtype))
        return loss.detach()

    def _sum_over_ranks(self, rank_count: int) -> Tensor:
        """Return the sum of every rank's count, a scalar on the device. MPS has no fp64."""
        trainer, device = self._objective.trainer, self._objective.device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        count = torch.full((), float(rank_count), dtype=dtype, device=device)
        return trainer.strategy.reduce(count, reduce_op="sum") if trainer.world_size > 1 else count

    def use_graphs(self, context: Callable[[], AbstractContextManager[Any]] | None) -> None:
        """Run forward and backward passes as CUDA graphs in the precision's context; None turns graphs off."""
        trained = [parameter for parameter in self._objective.model.parameters() if parameter.requires_grad]
        self._graphs = None if context is None else Graphs(self._run_forward_backward, trained, context)

    def use_private_gradient(self, private: PrivateGradient) -> None:
        """Train with differential privacy."""
        self._private = private

    def _drop_graphs(self) -> bool:
        """Turn graphs off. Return whether they were on."""
        had_graphs, self._graphs = self._graphs is not None, None
        return had_graphs


def clip_gradients(model: Any, optimizer: torch.optim.Optimizer, max_norm: float | None, scaler: Any = None) -> Tensor:
    """Scale the gradients so that their norm is at most `max_norm`; return the norm before, over all ranks. None does not clip.

    A `scaler` (fp16) has scaled the loss: gradients are unscaled first.
    """
    if scaler is not None:
        scaler.unscale_(optimizer)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    with embedding.written_only(model, trained) as parameters:
        norm = nn.utils.clip_grad_norm_(parameters, max_norm or float("inf"))
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
