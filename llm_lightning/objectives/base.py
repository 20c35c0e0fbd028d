"""What every objective shares: what it trains, its part in an optimizer step (`training/step.py`), and one evaluation pass.

An objective is a subclass in a file of its own: it says how data is encoded for it, which head the model needs, the loss and the
scores. Its keyword-only parameters are its configuration.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any, ClassVar

import lightning
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from llm_lightning.data.collate import MicroBatch, Step
from llm_lightning.data.examples import Example
from llm_lightning.data.masking import Masking
from llm_lightning.data.module import Text
from llm_lightning.errors import RunError, UserError
from llm_lightning.models import build
from llm_lightning.training import parallel
from llm_lightning.training.step import OptimizerStep

Evaluation = dict[str, float]

SAMPLES, SAMPLED = 4, 40  # prompts that a model is asked to go on with after each validation, and tokens that it writes at the most


class Objective(lightning.LightningModule):
    """A model, a loss, and the scores that tell how good it is."""

    encoding: ClassVar[str]
    """How rows become sequences: a module of data/encodings/."""
    labelled: ClassVar[bool] = False
    """Whether rows need a label; like `whole_sequences` read by the quick checks, from this file's source."""
    auto_class: ClassVar[str]
    """The Hugging Face class that gives the model its head."""
    monitor: ClassVar[str]
    """The validation metric that decides which weights are the best."""
    maximize: ClassVar[bool]

    def __init__(self, text: Text) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.text = text
        self.model: PreTrainedModel
        self.clip_norm: float | None = None
        self.seed = 0
        self.split = "validation"
        """The split that is being evaluated."""
        self.final = False
        """Whether it is the last evaluation of a run, which may take its time."""
        self.latest: Evaluation = {}
        """The metrics of the last evaluation: `split/metric` to a number."""
        self._make_optimizer: Callable[[nn.Module], Optimizer]
        self._factor: Callable[[int], float]
        self._train_on = OptimizerStep(self)
        self._seen: list[tuple[int, Tensor, int, Any]] = []
        """Of each batch of this evaluation: its place, loss sum, targets, outcome."""
        self._batches: dict[str, list[float]] = {}
        """Of each batch of the last evaluation: loss sum and targets."""

    # ---- what an objective defines ----

    def head(self) -> dict[str, Any]:
        """What the model's config is to say of its head: the names of the classes, where there are such."""
        names = self.text.label_names
        return {} if names is None else build.classes(names)

    def predict(self, batch: MicroBatch) -> list[Any]:
        """What the model says of each sequence of a batch, in their order there; rows need no label for it."""
        raise UserError(f"task=predict: {type(self).__name__} has no predictions of rows; generate text with task=generate.")

    def answer_row(self, example: Example, found: list[Any]) -> dict[str, Any]:
        """A row's prediction as plain values, from those of the sequences that it became."""
        raise NotImplementedError

    def masking(self, seed: int) -> Masking | None:
        """How inputs are corrupted before the model sees them; None leaves them as they are."""
        return None

    def loss_sum(self, batch: MicroBatch) -> Tensor:
        """The sum of the losses of the batch's targets, a scalar that gradients flow through."""
        return self.score(batch)[0]

    def score(self, batch: MicroBatch) -> tuple[Tensor, Any]:
        """(sum of the losses, what `outcome` takes) of a batch."""
        raise NotImplementedError

    def outcome(self, batch: MicroBatch, outputs: Any) -> Any:
        """What the scores need of an evaluation batch, on the CPU."""
        return None

    def scores(self, split: str, mean_loss: float, targets: int, outcomes: list[Any]) -> Evaluation:
        """A split's metrics, named without the split, from the outcomes of all its batches in their order."""
        return {"loss": mean_loss}

    # ---- training ----

    def connect(
        self,
        model: PreTrainedModel,
        make_optimizer: Callable[[nn.Module], Optimizer],
        factor: Callable[[int], float],
        clip_norm: float | None,
        seed: int,
    ) -> None:
        """Give the objective what it trains and how: the factor scales the learning rate at a step."""
        self.model, self.clip_norm, self.seed = model, clip_norm, seed
        self._make_optimizer, self._factor = make_optimizer, factor

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A state holds what changes: weights that are not trained are those of the model that training started from."""
        frozen = self._frozen()
        checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name not in frozen}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        frozen = self._frozen()
        if missing := self.state_dict().keys() - frozen - checkpoint["state_dict"].keys():
            raise RunError(f"the checkpoint has no {min(missing)}: it is another model's.")
        self.strict_loading = not frozen

    def _frozen(self) -> set[str]:
        named = self.model.named_parameters(prefix="model", remove_duplicate=False)
        return {name for name, parameter in named if not parameter.requires_grad}

    def configure_model(self) -> None:
        """Shard the model where the strategy is FSDP2, before its weights go to the device."""
        if self.device_mesh is not None:
            parallel.shard(self.model, self.device_mesh["data_parallel"], str(self.trainer.precision))

    def configure_optimizers(self) -> Any:
        optimizer = self._make_optimizer(self.model)
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, self._factor)]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """A CPU has it already: looking through its parts takes a third of what Lightning does in a step."""
        return batch if device.type == "cpu" else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def training_step(self, step: Step, batch_index: int) -> dict[str, Any]:
        return self._train_on(step)

    def precision_context(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context to call the model in outside of a step, as for text that it writes: that of the Trainer's precision."""
        trainer = self._trainer
        return contextlib.nullcontext() if trainer is None else trainer.precision_plugin.val_step_context()

    # ---- evaluation ----

    def on_validation_epoch_start(self) -> None:
        self._seen = []

    def validation_step(self, batch: MicroBatch, batch_index: int) -> None:
        loss, outputs = self.score(batch)
        if not batch.blank:
            self._seen.append((batch.place, loss, batch.target_count, self.outcome(batch, outputs)))

    def on_validation_epoch_end(self) -> None:
        """Every rank scores what all have seen, in one order: so the figures are those of one process to the last bit."""
        seen = sorted(self._everyones([(place, float(loss), count, outcome) for place, loss, count, outcome in self._seen]))
        self._seen = []
        loss, count = math.fsum(loss for _, loss, _, _ in seen), sum(count for _, _, count, _ in seen)
        scores = self.scores(self.split, loss / max(count, 1), count, [outcome for _, _, _, outcome in seen])
        self.latest = {f"{self.split}/{name}": value for name, value in scores.items()}
        self._batches = {"loss": [loss for _, loss, _, _ in seen], "targets": [count for _, _, count, _ in seen]}

    def _everyones(self, mine: list[Any]) -> list[Any]:
        """The items of all ranks."""
        if self.trainer.world_size == 1:
            return mine
        parts: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(parts, mine)
        return [item for part in parts for item in part]

    def summary(self) -> dict[str, float]:
        """Facts about the data that put the scores in proportion, such as a baseline."""
        return {}

    def details(self) -> dict[str, Any]:
        """Tables of the last evaluation that are no single number, for `evaluation/<split>.json`; batches where nothing is known of
        single examples."""
        return {"batches": self._batches}

    def samples(self) -> list[dict[str, str]]:
        """What the model makes of a few fixed prompts, each a `prompt`, a `text` and where there is one the `reference`.

        Only rank 0 is asked, with the weights as they are after a validation.
        """
        return []
