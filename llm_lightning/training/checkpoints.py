"""After each validation: keep the best weights as a Hugging Face folder, and full states to continue from.

So a run takes a known amount of disk: the weights once (`hf/`), and `checkpoint.keep` states of about three times the weights
(model and AdamW's two moments) in `checkpoints/`. States are saved between optimizer steps only. A state saved before the validation of
its step records that, and a run that continues from it validates first. The Trainer's plugin, `checkpoint_io.py`, writes the files.
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
from llm_lightning.data.collate import StepBatch
from llm_lightning.data.datamodule import DataModule
from llm_lightning.errors import Pruned, UserError, first_line
from llm_lightning.objectives.base import Objective
from llm_lightning.runs.identity import RunIdentity, require_same_run
from llm_lightning.training import loop_progress
from llm_lightning.training.checkpoint_io import damage
from llm_lightning.training.divergence import Diverged
from llm_lightning.training.meter import Meter
from llm_lightning.watchdog import no_time_limit

log = logging.getLogger(__name__)


class Checkpoints(Callback):
    """Callback that saves states every `every_steps` or after each validation, and exports the weights when their metric is best."""

    def __init__(
        self,
        config: CheckpointConfig,
        folder: Path,
        record: dict[str, Any],
        data: DataModule,
        meter: Meter,
        best_folder: Path,
        export_best: Callable[[], None],
        patience: int | None,
        should_continue: Callable[[int, float], bool] | None = None,
    ) -> None:
        """`folder` is the run's. `record` (plain containers) describes the run in every checkpoint.

        `export_best` writes the current weights to `best_folder`. `patience`: stop after this many validations without improvement.
        `should_continue(progress, metric)` is called on rank 0 after each validation; progress runs from 0 to 1000.
        """
        self.config, self.folder = config, folder / "checkpoints"
        self.record = record
        self.data, self.meter = data, meter
        self.best_folder, self.export_best = best_folder, export_best
        self.patience, self.should_continue = patience, should_continue
        self.best_score: float | None = None
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
        if not distributed.broadcast(self.best_score is None or self.best_folder.is_dir()):
            self.best_score = self.best_loss = None  # the state is from a run with another folder: this one has no best weights
        trainer.should_stop = self._is_out_of_patience()

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: StepBatch, batch_index: int) -> None:
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
        metric_name = module.monitor
        score, loss = distributed.broadcast((module.latest[metric_name], module.latest["validation/loss"]))
        if not math.isfinite(loss) or math.isinf(score):
            raise Diverged("validation loss", loss, trainer.global_step)
        self.decided_step = trainer.global_step
        if self._count_validation(score, loss, module.maximize):
            self.best_score, self.best_loss, self.best_step = score, loss, trainer.global_step
            self.export_best()
            distributed.barrier()  # the other ranks read what rank 0 wrote
        is_last = trainer.global_step == self.meter.total_steps
        continues = True
        if self.should_continue is not None and not is_last and not math.isnan(score):  # rank 0 alone has the function
            continues = self.should_continue(1000 * trainer.global_step // self.meter.total_steps, score)
        if not distributed.broadcast(continues):
            raise Pruned(f"pruned after step {trainer.global_step}: {metric_name} {score:.4f}")
        if self._is_out_of_patience():
            log.info("early stopping: no improvement in %s validations", self.stale)
            trainer.should_stop = True
        if is_last or trainer.should_stop:
            self._report_constant(metric_name)
        if self.config.every_steps is None or self._is_due(trainer):
            self.save(trainer)

    def _count_validation(self, score: float, loss: float, maximize: bool) -> bool:
        """Count a validation, and return whether its weights are the best so far."""
        best_score = self.best_score
        self.validations += 1
        self.is_constant &= best_score is None or score == best_score or (math.isnan(score) and math.isnan(best_score))
        now = order_key(score, loss, maximize)
        before = None if best_score is None else order_key(best_score, self.best_loss, maximize)
        is_improvement = before is None or now > before
        self.stale = 0 if is_improvement else self.stale + 1
        return is_improvement or now == before

    def _report_constant(self, metric_name: str) -> None:
        """Warn if the score was the same in all validations."""
        if self.is_constant and self.validations > 1 and self.best_score is not None:
            score = "undefined" if math.isnan(self.best_score) else f"{self.best_score:.6g}"
            log.warning(
                "%s was %s in all %s validations: it could not choose the weights; those of step %s are kept, by validation/loss %.4g",
                metric_name,
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
        """Save the full state at the current step, then delete the oldest ones. `AtomicCheckpointIO` (checkpoint_io.py) writes the file."""
        self.meter.pause(trainer)
        self.data.gather()
        path = self.path(trainer.global_step)
        with no_time_limit():
            trainer.save_checkpoint(path)
            if trainer.is_global_zero:
                earlier = [state for state in list_checkpoints(self.folder) if step_of(state) <= trainer.global_step]
                for state in earlier[: -self.config.keep]:
                    state.unlink()
        return path

    def is_saved(self, step: int) -> bool:
        """Return whether rank 0 has saved the state of a step. A collective."""
        return bool(distributed.broadcast(self.path(step).is_file()))

    def on_save_checkpoint(self, trainer: lightning.Trainer, module: lightning.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["run"] = self.record
        step = trainer.global_step
        loop_progress.count_batches(checkpoint["loops"], step)
        if step % self.data.validate_every == 0 and self.decided_step != step:
            loop_progress.demand_validation(checkpoint["loops"])

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, attribute) for name, attribute in STATE.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, STATE[name], value)


STATE = {"best": "best_score"} | {
    name: name for name in ("best_loss", "best_step", "decided_step", "stale", "validations", "is_constant")
}
"""Name in a checkpoint -> attribute of `Checkpoints`."""


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
        raise UserError(f"{state}: this is no checkpoint of a run of ours ({first_line(error)}).") from error


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
