"""Repeat a step that ran out of memory, with its micro-batches in halves; they stay so for the rest of the run.

The whole step restarts. The new weights equal, to the last bit, those of a step that was cut so from the start.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from llm_lightning import distributed
from llm_lightning.data.collate import MicroBatch, StepBatch, split_micro_batch
from llm_lightning.errors import RunError
from llm_lightning.training import parallel
from llm_lightning.training.advice import advise_on_row

if TYPE_CHECKING:
    from llm_lightning.objectives.base import Objective

log = logging.getLogger(__name__)

WAIT = 10.0
"""Seconds that a rank out of memory waits for the others to run out too."""


class MemoryRetry:
    """Cuts micro-batches for the memory of the device, and restarts steps that ran out of it."""

    def __init__(self, objective: Objective, drop_graphs: Callable[[], bool]) -> None:
        """`drop_graphs` turns CUDA graphs off, and returns whether they were on."""
        self._objective, self._drop_graphs = objective, drop_graphs
        self.pieces = 1
        """Number of pieces that each micro-batch is cut into: a power of two."""
        self.is_reducing = False
        """Whether the backward pass that reduces gradients has begun; the step sets it."""

    def _cut(self, micro_batches: list[MicroBatch]) -> list[MicroBatch]:
        """Return the micro-batches in pieces. Under FSDP2 every rank has the same number, as all ranks gather weights together."""
        parts = [split_micro_batch(batch, self.pieces) for batch in micro_batches]
        if isinstance(self._objective.model, FSDPModule):
            parts = [part + [replace(part[-1], blank=True)] * (self.pieces - len(part)) for part in parts]
        return [piece for part in parts for piece in part]

    def run_in_pieces(self, batch: StepBatch, accumulate_gradients: Callable[[list[MicroBatch]], Tensor]) -> Tensor:
        """Return what `accumulate_gradients` returns for the micro-batches of a step, cut so that memory suffices for them.

        Raises RunError if memory runs out and the step cannot restart.
        """
        objective, strategy = self._objective, self._objective.trainer.strategy
        attempt = 0
        while True:
            self.is_reducing = False
            micro_batches = self._cut(batch.micro_batches)
            collectives = parallel.exchanges(strategy, objective.model)
            try:
                return accumulate_gradients(micro_batches)
            except torch.OutOfMemoryError as error:
                if self._drop_graphs():
                    remedy = "CUDA graphs, which keep memory of their own, are left out from now on"
                else:
                    size = self._halve(micro_batches, batch.index, attempt, collectives, error)
                    remedy = f"micro-batches of {size:,} tokens are halved from now on (batch.micro_tokens)"
            attempt += 1  # here the error is gone, and with it the tensors that its traceback held
            parallel.discard_step(objective.model)
            if objective.device.type == "cuda":
                torch.cuda.empty_cache()
            log.warning("out of memory: %s", remedy)

    def _halve(
        self, micro_batches: list[MicroBatch], step: int, attempt: int, collectives: int | None, error: torch.OutOfMemoryError
    ) -> int:
        """Cut micro-batches in halves on every rank, and return the tokens of the largest so far.

        `collectives`: how many this rank had started before the attempt, None if unknown. Ranks can only restart together, and only if
        none waits for another: all must have run out of memory after the same collective. DDP cannot undo a reduction either, once its
        backward pass has begun. Raises RunError if the ranks cannot restart.
        """
        objective, trainer = self._objective, self._objective.trainer
        collectives_now = parallel.exchanges(trainer.strategy, objective.model)
        started = None if collectives_now is None or collectives is None else collectives_now - collectives
        largest = max(micro_batches, key=lambda batch: len(batch.input_ids))
        size, world = len(largest.input_ids), trainer.world_size
        rank = f"rank {objective.global_rank} of {world}" if world > 1 else "the device"
        if len(largest.indices) == 1:
            what, advice = advise_on_row(largest)
            raise RunError(f"{rank} ran out of memory at step {step} on {what} of {size:,} tokens: {advice}.") from error
        place = f"out of memory at step {step}, attempt {attempt}, collective {started}"
        can_restart = started is not None and (isinstance(objective.model, FSDPModule) or not self.is_reducing)
        if world > 1 and not (can_restart and distributed.all_arrive(place, seconds=WAIT)):
            raise RunError(
                f"{rank} ran out of memory on a micro-batch of {size:,} tokens at step {step}, and not at the same place as the "
                f"others: lower batch.micro_tokens, which leaves the result as it is, or data.block_size."
            ) from error
        self.pieces *= 2
        return size
