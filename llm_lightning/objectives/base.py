"""What every objective shares: one optimizer step, one evaluation pass.

A batch of the training loader is a whole optimizer step, cut into micro-batches. Its gradient is that of one big batch: the sum
of the losses of its targets, divided by their number over all micro-batches and ranks; never a mean of means. Optimization is
manual for that reason, which also keeps clipping ours (Lightning refuses to clip under fused AdamW with mixed precision).

An objective is a subclass in a file of its own: it says how data is encoded for it, which head the model needs, the loss and the
scores. Its keyword-only parameters are its configuration. The pass over a split is that of evaluation.py, its states those of metrics/.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any, ClassVar

import lightning
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

from llm_lightning.data.collate import MicroBatch, Step, pieces
from llm_lightning.data.examples import Example
from llm_lightning.data.masking import Masking
from llm_lightning.data.module import Text
from llm_lightning.errors import RunError, UserError
from llm_lightning.metrics.state import States
from llm_lightning.models import build, dropout, embedding
from llm_lightning.models.layers import layers
from llm_lightning.objectives.evaluation import EvaluationPass

log = logging.getLogger(__name__)

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
        self._pieces = 1
        """Into how many each micro-batch is cut, since memory ran out."""
        self._pass: EvaluationPass | None = None
        """The evaluation that is going on."""
        self._batches: dict[str, Any] = {}
        """`batches` of the last evaluation of a run: of each the loss sum and the targets."""

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
        """Return (sum of the losses, what `update_states` takes) of a batch."""
        raise NotImplementedError

    def build_states(self) -> States:
        """Return fresh states (metrics/) for a pass over `self.split`; `self.final` tells whether its tables are wanted too."""
        return {}

    def evaluate_batch(self, batch: MicroBatch) -> tuple[Tensor, Any]:
        """Return (sum of the losses, what `update_states` takes) of an evaluation batch.

        All that runs the model belongs here: a rank with a batch fewer runs it on a blank one, so that all gather a sharded model together.
        """
        return self.score(batch)

    def update_states(self, states: States, batch: MicroBatch, outputs: Any) -> None:
        """Reduce an evaluation batch of this rank into the states."""

    def complete_states(self, states: States) -> None:
        """Add to the states what does not come from batches, such as answers to prompts. Called on every rank, before states are merged."""

    def scores(self, mean_loss: float, targets: int, states: States) -> Evaluation:
        """Return the metrics of `self.split`, named without the split, from the states of all ranks. Called on every rank."""
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
        """Under FSDP2, cut the model up: each transformer layer, then the rest."""
        if self.device_mesh is None or isinstance(self.model, FSDPModule):  # parameters of its root stay whole after an evaluation
            return
        mesh = self.device_mesh["data_parallel"]
        for block in layers(self.model):
            fully_shard(block, mesh=mesh)
        fully_shard(self.model, mesh=mesh)

    def configure_optimizers(self) -> Any:
        optimizer = self._make_optimizer(self.model)
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, self._factor)]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """A CPU has it already: looking through its parts takes a third of what Lightning does in a step."""
        return batch if device.type == "cpu" else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def training_step(self, step: Step, batch_index: int) -> dict[str, Any]:
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        targets = torch.full((), float(step.targets), device=self.device)  # a copy from the host would wait for the device
        if self.trainer.world_size > 1:
            targets = self.trainer.strategy.reduce(targets, reduce_op="sum")
        total = self._accumulated(step, targets)
        norm, rate = self._clip(optimizer), optimizer.param_groups[0]["lr"]  # type: ignore[union-attr]
        optimizer.step()  # type: ignore[union-attr]
        optimizer.zero_grad()  # type: ignore[union-attr]
        scheduler.step()  # type: ignore[union-attr]
        return {"loss_sum": total, "targets": targets, "gradient_norm": norm, "learning_rate": rate}

    def _accumulated(self, step: Step, targets: Tensor) -> Tensor:
        """The step's summed loss, its gradients added up in the parameters. Where memory runs out, the step is begun anew in halves.

        Raises RunError where it cannot be halved.
        """
        while True:
            dropout.seed(_mix(self.seed, step.step, self.global_rank), self.device)  # a function of (seed, step, rank)
            batches = [piece for batch in step.micro_batches for piece in pieces(batch, self._pieces)]
            try:
                return self._backward(batches, targets)
            except torch.OutOfMemoryError as error:
                largest = max(batches, key=lambda batch: len(batch.input_ids))
                size = len(largest.input_ids)
                if self.trainer.world_size > 1 or len(largest.indices) == 1:
                    raise RunError(
                        f"the device ran out of memory on a micro-batch of {size:,} tokens at step {step.step}: lower "
                        f"batch.micro_tokens or data.block_size; the result stays the same with the first."
                    ) from error
            self._pieces *= 2
            self.model.zero_grad()
            torch.cuda.empty_cache()
            log.warning(
                "out of memory on a micro-batch of %s tokens: from now on they are halved (batch.micro_tokens)", f"{size:,}"
            )

    def _backward(self, batches: list[MicroBatch], targets: Tensor) -> Tensor:
        """The summed loss of micro-batches; gradients are added to those that are there."""
        total, world = torch.zeros((), device=self.device), self.trainer.world_size
        for i, batch in enumerate(batches):
            with self._synced(i == len(batches) - 1):
                loss = self.loss_sum(batch) * (not batch.blank)
                self.manual_backward(loss * (world / targets))  # DDP averages over ranks, and we want the sum
            total += loss.detach()
        return total

    def _synced(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Gradients are exchanged between ranks once a step, at its last micro-batch."""
        strategy = self.trainer.strategy
        if last or not hasattr(strategy, "block_backward_sync"):
            return contextlib.nullcontext()
        return strategy.block_backward_sync()

    def _clip(self, optimizer: Any) -> Tensor:
        """The gradient norm before clipping."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            scaler.unscale_(optimizer.optimizer)
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        with embedding.written_only(self.model, trained) as parameters:
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm or float("inf"))
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    # ---- evaluation ----

    def on_validation_epoch_start(self) -> None:
        self._pass = EvaluationPass(self, self.trainer.world_size * sum(map(int, self.trainer.num_val_batches)))

    def validation_step(self, batch: MicroBatch, batch_index: int) -> None:
        assert self._pass is not None
        self._pass.add(batch)

    def on_validation_epoch_end(self) -> None:
        assert self._pass is not None
        self.latest = {f"{self.split}/{name}": value for name, value in self._pass.finish().items()}
        losses, self._pass = self._pass.losses, None
        self._batches = {"batches": losses.table()} if self.final else {}

    def rows(self, batch: MicroBatch) -> np.ndarray:
        """Return (sequences,) the rows of `self.split` that the sequences of a batch are made of."""
        rows = self.text.splits[self.split].rows
        assert rows is not None
        numbers: np.ndarray = rows[batch.indices.cpu().numpy()].astype(np.int64)
        return numbers

    def summary(self) -> dict[str, float]:
        """Facts about the data that put the scores in proportion, such as a baseline."""
        return {}

    def details(self) -> dict[str, Any]:
        """Return the tables of the last evaluation that are no single number, for `evaluation/<split>.json`; the losses of batches where
        no values of single examples are kept."""
        return self._batches

    def samples(self) -> list[dict[str, str]]:
        """What the model makes of a few fixed prompts, each a `prompt`, a `text` and where there is one the `reference`.

        Only rank 0 is asked, with the weights as they are after a validation.
        """
        return []


def _mix(*parts: int) -> int:
    """One 63-bit seed from several numbers (splitmix64 steps), so that neighbouring steps share nothing."""
    state = 0
    for part in parts:
        state = (state + part + 0x9E3779B97F4A7C15) & (1 << 64) - 1
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & (1 << 64) - 1
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & (1 << 64) - 1
        state ^= state >> 31
    return state >> 1
