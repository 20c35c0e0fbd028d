"""After each validation: keep the best weights as a Hugging Face folder, and full states to continue from.

So a run takes a known amount of disk: the weights once (`hf/`), and `checkpoint.keep` states of about three times the weights
(model and AdamW's two moments) in `checkpoints/`. States are saved between optimizer steps only. A state saved before the validation of
its step records that, and a run that continues from it validates first.
"""

from __future__ import annotations

import logging
import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from llm_lightning import distributed
from llm_lightning.config.schema import CheckpointConfig, expand_home
from llm_lightning.data.collate import Step
from llm_lightning.data.module import DataModule
from llm_lightning.errors import Pruned, UserError
from llm_lightning.objectives.base import Objective
from llm_lightning.runs.identity import RunIdentity, require_same_run
from llm_lightning.training.checkpoint_io import damage
from llm_lightning.training.monitor import Diverged, Monitor
from llm_lightning.watchdog import no_time_limit

log = logging.getLogger(__name__)


class Checkpoints(Callback):
    """Callback that saves states every `every_steps` or after each validation, and exports the weights when their metric is best."""

    def __init__(
        self,
        config: CheckpointConfig,
        folder: Path,
        run: dict[str, Any],
        data: DataModule,
        monitor: Monitor,
        best: Path,
        keep: Callable[[], None],
        patience: int | None,
        judge: Callable[[int, float], bool] | None = None,
    ) -> None:
        """`keep` writes the current weights to the folder `best`; `run` (plain containers) goes into every checkpoint.

        `patience`: stop after this many validations without improvement. `judge(progress, metric)`, called after each validation, returns
        whether to continue; progress runs from 0 to 1000.
        """
        self.config, self.folder, self.run = config, folder / "checkpoints", run
        self.data, self.monitor, self.weights, self.keep, self.patience, self.judge = data, monitor, best, keep, patience, judge
        self.best: float | None = None
        """The score of the best validation; NaN if none had a score so far."""
        self.best_loss: float | None = None
        self.best_step: int | None = None
        self.decided_step: int | None = None
        self.stale = 0
        """Validations since the last improvement."""
        self.validations = 0
        self.is_constant = True
        """Whether all validations so far had the same score."""

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if not distributed.broadcast(self.best is None or self.weights.is_dir()):
            self.best = self.best_loss = None  # the state is from a run with another folder: this one has no best weights
        trainer.should_stop = self._is_out_of_patience()

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Step, batch_index: int) -> None:
        self.data.consumed(batch)
        if trainer.global_step % self.data.validate_every != 0 and self._is_due(trainer):  # else after the validation
            self.save(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            assert isinstance(module, Objective)
            self.decide(trainer, module)

    def decide(self, trainer: lightning.Trainer, module: Objective) -> None:
        """Export the weights if the evaluation that just ended is the best, then save a state that records it.

        Of equal scores the lower loss wins, and of equal losses the later. An undefined score (NaN) is worse than any other.
        Raises Diverged if the loss is not a number: such weights are neither exported nor saved.
        """
        value, loss = distributed.broadcast((module.latest[module.monitor], module.latest["validation/loss"]))
        if not math.isfinite(loss) or math.isinf(value):
            raise Diverged("validation loss", loss, trainer.global_step)
        self.decided_step = trainer.global_step
        self.validations += 1
        self.is_constant &= self.best is None or value == self.best or (math.isnan(value) and math.isnan(self.best))
        self.stale += 1
        before = None if self.best is None else order_key(self.best, self.best_loss, module.maximize)
        now = order_key(value, loss, module.maximize)
        if before is None or now >= before:
            self.stale = 0 if before is None or now > before else self.stale
            self.best, self.best_loss, self.best_step = value, loss, trainer.global_step
            self.keep()
            distributed.barrier()  # the other ranks read what rank 0 wrote
        over = trainer.global_step == self.monitor.total_steps
        done = 1000 * trainer.global_step // self.monitor.total_steps
        continues = self.judge is None or over or math.isnan(value) or self.judge(done, value)  # rank 0 alone has it
        if not distributed.broadcast(continues):
            raise Pruned(f"pruned after step {trainer.global_step}: {module.monitor} {value:.4f}")
        if self._is_out_of_patience():
            log.info("early stopping: no improvement in %s validations", self.stale)
            trainer.should_stop = True
        if over or trainer.should_stop:
            self._report_constant(module.monitor)
        if self.config.every_steps is None or self._is_due(trainer):
            self.save(trainer)

    def _report_constant(self, monitor: str) -> None:
        """Warn if the score was the same in all validations."""
        if self.is_constant and self.validations > 1 and self.best is not None:
            score = "undefined" if math.isnan(self.best) else f"{self.best:.6g}"
            log.warning(
                "%s was %s in all %s validations: it could not choose the weights; those of step %s are kept, by validation/loss %.4g",
                monitor,
                score,
                self.validations,
                self.best_step,
                self.best_loss,
            )

    def _is_out_of_patience(self) -> bool:
        return self.patience is not None and self.stale >= self.patience

    def _is_due(self, trainer: lightning.Trainer) -> bool:
        every = self.config.every_steps
        return every is not None and trainer.global_step % every == 0

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.ckpt"

    def save(self, trainer: lightning.Trainer) -> Path:
        """Save the full state at the current step, then delete the oldest ones."""
        self.monitor.pause(trainer)
        self.data.gather()
        path = self.path(trainer.global_step)
        with no_time_limit():
            trainer.save_checkpoint(path)
            if trainer.is_global_zero:
                for old in [p for p in list_checkpoints(self.folder) if step_of(p) <= trainer.global_step][: -self.config.keep]:
                    old.unlink()
        return path

    def is_saved(self, step: int) -> bool:
        """Return whether rank 0 has saved the state of a step. A collective."""
        return bool(distributed.broadcast(self.path(step).is_file()))

    def on_save_checkpoint(self, trainer: lightning.Trainer, module: lightning.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["run"] = self.run
        # Lightning counts the current batch as begun, not as done: a resumed run would be a batch behind
        step, loop = trainer.global_step, checkpoint["loops"]["fit_loop"]
        progress = loop["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            counts.update(dict.fromkeys(counts, step))
        # and it takes the validation at its first step for done, unless that was begun: then it runs all of it
        if step % self.data.validate_every == 0 and self.decided_step != step:
            for counts in (progress := loop["epoch_loop.val_loop.batch_progress"])["total"], progress["current"]:
                counts.update({"ready": 1, "started": 1, "processed": 0, "completed": 0})

    def state_dict(self) -> dict[str, Any]:
        names = ("best", "best_loss", "best_step", "decided_step", "stale", "validations", "is_constant")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def order_key(score: float, loss: float | None, maximize: bool) -> tuple[bool, float, float]:
    """Return a sort key of a validation, greater is better: a defined score before an undefined one, then the score, then the loss.

    States of earlier versions have no loss.
    """
    signed = 0.0 if math.isnan(score) else score if maximize else -score
    return not math.isnan(score), signed, -math.inf if loss is None else -loss


def resume_point(resume: str, folder: Path, shared: bool, identity: RunIdentity) -> Path | None:
    """Return the checkpoint to continue from, if any, as a file of this machine. Rank 0 chooses it. A collective.

    `shared`: whether all ranks read rank 0's disk; otherwise the file is copied to theirs. Raises UserError if the checkpoint belongs to
    another run than `identity` describes.
    """
    state: Path | None = None
    if distributed.is_rank_zero() and resume != "never":
        state = newest(folder / "checkpoints") if resume == "auto" else expand_home(resume)
        if state is not None:
            require_same_run(state, _read_record(state), identity)
            log.info("resume: continuing from %s", state)
    place = distributed.broadcast(None if state is None else str(state.absolute()))
    if place is None or shared:
        return None if place is None else Path(place)
    copied = folder / "checkpoints" / ".resume.ckpt"  # not one of this folder's states: the next resume overwrites it
    distributed.send_file(Path(place), copied)
    return Path(place) if distributed.is_rank_zero() else copied


def _read_record(state: Path) -> dict[str, Any]:
    """Return a checkpoint's record of the run that wrote it. Raises UserError if the file has none."""
    try:
        record: dict[str, Any] = torch.load(state, weights_only=True, mmap=True)["run"]
        return record
    except (KeyError, RuntimeError, pickle.UnpicklingError) as error:
        raise UserError(f"{state}: this is no checkpoint of a run of ours ({str(error).splitlines()[0]}).") from error


def newest(folder: Path) -> Path | None:
    """Return the newest undamaged state in a folder. A warning names each damaged one; it is put aside, and the one before is tried.

    Raises UserError if the folder has states and all are damaged.
    """
    states = list_checkpoints(folder)
    for state in reversed(states):
        wrong = damage(state)
        if wrong is None:
            return state
        aside = state.with_name(f"{state.name}.damaged")
        state.rename(aside)
        log.warning("resume: %s is damaged (%s); it is now %s, and the one before is used", state, wrong, aside.name)
    if states:
        raise UserError(f"{folder}: no whole checkpoint is left; start the run again with another run_dir.")
    return None


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the full states in a folder, oldest first."""
    return sorted((p for p in folder.glob("step-*.ckpt") if re.fullmatch(r"step-\d+", p.stem)), key=step_of)


def step_of(state: Path) -> int:
    return int(state.stem[len("step-") :])
