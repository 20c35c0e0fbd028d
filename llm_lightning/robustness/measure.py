"""Measure, after an evaluation, what `evaluate.slices` and `evaluate.invariance` ask for, and write the tables of their rows."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import numpy as np

from llm_lightning import distributed
from llm_lightning.atomic_files import write_atomically
from llm_lightning.config.schema import Config
from llm_lightning.data.datamodule import DataModule
from llm_lightning.data.slice_columns import choose_split
from llm_lightning.inference.evaluate import predict_sequences
from llm_lightning.objectives.base import Objective
from llm_lightning.reporting.robustness import describe_invariance, describe_slices
from llm_lightning.robustness.invariance import Comparison, choose_rows, try_changes
from llm_lightning.robustness.row_scores import read_row_scores
from llm_lightning.robustness.slices import score_slices
from llm_lightning.robustness.slicing import FEWEST, cut_slices

log = logging.getLogger(__name__)

SLICES, INVARIANCE = "slices.csv", "invariance.csv"
SLICE_COLUMNS = ("by", "slice", "rows", "score", "low", "high", "rest", "difference", "p_single", "p", "note")
FLIP_COLUMNS = ("change", "operation", "row", "place", "before", "after", "predicted", "predicted_after", "distance")


def measure(config: Config, engine: lightning.Trainer, objective: Objective, data: DataModule, folder: Path) -> dict[str, Any]:
    """Return the entries `slices` and `invariance` of a summary, as far as the config asks for them; log them, and write their tables.

    Call it after the final evaluation, on every rank: predictions are a collective. `folder` is the folder of the tables.
    """
    record: dict[str, Any] = {}
    split = choose_split(data.dataset.rows)
    if config.evaluate.slice_names and distributed.is_rank_zero():
        record["slices"] = measure_slices(objective, split, config.evaluate.slice_names)
        _write_csv(folder / SLICES, SLICE_COLUMNS, record["slices"]["parts"])
        log.info("%s", "\n".join(["slices:", *(f"  {line}" for line in describe_slices(record["slices"]))]))
    if config.evaluate.perturbations:
        record["invariance"], flips = measure_invariance(config, engine, objective, data, split)
        if distributed.is_rank_zero():
            where = objective.dataset.rows[split].where
            _write_csv(folder / INVARIANCE, FLIP_COLUMNS, [vars(flip) | {"place": where(flip.row)} for flip in flips])
            log.info("%s", "\n".join(["invariance:", *(f"  {line}" for line in describe_invariance(record["invariance"]))]))
    return record


def choose_folder(run: Path, data: DataModule) -> Path:
    """Return the folder of the tables of task=evaluate: that of the run's own evaluation, or another if it evaluates other data."""
    split = choose_split(data.dataset.rows)
    stored = _read_json(run / "evaluation" / f"{split}.json")
    return run / ("evaluation" if stored.get("rows") == data.dataset.rows[split].fingerprint else "evaluate")


def read_earlier(run: Path, data: DataModule) -> dict[str, Any]:
    """Return the records that an earlier task=evaluate has measured on the same data."""
    split = choose_split(data.dataset.rows)
    records = {name: _read_json(run / "evaluate.json").get(name) for name in ("slices", "invariance")}
    same = data.dataset.rows[split].fingerprint
    return {name: record for name, record in records.items() if record is not None and record["data"] == same}


def _read_json(file: Path) -> dict[str, Any]:
    try:
        stored: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return stored
    except (OSError, ValueError):
        return {}


def measure_slices(objective: Objective, split: str, names: list[str]) -> dict[str, Any]:
    """Return the record of the slices of a split that the last evaluation has scored."""
    columns = objective.scored[split]
    scores = read_row_scores(objective, columns)
    slices = cut_slices(objective.dataset, split, columns["number"], names)
    parts = score_slices(slices, scores)
    everything = np.ones(len(scores.top), dtype=bool)
    return {
        "split": split,
        "data": objective.dataset.rows[split].fingerprint,
        "names": names,
        "score": scores.name,
        "unit": scores.unit,
        "rows": len(everything),
        "overall": scores.score(everything),
        "fewest_rows": FEWEST,
        "compared": sum(part["p"] is not None for part in parts),
        "parts": parts,
    }


def measure_invariance(
    config: Config, engine: lightning.Trainer, objective: Objective, data: DataModule, split: str
) -> tuple[dict[str, Any], list[Comparison]]:
    """Return (the record of the changes of texts, the rows that flipped). A collective."""
    numbers = choose_rows(objective.scored[split]["number"], config.evaluate.invariance_rows, config.seed)
    entries, flips = try_changes(
        objective, split, numbers, config.evaluate.perturbations, config.seed, partial(predict_sequences, engine, objective, data)
    )
    columns, names = config.data.columns, objective.dataset.label_names
    record = {
        "split": split,
        "data": objective.dataset.rows[split].fingerprint,
        "of": len(objective.scored[split]["number"]),
        "rows": len(numbers),
        "seed": config.seed,
        "column": columns.text,
        "is_pair": columns.text_pair is not None,
        "predicts": "number" if names is None else "label",
        "changes": entries,
    }
    return record, flips


def _write_csv(file: Path, columns: Sequence[str], rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(file) as partial_file, partial_file.open("w", newline="", encoding="utf-8") as target:
        writer = csv.DictWriter(target, columns)
        writer.writeheader()
        writer.writerows({name: row[name] for name in columns} for row in rows)
