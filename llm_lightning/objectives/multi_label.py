"""Multi-label classification: decide for each label whether it applies, by binary cross-entropy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llm_lightning.data.collate import MicroBatch
from llm_lightning.data.examples import Example
from llm_lightning.data.prepare import TokenizedDataset
from llm_lightning.metrics.counts import DENSE, Calibration, Sums, per_class
from llm_lightning.metrics.ranking import CURVES, LabelScores
from llm_lightning.metrics.rows import SHOWN, Rows, TopRows
from llm_lightning.metrics.state import States
from llm_lightning.models.forward import sequence_logits
from llm_lightning.models.temperature import temperature_of
from llm_lightning.models.windows import weigh_by_logit
from llm_lightning.objectives.base import Evaluation, Objective


class MultiLabel(Objective):
    """Binary cross-entropy -Σ y log p + (1-y) log(1-p) over the labels, p = sigmoid(logit), per text.

    A label applies if p reaches a threshold. Every evaluation of validation tunes the threshold for micro-F1; the export's config has it
    as `threshold`.

    `calibrate` divides the logits of the export by the temperature with the highest likelihood of all labels of validation. The threshold
    moves with them, so that no prediction changes.
    """

    encoding = "label_sets"
    labelled = True
    whole_sequences = True
    scores_rows = True
    auto_class = "AutoModelForSequenceClassification"
    monitor = "validation/micro_f1"
    maximize = True

    def __init__(self, dataset: TokenizedDataset, *, calibrate: bool = True) -> None:
        super().__init__(dataset)
        self.calibrate = calibrate
        self._details: dict[str, Any] = {}
        self._threshold = 0.5

    def head(self) -> dict[str, Any]:
        return super().head() | {"problem_type": "multi_label_classification", "threshold": 0.5}

    def loss_and_outputs(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Return (summed loss, logits (batch, labels))."""
        logits = sequence_logits(self.model, batch, weigh_by_logit)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return F.binary_cross_entropy_with_logits(logits, batch.targets.to(logits.dtype), reduction="sum"), logits

    def predict(self, batch: MicroBatch) -> list[list[float]]:
        """Return the probability of each label, for each text."""
        return sequence_logits(self.model, batch, weigh_by_logit).float().sigmoid().tolist()

    def answer_row(self, example: Example, predictions: list[list[float]]) -> dict[str, Any]:
        config: Any = self.model.config
        scores = {config.id2label[i]: score for i, score in enumerate(predictions[0])}
        return {"labels": [name for name, score in scores.items() if score >= getattr(config, "threshold", 0.5)], "scores": scores}

    def build_states(self) -> States:
        labels, rows = len(self.dataset.label_names or ()), len(self.dataset.splits[self.split])
        self._threshold = float(getattr(self.model.config, "threshold", 0.5))
        states: States = {"scores": LabelScores(labels, rows), "counts": Sums(right=labels, reached=labels, true=labels)}
        return states | ({name: Calibration(rows * labels) for name in ("calibration", "before")} if self.final else {})

    def update_states(self, states: States, batch: MicroBatch, outputs: Tensor) -> None:
        probabilities, applies = outputs.sigmoid().cpu().numpy(), batch.targets.cpu().numpy() == 1
        states["scores"].update(self.rows(batch), probabilities, applies)
        reached, counts = probabilities >= self._threshold, states["counts"]
        for name, values in {"right": reached & applies, "reached": reached, "true": applies}.items():
            counts[name][...] += values.sum(0)
        if self.final:
            states["calibration"].update(probabilities.ravel(), applies.ravel())
            if (temperature := temperature_of(self.model.config)) != 1:
                states["before"].update((temperature * outputs).sigmoid().cpu().numpy().ravel(), applies.ravel())

    def score_labels(self, batch: MicroBatch, outputs: Tensor) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        return self.rows(batch), {"label": batch.targets.cpu().numpy(), "probabilities": outputs.sigmoid().cpu().numpy()}

    def compute_metrics(self, mean_loss: float, targets: int, states: States) -> Evaluation:
        """Return the metrics. Validation tunes the threshold, so its counts at the threshold come from the scores."""
        right, reached, true = (states["counts"][name] for name in ("right", "reached", "true"))
        if self.split == "validation":
            self._threshold = states["scores"].best_threshold()
            config: Any = self.model.config
            config.threshold = self._threshold
            reached, right = states["scores"].counts_at(self._threshold)
        if self.final:
            names = self.dataset.label_names or ()
            self._details = {"labels": list(names)} if len(names) <= DENSE else {}
            self._details |= {"classes": len(names), "per_class": per_class(names, right, true, reached)}
            self._details |= self._examples(names, np.argsort(-true, kind="stable")[:CURVES], states)
        occurring = true > 0
        averages = states["scores"].average_precisions()[occurring]
        return {
            "loss": mean_loss,
            "micro_f1": float(2 * right.sum() / max(reached.sum() + true.sum(), 1)),
            "macro_f1": float((2 * right / np.maximum(reached + true, 1)).mean()),
            "map": float(averages.mean()) if occurring.any() else float("nan"),
            "threshold": self._threshold,
        }

    def calibrated_settings(self, temperature: float) -> dict[str, Any]:
        """Return the threshold that the same labels reach."""
        return {"threshold": move_threshold(float(getattr(self.model.config, "threshold", 0.5)), temperature)}

    def details(self) -> dict[str, Any]:
        return self._details

    def _examples(self, names: Sequence[str], drawn: np.ndarray, states: States) -> dict[str, Any]:
        """Return the values of single examples, in the order of the data. A mistake ranks by its surest wrong answer."""
        scores: LabelScores = states["scores"]
        before: Calibration = states["before"]
        numbers, probabilities, true = scores.single()
        predicted = probabilities >= self._threshold
        sure = np.where(predicted == true, 0, np.where(predicted, probabilities, 1 - probabilities)).max(1, initial=0)

        def join_applying(row: np.ndarray) -> str:
            return ", ".join(names[i] for i in np.flatnonzero(row).tolist()) or "none"

        mistakes = TopRows()
        mistakes.update(
            numbers,
            sure,
            (predicted != true).any(1),
            lambda i: (join_applying(true[i]), join_applying(predicted[i]), float(sure[i])),
        )
        examples = Rows(scores.sample.rows, min(scores.sample.most, SHOWN))
        examples.update(
            numbers, **{name: v.sum(1) for name, v in {"right": predicted & true, "found": predicted, "true": true}.items()}
        )
        self.scored[self.split] = examples.columns()
        return {
            "calibration": states["calibration"].table(),
            "ece": states["calibration"].error(),
            **({"calibration_before": before.table(), "ece_before": before.error()} if before["count"].any() else {}),
            "precision_recall": {
                names[i]: curve.points() for i, curve in ((i, scores.curve(i)) for i in drawn.tolist()) if curve.positives
            },
            "mistakes": [
                {
                    "text": self.dataset.show_row(self.split, row),
                    "true": true_names,
                    "said": predicted_names,
                    "probability": probability,
                }
                for row, (true_names, predicted_names, probability) in mistakes.rows()
            ],
            "examples": examples.table(),
            **scores.kept.describe_sample(),
        }


def move_threshold(threshold: float, temperature: float) -> float:
    """Return the threshold of probabilities whose log-odds are divided by a temperature.

    The threshold is the fp32 probability of a row of validation, which has to reach it still. So it is lowered by four units in the last
    place of fp32, once before and once after the division: torch's sigmoid is off by up to two.
    """
    if threshold <= 0:
        return threshold
    threshold = max(threshold - 4 * float(np.spacing(np.float32(threshold))), threshold / 2)
    odds = math.log(threshold) - math.log1p(-threshold)
    moved = 1 / (1 + math.exp(min(-odds / temperature, 700)))
    return moved - 4 * float(np.spacing(np.float32(moved)))
