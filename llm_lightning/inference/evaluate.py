"""Evaluate an objective on the splits of its data, at the end of a run or again later from its folder."""

from __future__ import annotations

from typing import Any

import lightning
from transformers import PreTrainedModel

from llm_lightning.data.datamodule import DataModule
from llm_lightning.data.encode import TokenizedSplit
from llm_lightning.data.folds import LEFT_OUT
from llm_lightning.errors import UserError, join_names
from llm_lightning.objectives.base import Objective
from llm_lightning.objectives.evaluation import EvaluationPass, PredictionPass


def require_same_labels(model: PreTrainedModel, names: tuple[str, ...] | None) -> None:
    """Raise UserError if the data has other classes than the model was trained for: its answers would be misread."""
    trained_names = tuple(name for _, name in sorted((model.config.id2label or {}).items()))
    if names is not None and names != trained_names:
        raise UserError(
            f"the data has the classes {join_names(names)}, and the model was trained for {join_names(trained_names)}; "
            f"give data with the same, and their names with data.labels."
        )


def evaluate_splits(
    trainer: lightning.Trainer, objective: Objective, data: DataModule
) -> tuple[dict[str, float], dict[str, dict[str, Any]]]:
    """Return the metrics of every split except train, and the tables of each split.

    All batches are read, also where `limit_val_batches` limits the validations of the training; `limit_test_batches` limits these, but
    for the rows that `data.left_out` scores: each of them needs its score.
    """
    metrics: dict[str, float] = {}
    details: dict[str, dict[str, Any]] = {}
    objective.final = True
    limit = data.config.trainer.flags.get("limit_test_batches", 1.0)
    for split in data.dataset.splits:
        if split != "train":
            trainer.limit_val_batches = 1.0 if split == LEFT_OUT else limit
            metrics |= evaluate_split(trainer, objective, data, split)
            details[split] = objective.details() | {"rows": data.dataset.rows[split].fingerprint}
    objective.final = False
    return metrics, details


def evaluate_split(trainer: lightning.Trainer, objective: Objective, data: DataModule, split: str) -> dict[str, float]:
    """Evaluate a split with the objective's current weights, and return its metrics."""
    objective.split = split
    loader = data.evaluation_loader(split, trainer.global_rank, trainer.world_size)
    trainer.validate(objective, dataloaders=loader, verbose=False)
    objective.split = "validation"
    return objective.latest


def predict_sequences(trainer: lightning.Trainer, objective: Objective, data: DataModule, part: TokenizedSplit) -> list[Any]:
    """Return the prediction of each sequence of `part`, in their order, by the batches and the precision of an evaluation.

    A collective: every rank has the same sequences, computes its share, and gets all predictions. The metrics of the last evaluation stay.
    """
    latest, passes = objective.latest, []

    def begin_pass(objective: Objective, batches: int) -> EvaluationPass:
        passes.append(PredictionPass(objective, batches))
        return passes[-1]

    objective.begin_pass, trainer.limit_val_batches = begin_pass, 1.0
    try:
        trainer.validate(objective, dataloaders=data.loader_of(part, trainer.global_rank, trainer.world_size), verbose=False)
    finally:
        objective.begin_pass, objective.latest = EvaluationPass, latest
    return [passes[0].predictions[index] for index in range(len(part))]
