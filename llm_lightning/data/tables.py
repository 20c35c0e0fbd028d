"""Write rows from a generator to a `datasets` table, cached under our own identity."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
from datasets.arrow_writer import ArrowWriter

from llm_lightning.atomic_files import write_atomically

AT_ONCE = 1000  # rows


def generate_table(
    rows: Callable[..., Iterator[Any]], types: dict[str, Any], folder: Path, identity: str, **arguments: Any
) -> datasets.Dataset:
    """Return the table that `rows(**arguments)` yields, from `folder` if it was written before.

    `types` are the columns' types (names of plain ones, or features). The file is written under another name and renamed: a killed run
    leaves no partial table, and of two runs that write the same table at once either is right.
    """
    # tuples, as `datasets` would split a list among the arguments and call the generator with each of its items
    arguments = {name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()}
    features = datasets.Features({name: datasets.Value(kind) if isinstance(kind, str) else kind for name, kind in types.items()})
    file = folder / f"{identity}.arrow"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with write_atomically(file) as partial:
            _write(rows(**arguments), features, partial)
    return datasets.Dataset.from_file(str(file))


def _write(rows: Iterator[dict[str, Any]], features: datasets.Features, file: Path) -> None:
    nested = [name for name, feature in features.items() if isinstance(feature, datasets.Json)]
    with ArrowWriter(features=features, path=str(file)) as writer:
        while batch := list(islice(rows, AT_ONCE)):
            for row in batch:
                for name in nested:
                    row[name] = as_json(row[name])
            writer.write_batch({name: [row[name] for row in batch] for name in features})
        if writer.pa_writer is None:  # no row: the schema alone
            writer.write_table(features.arrow_schema.empty_table())
        writer.finalize()


def as_json(value: Any) -> str | None:
    """Return a value as `datasets.Json` stores it. Text is encoded too, as "12" and "null" would come back as a number and None."""
    return None if value is None else json.dumps(value, ensure_ascii=False, default=str)
