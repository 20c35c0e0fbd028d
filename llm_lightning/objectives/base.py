"""Base class of the objectives: the model that one trains, its part in an optimizer step (`training/step.py`), one evaluation pass.

An objective is a subclass in its own file. It defines how data is encoded for it, which head the model needs, the loss and the
scores. Its keyword-only parameters are its configuration. evaluation.py runs the pass over a split, metrics/ holds its states.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, ClassVar

import lightning
import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from llm_lightning.data.collate import MicroBatch, StepBatch
from llm_lightning.data.examples import Example
from llm_lightning.data.masking import Masking
from llm_lightning.data.prepare import TokenizedDataset
from llm_lightning.errors import RunError, UserError
from llm_lightning.metrics.conformal import ConformalScores
from llm_lightning.metrics.state import States
from llm_lightning.models import build
from llm_lightning.objectives.evaluation import EvaluationPass
from llm_lightning.training import parallel
from llm_lightning.training.memory import return_unused
from llm_lightning.training.precision import choose_bf16_mode
from llm_lightning.training.step import OptimizerStep

Evaluation = dict[str, float]

SAMPLES, SAMPLED = 4, 40  # prompts that a model continues after each validation, and the most tokens that it writes for each


class Objective(lightning.LightningModule):
    """A model, its loss, and the scores that tell how good the model is."""

    encoding: ClassVar[str]
    """How rows become sequences: a module of data/encodings/."""
    labelled: ClassVar[bool] = False
    """Whether rows need a label. `labelled`, `whole_sequences`, `scores_rows` and `family` are read from the source text, before
    torch is imported: a value that is not a literal counts as not set."""
    whole_sequences: ClassVar[bool] = False
    """Whether a sequence is a whole text, which cannot be packed with others."""
    scores_rows: ClassVar[bool] = False
    """Whether the last evaluation stores a score for each row, in `scored`, so that slices of a split can be compared."""
    family: ClassVar[str | None] = None
    """Kind of model that the objective needs: `encoder`, `decoder` or `encoder-decoder`; None takes any."""
    one_class: ClassVar[bool] = False
    """Whether a row has one class, so that there are prediction sets; read from the source text like `labelled`."""
    auto_class: ClassVar[str]
    """The Hugging Face class that gives the model its head."""
    monitor: str
    """The validation metric that decides which weights are the best; an objective may choose it by its data."""
    maximize: ClassVar[bool]

    def __init__(self, dataset: TokenizedDataset) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["dataset"], logger=False)  # the settings of the subclass, for `load_from_checkpoint`
        self.automatic_optimization = False
        self.dataset = dataset
        self.model: PreTrainedModel
        self.clip_norm: float | None = None
        self.seed = 0
        self.split = "validation"
        """The split under evaluation."""
        self.final = False
        """Whether it is the last evaluation of a run, which may take its time."""
        self.latest: Evaluation = {}
        """The metrics of the last evaluation: `split/metric` to a number."""
        self.scored: dict[str, dict[str, np.ndarray]] = {}
        """Split -> the columns of the rows that the last evaluation of a run scored one by one, `number` of the row among them."""
        self._make_optimizer: Callable[[nn.Module], Optimizer]
        self._factor: Callable[[int], float]
        self.take_step = OptimizerStep(self)
        self.calibrate = False
        """Whether the logits of the export are divided by a temperature, which is fitted on validation."""
        self.begin_pass: Callable[[Objective, int], EvaluationPass] = EvaluationPass
        """Begins a pass over a split, with the number of batches over all ranks."""
        self._pass: EvaluationPass | None = None
        """The evaluation in progress."""
        self.label_scores: dict[str, np.ndarray] = {}
        """The columns of `score_labels` for the rows of `data.left_out`, and their numbers as `number`, after the run's evaluation."""
        self._batches: dict[str, Any] = {}
        """`batches` of the last evaluation of a run: the loss sum and the number of targets of each."""

    # ---- defined by each objective ----

    def head(self) -> dict[str, Any]:
        """Return the entries of the model's config for its head: the names of the classes, if the data has classes."""
        names = self.dataset.label_names
        return {} if names is None else build.classes(names)

    def adapt(self, model: PreTrainedModel) -> None:
        """Set entries of a model's configs that depend on the objective's data, except the head's. Configs are exported."""

    def predict(self, batch: MicroBatch) -> list[Any]:
        """Return a prediction for each sequence of a batch, in the order of the batch. Rows need no label."""
        raise UserError(f"task=predict: {type(self).__name__} has no predictions of rows; generate text with task=generate.")

    def answer_row(self, example: Example, predictions: list[Any]) -> dict[str, Any]:
        """Return a row's prediction as plain values, from the predictions of the row's sequences."""
        raise NotImplementedError

    def masking(self, seed: int) -> Masking | None:
        """Return how inputs are corrupted before the model sees them; None leaves them unchanged."""
        return None

    def loss_sum(self, batch: MicroBatch) -> Tensor:
        """Return the sum of the losses of the batch's targets, a scalar that gradients flow through."""
        return self.loss_and_outputs(batch)[0]

    def loss_and_outputs(self, batch: MicroBatch) -> tuple[Tensor, Any]:
        """Return (sum of the losses, outputs for `update_states`) of a batch."""
        raise NotImplementedError

    def build_states(self) -> States:
        """Return fresh states (metrics/) for a pass over `self.split`; `self.final` tells whether its tables are needed too."""
        return {}

    def evaluate_batch(self, batch: MicroBatch) -> tuple[Tensor, Any]:
        """Return (sum of the losses, outputs for `update_states`) of an evaluation batch.

        Run the model only here: a rank with a batch fewer runs it on a blank batch, so that all ranks gather a sharded model together.
        """
        return self.loss_and_outputs(batch)

    def update_states(self, states: States, batch: MicroBatch, outputs: Any) -> None:
        """Reduce an evaluation batch of this rank into the states."""

    def score_labels(self, batch: MicroBatch, outputs: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return (targets,) the row of each target of an evaluation batch, and columns of the targets: `label`, the index of the label or
        0 and 1 for each label, and `probabilities` of the labels. For the rows that `data.left_out` scores."""
        raise UserError(
            f"data.left_out: {type(self).__name__} gives no probabilities of labels (its method score_labels is not defined)."
        )

    def complete_states(self, states: States) -> None:
        """Add values to the states that do not come from batches, such as answers to prompts. Called on every rank, before the merge."""

    def compute_metrics(self, mean_loss: float, targets: int, states: States) -> Evaluation:
        """Return the metrics of `self.split` from the states of all ranks; names do not contain the split. Called on every rank."""
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
        """Set the model, its optimizer and the schedule: `factor` scales the learning rate at a step."""
        self.model, self.clip_norm, self.seed = model, clip_norm, seed
        self._make_optimizer, self._factor = make_optimizer, factor

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, **settings: Any) -> Any:  # type: ignore[override]
        """Return an objective from a checkpoint, by Lightning's method, which by itself would run code that a file of a stranger holds."""
        return super().load_from_checkpoint(checkpoint_path, **({"weights_only": True} | settings))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the model's config, and drop frozen weights: they equal those of the model that training started from."""
        checkpoint["model_config"] = self.model.config.to_dict()
        frozen = self._find_frozen() if "averaging_state" not in checkpoint else set()  # Lightning's average has all weights
        checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name not in frozen}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the model if there is none yet (`load_from_checkpoint`). Raises RunError if the weights are not those of the model."""
        if not hasattr(self, "model"):
            self.model = build.build_empty(checkpoint["model_config"], self.auto_class)
            self.adapt(self.model)
        frozen = self._find_frozen()
        if missing := self.state_dict().keys() - frozen - checkpoint["state_dict"].keys():
            raise RunError(
                f"the checkpoint has no {min(missing)}: it is another model's, or one with an adapter or frozen weights, which "
                f"build_and_connect builds before the checkpoint is loaded."
            )
        self.strict_loading = not frozen

    def _find_frozen(self) -> set[str]:
        parameters = self.model.named_parameters(prefix="model", remove_duplicate=False)
        return {name for name, parameter in parameters if not parameter.requires_grad}

    def configure_model(self) -> None:
        """Shard the model if the strategy is FSDP2, before its weights go to the device."""
        if self.device_mesh is not None:
            precision = str(self.trainer.precision)
            bf16_weights = precision != "bf16-mixed" or choose_bf16_mode(self.model) == "copies"
            parallel.shard(self.model, self.device_mesh["data_parallel"], precision, bf16_weights)

    def configure_optimizers(self) -> Any:
        optimizer = self._make_optimizer(self.model)
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, self._factor)]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Return the batch on the device. A batch on a CPU stays: a walk through its parts takes a third of Lightning's time in a step."""
        return batch if device.type == "cpu" else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def training_step(self, batch: StepBatch, batch_index: int) -> dict[str, Any]:
        return self.take_step(batch)

    def precision_context(self) -> contextlib.AbstractContextManager[Any]:
        """Return the Trainer's precision context, for calls of the model outside of a step, such as generation."""
        try:
            return self.trainer.precision_plugin.val_step_context()
        except RuntimeError:  # there is no Trainer
            return contextlib.nullcontext()

    # ---- evaluation ----

    def on_validation_epoch_start(self) -> None:
        self._pass = self.begin_pass(self, self.trainer.world_size * sum(map(int, self.trainer.num_val_batches)))

    def validation_step(self, batch: MicroBatch, batch_index: int) -> None:
        assert self._pass is not None
        self._pass.add(batch)
        return_unused(self.device, batch_index)

    def on_validation_epoch_end(self) -> None:
        self.finish_evaluation()

    def finish_evaluation(self) -> None:
        """Compute the metrics of the pass in progress, once. A collective.

        A callback may call it before the Trainer does, while the validated weights are in the model.
        """
        if self._pass is None:
            return
        self.latest = {f"{self.split}/{name}": value for name, value in self._pass.finish().items()}
        self.log_dict(self.latest, logger=False)  # for callbacks that monitor a metric; the meter writes them to the loggers
        if self._pass.scores is not None:
            self.label_scores = self._pass.scores.columns()
        losses, self._pass = self._pass.losses, None
        self._batches = {"batches": losses.table()} if self.final else {}

    def calibrated_settings(self, temperature: float) -> dict[str, Any]:
        """Return the entries of the model's config that change when its logits are divided by a temperature."""
        return {}

    def conformal_scores(self) -> ConformalScores | None:
        """Return the scores of the last evaluation of validation that prediction sets are made from; None if there are none."""
        return None

    def rows(self, batch: MicroBatch) -> np.ndarray:
        """Return (sequences,) the row of `self.split` that each sequence of a batch comes from."""
        rows = self.dataset.splits[self.split].rows
        assert rows is not None
        numbers: np.ndarray = rows[batch.indices.cpu().numpy()].astype(np.int64)
        return numbers

    def summary(self) -> dict[str, float]:
        """Return facts about the data that put the scores in proportion, such as a baseline."""
        return {}

    def details(self) -> dict[str, Any]:
        """Return the tables of the last evaluation for `evaluation/<split>.json`; here the losses of batches, for objectives without
        values of single examples."""
        return self._batches

    def describe_writing(self) -> str | None:
        """Return a description, shown before training, of the texts that evaluations will write; None if they write none."""
        return None

    def samples(self) -> list[dict[str, str]]:
        """Return texts that the model writes for a few fixed prompts: `prompt`, `text` and, if the data has one, `reference`.

        Only rank 0 calls it, with the weights as they are after a validation.
        """
        return []
