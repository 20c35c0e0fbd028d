"""Multi-label classification: for each label whether it applies, by binary cross-entropy."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import multilabel_average_precision

from llm_lightning.data.collate import MicroBatch
from llm_lightning.data.examples import Example
from llm_lightning.models.forward import sequence_logits
from llm_lightning.objectives import details
from llm_lightning.objectives.base import Evaluation, Objective


class MultiLabel(Objective):
    """Binary cross-entropy -Σ y log p + (1-y) log(1-p) over the labels, p = sigmoid(logit), per text.

    A label is said to apply where p reaches a threshold, which every evaluation of validation tunes for micro-F1; it goes into the
    export's config as `threshold`.
    """

    encoding = "label_sets"
    labelled = True
    whole_sequences = True
    auto_class = "AutoModelForSequenceClassification"
    monitor = "validation/micro_f1"
    maximize = True

    def head(self) -> dict[str, Any]:
        return super().head() | {"problem_type": "multi_label_classification", "threshold": 0.5}

    def score(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """(summed loss, logits (batch, labels))."""
        logits = sequence_logits(self.model, batch)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return F.binary_cross_entropy_with_logits(logits, batch.targets.to(logits.dtype), reduction="sum"), logits

    def predict(self, batch: MicroBatch) -> list[list[float]]:
        """The probability of each label, of each text."""
        return sequence_logits(self.model, batch).float().sigmoid().tolist()

    def answer_row(self, example: Example, found: list[list[float]]) -> dict[str, Any]:
        config: Any = self.model.config
        scores = {config.id2label[i]: score for i, score in enumerate(found[0])}
        return {"labels": [name for name, score in scores.items() if score >= getattr(config, "threshold", 0.5)], "scores": scores}

    def outcome(self, batch: MicroBatch, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(probabilities, whether each label applies), both (batch, labels), and the sequences (batch,)."""
        return outputs.sigmoid().cpu(), batch.targets.cpu(), batch.indices.cpu()

    def scores(self, split: str, mean_loss: float, targets: int, outcomes: list[tuple[Tensor, Tensor, Tensor]]) -> Evaluation:
        probabilities, applies, sequences = (torch.cat(parts) for parts in zip(*outcomes, strict=True))
        config: Any = self.model.config
        if split == "validation":
            config.threshold = best_threshold(probabilities.numpy(), applies.numpy())
        said, true = probabilities.numpy() >= config.threshold, applies.numpy() == 1
        right, found, there = (said & true).sum(0), said.sum(0), true.sum(0)
        f1 = 2 * right / np.maximum(found + there, 1)
        average = multilabel_average_precision(probabilities, applies, applies.shape[1], average="none")
        names = self.text.label_names or ()
        per_class = {
            name: {
                "precision": float(right[i] / max(found[i], 1)),
                "recall": float(right[i] / max(there[i], 1)),
                "f1": float(f1[i]),
                "support": int(there[i]),
            }
            for i, name in enumerate(names)
        }
        self._details = {"labels": list(names), "per_class": per_class}
        if self.final:
            order = sequences.argsort()
            self._details |= self._examples(split, *(part[order].numpy() for part in (probabilities, applies, sequences)))
        return {
            "loss": mean_loss,
            "micro_f1": float(2 * right.sum() / max(found.sum() + there.sum(), 1)),
            "macro_f1": float(f1.mean()),
            "map": float(average[torch.from_numpy(there > 0)].mean()),
            "threshold": float(config.threshold),
        }

    def details(self) -> dict[str, Any]:
        return self._details

    def _examples(self, split: str, probabilities: np.ndarray, applies: np.ndarray, sequences: np.ndarray) -> dict[str, Any]:
        """What is known of the single examples, in the order of the data; a mistake is as bad as the surest wrong answer in it."""
        config: Any = self.model.config
        names, said, true = self.text.label_names or (), probabilities >= config.threshold, applies == 1
        sure = np.where(said == true, 0, np.where(said, probabilities, 1 - probabilities)).max(1)

        def listed(row: np.ndarray) -> str:
            return ", ".join(name for name, there in zip(names, row, strict=True) if there) or "none"

        mistakes = [
            {
                "text": self.text.shown(split, int(sequences[i])),
                "true": listed(true[i]),
                "said": listed(said[i]),
                "probability": float(sure[i]),
            }
            for i in details.worst((said != true).any(1), sure)
        ]
        counts = {"right": said & true, "found": said, "true": true}
        return {
            "calibration": details.calibration(probabilities.ravel(), true.ravel()),
            "precision_recall": details.precision_recall(names, probabilities, true),
            "mistakes": mistakes,
            "examples": {name: values.sum(1).tolist() for name, values in counts.items()},
        }


def best_threshold(probabilities: np.ndarray, applies: np.ndarray) -> float:
    """The threshold with the best micro-F1 of all that tell two probabilities apart; (rows, labels) both."""
    order = np.argsort(-probabilities, axis=None, kind="stable")
    sorted_, right = probabilities.ravel()[order], np.cumsum(applies.ravel()[order])
    last = np.append(sorted_[1:] != sorted_[:-1], True)  # of equal probabilities all are said, or none is
    f1 = np.where(last, 2 * right / np.maximum(np.arange(1, len(order) + 1) + applies.sum(), 1), -1)
    best = int(f1.argmax())
    below = sorted_[best + 1] if best + 1 < len(sorted_) else 0.0
    return float((np.float64(sorted_[best]) + below) / 2)
