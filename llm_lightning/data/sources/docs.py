"""Load the built-in corpus as raw text for pretraining."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import xxhash

from llm_lightning.config.schema import DataConfig
from llm_lightning.data import builtin
from llm_lightning.data.rows import Rows

BOUNDS = {"train": (0.0, 0.96), "validation": (0.96, 0.98), "test": (0.98, 1.0)}


def load(data: DataConfig, cache_dir: Path, extra_columns: tuple[str, ...] = ()) -> dict[str, Rows]:
    """Return `data.share` of the documents of each split. Splits are by module, so that a module's documents stay together."""
    table = builtin.documents(cache_dir)
    place = np.array([position(module) for module in table["module"][:]])
    is_in_share = (
        np.array([position(f"{m} {n} {i}") for i, (m, n) in enumerate(zip(table["module"][:], table["name"][:], strict=True))])
        < data.share
    )
    return {
        split: rows(table, np.flatnonzero((place >= low) & (place < high) & is_in_share)) for split, (low, high) in BOUNDS.items()
    }


def position(name: str) -> float:
    """Return a fixed place of a name between 0 and 1, uniformly distributed over names."""
    return xxhash.xxh3_64_intdigest(name.encode()) / 2**64


def rows(table: datasets.Dataset, indices: np.ndarray) -> Rows:
    """Return rows of the corpus. Messages name a row by the object that it documents."""
    part = table.select(indices)
    modules, names = part["module"][:], part["name"][:]
    identity = xxhash.xxh3_128("\0".join(part["text"][:]).encode()).hexdigest()
    return Rows(table=part, fingerprint=identity, where=lambda i: f"{modules[i]}: {names[i] or 'module docstring'}")
