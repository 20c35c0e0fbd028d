"""Load data sets of the Hugging Face hub by name; with data.dir, a local copy in files instead."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import xxhash

from llm_lightning.config.schema import DataConfig
from llm_lightning.data.parquet_files import plain_feature, without_gaps
from llm_lightning.data.paths import SPLITS
from llm_lightning.data.rows import Rows, unused_columns
from llm_lightning.data.sources import files
from llm_lightning.data.tables import generate_table
from llm_lightning.errors import UserError, first_line, join_names, nearest


def load(data: DataConfig, cache_dir: Path, extra_columns: tuple[str, ...] = ()) -> dict[str, Rows]:
    """Return the rows of every split that the data set has (or that data.train, data.validation and data.test name)."""
    if data.dir is not None:
        return files.load(data, cache_dir, extra_columns)
    loaded = _download(data)
    splits = {}
    for split, names in SPLITS.items():
        setting = getattr(data, split)
        name = setting or next((n for n in names if n in loaded), None)
        if setting is not None and setting not in loaded:
            raise UserError(
                f"data.{split}={setting}: {data.name} has no such split; it has {join_names(loaded)}.{nearest(setting, loaded)}"
            )
        if name is not None:
            splits[split] = _rows(data, loaded[name], name, extra_columns, cache_dir)
    if "train" not in splits:
        raise UserError(
            f"data.name={data.name}: it has no split named train; name one of {join_names(loaded)} with data.train=<split>."
        )
    return splits


def _rows(data: DataConfig, table: datasets.Dataset, name: str, extra_columns: tuple[str, ...], cache_dir: Path) -> Rows:
    """Return a split with all its columns; a note names the unused columns.

    The fingerprint identifies the data set, as that of `datasets` contains the times of its own cache files.
    """
    info = table.info
    inner = {name.partition(".")[0] for name in files.used_columns(data, [], ()) if name not in table.column_names}
    table = table.flatten() if inner & set(table.column_names) else table  # translation.en is a value inside of an object
    files_ = sorted(info.download_checksums or ())  # their names hold the revision of the hub's repository
    content = [data.name, data.config, name, str(info.version), files_, len(table), table.features]
    identity = xxhash.xxh3_128(repr(content).encode()).hexdigest()
    columns = tuple(table.column_names)
    used = [column for column in files.used_columns(data, table.column_names, extra_columns) if column in table.column_names]
    unused = unused_columns(table.column_names, used)
    types = {column: plain_feature(table.features[column]) for column in used}
    if any(types[column] != table.features[column] for column in used):  # objects: without the keys of others
        identity = xxhash.xxh3_128(f"{identity} {types}".encode()).hexdigest()
        table = generate_table(_plain_rows, types, cache_dir / "rows" / identity, identity, table=table.select_columns(used))
    notes = tuple(f"{data.name} ({name}): {note}" for note in unused)
    return Rows(
        table=table, fingerprint=identity, where=lambda i: f"{data.name} ({name}), row {i + 1}", notes=notes, columns=columns
    )


def _plain_rows(table: datasets.Dataset) -> Iterator[dict[str, Any]]:
    for block in table.iter(batch_size=1000):
        for values in zip(*block.values(), strict=True):
            yield {column: without_gaps(value) for column, value in zip(block, values, strict=True)}


def _download(data: DataConfig) -> datasets.DatasetDict:
    try:
        return datasets.load_dataset(data.name, data.config)
    except (ConnectionError, FileNotFoundError, OSError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"data.name={data.name}: cannot be loaded from the Hugging Face hub ({first_line(error)}). "
            f"Without a connection, give a local copy: data.dir=<folder with train.csv, validation.csv, …>, "
            f"or data=files data.train=<file>."
        ) from error
    except ValueError as error:  # an unknown configuration; the message lists the known ones
        raise UserError(f"data.name={data.name} data.config={data.config}: {error}") from error
