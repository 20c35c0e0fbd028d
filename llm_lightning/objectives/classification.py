"""Text classification: one class for a text or a pair of texts, by cross-entropy."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_matthews_corrcoef,
)

from llm_lightning.data.collate import MicroBatch
from llm_lightning.data.examples import Example
from llm_lightning.data.module import Text
from llm_lightning.errors import UserError, listed
from llm_lightning.models.forward import sequence_logits
from llm_lightning.objectives import details
from llm_lightning.objectives.base import Evaluation, Objective
from llm_lightning.signatures import Range


class Classification(Objective):
    """Cross-entropy -log p(class | text), with optional class weights and label smoothing (Szegedy et al. 2016, section 7).

    Under `focal_gamma` an example counts (1 - p)^gamma as much, so that what is learnt already fades (Lin et al. 2017, equation 4).
    """

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
        label_smoothing: Annotated[float, Range(0, 1, open_high=True)] = 0.0,
        class_weights: Literal["none", "balanced"] | list[Annotated[float, Range(0)]] = "none",
        focal_gamma: Annotated[float, Range(0)] = 0.0,
    ) -> None:
        """`class_weights=balanced` weighs a class by the inverse of its share of train; a list gives the weights in label order."""
        super().__init__(text)
        self.label_smoothing, self.focal_gamma = label_smoothing, focal_gamma
        self.weights: Tensor | None
        self.register_buffer("weights", _weights(class_weights, text), persistent=False)
        self._details: dict[str, Any] = {}

    def score(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """(summed loss, logits (batch, classes))."""
        logits = sequence_logits(self.model, batch).float()
        losses = F.cross_entropy(logits, batch.targets, self.weights, label_smoothing=self.label_smoothing, reduction="none")
        if self.focal_gamma:
            right = logits.softmax(-1).gather(1, batch.targets[:, None])[:, 0]
            losses = (1 - right) ** self.focal_gamma * losses
        return losses.sum(), logits

    def predict(self, batch: MicroBatch) -> list[list[float]]:
        """The probability of each class, of each text."""
        return sequence_logits(self.model, batch).float().softmax(-1).tolist()

    def answer_row(self, example: Example, found: list[list[float]]) -> dict[str, Any]:
        names: Any = self.model.config.id2label
        scores = {names[i]: score for i, score in enumerate(found[0])}
        label = max(scores, key=scores.__getitem__)
        return {"label": label, "score": scores[label], "scores": scores}

    def outcome(self, batch: MicroBatch, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(probabilities (batch, classes), classes (batch,), sequences (batch,))"""
        return outputs.softmax(-1).cpu(), batch.targets.cpu(), batch.indices.cpu()

    def scores(self, split: str, mean_loss: float, targets: int, outcomes: list[tuple[Tensor, Tensor, Tensor]]) -> Evaluation:
        probabilities, classes, sequences = (torch.cat(parts) for parts in zip(*outcomes, strict=True))
        number = probabilities.shape[1]
        self._details = _tables(multiclass_confusion_matrix(probabilities, classes, number), self.text)
        if self.final:
            order = sequences.argsort()
            self._details |= self._examples(split, probabilities[order].numpy(), classes[order].numpy(), sequences[order].tolist())
        values = {
            "accuracy": multiclass_accuracy(probabilities, classes, number, average="micro"),
            "macro_f1": multiclass_f1_score(probabilities, classes, number, average="macro"),
            "mcc": multiclass_matthews_corrcoef(probabilities, classes, number),
            "ece": multiclass_calibration_error(probabilities, classes, number, n_bins=details.BINS),
        }
        return {"loss": mean_loss, **{name: float(value) for name, value in values.items()}}

    def summary(self) -> dict[str, float]:
        """What always answering the most frequent class of train would score."""
        train = self.text.splits["train"].labels
        assert train is not None
        most = np.bincount(train).argmax()
        held = {name: split.labels for name, split in self.text.splits.items() if name != "train"}
        return {f"{name}/majority_accuracy": float(np.mean(np.equal(labels, most))) for name, labels in held.items()}  # type: ignore[arg-type]

    def details(self) -> dict[str, Any]:
        return self._details

    def _examples(self, split: str, probabilities: np.ndarray, classes: np.ndarray, sequences: list[int]) -> dict[str, Any]:
        """What is known of the single examples, in the order of the data; the mistakes are those that the model was surest of."""
        names, said = self.text.label_names or (), probabilities.argmax(1)
        mistakes = [
            {
                "text": self.text.shown(split, sequences[i]),
                "true": names[classes[i]],
                "said": names[said[i]],
                "probability": float(probabilities[i, said[i]]),
            }
            for i in details.worst(said != classes, probabilities.max(1))
        ]
        return details.of_classes(names, probabilities, classes) | {"mistakes": mistakes}


def _weights(setting: str | list[float], text: Text) -> Tensor | None:
    if setting == "none" or text.labels is None:
        return None
    if isinstance(setting, list) and len(setting) != len(text.labels.names):
        raise UserError(
            f"objective.class_weights has {len(setting)} weights, and there are {len(text.labels.names)} classes "
            f"({listed(text.labels.names)}): give one for each, in this order."
        )
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
