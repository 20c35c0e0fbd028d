"""Text classification: one class for a text or a pair of texts, by cross-entropy."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llm_lightning.config.signatures import Range
from llm_lightning.data.collate import MicroBatch
from llm_lightning.data.examples import Example
from llm_lightning.data.prepare import TokenizedDataset
from llm_lightning.errors import UserError, join_names
from llm_lightning.metrics.confidence import Confidence, report_threshold
from llm_lightning.metrics.conformal import ConformalScores
from llm_lightning.metrics.counts import Calibration, ClassCounts, Confusion
from llm_lightning.metrics.ranking import CURVES, LabelScores
from llm_lightning.metrics.rows import Rows, TopRows
from llm_lightning.metrics.state import States
from llm_lightning.models.forward import sequence_logits
from llm_lightning.models.temperature import temperature_of
from llm_lightning.objectives.base import Evaluation, Objective


class Classification(Objective):
    """Cross-entropy -log p(class | text), with optional class weights.

    `label_smoothing` is the share of the target that goes to all classes alike (Szegedy et al. 2016, section 7).

    `focal_gamma` multiplies the loss of an example by (1 - p)^gamma, so that examples learnt already fade (Lin et al. 2017, equation 4).
    Evaluations report the same loss, as weights, smoothing and focus decide which model is the best.

    `calibrate` divides the logits of the export by the temperature with the highest likelihood of validation, which changes no prediction.
    """

    encoding = "texts"
    labelled = True
    whole_sequences = True
    scores_rows = True
    one_class = True
    auto_class = "AutoModelForSequenceClassification"
    monitor = "validation/accuracy"
    maximize = True

    def __init__(
        self,
        dataset: TokenizedDataset,
        *,
        label_smoothing: Annotated[float, Range(0, 1, open_high=True)] = 0.0,
        class_weights: Literal["none", "balanced"] | list[Annotated[float, Range(0)]] = "none",
        focal_gamma: Annotated[float, Range(0)] = 0.0,
        calibrate: bool = True,
    ) -> None:
        """`class_weights=balanced` weighs a class by the inverse of its share of train; a list gives the weights in label order."""
        super().__init__(dataset)
        self.label_smoothing, self.focal_gamma, self.calibrate = label_smoothing, focal_gamma, calibrate
        self.weights: Tensor | None
        self.register_buffer("weights", _weights(class_weights, dataset), persistent=False)
        self._details: dict[str, Any] = {}
        self._scores: ConformalScores | None = None
        self._drawn = np.empty(0, int)
        """The classes whose precision-recall curves are drawn: the most frequent ones of the split."""

    def loss_and_outputs(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Return (summed loss, logits (batch, classes))."""
        logits = sequence_logits(self.model, batch)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        losses = F.cross_entropy(logits, batch.targets, self.weights, label_smoothing=self.label_smoothing, reduction="none")
        if self.focal_gamma:
            right = logits.softmax(-1).gather(1, batch.targets[:, None])[:, 0]
            losses = (1 - right) ** self.focal_gamma * losses
        return losses.sum(), logits

    def predict(self, batch: MicroBatch) -> list[list[float]]:
        """Return the probability of each class, for each text."""
        return sequence_logits(self.model, batch).float().softmax(-1).tolist()

    def answer_row(self, example: Example, predictions: list[list[float]]) -> dict[str, Any]:
        names: Any = self.model.config.id2label
        scores = {names[i]: score for i, score in enumerate(predictions[0])}
        label = max(scores, key=scores.__getitem__)
        return {"label": label, "score": scores[label], "scores": scores}

    def build_states(self) -> States:
        names, split = self.dataset.label_names or (), self.dataset.splits[self.split]
        states: States = {"counts": ClassCounts(len(names)), "calibration": Calibration(len(split))}
        if self.final:
            assert split.labels is not None
            self._drawn = np.argsort(-np.bincount(split.labels, minlength=len(names)), kind="stable")[:CURVES]
            states |= {
                "confusion": Confusion(len(names), len(split)),
                "scores": LabelScores(len(self._drawn), len(split)),
                "confidence": Confidence(len(split)),
                "examples": Rows(len(split)),
                "mistakes": TopRows(),
            }
        return states

    def update_states(self, states: States, batch: MicroBatch, outputs: Tensor) -> None:
        probabilities = outputs.softmax(-1)
        best, place = probabilities.max(-1)
        confidence, predicted, true = best.cpu().numpy(), place.cpu().numpy(), batch.targets.cpu().numpy()
        states["counts"].update(true, predicted)
        states["calibration"].update(confidence, predicted == true)
        if not self.final:
            return
        rows, names = self.rows(batch), self.dataset.label_names or ()
        states["confusion"].update(rows, true, predicted)
        drawn = probabilities[:, torch.from_numpy(self._drawn).to(probabilities.device)].cpu().numpy()
        states["scores"].update(rows, drawn, true[:, None] == self._drawn)
        states["examples"].update(rows, correct=(predicted == true).astype(np.uint8))
        self._update_confidence(states["confidence"], rows, batch.targets, outputs, probabilities)
        states["mistakes"].update(
            rows, confidence, predicted != true, lambda i: (names[true[i]], names[predicted[i]], float(confidence[i]))
        )

    def score_labels(self, batch: MicroBatch, outputs: Tensor) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        return self.rows(batch), {"label": batch.targets.cpu().numpy(), "probabilities": outputs.softmax(-1).cpu().numpy()}

    def _update_confidence(
        self, state: Confidence, rows: np.ndarray, targets: Tensor, logits: Tensor, probabilities: Tensor
    ) -> None:
        confidence, predicted = probabilities.max(-1)
        of_label = probabilities.gather(1, targets[:, None])[:, 0].cpu().numpy()
        right, labels = (predicted == targets).cpu().numpy(), targets.cpu().numpy()
        state.update(rows, confidence.cpu().numpy(), right, labels, of_label)
        if (temperature := temperature_of(self.model.config)) != 1:
            state.before.update((temperature * logits).softmax(-1).amax(-1).cpu().numpy(), right)
        if self.split != "validation" and self._scores is not None:  # validation, which comes first, gives the threshold
            threshold = report_threshold(self._scores)
            state.count_sets((probabilities >= threshold).sum(-1).cpu().numpy(), of_label >= threshold)

    def compute_metrics(self, mean_loss: float, targets: int, states: States) -> Evaluation:
        if self.final:
            if self.split == "validation":
                self._scores = states["confidence"].conformal_scores(self.dataset.label_names or ())
            self._details = self._tables(states)
        counts = states["counts"]
        values = {"accuracy": counts.accuracy(), "macro_f1": counts.macro_f1(), "mcc": counts.mcc()}
        return {"loss": mean_loss, **values, "ece": states["calibration"].error()}

    def summary(self) -> dict[str, float]:
        """Return the accuracy of always answering the most frequent class of train."""
        train = self.dataset.splits["train"].labels
        assert train is not None
        most_frequent = np.bincount(train).argmax()
        labels_by_split = {name: split.labels for name, split in self.dataset.splits.items() if name != "train"}
        return {
            f"{name}/majority_accuracy": float(np.mean(np.equal(labels, most_frequent)))  # type: ignore[arg-type]
            for name, labels in labels_by_split.items()
        }

    def conformal_scores(self) -> ConformalScores | None:
        return self._scores

    def details(self) -> dict[str, Any]:
        return self._details

    def _tables(self, states: States) -> dict[str, Any]:
        """Return the tables of an evaluation; rows of the confusion matrix are true classes; mistakes are the surest ones."""
        names, confusion = self.dataset.label_names or (), states["confusion"]
        self.scored[self.split] = states["examples"].columns()
        tables: dict[str, Any] = {
            "classes": len(names),
            "per_class": states["counts"].per_class(names),
            "confusions": confusion.top(names),
        }
        if confusion.is_dense:
            tables |= {"labels": list(names), "confusion_matrix": confusion.matrix.tolist()}
        mistakes = [
            {"text": self.dataset.show_row(self.split, row), "true": true, "said": predicted, "probability": probability}
            for row, (true, predicted, probability) in states["mistakes"].rows()
        ]
        return tables | {
            "calibration": states["calibration"].table(),
            "ece": states["calibration"].error(),
            **states["confidence"].tables(),
            "precision_recall": states["scores"].points([names[i] for i in self._drawn]),
            "mistakes": mistakes,
            "examples": states["examples"].table(),
            **states["examples"].describe_sample(),
        }


def _weights(setting: str | list[float], dataset: TokenizedDataset) -> Tensor | None:
    if setting == "none" or dataset.labels is None:
        return None
    if isinstance(setting, list) and len(setting) != len(dataset.labels.names):
        raise UserError(
            f"objective.class_weights has {len(setting)} weights, and there are {len(dataset.labels.names)} classes "
            f"({join_names(dataset.labels.names)}): give one for each, in this order."
        )
    if setting == "balanced":
        counts = np.bincount(dataset.splits["train"].labels, minlength=len(dataset.labels.names))  # type: ignore[arg-type]
        return torch.from_numpy(counts.sum() / (len(counts) * np.maximum(counts, 1))).float()
    return torch.tensor(setting, dtype=torch.float32)
