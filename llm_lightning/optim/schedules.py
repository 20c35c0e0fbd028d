"""Learning-rate schedules: functions of the step and the total steps that return a factor of the peak rate.

They are pure functions, so that a resumed run needs no state. `warmup` is a number of steps, or below 1 a share of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

from llm_lightning.config.signatures import Range
from llm_lightning.errors import UserError

Factor = Callable[[int], float]


def linear(total: int, *, warmup: Annotated[float, Range(0)] = 0.06) -> Factor:
    """Rise over the warm-up, then fall in a straight line to zero at `total`.

    `warmup` is a number of steps, or below 1 a share of all steps.
    """
    return _warm_up(total, warmup, lambda progress: 1 - progress)


def cosine(total: int, *, warmup: Annotated[float, Range(0)] = 0.02, floor: Annotated[float, Range(0, 1)] = 0.1) -> Factor:
    """Rise over the warm-up, then fall by half a cosine to `floor` (Loshchilov and Hutter 2017, equation 5, one period).

    `warmup` is a number of steps, or below 1 a share of all steps; `floor` is a share of the peak rate.
    """
    return _warm_up(total, warmup, lambda progress: floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2)


def warmup_stable_decay(
    total: int,
    *,
    warmup: Annotated[float, Range(0)] = 0.02,
    decay: Annotated[float, Range(0, 1)] = 0.2,
    floor: Annotated[float, Range(0, 1)] = 0.0,
) -> Factor:
    """Rise, stay constant, then fall over the last `decay` share of all steps as 1 - sqrt (Hu et al. 2024; Hägele et al. 2024).

    `warmup` is a number of steps, or below 1 a share of all steps; `floor` is the share of the peak rate at the end.
    """

    falling = min(decay, 1 - _warmup_steps(total, warmup) / total)

    def shape(remaining: float) -> float:
        """Return the factor, given the share of all steps that remain."""
        return floor + (1 - floor) * (1 - math.sqrt(1 - remaining / falling)) if remaining < falling else 1.0

    return _warm_up(total, warmup, lambda progress: shape((1 - progress) * (1 - _warmup_steps(total, warmup) / total)))


def _warmup_steps(total: int, warmup: float) -> int:
    steps = round(warmup * total) if warmup < 1 else int(warmup)
    if steps > total:
        raise UserError(f"scheduler.warmup={warmup:g}: the run has {total} steps; give fewer, or a share below 1.")
    return steps


def _warm_up(total: int, warmup: float, shape: Callable[[float], float]) -> Factor:
    """Rise in a straight line, then follow `shape` of the progress from 0 to 1 after it."""
    steps = _warmup_steps(total, warmup)

    def factor(step: int) -> float:
        if step < steps:
            return (step + 1) / steps
        return shape(min(1.0, (step - steps) / max(1, total - steps)))

    return factor
