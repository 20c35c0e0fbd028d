"""End a training whose loss is not finite, before its weights are validated, saved or exported."""

from __future__ import annotations

import math
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from llm_lightning.errors import RunError
from llm_lightning.training.meter import Meter


class Diverged(RunError):
    """The loss has become NaN or infinite."""

    def __init__(self, what: str, value: float, step: int) -> None:
        super().__init__(
            f"the {what} is {value} at step {step}: training has diverged. Lower optimizer.lr, lengthen scheduler.warmup, or set "
            f"trainer.precision=32-true; the last good state is in the run's checkpoints/."
        )


class DivergenceGuard(Callback):
    """Callback that checks the training loss whenever the meter has read it from the device; it has to come after the meter.

    The loss is the sum over all ranks, so all of them raise at the same step.
    """

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self._require_finite(trainer.global_step)

    def on_validation_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        self._require_finite(trainer.global_step)

    def on_save_checkpoint(self, trainer: lightning.Trainer, *_: Any) -> None:
        self._require_finite(trainer.global_step)

    def _require_finite(self, step: int) -> None:
        if not math.isfinite(self.meter.loss):
            raise Diverged("training loss", self.meter.loss, step)
