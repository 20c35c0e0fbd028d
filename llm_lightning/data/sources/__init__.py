"""Read the rows of a data set: one module a kind of source, each with a function `load`, which `data.source` names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from llm_lightning.config.schema import DataConfig
from llm_lightning.config.targets import import_target
from llm_lightning.data.rows import Rows


def get_reader(data: DataConfig) -> Callable[..., dict[str, Rows]]:
    """Return the function `load(data, cache_dir, extra_columns)` that `data._target_`, or else `data.source`, names."""
    if data._target_ is None:
        return import_target(f"llm_lightning.data.sources.{data.source}.load")
    return partial(import_target(data._target_), **data.arguments)
