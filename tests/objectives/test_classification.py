"""Classification's loss and scores against their formulas, written out in numpy: nothing comes from torch's loss or torchmetrics.

The scores go through Lightning's own evaluation loop, in batches of unequal size, so that a mean of means would show. Of the five
classes one never occurs but is predicted, and one neither occurs nor is predicted.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from llm_lightning.config.compose import load_config
from llm_lightning.data.collate import MicroBatch
from llm_lightning.errors import UserError
from llm_lightning.metrics import counts
from llm_lightning.objectives.classification import Classification
from llm_lightning.run import prepare

from ..conftest import QUIET, TINY_BERT

NAMES = ("bad", "fair", "good", "predicted_only", "absent")
CLASSES, ROWS, BINS = len(NAMES), 240, 15
TRAIN = [0] * 5 + [1] * 3 + [2] * 9 + [3] * 2 + [4]


Maker = Callable[..., Classification]


@pytest.fixture
def make(cache: Path, tmp_path: Path) -> Maker:
    """The objective of a command line, over files whose labels are given."""

    def write(split: str, labels: list[int]) -> str:
        lines = [f"{split} text {i},{NAMES[label]}" for i, label in enumerate(labels)]
        (tmp_path / f"{split}.csv").write_text("\n".join(["text,label", *lines]) + "\n", encoding="utf-8")
        return f"data.{split}={tmp_path}/{split}.csv"

    def start(*overrides: str, validation: list[int] = TRAIN, **others: list[int]) -> Classification:
        files = [write(split, labels) for split, labels in {"train": TRAIN, "validation": validation, **others}.items()]
        data = ["data=files", *files, "data.columns.label=label", f"data.labels=[{','.join(NAMES)}]"]
        _, objective, _ = prepare(load_config([*QUIET, f"cache_dir={cache}", "task=finetune", *TINY_BERT, *data, *overrides]))
        assert isinstance(objective, Classification)
        return objective

    return start


def rows() -> tuple[np.ndarray, np.ndarray]:
    """(logits (rows, classes) fp32, true classes): right more often than not, from unsure to sure."""
    rng = np.random.default_rng(5)
    truth = rng.choice(3, ROWS, p=[0.2, 0.3, 0.5])
    logits = rng.normal(size=(ROWS, CLASSES))
    logits[np.arange(ROWS), truth] += rng.uniform(0, 3, ROWS)
    logits *= rng.choice([0.3, 3], (ROWS, 1))  # some too timid, some too bold: bins must tell them apart
    logits[:, 4] -= 30
    return logits.astype(np.float32), truth


class Answers(nn.Module):
    """A model whose logits are given: the first token of a sequence is its row in the table."""

    config = SimpleNamespace(_attn_implementation="sdpa", pad_token_id=0)

    def __init__(self, logits: np.ndarray) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.from_numpy(logits))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table[input_ids[:, 0]])


def batch(indices: np.ndarray, truth: np.ndarray, place: int = 0, blank: bool = False) -> MicroBatch:
    ids = torch.from_numpy(indices)
    targets = torch.from_numpy(truth[indices])
    return MicroBatch(
        input_ids=ids,
        position_ids=torch.zeros_like(ids),
        cu_seqlens=torch.arange(len(ids) + 1, dtype=torch.int32),
        longest=1,
        targets=targets,
        indices=ids,
        place=place,
        blank=blank,
    )


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    logits = logits - logits.max(1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def evaluated(make: Maker) -> tuple[Classification, np.ndarray, np.ndarray]:
    """(objective after an evaluation, probabilities, true classes)"""
    logits, truth = rows()
    objective = make(validation=truth.tolist())
    objective.final = True  # tables are made in the last evaluation alone
    objective.model = Answers(logits)  # type: ignore[assignment]
    order = np.random.default_rng(0).permutation(ROWS)
    batches = [batch(part, truth, i) for i, part in enumerate(np.split(order, [7, 150]))]
    batches.append(batch(order[:40], (truth + 1) % 3, 3, blank=True))  # of another rank's making: counts for nothing
    loader: DataLoader[MicroBatch] = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    engine = lightning.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
    )
    for _ in range(2):  # what an earlier pass collected is forgotten
        engine.validate(objective, dataloaders=loader, verbose=False)
    return objective, np.exp(log_softmax(logits)), truth


def expected_confusion(said: np.ndarray, truth: np.ndarray) -> np.ndarray:
    matrix = np.zeros((CLASSES, CLASSES), int)
    np.add.at(matrix, (truth, said), 1)
    return matrix


def expected_f1(matrix: np.ndarray) -> dict[int, float]:
    """2 TP / (2 TP + FP + FN) of the classes that occur or are predicted; of the others it is not defined."""
    occurs = matrix.sum(0) + matrix.sum(1)
    return {c: 2 * matrix[c, c] / occurs[c] for c in range(CLASSES) if occurs[c]}


def expected_mcc(matrix: np.ndarray) -> float:
    """R_K (Gorodkin 2004, equation 8), from the confusion matrix."""
    count, right, said, true = matrix.sum(), np.trace(matrix), matrix.sum(0), matrix.sum(1)
    covariance = right * count - said @ true
    return float(covariance / np.sqrt((count**2 - said @ said) * (count**2 - true @ true)))


def expected_ece(probabilities: np.ndarray, truth: np.ndarray, bins: int = BINS) -> float:
    """Σ |bin| / n · |accuracy - confidence| (Naeini et al. 2015) over bins of equal width."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == truth
    members = [np.floor(confidence * bins).astype(int).clip(max=bins - 1) == b for b in range(bins)]
    return sum(float(m.mean() * abs(right[m].mean() - confidence[m].mean())) for m in members if m.any())


def test_scores_equal_their_formulas(make: Maker) -> None:
    objective, probabilities, truth = evaluated(make)
    matrix = expected_confusion(probabilities.argmax(1), truth)
    assert objective.latest == pytest.approx(
        {
            "validation/loss": -np.log(probabilities[np.arange(ROWS), truth]).mean(),
            "validation/accuracy": np.trace(matrix) / ROWS,
            "validation/macro_f1": np.mean(list(expected_f1(matrix).values())),
            "validation/mcc": expected_mcc(matrix),
            "validation/ece": expected_ece(probabilities, truth),
        },
        rel=1e-5,
    )
    # what makes the comparison mean something
    assert abs(expected_ece(probabilities, truth) - expected_ece(probabilities, truth, BINS - 1)) > 1e-3
    assert (
        np.abs(probabilities.max(1) * BINS - np.round(probabilities.max(1) * BINS)).min() > 2e-5
    )  # of no bin's border so near that fp32 may decide
    assert 0.5 < np.trace(matrix) / ROWS < 0.9
    assert matrix.sum(0)[3] > 0 == matrix.sum(1)[3]
    assert matrix.sum(0)[4] == matrix.sum(1)[4] == 0


def test_tables_equal_their_formulas(make: Maker) -> None:
    objective, probabilities, truth = evaluated(make)
    matrix = expected_confusion(probabilities.argmax(1), truth)
    f1 = expected_f1(matrix)
    details = objective.details()
    assert details["labels"] == list(NAMES)
    assert details["confusion_matrix"] == matrix.tolist()  # rows are true classes
    assert list(details["per_class"]) == list(NAMES)
    for c, name in enumerate(NAMES):
        assert details["per_class"][name] == pytest.approx(
            {
                "precision": matrix[c, c] / matrix[:, c].sum() if matrix[:, c].any() else 0.0,
                "recall": matrix[c, c] / matrix[c].sum() if matrix[c].any() else 0.0,
                "f1": f1.get(c, 0.0),
                "support": matrix[c].sum(),
            }
        )


COUNTS = np.bincount(TRAIN)
BALANCED = len(TRAIN) / (CLASSES * COUNTS)  # the inverse of a class's share of train, over the number of classes
LISTED = [0.5, 2.0, 1.0, 3.0, 0.25]


@pytest.mark.parametrize(
    ("settings", "smoothing", "weights"),
    [
        ([], 0.0, np.ones(CLASSES)),
        (["objective.label_smoothing=0.1"], 0.1, np.ones(CLASSES)),
        (["objective.class_weights=balanced"], 0.0, BALANCED),
        ([f"objective.class_weights={LISTED}"], 0.0, np.array(LISTED)),
        ([f"objective.class_weights={LISTED}", "objective.label_smoothing=0.3"], 0.3, np.array(LISTED)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_summed_loss_and_its_gradient_equal_their_formulas(
    settings: list[str], smoothing: float, weights: np.ndarray, make: Maker
) -> None:
    """Σ_i Σ_k w_k q_ik (-log p_ik), with q = (1 - ε) · one-hot + ε / K (Szegedy et al. 2016, section 7)."""
    logits, truth = rows()
    truth = (truth + np.arange(ROWS)) % CLASSES  # every class occurs, so that every weight counts
    model, objective = Answers(logits), make(*settings)
    objective.model = model  # type: ignore[assignment]
    wanted = weights * ((1 - smoothing) * np.eye(CLASSES)[truth] + smoothing / CLASSES)
    loss = objective.loss_sum(batch(np.arange(ROWS), truth))
    assert float(loss.detach()) == pytest.approx((wanted * -log_softmax(logits)).sum(), rel=1e-5)
    loss.backward()
    slope = wanted.sum(1, keepdims=True) * np.exp(log_softmax(logits)) - wanted
    torch.testing.assert_close(model.table.grad, torch.from_numpy(slope).float(), atol=1e-5, rtol=1e-4)


def test_balanced_weights_give_every_class_the_same_say_and_leave_the_mean_at_one(make: Maker) -> None:
    weights = make("objective.class_weights=balanced").weights
    assert weights is not None
    assert weights.numpy() * COUNTS == pytest.approx([len(TRAIN) / CLASSES] * CLASSES)
    assert weights.numpy()[TRAIN].mean() == pytest.approx(1.0)


@pytest.mark.parametrize("count", [CLASSES - 1, CLASSES + 1])
def test_a_list_of_weights_that_does_not_fit_the_classes_is_refused(count: int, make: Maker) -> None:
    with pytest.raises(UserError, match="class_weights"):
        make(f"objective.class_weights={[1.0] * count}")


def test_baseline_is_the_most_frequent_class_of_train_on_each_other_split(make: Maker) -> None:
    objective = make(validation=[2, 0, 0, 0, 2], test=[1, 2, 2, 2])  # in validation another class is the most frequent
    assert objective.summary() == {"validation/majority_accuracy": 2 / 5, "test/majority_accuracy": 3 / 4}


def test_of_many_classes_the_tables_are_short(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "DENSE", CLASSES - 1)
    monkeypatch.setattr(counts, "LISTED", 2)
    objective, probabilities, truth = evaluated(make)
    said, details = probabilities.argmax(1), objective.details()
    assert not details.keys() & {"labels", "confusion_matrix"}
    assert details["classes"] == CLASSES
    f1 = expected_f1(expected_confusion(said, truth))
    worst = sorted((c for c in range(CLASSES) if (truth == c).any()), key=lambda c: f1[c])[:2]
    assert list(details["per_class"]) == [NAMES[c] for c in worst]
    wrong = expected_confusion(said, truth) * (1 - np.eye(CLASSES, dtype=int))
    assert [pair["count"] for pair in details["confusions"]] == sorted(wrong.ravel().tolist(), reverse=True)[:2]
    assert all(wrong[NAMES.index(p["true"]), NAMES.index(p["said"])] == p["count"] for p in details["confusions"])


def test_a_validation_during_training_makes_no_tables(make: Maker) -> None:
    objective = make()
    assert objective.build_states().keys() == {"counts", "calibration"}
