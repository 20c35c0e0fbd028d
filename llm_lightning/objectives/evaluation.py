"""One pass over a split: each rank reduces its own batches to states, which are merged over ranks once, at the end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from llm_lightning import distributed
from llm_lightning.data.collate import MicroBatch
from llm_lightning.data.folds import LEFT_OUT
from llm_lightning.metrics.losses import BatchLosses
from llm_lightning.metrics.rows import Rows
from llm_lightning.metrics.state import merge_over_ranks

if TYPE_CHECKING:
    from llm_lightning.objectives.base import Evaluation, Objective


class EvaluationPass:
    """The losses and the states of one rank's part of a pass over a split."""

    scores: Rows | None = None
    """The probabilities of the labels of the rows that `data.left_out` names, in a pass over them."""

    def __init__(self, objective: Objective, batches: int) -> None:
        """`batches` is the number of batches over all ranks."""
        self.objective, self.losses = objective, BatchLosses(batches)
        self.states = objective.build_states()
        if objective.split == LEFT_OUT:
            self.scores = Rows(0)

    def add(self, batch: MicroBatch) -> None:
        """Evaluate a batch. A blank batch runs through the model too, as ranks gather a sharded model together, but does not count."""
        loss, outputs = self.objective.evaluate_batch(batch)
        if not batch.blank:
            self.losses.update(batch.place, loss, batch.target_count)
            self.objective.update_states(self.states, batch, outputs)
            if self.scores is not None:
                numbers, columns = self.objective.score_labels(batch, outputs)
                self.scores.update(numbers, **columns)

    def finish(self) -> Evaluation:
        """Merge the states of all ranks and return the scores, the same on every rank. A collective."""
        self.objective.complete_states(self.states)
        scores = [] if self.scores is None else [self.scores]
        merge_over_ranks([self.losses, *self.states.values(), *scores], self.objective.device)
        return self.objective.compute_metrics(self.losses.mean, self.losses.targets, self.states)


class PredictionPass(EvaluationPass):
    """The predictions of sequences in place of scores: those of one rank's part, and after `finish` those of all ranks."""

    def __init__(self, objective: Objective, batches: int) -> None:
        self.objective, self.losses = objective, BatchLosses(batches)
        self.predictions: dict[int, Any] = {}
        """The index of each sequence -> its prediction."""

    def add(self, batch: MicroBatch) -> None:
        predictions = self.objective.predict(batch)
        if not batch.blank:
            self.predictions |= dict(zip(batch.indices.tolist(), predictions, strict=True))

    def finish(self) -> Evaluation:
        """Gather the predictions of all ranks, on every rank; there are no scores. A collective."""
        self.predictions = {index: value for part in distributed.gather(self.predictions) for index, value in part.items()}
        return {}


class OutputPass(EvaluationPass):
    """A pass that collects the outputs and the targets of rows, and computes no scores."""

    def __init__(self, rows: Rows, objective: Objective, batches: int) -> None:
        """`rows` gets the columns `outputs` and `targets`."""
        self.objective, self.losses, self.rows = objective, BatchLosses(batches), rows

    def add(self, batch: MicroBatch) -> None:
        outputs = self.objective.evaluate_batch(batch)[1]
        if not batch.blank:
            self.rows.update(self.objective.rows(batch), outputs=outputs.float().cpu().numpy(), targets=batch.targets.cpu().numpy())

    def finish(self) -> Evaluation:
        """Merge the rows of all ranks. A collective."""
        merge_over_ranks([self.rows], self.objective.device)
        return {}


def score_batches(objective: Objective, batches: Iterable[MicroBatch]) -> Evaluation:
    """Return the scores of some batches without merging states: every rank that calls it has the same batches.

    Call it on every rank of the run, as `compute_metrics` may share its work among them.
    """
    batches = list(batches)
    losses, states = BatchLosses(len(batches)), objective.build_states()
    for batch in batches:
        loss, outputs = objective.evaluate_batch(batch)
        losses.update(batch.place, loss, batch.target_count)
        objective.update_states(states, batch, outputs)
    return objective.compute_metrics(losses.mean, losses.targets, states)
