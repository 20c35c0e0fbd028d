"""What a run reports while it trains: loss, learning rate, gradient norm, tokens per second; and the totals for its summary.

Values are summed on the device and read every `log_every_steps`: between two log lines nothing waits for the device. The loss
logged is the mean over the targets of the interval, not that of the last step.
"""

from __future__ import annotations

import math
import time
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from tqdm.auto import tqdm

from llm_lightning.data.collate import Step
from llm_lightning.objectives.base import Objective
from llm_lightning.training.throughput import Peak, flops_per_token


class Diverged(RuntimeError):
    """The loss is not a number any more."""


class Monitor(Callback):
    """Meters training. Tokens are real tokens, never padding; seconds are those spent in training steps, validation left out."""

    def __init__(self, every: int, total_steps: int, progress: bool) -> None:
        self.every, self.total_steps, self.progress = every, total_steps, progress
        self.tokens = self.positions = self.sequences = 0
        self.seconds = 0.0
        self.since = time.perf_counter()
        self.flops = 0.0
        self.peak = Peak()
        self._bar: tqdm[Any] | None = None
        self._clear()

    def _clear(self) -> None:
        self._loss: Any = 0.0
        self._targets: Any = 0.0
        self._interval = {"tokens": 0, "positions": 0, "sequences": 0, "seconds": 0.0}

    # ---- totals ----

    def throughput(self) -> dict[str, float | None]:
        """Of the whole run: what `summary.json` holds."""
        seconds = max(self.seconds, 1e-9)
        return {
            "tokens_per_second": self.tokens / seconds,
            "samples_per_second": self.sequences / seconds,
            "mfu": self._mfu(self.tokens / seconds),
            "padding_fraction": 1 - self.tokens / self.positions if self.positions else None,
        }

    def _mfu(self, tokens_per_second: float) -> float | None:
        return tokens_per_second * self.flops / self.peak.flops if self.peak.flops else None

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("tokens", "positions", "sequences", "seconds")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    # ---- hooks ----

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        assert isinstance(module, Objective)
        self.flops = flops_per_token(module.model, module.text.splits["train"].lengths)
        self.peak = Peak.measure(module.device, trainer.precision)
        if self.progress and trainer.is_global_zero:
            self._bar = tqdm(total=self.total_steps, initial=trainer.global_step, unit="step", dynamic_ncols=True, mininterval=0.5)
        self.since = time.perf_counter()

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Step, batch_index: int) -> None:
        now = time.perf_counter()
        for name, amount in (("tokens", batch.tokens), ("positions", batch.positions), ("sequences", batch.sequences)):
            self._interval[name] += amount
        self._interval["seconds"] += now - self.since
        self._loss += outputs["loss_sum"]
        self._targets += outputs["targets"]
        self.since = now
        step = trainer.global_step
        if step % self.every == 0 or step == self.total_steps:
            self._report(trainer, module, outputs, batch.epoch)
            self.since = time.perf_counter()

    def _report(self, trainer: lightning.Trainer, module: Objective, outputs: Any, epoch: float) -> None:
        counts = torch.tensor([float(self._interval[n]) for n in ("tokens", "positions", "sequences")], dtype=torch.float64)
        loss = torch.as_tensor(self._loss, dtype=torch.float32)
        if trainer.world_size > 1:
            counts = trainer.strategy.reduce(counts.float().to(module.device), reduce_op="sum").double().cpu()
            loss = trainer.strategy.reduce(loss, reduce_op="sum")
        mean = float(loss) / max(float(self._targets), 1.0)
        tokens, positions, sequences = (round(c) for c in counts.tolist())
        seconds = max(float(self._interval["seconds"]), 1e-9)
        self.tokens, self.positions, self.sequences = (
            self.tokens + tokens,
            self.positions + positions,
            self.sequences + sequences,
        )
        self.seconds += seconds
        self._clear()
        if not math.isfinite(mean):
            raise Diverged(
                f"the training loss is {mean} at step {trainer.global_step}: training has diverged. Lower optimizer.lr, lengthen "
                f"scheduler.warmup, or set trainer.precision=32-true; the last good state is in the run's checkpoints/."
            )
        rate = outputs["learning_rate"]
        values = {
            "train/loss": mean,
            "train/learning_rate": rate,
            "train/gradient_norm": float(outputs["gradient_norm"]),
            "train/tokens_per_second": tokens / seconds,
            "train/padding_fraction": 1 - tokens / max(positions, 1),
        }
        mfu = self._mfu(tokens / seconds)
        self.emit(trainer, values | ({} if mfu is None else {"train/mfu": mfu}), epoch)
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {mean:.3f} · lr {rate:.1e} · {tokens / seconds:,.0f} tokens/s", refresh=False)
            self._bar.update(trainer.global_step - self._bar.n)

    def on_validation_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._validation_started = time.perf_counter()

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        assert isinstance(module, Objective)
        self.emit(trainer, module.latest, None)
        if self._bar is not None:
            shown = {name.split("/")[1]: value for name, value in module.latest.items()}
            best = module.monitor.split("/")[1]
            self._bar.write(
                f"  step {trainer.global_step}: " + " · ".join(f"{n} {v:.4g}" for n, v in shown.items() if n in ("loss", best))
            )

    def on_train_batch_start(self, *_: Any) -> None:
        if hasattr(self, "_validation_started"):  # time since then was validation's and the checkpoint's
            del self._validation_started
            self.since = time.perf_counter()

    def emit(self, trainer: lightning.Trainer, values: dict[str, float], epoch: float | None) -> None:
        """Hand values to every logger, with the x-axes that they are drawn against."""
        pending = self._interval
        axes = {"tokens": self.tokens + pending["tokens"], "seconds": round(self.seconds + pending["seconds"], 3)} | (
            {} if epoch is None else {"epoch": round(epoch, 5)}
        )
        for logger in trainer.loggers:
            logger.log_metrics(axes | values, step=trainer.global_step)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def on_train_end(self, *_: Any) -> None:
        self.close()

    def on_exception(self, *_: Any) -> None:
        self.close()
