"""Read the columns whose values cut a split into slices, beside the columns that are learnt from.

They change neither the fingerprint of the data nor what is encoded: a run with slices is the same run as one without.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from llm_lightning.config.schema import DataConfig
from llm_lightning.data import sources
from llm_lightning.data.rows import CONTINUES, LINE, PROBLEM, Rows, label_columns
from llm_lightning.errors import UserError, join_names, nearest

LENGTH, LANGUAGE = "length", "language"
"""Names in evaluate.slices that are no columns."""
LANGUAGE_COLUMNS = ("language", "lang", "locale", "language_code")
"""Columns that hold the language of a row, by their usual names; slices by `language` read the first that the files have."""
ADDED = (LINE, PROBLEM, CONTINUES)


def load_rows(data: DataConfig, cache_dir: Path, extra_columns: tuple[str, ...], slices: list[str]) -> dict[str, Rows]:
    """Return the rows of every split with the `extra_columns`, and with the columns that `slices` need as far as files have them."""
    load = sources.get_reader(data)
    loaded = load(data, cache_dir, extra_columns)
    configured = {data.columns.text, data.columns.text_pair, *label_columns(data.columns.label), *extra_columns}
    needed = [name for name in slices if name not in (LENGTH, LANGUAGE)] + (list(LANGUAGE_COLUMNS) if LANGUAGE in slices else [])
    further = tuple(name for name in dict.fromkeys(needed) if name not in configured)
    if not further:
        return loaded
    wider = load(data, cache_dir, (*extra_columns, *further))
    return {split: replace(rows, fingerprint=loaded[split].fingerprint) for split, rows in wider.items()}


def list_columns(loaded: dict[str, Rows]) -> list[str]:
    """Return the names of the columns of all files, also of columns that are not read; those of the tables where sources name none."""
    names = [name for rows in loaded.values() for name in rows.columns or rows.table.column_names]
    return [name for name in dict.fromkeys(names) if name not in ADDED]


def choose_split(rows: dict[str, Rows]) -> str:
    """Return the split whose slices are compared: test, or validation where there is no test."""
    return "test" if "test" in rows else "validation"


def require_slice_columns(rows: dict[str, Rows], slices: list[str], present: list[str]) -> None:
    """Raise UserError if the split that is cut into slices lacks a column that `slices` names, or has lists or objects there.

    `present` are the columns of the files.
    """
    split = choose_split(rows)
    for name in slices:
        if name in (LENGTH, LANGUAGE):
            continue
        if name in rows[split].table.column_names:
            _require_plain(rows[split], name)
            continue
        if name in present:
            raise UserError(
                f"evaluate.slices={name}: the rows of {split} have no column '{name}': it is in other files alone, or its values belong "
                f"to words and not to rows; leave it out."
            )
        guess = nearest(name, [*present, LENGTH, LANGUAGE]) or " evaluate.slices=null compares none."
        raise UserError(
            f"evaluate.slices={name}: there is no column '{name}'; the columns are {join_names(present)}, and {LENGTH} and {LANGUAGE} "
            f"need none.{guess}"
        )


def _require_plain(rows: Rows, column: str) -> None:
    """Raise UserError for a list or an object in a column: a slice is a text or a number that several rows share."""
    for number, value in enumerate(rows.table.select_columns([column])[:][column]):
        if isinstance(value, list | dict):
            kind = "a list" if isinstance(value, list) else "an object"
            raise UserError(
                f"evaluate.slices={column}: {rows.where(number)} holds {kind} there, and a slice is a text or a number that several rows "
                f"share; name another column."
            )
