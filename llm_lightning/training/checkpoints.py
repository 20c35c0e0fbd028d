"""Save full states to continue a run from, and choose the state to continue from.

A run keeps `checkpoint.keep` states of about three times the weights (model and AdamW's two moments) in `checkpoints/`. States are saved
between optimizer steps only. A state saved before the validation of its step records that, and a run that continues from it validates
first. The Trainer's plugin, `checkpoint_io.py`, writes the files.
"""

from __future__ import annotations

import logging
import pickle
import re
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from llm_lightning import distributed
from llm_lightning.config.schema import CheckpointConfig, expand_home
from llm_lightning.data.collate import StepBatch
from llm_lightning.data.datamodule import DataModule
from llm_lightning.errors import UserError, first_line
from llm_lightning.runs.identity import RunIdentity, require_same_run
from llm_lightning.training import loop_progress
from llm_lightning.training.averaging import averages_weights
from llm_lightning.training.best_model import BestModel
from llm_lightning.training.checkpoint_io import damage
from llm_lightning.training.meter import Meter
from llm_lightning.watchdog import no_time_limit

log = logging.getLogger(__name__)


class Checkpoints(Checkpoint):  # Lightning calls those of this class last: a state holds the work of all others
    """Callback that saves the full state every `every_steps`, or after each validation, and deletes old states."""

    def __init__(
        self, config: CheckpointConfig, folder: Path, record: dict[str, Any], data: DataModule, meter: Meter, best: BestModel
    ) -> None:
        """`folder` is the run's. `record` (plain containers) describes the run in every checkpoint."""
        self.config, self.folder = config, folder / "checkpoints"
        self.record = record
        self.data, self.meter, self.best = data, meter, best

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: StepBatch, batch_index: int) -> None:
        self.data.count_trained(batch)
        if trainer.global_step % self.data.validate_every == 0:
            return  # after the validation
        ends_averaged = trainer.global_step == self.meter.total_steps and averages_weights(trainer)  # which replaces the weights
        if self._is_due(trainer) or ends_averaged:
            self.save(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and (self.config.every_steps is None or self._is_due(trainer)):
            self.save(trainer)

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
                earlier = [file for file in list_checkpoints(self.folder) if step_of(file) <= trainer.global_step]
                for file in earlier[: -self.config.keep]:
                    file.unlink()
        return path

    def is_saved(self, step: int) -> bool:
        """Return whether rank 0 has saved the state of a step. A collective."""
        return bool(distributed.broadcast(self.path(step).is_file()))

    def on_save_checkpoint(self, trainer: lightning.Trainer, module: lightning.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["run"] = self.record
        step = trainer.global_step
        loop_progress.count_batches(checkpoint["loops"], step)
        if step % self.data.validate_every == 0 and self.best.decided_step != step:
            loop_progress.demand_validation(checkpoint["loops"])


def resume_point(resume: str, folder: Path, shared: bool, identity: RunIdentity) -> Path | None:
    """Return the checkpoint to continue from, if any, as a file of this machine. Rank 0 chooses it. A collective.

    `shared`: whether all ranks read rank 0's disk; otherwise the file is copied to theirs. Raises UserError if the checkpoint belongs to
    another run than `identity` describes.
    """
    checkpoint: Path | None = None
    if distributed.is_rank_zero() and resume != "never":
        checkpoint = newest(folder / "checkpoints") if resume == "auto" else expand_home(resume)
        if checkpoint is not None:
            require_same_run(checkpoint, *_read_record(checkpoint), identity)
            log.info("resume: continuing from %s", checkpoint)
    place = distributed.broadcast(None if checkpoint is None else str(checkpoint.absolute()))
    if place is None or shared:
        return None if place is None else Path(place)
    copied = folder / "checkpoints" / ".resume.ckpt"  # not one of this folder's checkpoints: the next resume overwrites it
    distributed.send_file(Path(place), copied)
    return Path(place) if distributed.is_rank_zero() else copied


def _read_record(checkpoint: Path) -> tuple[dict[str, Any], int]:
    """Return (a checkpoint's record of the run that wrote it, its step). Raises UserError if the file has no record."""
    try:
        content = torch.load(checkpoint, weights_only=True, mmap=True)
        return content["run"], int(content["global_step"])
    except (KeyError, RuntimeError, pickle.UnpicklingError) as error:
        raise UserError(f"{checkpoint}: this is no checkpoint of a run of ours ({first_line(error)}).") from error


def newest(folder: Path) -> Path | None:
    """Return the newest undamaged checkpoint in a folder. A warning names each damaged one; it is put aside, and the one before is tried.

    Raises UserError if the folder has checkpoints and all are damaged.
    """
    checkpoints = list_checkpoints(folder)
    for checkpoint in reversed(checkpoints):
        wrong = damage(checkpoint)
        if wrong is None:
            return checkpoint
        aside = checkpoint.with_name(f"{checkpoint.name}.damaged")
        checkpoint.rename(aside)
        log.warning("resume: %s is damaged (%s); it is now %s, and the one before is used", checkpoint, wrong, aside.name)
    if checkpoints:
        raise UserError(f"{folder}: no whole checkpoint is left; start the run again with another run_dir.")
    return None


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the full checkpoints in a folder, oldest first."""
    return sorted((p for p in folder.glob("step-*.ckpt") if re.fullmatch(r"step-\d+", p.stem)), key=step_of)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.stem[len("step-") :])
