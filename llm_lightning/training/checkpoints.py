"""After each validation: keep the best weights as a Hugging Face folder, and one full state to continue from.

So a run costs a known amount of disk: the weights once (`hf/`), and `checkpoint.keep` states of about three times the weights
(model and AdamW's two moments) in `checkpoints/`.
"""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from llm_lightning.config import CheckpointConfig, flat
from llm_lightning.errors import UserError
from llm_lightning.objectives.base import Objective

log = logging.getLogger(__name__)


class Checkpoints(Callback):
    """Saves the state on its own interval or after each validation; exports the weights when the metric is the best yet."""

    def __init__(self, config: CheckpointConfig, folder: Path, export: Callable[[], None], run: dict[str, Any]) -> None:
        """`export` writes the current weights to `hf/`; `run` (plain containers) goes into every checkpoint."""
        self.config, self.folder, self.export, self.run = config, folder / "checkpoints", export, run
        self.best: float | None = None
        self.best_step: int | None = None
        self.decided_step: int | None = None

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            assert isinstance(module, Objective)
            self.decide(trainer, module)

    def decide(self, trainer: lightning.Trainer, module: Objective) -> None:
        """Keep the weights if the evaluation that just ended is the best, then save the state that knows it."""
        self.decided_step = trainer.global_step
        value = module.latest[module.monitor]
        if self.best is None or (value > self.best if module.maximize else value < self.best):
            self.best, self.best_step = value, trainer.global_step
            self.export()
            trainer.strategy.barrier()  # the other ranks read what rank 0 wrote
        if self.config.every_steps is None:
            self.save(trainer)

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if self.config.every_steps is not None and trainer.global_step % self.config.every_steps == 0:
            self.save(trainer)

    def save(self, trainer: lightning.Trainer) -> Path:
        """Save the full state at the current step, then let go of the oldest ones."""
        path = self.folder / f"step-{trainer.global_step:08d}.ckpt"
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            for old in saved(self.folder)[: -self.config.keep]:
                old.unlink()
        return path

    def on_save_checkpoint(self, trainer: lightning.Trainer, module: lightning.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["run"] = self.run
        # Lightning counts the batch that is being finished as begun, not as done: then a resumed run would be a batch behind
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            counts.update(dict.fromkeys(counts, trainer.global_step))

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("best", "best_step", "decided_step")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


DECISIVE = ("objective", "model", "batch", "optimizer", "scheduler", "seed")
"""Config sections that a run cannot change half-way and still be the same run."""


def require_same_run(state: Path, run: dict[str, Any]) -> None:
    """Raise UserError where a checkpoint was written under other settings, or on other data, than `run` describes."""
    try:
        stored = torch.load(state, weights_only=True, mmap=True)["run"]
    except (KeyError, RuntimeError, pickle.UnpicklingError) as error:
        raise UserError(f"{state}: this is no checkpoint of a run of ours ({str(error).splitlines()[0]}).") from error
    before, now = (flat({section: settings["config"][section] for section in DECISIVE}) for settings in (stored, run))
    changed = [
        f"{key} was {before.get(key)} and is {now.get(key)}"
        for key in before | now
        if before.get(key) != now.get(key) and not key.startswith("batch.micro_")
    ]
    if stored["data"] != run["data"]:
        changed.append("the training data is not the same")
    if changed:
        raise UserError(
            f"{state} belongs to a run with other settings: {'; '.join(changed)}. Repeat that run's command to continue "
            f"it, or give another run_dir to start a new one."
        )


def saved(folder: Path) -> list[Path]:
    """The full states in a folder, oldest first."""
    return sorted((p for p in folder.glob("step-*.ckpt") if re.fullmatch(r"step-\d+", p.stem)), key=lambda p: int(p.stem[5:]))
