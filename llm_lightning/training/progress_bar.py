"""Show the progress of a training as a bar on the terminal."""

from __future__ import annotations

from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from tqdm.auto import tqdm

from llm_lightning.objectives.base import Objective
from llm_lightning.training.meter import Meter


class ProgressBar(Callback):
    """Callback that draws rank 0's bar whenever the meter has closed an interval; it has to come after the meter."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self._bar: tqdm[Any] | None = None

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if trainer.is_global_zero:
            total, initial = self.meter.total_steps, trainer.global_step
            self._bar = tqdm(total=total, initial=initial, unit="step", dynamic_ncols=True, mininterval=0.5)

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if self._bar is None or not self.meter.closes_interval(trainer.global_step):
            return
        values = self.meter.values
        loss, rate, speed = (values[f"train/{name}"] for name in ("loss", "learning_rate", "tokens_per_second"))
        mfu = f" · MFU {values['train/mfu']:.0%}" if "train/mfu" in values else ""
        spent = f" · ε ≤ {values['privacy/epsilon']:.2f}" if "privacy/epsilon" in values else ""
        self._bar.set_postfix_str(f"loss {loss:.3f} · lr {rate:.1e} · {speed:,.0f} tokens/s{mfu}{spent}", refresh=False)
        self._bar.update(trainer.global_step - self._bar.n)
        self.meter.restart_clock()

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Write a line with the loss and the monitored metric above the bar."""
        if self._bar is None or trainer.state.fn != TrainerFn.FITTING:
            return
        assert isinstance(module, Objective)
        metrics = {name.split("/")[1]: value for name, value in module.latest.items()}
        shown = ("loss", module.monitor.split("/")[1])
        line = " · ".join(f"{name} {value:.4g}" for name, value in metrics.items() if name in shown)
        self._bar.write(f"  step {trainer.global_step}: {line}")

    def on_train_end(self, *_: Any) -> None:
        self._close()

    def on_exception(self, *_: Any) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
