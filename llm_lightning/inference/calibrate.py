"""Calibrate a run's export: fit one temperature on validation, and divide the last layer by it (Guo et al. 2017).

So every program that loads the export has calibrated probabilities, and no prediction changes. The fit reads the logits of at most ROWS
rows of validation, in a pass before the last evaluation, which then is of the weights as they were exported. These rows have chosen the
weights, too: to choose on one half and to fit on the other gave worse weights and a worse ECE (docs/objectives.md has the figures).
"""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import Any

import lightning
import numpy as np
from torch import Tensor

from llm_lightning import distributed
from llm_lightning.data.collate import EVALUATION
from llm_lightning.data.datamodule import DataModule
from llm_lightning.errors import first_line
from llm_lightning.inference.export import BestExport
from llm_lightning.metrics.rows import Rows
from llm_lightning.metrics.temperature import LEAST, fit_temperature
from llm_lightning.models.temperature import ENTRY, find_scale_parameters, read_calibration
from llm_lightning.objectives.base import Objective
from llm_lightning.objectives.evaluation import EvaluationPass, OutputPass

log = logging.getLogger(__name__)

ROWS = 4096
"""Rows that a temperature is fitted on, at most: its standard error is then some 2%, which moves ECE by less than 0.001."""
NUMBERS = 1 << 24
"""Logits in memory, at most: 64 MiB."""


def calibrate_export(trainer: lightning.Trainer, objective: Objective, data: DataModule, export: BestExport) -> bool:
    """Divide the last layer of the export by its temperature, on the disk; return whether files changed. A collective.

    The objective's model is the export, just loaded, on the CPU. An export that is calibrated already stays as it is, so that a run that is
    killed at any moment divides its weights once.
    """
    if not objective.calibrate or read_calibration(objective.model.config) is not None:
        return False
    if (
        data.config.data.long == "windows"
    ):  # the logits of a text's windows weigh each other: divided, they could change a prediction
        log.info("calibration: left out, with data.long=windows")
        return False
    started = time.perf_counter()
    parameters = distributed.broadcast(_find_parameters(objective, data) if distributed.is_rank_zero() else None)
    if parameters is None:
        return False
    outputs = collect_outputs(trainer, objective, data)
    fit = fit_temperature(outputs["outputs"], outputs["targets"])
    if fit.problem is not None:
        log.info("calibration: left out, as %s", fit.problem)
        return False
    settings = {ENTRY: {"temperature": fit.temperature, "rows": fit.rows}} | objective.calibrated_settings(fit.temperature)
    is_divided = not distributed.is_rank_zero() or export.divide_parameters(parameters, fit.temperature, settings)
    if distributed.broadcast(is_divided):
        log.info(
            "calibration: temperature %.3f, from %s rows of validation (%.1f s)",
            fit.temperature,
            f"{fit.rows:,}",
            time.perf_counter() - started,
        )
        return True
    log.warning("calibration: left out, as the export stores %s under another name", parameters[0])
    return False


def _find_parameters(objective: Objective, data: DataModule) -> list[str] | None:
    """Return the names of the parameters of the last layer, tried on the shortest rows of validation; None, with a warning, if there is no
    such layer."""
    split = data.dataset.splits["validation"]
    places = np.argsort(split.inputs, kind="stable")[:2]
    batch = data.collator(split, [np.array([place]) for place in places], EVALUATION)
    objective.to("cpu").eval()

    def compute_logits() -> Tensor:
        logits: Tensor = objective.loss_and_outputs(batch)[1]
        return logits

    kind = type(objective.model).__name__
    try:
        parameters = find_scale_parameters(objective.model, compute_logits)
    except Exception as error:  # of a model's own code, on a CPU perhaps: it must not cost the results of a training
        log.warning("calibration: left out, as %s could not be tried (%s)", kind, first_line(error))
        return None
    if parameters is None:
        log.warning("calibration: left out, as %s has no linear layer whose outputs are its logits", kind)
    return parameters


def collect_outputs(trainer: lightning.Trainer, objective: Objective, data: DataModule) -> dict[str, np.ndarray]:
    """Return the logits (rows, classes) and the targets of validation, `outputs` and `targets`, the same on every rank. A collective.

    Of more rows than ROWS it is every so many-th batch, which depends on nothing but the data.
    """
    split = data.dataset.splits["validation"]
    most = min(ROWS, max(NUMBERS // max(len(data.dataset.label_names or ()), 1), LEAST))
    rows = Rows(len(split), len(split))
    objective.begin_pass = partial(OutputPass, rows)
    loader = data.evaluation_loader("validation", trainer.global_rank, trainer.world_size, -(-len(split) // most))
    trainer.limit_val_batches = data.config.trainer.flags.get("limit_test_batches", 1.0)
    try:
        trainer.validate(objective, dataloaders=loader, verbose=False)
    finally:
        objective.begin_pass = EvaluationPass
    return rows.columns()


def describe_calibration(objective: Objective, details: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """Return the entry of summary.json: the temperature, its rows, and ECE before and after it on each split; None without one."""
    entry = read_calibration(objective.model.config)
    if entry is None:
        return None
    errors = {name: {split: tables[name] for split, tables in details.items() if name in tables} for name in ("ece_before", "ece")}
    return {**entry, "of": "validation", **errors}
