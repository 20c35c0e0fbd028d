"""Regression: a number for a text or a pair of texts, by squared error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.functional.regression import pearson_corrcoef, spearman_corrcoef

from llm_lightning.data.collate import MicroBatch
from llm_lightning.data.examples import Example
from llm_lightning.data.module import Text
from llm_lightning.models.forward import sequence_logits
from llm_lightning.objectives import details
from llm_lightning.objectives.base import Evaluation, Objective


class Regression(Objective):
    """Squared error (prediction - score)², by which the mean of the scores given the text is learnt."""

    encoding = "scores"
    labelled = True
    whole_sequences = True
    auto_class = "AutoModelForSequenceClassification"
    monitor = "validation/pearson"
    maximize = True

    def __init__(self, text: Text) -> None:
        super().__init__(text)
        self._details: dict[str, Any] = {}

    def head(self) -> dict[str, Any]:
        return {"num_labels": 1, "problem_type": "regression"}

    def connect(self, model: Any, *others: Any) -> None:
        """A new head begins at the mean of train's scores: steps of a learning rate's size would take long to get there."""
        super().connect(model, *others)
        bias = next((m.bias for m in reversed(list(model.modules())) if isinstance(m, nn.Linear) and m.out_features == 1), None)
        labels = self.text.splits["train"].labels
        if bias is not None and labels is not None and not bias.any():
            with torch.no_grad():
                bias.fill_(float(labels.mean()))

    def score(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """(summed loss, predictions (batch,))."""
        found = sequence_logits(self.model, batch)[:, 0]
        found = found if found.dtype == torch.float64 else found.float()
        return (found - batch.targets.to(found.dtype)).square().sum(), found

    def predict(self, batch: MicroBatch) -> list[float]:
        return sequence_logits(self.model, batch)[:, 0].float().tolist()

    def answer_row(self, example: Example, found: list[float]) -> dict[str, Any]:
        return {"score": found[0]}

    def outcome(self, batch: MicroBatch, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(predictions, scores, sequences), each (batch,)."""
        return outputs.cpu(), batch.targets.to(outputs.dtype).cpu(), batch.indices.cpu()

    def scores(self, split: str, mean_loss: float, targets: int, outcomes: list[tuple[Tensor, Tensor, Tensor]]) -> Evaluation:
        found, true, sequences = (torch.cat(parts) for parts in zip(*outcomes, strict=True))
        if self.final:
            order = sequences.argsort()
            self._details = self._examples(split, *(part[order].numpy() for part in (found, true, sequences)))
        return {
            "loss": mean_loss,
            "mae": float((found - true).abs().mean()),
            "pearson": _correlation(pearson_corrcoef, found, true),
            "spearman": _correlation(spearman_corrcoef, found, true),
        }

    def details(self) -> dict[str, Any]:
        return self._details

    def _examples(self, split: str, found: np.ndarray, true: np.ndarray, sequences: np.ndarray) -> dict[str, Any]:
        """Each example's prediction and score, in the order of the data, and those that lie the furthest apart."""
        mistakes = [
            {"text": self.text.shown(split, int(sequences[i])), "true": f"{true[i]:.3g}", "said": f"{found[i]:.3g}"}
            for i in details.worst(found != true, np.abs(found - true))
        ]
        return {"mistakes": mistakes, "examples": {"prediction": found.tolist(), "target": true.tolist()}}

    def summary(self) -> dict[str, float]:
        """The squared error of always answering the mean of train's scores."""
        mean = self.text.splits["train"].labels.mean()  # type: ignore[union-attr]
        held = {name: split.labels for name, split in self.text.splits.items() if name != "train"}
        return {f"{name}/mean_loss": float(((labels - mean) ** 2).mean()) for name, labels in held.items()}


def _correlation(of: Callable[[Tensor, Tensor], Tensor], found: Tensor, true: Tensor) -> float:
    """Zero where one of the two does not vary, and nothing is known of the other by it."""
    if len(found) < 2 or float(found.std()) == 0.0 or float(true.std()) == 0.0:
        return 0.0
    return float(of(found, true))
