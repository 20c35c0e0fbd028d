"""Run an optimizer step: from the micro-batches of one rank to new weights.

A batch of the training loader is a whole step. Its gradient is that of one big batch: the sum of the losses of its targets, divided
by their number over all micro-batches and ranks; never a mean of means. Therefore optimization is manual, and we also clip ourselves
(Lightning refuses to clip under fused AdamW with mixed precision). Nothing here waits for the device.

If memory runs out, the whole step restarts with its micro-batches in halves; they stay so for the rest of the run. The new weights equal,
to the last bit, those of a step that was cut so from the start.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from llm_lightning import distributed
from llm_lightning.data.collate import MicroBatch, Step, pieces
from llm_lightning.errors import RunError
from llm_lightning.models import dropout, embedding
from llm_lightning.training import parallel
from llm_lightning.training.graphs import Graphs

if TYPE_CHECKING:
    from llm_lightning.objectives.base import Objective

log = logging.getLogger(__name__)

PATIENCE = 10.0
"""Seconds that a rank out of memory waits for the others to run out too."""


class OptimizerStep:
    """The steps of one run: call it with each `Step`."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._pieces = 1
        """Number of pieces that each micro-batch is cut into: a power of two."""
        self._reducing = False
        """Whether the backward pass that reduces gradients has begun."""
        self._graphs: Graphs | None = None

    def use_graphs(self, context: Callable[[], AbstractContextManager[Any]] | None) -> None:
        """Run forward and backward passes as CUDA graphs in the precision's context; None turns graphs off."""
        trained = [parameter for parameter in self._objective.model.parameters() if parameter.requires_grad]
        self._graphs = None if context is None else Graphs(self.passes, trained, context)

    def __call__(self, step: Step) -> dict[str, Any]:
        """Train on a step. Return its `loss_sum` (this rank's) and `targets` (all ranks'), `gradient_norm` and `learning_rate`.

        Raises RunError if memory runs out and smaller micro-batches cannot help.
        """
        objective, trainer = self._objective, self._objective.trainer
        optimizer: Any = objective.optimizers()
        scheduler: Any = objective.lr_schedulers()
        targets = torch.full((), float(step.targets), dtype=_exact_dtype(objective.device), device=objective.device)
        if trainer.world_size > 1:
            targets = trainer.strategy.reduce(targets, reduce_op="sum")
        loss_sum = self._accumulate(step, targets)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        norm = clip(objective.model, optimizer.optimizer, objective.clip_norm, scaler)
        rate = optimizer.param_groups[0]["lr"]
        optimizer.step()
        if self._graphs is None:  # they write over gradients in place
            optimizer.zero_grad()
        scheduler.step()
        return {"loss_sum": loss_sum, "targets": targets, "gradient_norm": norm, "learning_rate": rate}

    def _accumulate(self, step: Step, targets: Tensor) -> Tensor:
        """Accumulate the gradients of a step in the parameters, and return its summed loss; restart with halves if memory runs out."""
        objective, strategy = self._objective, self._objective.trainer.strategy
        attempt = 0
        while True:
            dropout.seed(mix(objective.seed, step.step, objective.global_rank), objective.device)
            batches = self._cut(step.micro_batches)
            begun = parallel.exchanges(strategy, objective.model)
            try:
                return self._backward(batches, targets)
            except torch.OutOfMemoryError as error:
                if self._graphs is not None:
                    remedy = "CUDA graphs, which keep memory of their own, are left out from now on"
                else:
                    now = parallel.exchanges(strategy, objective.model)
                    started = None if now is None or begun is None else now - begun
                    size = self._halve(step.step, attempt, batches, started, error)
                    remedy = f"micro-batches of {size:,} tokens are halved from now on (batch.micro_tokens)"
            attempt += 1  # here the error is gone, and with it the tensors that its traceback held
            self._graphs = None
            parallel.discard_step(objective.model)
            if objective.device.type == "cuda":
                torch.cuda.empty_cache()
            log.warning("out of memory: %s", remedy)

    def _cut(self, batches: list[MicroBatch]) -> list[MicroBatch]:
        """Return the micro-batches in pieces. Under FSDP2 every rank has the same number, as all ranks gather weights together."""
        parts = [pieces(batch, self._pieces) for batch in batches]
        if isinstance(self._objective.model, FSDPModule):
            parts = [part + [replace(part[-1], blank=True)] * (self._pieces - len(part)) for part in parts]
        return [piece for part in parts for piece in part]

    def _backward(self, batches: list[MicroBatch], targets: Tensor) -> Tensor:
        """Add the gradients of micro-batches to those of the parameters, and return their summed loss."""
        objective, trainer = self._objective, self._objective.trainer
        scale = trainer.world_size / targets.clamp(min=1.0)  # DDP and FSDP2 average over ranks, and we want the sum
        total = torch.zeros_like(targets)
        if self._graphs is not None:
            for i, batch in enumerate(batches):
                total += self._graphs(batch, scale, first=i == 0)
            return total
        with trainer.precision_plugin.forward_context():
            for i, batch in enumerate(batches):
                self._reducing = False
                last = i == len(batches) - 1
                with parallel.gradient_sync(trainer.strategy, objective.model, last):
                    total += self.passes(batch, scale, last)
        return total

    def passes(self, batch: MicroBatch, scale: Tensor, last: bool = True) -> Tensor:
        """Run forward and backward: add the gradients of `scale` times a micro-batch's loss to those of the parameters. Return the loss.

        `last`: whether ranks exchange gradients in this backward pass.
        """
        loss = self._objective.loss_sum(batch) * (not batch.blank)
        self._reducing = last
        self._objective.manual_backward(loss * scale.to(loss.dtype))
        return loss.detach()

    def _halve(self, step: int, attempt: int, batches: list[MicroBatch], started: int | None, error: torch.OutOfMemoryError) -> int:
        """Cut micro-batches in halves on every rank, and return the tokens of the largest so far.

        `started` is the number of collectives that the attempt began, None if unknown. Ranks can only restart together, and only if none
        waits for another: all must have run out of memory after the same collective. DDP cannot undo a reduction either, once its
        backward pass has begun. Raises RunError if the ranks cannot restart.
        """
        objective = self._objective
        largest = max(batches, key=lambda batch: len(batch.input_ids))
        size, world = len(largest.input_ids), objective.trainer.world_size
        rank = f"rank {objective.global_rank} of {world}" if world > 1 else "the device"
        if len(largest.indices) == 1:
            raise RunError(
                f"{rank} ran out of memory at step {step} on a single sequence of {size:,} tokens: lower data.block_size, or choose a "
                f"smaller model."
            ) from error
        place = f"out of memory at step {step}, attempt {attempt}, collective {started}"
        possible = started is not None and (isinstance(objective.model, FSDPModule) or not self._reducing)
        if world > 1 and not (possible and distributed.all_arrive(place, seconds=PATIENCE)):
            raise RunError(
                f"{rank} ran out of memory on a micro-batch of {size:,} tokens at step {step}, and not at the same place as the others: "
                f"lower batch.micro_tokens, which leaves the result as it is, or data.block_size."
            ) from error
        self._pieces *= 2
        return size


def clip(model: Any, optimizer: torch.optim.Optimizer, largest: float | None, scaler: Any = None) -> Tensor:
    """Scale the gradients so that their norm is at most `largest`; return the norm before, over all ranks. None does not clip.

    A `scaler` (fp16) has scaled the loss: gradients are unscaled first.
    """
    if scaler is not None:
        scaler.unscale_(optimizer)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    with embedding.written_only(model, trained) as parameters:
        norm = nn.utils.clip_grad_norm_(parameters, largest or float("inf"))
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _exact_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of a step's counts and sums; MPS has no fp64."""
    return torch.float32 if device.type == "mps" else torch.float64


def mix(*parts: int) -> int:
    """Return one 63-bit seed from several numbers (splitmix64 steps), so that neighbouring steps share nothing."""
    state = 0
    for part in parts:
        state = (state + part + 0x9E3779B97F4A7C15) & (1 << 64) - 1
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & (1 << 64) - 1
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & (1 << 64) - 1
        state ^= state >> 31
    return state >> 1
