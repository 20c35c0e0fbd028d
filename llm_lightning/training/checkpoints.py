"""After each validation: keep the best weights as a Hugging Face folder, and full states to continue from.

So a run costs a known amount of disk: the weights once (`hf/`), and `checkpoint.keep` states of about three times the weights
(model and AdamW's two moments) in `checkpoints/`. States are saved between optimizer steps only. One that is saved at a step whose
validation is still to come says so, and a run that continues from it validates first.
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
from llm_lightning.runs.identity import require_same_run
from llm_lightning.training.checkpoint_io import damage
from llm_lightning.training.monitor import Diverged, Monitor
from llm_lightning.watchdog import no_time_limit

log = logging.getLogger(__name__)


class Checkpoints(Callback):
    """Saves states on their own interval or after each validation; exports the weights when the metric is the best yet."""

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
        """`keep` writes the current weights to the folder `best`; `run` (plain containers) goes into every checkpoint; after `patience`
        validations without improvement training stops, and where `judge` says so of how far it is, in thousandths, and the metric there."""
        self.config, self.folder, self.run = config, folder / "checkpoints", run
        self.data, self.monitor, self.weights, self.keep, self.patience, self.judge = data, monitor, best, keep, patience, judge
        self.best: float | None = None
        """The score of the best validation; NaN where none has had a score so far."""
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
            self.best = self.best_loss = None  # the state comes from a run with another folder: this one has no best weights yet
        trainer.should_stop = self._is_out_of_patience()

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Step, batch_index: int) -> None:
        self.data.consumed(batch)
        if trainer.global_step % self.data.validate_every != 0 and self._due(trainer):  # else after the validation
            self.save(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            assert isinstance(module, Objective)
            self.decide(trainer, module)

    def decide(self, trainer: lightning.Trainer, module: Objective) -> None:
        """Keep the weights if the evaluation that just ended is the best, then save the state that knows it.

        Of equal scores the lower loss is the better, and of equal losses the later. A score that is undefined (NaN) is worse than any.
        Raises Diverged where the loss is no number: such weights are neither exported nor saved.
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
        if self.config.every_steps is None or self._due(trainer):
            self.save(trainer)

    def _report_constant(self, monitor: str) -> None:
        """Say that the score told no validation from another, where that is so."""
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

    def _due(self, trainer: lightning.Trainer) -> bool:
        every = self.config.every_steps
        return every is not None and trainer.global_step % every == 0

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.ckpt"

    def save(self, trainer: lightning.Trainer) -> Path:
        """Save the full state at the current step, then let go of the oldest ones."""
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
        """Return whether rank 0 has the state of a step. A collective."""
        return bool(distributed.broadcast(self.path(step).is_file()))

    def on_save_checkpoint(self, trainer: lightning.Trainer, module: lightning.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["run"] = self.run
        # Lightning counts the batch that is being finished as begun, not as done: then a resumed run would be a batch behind
        step, loop = trainer.global_step, checkpoint["loops"]["fit_loop"]
        progress = loop["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            counts.update(dict.fromkeys(counts, step))
        # and it takes a validation for done at whose step it starts, unless that was begun: then it is run whole
        if step % self.data.validate_every == 0 and self.decided_step != step:
            for counts in (progress := loop["epoch_loop.val_loop.batch_progress"])["total"], progress["current"]:
                counts.update({"ready": 1, "started": 1, "processed": 0, "completed": 0})

    def state_dict(self) -> dict[str, Any]:
        names = ("best", "best_loss", "best_step", "decided_step", "stale", "validations", "is_constant")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def order_key(score: float, loss: float | None, maximize: bool) -> tuple[bool, float, float]:
    """Return what a validation is compared by, the greater the better: a defined score before an undefined one, then the score, then the
    loss. States of earlier versions have no loss."""
    signed = 0.0 if math.isnan(score) else score if maximize else -score
    return not math.isnan(score), signed, -math.inf if loss is None else -loss


def resume_point(resume: str, folder: Path, shared: bool, run: dict[str, Any]) -> Path | None:
    """Return the checkpoint to continue from, if any, as a file of this machine. Rank 0 chooses it. A collective.

    `shared`: whether all ranks read rank 0's disk; where they do not, the file is copied to theirs. Raises UserError where the checkpoint
    belongs to another run than the config describes.
    """
    state: Path | None = None
    if distributed.is_rank_zero() and resume != "never":
        state = newest(folder / "checkpoints") if resume == "auto" else expand_home(resume)
        if state is not None:
            require_same_run(state, _read_run(state), run)
            log.info("resume: continuing from %s", state)
    place = distributed.broadcast(None if state is None else str(state.absolute()))
    if place is None or shared:
        return None if place is None else Path(place)
    copied = folder / "checkpoints" / ".resume.ckpt"  # no state of this folder's own: the next resume overwrites it
    distributed.send_file(Path(place), copied)
    return Path(place) if distributed.is_rank_zero() else copied


def _read_run(state: Path) -> dict[str, Any]:
    """Return a checkpoint's record of the run that wrote it. Raises UserError if the file has none."""
    try:
        run: dict[str, Any] = torch.load(state, weights_only=True, mmap=True)["run"]
        return run
    except (KeyError, RuntimeError, pickle.UnpicklingError) as error:
        raise UserError(f"{state}: this is no checkpoint of a run of ours ({str(error).splitlines()[0]}).") from error


def newest(folder: Path) -> Path | None:
    """The newest whole state in a folder. A damaged one is named in a warning and put aside, and the one before is taken.

    Raises UserError where there are states and none is whole.
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
    """The full states in a folder, oldest first."""
    return sorted((p for p in folder.glob("step-*.ckpt") if re.fullmatch(r"step-\d+", p.stem)), key=step_of)


def step_of(state: Path) -> int:
    return int(state.stem[len("step-") :])
