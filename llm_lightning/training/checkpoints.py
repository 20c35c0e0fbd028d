"""After each validation: keep the best weights as a Hugging Face folder, and one full state to continue from.

So a run costs a known amount of disk: the weights once (`hf/`), and `checkpoint.keep` states of about three times the weights
(model and AdamW's two moments) in `checkpoints/`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from llm_lightning.config import CheckpointConfig
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


def saved(folder: Path) -> list[Path]:
    """The full states in a folder, oldest first."""
    return sorted((p for p in folder.glob("step-*.ckpt") if re.fullmatch(r"step-\d+", p.stem)), key=lambda p: int(p.stem[5:]))
