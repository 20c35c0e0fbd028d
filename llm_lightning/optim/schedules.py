"""Learning-rate schedules: functions of (step, total steps) that give a factor of the peak rate.

Pure functions, so that a resumed run needs no state. `warmup` is a number of steps, or below 1 a share of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

from llm_lightning.errors import UserError
from llm_lightning.signatures import Range

Factor = Callable[[int], float]


def linear(total: int, *, warmup: Annotated[float, Range(0)] = 0.06) -> Factor:
    """Up over the warm-up, then straight down to zero at `total`."""
    return _warmed(total, warmup, lambda progress: 1 - progress)


def cosine(total: int, *, warmup: Annotated[float, Range(0)] = 0.02, floor: Annotated[float, Range(0, 1)] = 0.1) -> Factor:
    """Up over the warm-up, then half a cosine down to `floor` (Loshchilov and Hutter 2017, equation 5, one period)."""
    return _warmed(total, warmup, lambda progress: floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2)


def warmup_stable_decay(
    total: int,
    *,
    warmup: Annotated[float, Range(0)] = 0.02,
    decay: Annotated[float, Range(0, 1)] = 0.2,
    floor: Annotated[float, Range(0, 1)] = 0.0,
) -> Factor:
    """Up, then constant, then down over the last `decay` share as 1 - sqrt (Hu et al. 2024; Hägele et al. 2024)."""

    def shape(progress: float) -> float:
        left = (progress - (1 - decay)) / decay if decay else 0.0
        return 1.0 if left <= 0 else floor + (1 - floor) * (1 - math.sqrt(left))

    return _warmed(total, warmup, shape)


def _warmed(total: int, warmup: float, shape: Callable[[float], float]) -> Factor:
    steps = round(warmup * total) if warmup < 1 else int(warmup)
    if steps > total:
        raise UserError(f"scheduler.warmup={warmup:g}: the run has {total} steps; give fewer, or a share below 1.")

    def factor(step: int) -> float:
        if step < steps:
            return (step + 1) / steps
        return shape(min(1.0, (step - steps) / max(1, total - steps)))

    return factor
