"""Load built-in labelled data: docstrings with their library as class, balanced, with the libraries' names masked.

Splits are by module, and the corpus holds no near-copies, so a test text is new. Names that give a library away (its own name and
aliases, module paths, the organisation behind it) are replaced by `[LIB]`, for every library in every text.
"""

from __future__ import annotations

import re
from pathlib import Path

import datasets
import numpy as np
import xxhash

from llm_lightning.config.schema import DataConfig
from llm_lightning.data import builtin
from llm_lightning.data.rows import Rows
from llm_lightning.data.sources.docs import position

NAMES = {
    "torch": ("pytorch", "torch", "aten", "libtorch"),
    "sympy": ("sympy",),
    "transformers": ("transformers", "hugging ?face", "hf"),
    "python": ("python", "cpython", "stdlib"),
    "pandas": ("pandas", "pd"),
    "networkx": ("networkx", "nx"),
    "numpy": ("numpy", "np"),
    "wandb": ("wandb", "weights (?:&|and) biases", "w&b"),
    "huggingface-hub": ("huggingface_hub", "hf_hub", "hf_api", "hfapi"),
    "lightning": ("lightning", "pytorch_lightning", "lightningmodule", "pl"),
}
"""Class (a distribution) -> its names in texts, as regular expressions."""
MASK = "[LIB]"
_WORDS = sorted((name for names in NAMES.values() for name in names), key=len, reverse=True)
_PATTERN = re.compile(rf"(?<![a-z0-9])(?:{'|'.join(_WORDS)})(?![a-z0-9])", re.IGNORECASE)
_INSIDE = re.compile("pytorch|torch|sympy|transformers|huggingface|python|pandas|networkx|numpy|wandb|lightning", re.IGNORECASE)
BOUNDS = {"train": (0.0, 0.7), "validation": (0.7, 0.85), "test": (0.85, 1.0)}
PER_CLASS = 600
"""Training rows a class, unless `data.per_class` is set."""
HELD = 120
"""Rows a class of validation and of test, independent of train, so that scores of different training sizes compare."""


def load(data: DataConfig, cache_dir: Path, extra_columns: tuple[str, ...] = ()) -> dict[str, Rows]:
    """Return splits with columns text and label. Every class has the same number of rows in a split."""
    table = builtin.documents(cache_dir)
    package, module = np.array(table["package"][:]), np.array(table["module"][:])
    place = np.array([position(f"topics {name}") for name in module])
    order = np.array([position(f"{m} {n}") for m, n in zip(module, table["name"][:], strict=True)])
    rows_per_class = data.per_class or PER_CLASS
    splits = {}
    for split, (low, high) in BOUNDS.items():
        members = [np.flatnonzero((package == name) & (place >= low) & (place < high)) for name in NAMES]
        size = min(rows_per_class if split == "train" else HELD, *map(len, members))
        chosen = np.concatenate([indices[np.argsort(order[indices], kind="stable")[:size]] for indices in members])
        splits[split] = _rows(table, chosen)
    return splits


def mask_names(text: str) -> str:
    """Mask the names of all libraries in a text."""
    return _INSIDE.sub(MASK, _PATTERN.sub(MASK, text))


def _rows(table: datasets.Dataset, indices: np.ndarray) -> Rows:
    part = table.select(indices)
    modules, names = part["module"][:], part["name"][:]
    labelled = datasets.Dataset.from_dict({"text": [mask_names(text) for text in part["text"][:]], "label": part["package"][:]})
    identity = xxhash.xxh3_128("\0".join([*labelled["text"][:], *labelled["label"][:]]).encode()).hexdigest()
    return Rows(
        table=labelled, fingerprint=identity, where=lambda i: f"{modules[i]}: {names[i] or 'module docstring'}, row {i + 1}"
    )
