"""After each validation: keep the best weights as a Hugging Face folder, and end training where it does not pay any more.

It acts while the weights that were validated are in the model: a callback such as Lightning's `WeightAveraging` puts averaged weights
there for a validation, and takes them out at its end.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from llm_lightning import distributed
from llm_lightning.errors import Pruned
from llm_lightning.objectives.base import Objective
from llm_lightning.training.divergence import Diverged

log = logging.getLogger(__name__)

STATE = {"best": "best_score"} | {
    name: name for name in ("best_loss", "best_step", "decided_step", "stale", "validations", "is_constant")
}
"""Name in a checkpoint -> attribute of `BestModel`."""


class BestModel(Callback):
    """Callback that exports the weights when their metric is the best so far, and stops without improvement. It comes before the user's."""

    state_key = "Checkpoints"
    """The name of this state in checkpoints: that of the class which held it in earlier versions."""

    def __init__(
        self,
        folder: Path,
        export: Callable[[], None],
        total_steps: int,
        patience: int | None,
        should_continue: Callable[[int, float], bool] | None = None,
    ) -> None:
        """`export` writes the current weights to `folder`. `patience`: stop after this many validations without improvement.

        `should_continue(progress, metric)` is called on rank 0 after each validation; progress runs from 0 to 1000.
        """
        self.folder, self.export, self.total_steps = folder, export, total_steps
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
        if not distributed.broadcast(self.best_score is None or self.folder.is_dir()):
            self.best_score = self.best_loss = None  # the state is from a run with another folder: this one has no best weights
        trainer.should_stop = self._is_out_of_patience()

    def on_validation_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            assert isinstance(module, Objective)
            module.finish_evaluation()
            self._export_if_best(trainer, module)

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:  # the meter, which comes before, has logged the metrics
            assert isinstance(module, Objective)
            self._stop_or_continue(trainer, module)

    def decide(self, trainer: lightning.Trainer, module: Objective) -> None:
        """Export the weights if the evaluation that just ended is the best, and end training where it should not continue.

        Of equal scores the lower loss wins, and of equal losses the later. An undefined score (NaN) is worse than any other.
        Raises Diverged if the loss is not a number: such weights are not exported. Raises Pruned if a sweep ends the run.
        """
        self._export_if_best(trainer, module)
        self._stop_or_continue(trainer, module)

    def _export_if_best(self, trainer: lightning.Trainer, module: Objective) -> None:
        score, loss = distributed.broadcast((module.latest[module.monitor], module.latest["validation/loss"]))
        if not math.isfinite(loss) or math.isinf(score):
            return
        self.decided_step = trainer.global_step
        if self._count_validation(score, loss, module.maximize):
            self.best_score, self.best_loss, self.best_step = score, loss, trainer.global_step
            self.export()
            distributed.barrier()  # the other ranks read what rank 0 wrote

    def _stop_or_continue(self, trainer: lightning.Trainer, module: Objective) -> None:
        metric_name = module.monitor
        score, loss = distributed.broadcast((module.latest[metric_name], module.latest["validation/loss"]))
        if not math.isfinite(loss) or math.isinf(score):
            raise Diverged("validation loss", loss, trainer.global_step)
        is_last = trainer.global_step == self.total_steps
        continues = True
        if self.should_continue is not None and not is_last and not math.isnan(score):  # rank 0 alone has the function
            continues = self.should_continue(1000 * trainer.global_step // self.total_steps, score)
        if not distributed.broadcast(continues):
            raise Pruned(f"pruned after step {trainer.global_step}: {metric_name} {score:.4f}")
        if self._is_out_of_patience():
            log.info("early stopping: no improvement in %s validations", self.stale)
            trainer.should_stop = True
        if is_last or trainer.should_stop:
            self._report_constant(metric_name)

    def _count_validation(self, score: float, loss: float, maximize: bool) -> bool:
        """Count a validation, and return whether its weights are the best so far."""
        best_score = self.best_score
        self.validations += 1
        self.is_constant &= best_score is None or score == best_score or (math.isnan(score) and math.isnan(best_score))
        now = order_key(score, loss, maximize)
        before = None if best_score is None or self.best_loss is None else order_key(best_score, self.best_loss, maximize)
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

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, attribute) for name, attribute in STATE.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, STATE[name], value)


def order_key(score: float, loss: float, maximize: bool) -> tuple[bool, float, float]:
    """Return a sort key of a validation, greater is better: a defined score before an undefined one, then the score, then the loss."""
    signed = 0.0 if math.isnan(score) else score if maximize else -score
    return not math.isnan(score), signed, -loss
