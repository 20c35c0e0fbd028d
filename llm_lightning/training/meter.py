"""Meter a training: count tokens, seconds and losses, log them with learning rate, norms and energy, and total them for the summary.

Values are summed on the device and read every `log_every_steps`, and before a state is saved: in between, nothing waits for the device.
The logged loss is the mean over the targets of the interval, not that of the last step. A checkpoint inside an interval stores its sums,
and a resumed run continues them.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from torch.distributed.tensor import DTensor

from llm_lightning.data.collate import StepBatch
from llm_lightning.models.batch_form import is_unpadded
from llm_lightning.objectives.base import Objective
from llm_lightning.tracking.energy import Energy
from llm_lightning.training.memory import peak, release, settle
from llm_lightning.training.throughput import Flops, Peak

SUMMED = ("tokens", "positions", "sequences", "seconds", "waited", "loss", "targets")
BIN = math.log(1.02)  # of the histogram of step times: percentiles are known to 2 %


class Meter(Callback):
    """Callback that counts and times training steps. Tokens exclude padding; seconds are those of training steps, without validation."""

    state_key = "Monitor"  # as in the states of earlier versions

    def __init__(self, every: int, total_steps: int, cache: Path, energy: Energy | None = None) -> None:
        """`every` is the number of steps in an interval, `cache` the folder that stores the device's peak FLOP/s."""
        self.every, self.total_steps, self.cache, self.energy = every, total_steps, cache, energy
        self.totals = dict.fromkeys(SUMMED, 0.0)
        """Sums over all closed intervals and all ranks."""
        self.interval = dict.fromkeys(SUMMED, 0.0)
        """Sums over the open interval and all ranks, up to the last `gather`."""
        self.values: dict[str, float] = {}
        """The logged values of the last closed interval."""
        self._mine = dict.fromkeys(("tokens", "positions", "sequences"), 0)  # of this rank since the last `gather`
        self._loss = self._targets = torch.zeros(())
        self._times: list[float] = []  # seconds of this rank's steps since then
        self._waited = 0.0
        self._paused = False
        self.step_times: Counter[int] = Counter()
        """Number of this rank's steps, by the logarithm of their seconds in units of BIN. A GPU runs behind the program: there each step
        counts as the mean of the steps between two reads."""
        self.memory = 0.0
        """Peak memory so far in bytes: on a GPU of training, elsewhere of the process."""
        self._unpadded = False
        self.earlier = 0.0
        """Seconds of training before the resume, validations included."""
        self.begun = self.since = time.perf_counter()
        self.flops = Flops(0.0, 0.0)
        self.peak, self.devices = Peak(), 1
        self.measure_privacy: Callable[[int], float] | None = None
        """Returns a bound of the epsilon that some steps have spent, in private training."""

    # ---- totals ----

    @property
    def tokens(self) -> int:
        return round(self.totals["tokens"] + self.interval["tokens"])

    @property
    def seconds(self) -> float:
        return self.totals["seconds"] + self.interval["seconds"]

    @property
    def loss(self) -> float:
        """The sum of all losses up to the last `gather`; not finite if one of them is not."""
        return self.totals["loss"] + self.interval["loss"]

    def throughput(self) -> dict[str, Any]:
        """Return the throughput of the whole run, as `summary.json` holds it."""
        sums = {name: value + self.interval[name] for name, value in self.totals.items()}
        seconds, positions = max(sums["seconds"], 1e-9), sums["positions"]
        return {
            "tokens_per_second": sums["tokens"] / seconds,
            "samples_per_second": sums["sequences"] / seconds,
            "model_flops_per_second": self.flops(sums["tokens"], sums["targets"]) / seconds or None,
            "mfu": self._mfu(sums),
            "padding_fraction": 1 - sums["tokens"] / positions if positions else None,
            "data_wait_fraction": sums["waited"] / seconds,
            "step_seconds": {name: self._percentile(share) for name, share in (("p50", 0.5), ("p95", 0.95), ("max", 1.0))},
            "peak_memory_gib": self.memory / 2**30 or None,
        }

    def _percentile(self, share: float) -> float | None:
        """Return a quantile of the step times in seconds: this share of the steps took at most as long."""
        threshold = share * self.step_times.total()
        cumulative = 0
        for bin, count in sorted(self.step_times.items()):
            cumulative += count
            if cumulative >= threshold:
                return math.exp(bin * BIN)
        return None

    def _mfu(self, sums: dict[str, float]) -> float | None:
        """Return the model FLOP/s as a share of the devices' peak."""
        most = max(sums["seconds"], 1e-9) * self.devices * (self.peak.flops or 0.0)
        return self.flops(sums["tokens"], sums["targets"]) / most or None if most else None

    def gather(self, trainer: lightning.Trainer) -> None:
        """Add the counts of all ranks to the open interval. A collective.

        Losses are added in fp64, which is exact for them: so it does not matter how often this is called.
        """
        device, read_started = self._loss.device, time.perf_counter()
        counts = torch.tensor([float(count) for count in self._mine.values()], dtype=self._loss.dtype, device=device)
        sums = torch.cat([counts, self._loss[None]])
        if trainer.world_size > 1:
            sums = trainer.strategy.reduce(sums, reduce_op="sum")
        read = [*sums.tolist(), float(self._targets)]
        if self._times:  # the device's remaining work belongs to those steps
            self._times[-1] += time.perf_counter() - read_started
            if device.type != "cpu":
                self._times = [sum(self._times) / len(self._times)] * len(self._times)
        values = [*read, sum(self._times), self._waited]
        for name, value in zip((*self._mine, "loss", "targets", "seconds", "waited"), values, strict=True):
            self.interval[name] += value
        self.step_times.update(round(math.log(seconds) / BIN) for seconds in self._times)
        self._mine = dict.fromkeys(self._mine, 0)
        self._loss, self._targets = torch.zeros_like(self._loss), torch.zeros_like(self._targets)
        self._times, self._waited = [], 0.0
        self.memory = max(self.memory, peak(device))

    def state_dict(self) -> dict[str, Any]:
        elapsed = self.earlier + time.perf_counter() - self.begun
        state = {"elapsed": elapsed, "memory": self.memory, "flops": [self.flops.token, self.flops.target]}
        return state | {"totals": self.totals, "interval": self.interval, "step_times": dict(self.step_times)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.totals, self.interval, self.step_times = state["totals"], state["interval"], Counter(state["step_times"])
        self.earlier, self.memory = state.get("elapsed", 0.0), state.get("memory", 0.0)  # states of earlier versions have none
        self.flops = Flops(*state.get("flops", (0.0, 0.0)))

    # ---- hooks ----

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        assert isinstance(module, Objective)
        self._unpadded = is_unpadded(module.model)
        self.flops = Flops.of(module.model, module.dataset.splits["train"].texts)
        self.peak, self.devices = Peak.of(module.device, str(trainer.precision), self.cache), trainer.world_size
        kind = torch.float32 if module.device.type == "mps" else torch.float64  # MPS has no fp64
        self._loss = self._targets = torch.zeros((), dtype=kind, device=module.device)
        settle(module.device)
        self.begun = self.since = time.perf_counter()

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: StepBatch, batch_index: int) -> None:
        self._times.append(time.perf_counter() - self.since)
        self.since = time.perf_counter()
        self._mine["tokens"] += batch.tokens
        self._mine["positions"] += batch.positions if self._unpadded else batch.padded
        self._mine["sequences"] += batch.sequences
        self._loss = self._loss + outputs["loss_sum"]
        self._targets = self._targets + outputs["targets"]
        if self.closes_interval(trainer.global_step):
            self._close_interval(trainer, outputs, batch.epoch)
            self.restart_clock()

    def closes_interval(self, step: int) -> bool:
        """Return whether an interval ends with a step: every `every` steps, and at the end of the run."""
        return step % self.every == 0 or step == self.total_steps

    def restart_clock(self) -> None:
        """Exclude the time since the last step, which reports took."""
        self.since = time.perf_counter()

    def _close_interval(self, trainer: lightning.Trainer, outputs: Any, epoch: float) -> None:
        """Log the means of the interval and begin the next. A loss that is not finite is not logged: the guard then ends the run."""
        self.gather(trainer)
        closed, self.interval = self.interval, dict.fromkeys(SUMMED, 0.0)
        self.totals = {name: self.totals[name] + value for name, value in closed.items()}
        if not math.isfinite(closed["loss"]):
            return
        self.values = {
            "train/loss": closed["loss"] / max(closed["targets"], 1.0),
            "train/learning_rate": outputs["learning_rate"],
            "train/gradient_norm": float(outputs["gradient_norm"]),
            "train/tokens_per_second": closed["tokens"] / max(closed["seconds"], 1e-9),
            "train/padding_fraction": 1 - closed["tokens"] / max(closed["positions"], 1),
            "train/data_wait_fraction": closed["waited"] / max(closed["seconds"], 1e-9),
        }
        if (mfu := self._mfu(closed)) is not None:
            self.values["train/mfu"] = mfu
        if self.measure_privacy is not None:
            self.values["privacy/epsilon"] = self.measure_privacy(trainer.global_step)
        self.emit(trainer, self.values, epoch)

    def pause(self, trainer: lightning.Trainer) -> None:
        """Gather the counts so far, and stop the clock until the next step. A collective."""
        self.gather(trainer)
        self._paused = True

    def on_validation_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self.pause(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        assert isinstance(module, Objective)
        used = {} if self.energy is None else self.energy.usage()
        values = module.latest | {"train/weight_norm": _weight_norm(module)}
        self.emit(trainer, values | {f"energy/{name}": used[name] for name in ("kwh", "co2eq_kg") if name in used}, None)

    def on_train_batch_start(self, *_: Any) -> None:
        if self._paused:
            self._paused = False
            self.restart_clock()
        self._waited += time.perf_counter() - self.since

    def emit(self, trainer: lightning.Trainer, values: dict[str, float], epoch: float | None) -> None:
        """Send values to every logger, with the x-axes of their charts."""
        axes = {"tokens": self.tokens, "seconds": round(self.seconds, 3)} | ({} if epoch is None else {"epoch": round(epoch, 5)})
        for logger in trainer.loggers:
            logger.log_metrics(axes | values, step=trainer.global_step)

    def on_train_end(self, *_: Any) -> None:
        release()

    def on_exception(self, *_: Any) -> None:
        release()


def _weight_norm(module: Objective) -> float:
    """Return the norm of all trained weights, over all ranks that hold a part of them."""
    norms = [torch.linalg.vector_norm(weight.detach()) for weight in module.model.parameters() if weight.requires_grad]
    full_norms = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]  # FSDP leaves some weights gathered
    return float(torch.linalg.vector_norm(torch.stack(full_norms)))
