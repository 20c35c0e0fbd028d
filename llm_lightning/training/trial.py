"""Find the fastest way to run forward and backward passes on this GPU by trial: kernel by kernel, CUDA graphs, compiled layers.

Each variant is compared with the first one: losses and gradients of the same batches, without dropout, must agree up to rounding. One that
fails or differs is reported and not used, so a variant that nobody tested on some GPU cannot train wrongly there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning
import torch
from torch import Tensor

from llm_lightning.data.buckets import fill
from llm_lightning.data.collate import MicroBatch
from llm_lightning.data.datamodule import DataModule
from llm_lightning.errors import first_line
from llm_lightning.models.dropout import drops
from llm_lightning.objectives.base import Objective
from llm_lightning.training import compilation
from llm_lightning.training.graphs import Graphs, shape_of

log = logging.getLogger(__name__)

STEPS = 4
"""Steps of the run whose micro-batches are tried."""
MAX_BATCHES = 4
"""Micro-batches of different shapes that are tried, at most."""
ROUNDS = 5
"""Timed passes over them; three untimed ones come before, which capture graphs and compile layers."""
ERROR = {True: 0.03, False: 2e-3}
"""Largest relative difference of losses and gradients from those of the first variant, in bf16 and in fp32."""
GAIN = 1.03
"""A variant must be this many times as fast as a simpler one to be chosen."""


@dataclass(frozen=True)
class StepVariant:
    """One way to run the forward and backward passes of a step."""

    name: str
    compiled: bool = False
    graphs: bool = False


EAGER_VARIANTS = (StepVariant("kernel by kernel"), StepVariant("CUDA graphs", graphs=True))
COMPILED_VARIANTS = (
    StepVariant("compiled layers", compiled=True),
    StepVariant("compiled layers in CUDA graphs", compiled=True, graphs=True),
)


def take_fastest(objective: Objective, data: DataModule, trainer: lightning.Trainer, compiles: bool) -> str:
    """Set the objective up for the fastest variant, and describe it with the times of all.

    `compiles`: whether to try compiled layers.
    """
    device = trainer.strategy.root_device
    objective.to(device)
    batches = [batch.to(device) for batch in _batches(data, trainer.world_size)]
    limit = ERROR["bf16" in str(trainer.precision)]
    seconds: dict[StepVariant, float] = {}
    reference: _Result | None = None
    # draws of dropout differ from variant to variant; a model without any stays in training mode, and nothing is compiled twice
    objective.train(not drops(objective.model))
    compilation.stop(objective.model)
    for variant in EAGER_VARIANTS + (COMPILED_VARIANTS if compiles else ()):
        if variant is COMPILED_VARIANTS[0]:
            compilation.start(objective.model)  # once: what is compiled here serves the run
        try:
            result = _run(objective, batches, variant, trainer.precision_plugin.forward_context)
            reference = reference or result
            if (problem := _compare(result, reference, limit)) is not None:
                raise ArithmeticError(problem)
            seconds[variant] = _time(objective.train(), batches, variant, trainer.precision_plugin.forward_context)
        except Exception as error:  # of a compiler, a driver, or a model's own code
            if variant is EAGER_VARIANTS[0]:
                raise
            log.warning("left out: %s: %s", variant.name, first_line(error, 200))
        finally:
            objective.train(not drops(objective.model))
            objective.model.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
    objective.train()
    chosen = EAGER_VARIANTS[0]
    for variant in seconds:
        if seconds[variant] * GAIN < seconds[chosen]:
            chosen = variant
    if not chosen.compiled:
        compilation.stop(objective.model)
    objective.take_step.use_graphs(trainer.precision_plugin.forward_context if chosen.graphs else None)
    times = ", ".join(f"{variant.name} {1000 * value:.1f} ms" for variant, value in seconds.items())
    return f"{chosen.name} (a micro-batch: {times})"


def _batches(data: DataModule, world: int) -> list[MicroBatch]:
    """Return micro-batches of the first steps, one of each shape that they are padded to; of streamed data the longest rows."""
    if data.dataset.stream is not None:
        return [data.longest(world)]
    steps = data.training_steps(0, world)
    batches = [batch for number in range(min(STEPS, len(steps))) for batch in steps[number].micro_batches]
    batch_by_shape = {shape_of(fill(batch)): batch for batch in batches}
    return list(batch_by_shape.values())[:MAX_BATCHES]


@dataclass
class _Result:
    losses: list[float]
    gradients: list[Tensor]


def _run(objective: Objective, batches: list[MicroBatch], variant: StepVariant, context: Callable[[], Any]) -> _Result:
    """Return losses and gradients of the batches, from the third pass: earlier ones capture graphs or compile."""
    run_passes = _build_passes(objective, variant, context)
    for _ in range(3):
        losses = [run_passes(batch, i == 0) for i, batch in enumerate(batches)]
    gradients = [p.grad.clone() for p in objective.model.parameters() if p.grad is not None]
    return _Result([float(loss) for loss in losses], gradients)


def _time(objective: Objective, batches: list[MicroBatch], variant: StepVariant, context: Callable[[], Any]) -> float:
    """Return the seconds per micro-batch."""
    objective.model.zero_grad(set_to_none=True)
    run_passes = _build_passes(objective, variant, context)
    device = batches[0].input_ids.device
    for number in range(3 + ROUNDS):
        if number == 3:
            torch.cuda.synchronize(device)
            started = time.perf_counter()
        for i, batch in enumerate(batches):
            run_passes(batch, i == 0)
    torch.cuda.synchronize(device)
    return (time.perf_counter() - started) / ROUNDS / len(batches)


def _build_passes(objective: Objective, variant: StepVariant, context: Callable[[], Any]) -> Callable[[MicroBatch, bool], Tensor]:
    """Return a function that runs forward and backward on a batch by one variant."""
    parameters = [p for p in objective.model.parameters() if p.requires_grad]

    def scale_of(batch: MicroBatch) -> Tensor:
        return torch.full((), 1 / max(batch.target_count, 1), device=parameters[0].device)

    def plain(batch: MicroBatch, loss_scale: Tensor) -> Tensor:
        loss = objective.loss_sum(batch)
        (loss * loss_scale.to(loss.dtype)).backward()
        return loss.detach()

    if variant.graphs:
        graphs = Graphs(plain, parameters, context)

        def run_captured(batch: MicroBatch, first: bool) -> Tensor:
            loss = graphs(batch, scale_of(batch), first)
            if graphs.failure is not None:
                raise RuntimeError(graphs.failure)
            return loss

        return run_captured

    def run_directly(batch: MicroBatch, first: bool) -> Tensor:
        if first:
            objective.model.zero_grad(set_to_none=True)
        with context():
            return plain(batch, scale_of(batch))

    return run_directly


def _compare(result: _Result, reference: _Result, limit: float) -> str | None:
    """Return how a result differs from the reference by more than rounding; None if it does not."""
    if len(result.gradients) != len(reference.gradients):
        return f"{len(result.gradients)} weights have gradients, and {len(reference.gradients)} should"
    for loss, expected in zip(result.losses, reference.losses, strict=True):
        if not abs(loss - expected) <= limit * max(abs(expected), 1e-6):
            return f"a loss is {loss:.6g}, and {expected:.6g} kernel by kernel"
    pairs = list(zip(result.gradients, reference.gradients, strict=True))
    difference = sum(float((gradient - expected).float().norm()) ** 2 for gradient, expected in pairs) ** 0.5
    norm = sum(float(expected.float().norm()) ** 2 for _, expected in pairs) ** 0.5
    error = difference / max(norm, 1e-30)
    return None if error <= limit else f"gradients are off by {error:.1%}"
