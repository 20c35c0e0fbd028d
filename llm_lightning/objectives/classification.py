"""Text classification: one class for a text or a pair of texts, by cross-entropy."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassMatthewsCorrCoef,
)

from llm_lightning.data.collate import MicroBatch
from llm_lightning.data.module import Text
from llm_lightning.objectives.base import Evaluation, Objective
from llm_lightning.signatures import Range

BINS = 15


class Classification(Objective):
    """Cross-entropy -log p(class | text), with optional class weights and label smoothing (Szegedy et al. 2016, section 7)."""

    encoding = "texts"
    labelled = True
    whole_sequences = True
    auto_class = "AutoModelForSequenceClassification"
    monitor = "validation/accuracy"
    maximize = True

    def __init__(
        self,
        text: Text,
        *,
        label_smoothing: Annotated[float, Range(0, 1)] = 0.0,
        class_weights: Literal["none", "balanced"] | list[float] = "none",
    ) -> None:
        """`class_weights=balanced` weighs a class by the inverse of its share of train; a list gives the weights in label order."""
        super().__init__(text)
        assert text.labels is not None
        self.label_smoothing = label_smoothing
        self.weights: Tensor | None
        self.register_buffer("weights", _weights(class_weights, text), persistent=False)
        classes = len(text.labels.names)
        self.metrics = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(classes, average="micro"),
                "macro_f1": MulticlassF1Score(classes, average="macro"),
                "mcc": MulticlassMatthewsCorrCoef(classes),
                "ece": MulticlassCalibrationError(classes, n_bins=BINS),
                "confusion": MulticlassConfusionMatrix(classes),
            },
            compute_groups=False,
        )
        self._details: dict[str, Any] = {}

    def score(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """(summed loss, logits (batch, classes))."""
        logits = self.model(**batch.inputs()).logits.float()
        loss = F.cross_entropy(logits, batch.targets, self.weights, label_smoothing=self.label_smoothing, reduction="sum")
        return loss, logits

    def collect(self, batch: MicroBatch, outputs: Tensor) -> None:
        self.metrics.update(outputs.softmax(-1), batch.targets)

    def scores(self, split: str, mean_loss: float, targets: int) -> Evaluation:
        values = self.metrics.compute()
        self.metrics.reset()
        self._details = _tables(values.pop("confusion"), self.text)
        return {"loss": mean_loss, **{name: float(value) for name, value in values.items()}}

    def summary(self, text: Text) -> dict[str, float]:
        """What always answering the most frequent class of train would score."""
        train = text.splits["train"].labels
        assert train is not None
        most = np.bincount(train).argmax()
        held = {name: split.labels for name, split in text.splits.items() if name != "train"}
        return {f"{name}/majority_accuracy": float(np.mean(np.equal(labels, most))) for name, labels in held.items()}  # type: ignore[arg-type]

    def details(self) -> dict[str, Any]:
        return self._details


def _weights(setting: str | list[float], text: Text) -> Tensor | None:
    assert text.labels is not None
    if setting == "none":
        return None
    if setting == "balanced":
        counts = np.bincount(text.splits["train"].labels, minlength=len(text.labels.names))  # type: ignore[arg-type]
        return torch.from_numpy(counts.sum() / (len(counts) * np.maximum(counts, 1))).float()
    return torch.tensor(setting, dtype=torch.float32)


def _tables(confusion: Tensor, text: Text) -> dict[str, Any]:
    """Confusion matrix (rows: true class) and each class's precision, recall and F1."""
    assert text.labels is not None
    matrix = confusion.cpu().numpy()
    right, true, said = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    precision, recall = right / np.maximum(said, 1), right / np.maximum(true, 1)
    f1 = 2 * right / np.maximum(true + said, 1)
    per_class = {
        name: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
        for name, p, r, f, n in zip(text.labels.names, precision, recall, f1, true, strict=True)
    }
    return {"labels": list(text.labels.names), "confusion_matrix": matrix.tolist(), "per_class": per_class}
