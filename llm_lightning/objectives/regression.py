"""Regression: a number for a text or a pair of texts, by squared error."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llm_lightning.data.collate import MicroBatch
from llm_lightning.data.examples import Example
from llm_lightning.data.prepare import TokenizedDataset
from llm_lightning.metrics.correlation import correlation, ranks
from llm_lightning.metrics.rows import SCORED, Rows, TopRows
from llm_lightning.metrics.state import States
from llm_lightning.models.forward import sequence_logits
from llm_lightning.models.windows import weigh_alike
from llm_lightning.objectives.base import Evaluation, Objective

ROUNDING = 1e-6
"""Spread of predictions, relative to their size, up to which they are the same number in fp32."""


class Regression(Objective):
    """Squared error (prediction - score)²; its minimum is the mean of the scores for the text."""

    encoding = "scores"
    labelled = True
    whole_sequences = True
    scores_rows = True
    auto_class = "AutoModelForSequenceClassification"
    monitor = "validation/pearson"
    maximize = True

    def __init__(self, dataset: TokenizedDataset) -> None:
        super().__init__(dataset)
        self._details: dict[str, Any] = {}

    def head(self) -> dict[str, Any]:
        return {"num_labels": 1, "problem_type": "regression"}

    def connect(self, model: Any, *others: Any) -> None:
        """Start a new head at the mean of train's scores: steps of the learning rate's size would take long to get there."""
        super().connect(model, *others)
        bias = next((m.bias for m in reversed(list(model.modules())) if isinstance(m, nn.Linear) and m.out_features == 1), None)
        labels = self.dataset.splits["train"].labels
        if bias is not None and labels is not None and not bias.any():
            with torch.no_grad():
                bias.fill_(float(labels.mean()))

    def loss_and_outputs(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Return (summed loss, predictions (batch,))."""
        predictions = sequence_logits(self.model, batch, weigh_alike)[:, 0]
        predictions = predictions if predictions.dtype == torch.float64 else predictions.float()
        return (predictions - batch.targets.to(predictions.dtype)).square().sum(), predictions

    def predict(self, batch: MicroBatch) -> list[float]:
        return sequence_logits(self.model, batch, weigh_alike)[:, 0].float().tolist()

    def answer_row(self, example: Example, predictions: list[float]) -> dict[str, Any]:
        return {"score": predictions[0]}

    def build_states(self) -> States:
        return {"rows": Rows(len(self.dataset.splits[self.split]), SCORED)}

    def update_states(self, states: States, batch: MicroBatch, outputs: Tensor) -> None:
        targets = batch.targets.to(outputs.dtype)
        states["rows"].update(self.rows(batch), prediction=outputs.cpu().numpy(), target=targets.cpu().numpy())

    def compute_metrics(self, mean_loss: float, targets: int, states: States) -> Evaluation:
        columns = states["rows"].columns()
        prediction, target = columns["prediction"].astype(np.float64), columns["target"].astype(np.float64)
        if self.final:
            self._details = self._examples(states["rows"], columns["number"], prediction, target)
        # a model that always answers the same does so to rounding: its correlation with anything is noise
        is_constant = np.ptp(prediction) <= ROUNDING * np.abs(prediction).max()
        compared = np.zeros_like(prediction) if is_constant else prediction
        return {
            "loss": mean_loss,
            "mae": float(np.abs(prediction - target).mean()),
            "pearson": correlation(compared, target),
            "spearman": correlation(ranks(compared), ranks(target)),
        }

    def details(self) -> dict[str, Any]:
        return self._details

    def _examples(self, rows: Rows, numbers: np.ndarray, prediction: np.ndarray, target: np.ndarray) -> dict[str, Any]:
        """Return each example's prediction and score, in the order of the data, and the pairs that are furthest apart."""
        self.scored[self.split] = rows.columns()
        worst = TopRows()
        worst.update(numbers, np.abs(prediction - target), prediction != target, lambda i: (target[i], prediction[i]))
        mistakes = [
            {"text": self.dataset.show_row(self.split, number), "true": f"{true:.3g}", "said": f"{predicted:.3g}"}
            for number, (true, predicted) in worst.rows()
        ]
        return {"mistakes": mistakes, "examples": rows.table(), **rows.describe_sample()}

    def summary(self) -> dict[str, float]:
        """Return the squared error of always answering the mean of train's scores."""
        mean = self.dataset.splits["train"].labels.mean()  # type: ignore[union-attr]
        labels_by_split = {name: split.labels for name, split in self.dataset.splits.items() if name != "train"}
        return {f"{name}/mean_loss": float(((labels - mean) ** 2).mean()) for name, labels in labels_by_split.items()}
