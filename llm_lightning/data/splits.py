"""Cut a validation split off train if it is missing: deterministic, and stratified by label if a row has one class."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from llm_lightning.config.schema import DataConfig
from llm_lightning.data.label_values import canonical
from llm_lightning.data.rows import CONTINUES, Rows
from llm_lightning.errors import UserError

SEED = 20_240_229  # fixed: the split belongs to the data, not to a run's seed


def with_validation(splits: dict[str, Rows], data: DataConfig, stratified: bool) -> dict[str, Rows]:
    """Return the splits in order, with `data.validation_fraction` of train as validation if it was missing."""
    if "validation" in splits:
        return splits
    train = splits["train"]
    groups: dict[str, list[int]] = defaultdict(list)
    if not stratified:
        groups[""] = list(range(len(train)))
    else:
        for index, value in enumerate(train.table[str(data.columns.label)][:]):
            groups[canonical(value)].append(index)
    rng = np.random.default_rng(SEED)
    held: list[int] = []
    for _, members in sorted(groups.items()):
        held.extend(rng.permutation(members)[: round(len(members) * data.validation_fraction)].tolist())
    if not held:
        kinds = f" with {len(groups)} different labels" if stratified else ""
        raise UserError(
            f"train has {len(train)} rows{kinds}: too few to cut {data.validation_fraction:g} of them off as validation; give "
            f"data.validation=<file>, or a larger data.validation_fraction."
        )
    chosen = set(held)
    training_indices = [index for index in range(len(train)) if index not in chosen]
    parts = {"train": _part(train, training_indices, "kept", data), "validation": _part(train, sorted(held), "held", data)}
    return {**parts, **{name: rows for name, rows in splits.items() if name != "train"}}


def keep_batches(splits: dict[str, Rows], data: DataConfig, batches: float, rows_per_batch: int) -> dict[str, Rows]:
    """Return the splits with some rows of train as train and as validation, for a model that should learn them by heart.

    `batches` is a number of batches, or a share of train if it is a float up to 1 (Lightning's `overfit_batches`).
    """
    train = splits["train"]
    count = round(batches * len(train)) if isinstance(batches, float) and batches <= 1 else round(batches) * rows_per_batch
    indices = sorted(np.random.default_rng(SEED).permutation(len(train))[: max(count, 1)].tolist())
    part = _part(train, indices, f"overfit-{len(indices)}", data)
    return {**splits, "train": part, "validation": part}


def _part(rows: Rows, indices: list[int], name: str, data: DataConfig) -> Rows:
    alone = rows.table.remove_columns([CONTINUES] if CONTINUES in rows.table.column_names else [])  # gaps lie between the rows
    return Rows(
        table=alone.select(indices),
        fingerprint=f"{rows.fingerprint}-{name}-{data.validation_fraction}",
        where=lambda i: rows.where(indices[i]),
    )
