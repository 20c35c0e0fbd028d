"""Rows from a generator to a `datasets` table that is cached under an identity of our own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets

from llm_lightning.errors import UserError


def generated(
    rows: Callable[..., Iterator[Any]], types: dict[str, Any], folder: Path, identity: str, **arguments: Any
) -> datasets.Dataset:
    """The table that `rows(**arguments)` yields, from `folder` where it was made before; `types` are the columns' types (names
    of plain ones, or features).

    A UserError that is raised by `rows` comes out as it is.
    """
    features = datasets.Features({name: datasets.Value(kind) if isinstance(kind, str) else kind for name, kind in types.items()})
    # `datasets` takes a list among the arguments for shards, and would call `rows` once with each item
    arguments = {name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()}
    try:
        if next(rows(**arguments), None) is None:  # from_generator fails on this
            return datasets.Dataset.from_dict({name: [] for name in types}, features)
        return datasets.Dataset.from_generator(
            rows, features=features, cache_dir=str(folder), gen_kwargs=arguments, fingerprint=identity
        )
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise
