"""Read the tables of an audit, with errors that name the config key, the file, the line and the column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm_lightning.config.schema import ColumnsConfig, DataConfig, expand_home
from llm_lightning.data import paths
from llm_lightning.data.rows import LINE, PROBLEM, MissingColumn
from llm_lightning.data.sources import files
from llm_lightning.errors import UserError, join_names


def find_file(key: str, name: str) -> Path:
    """Return the one file that a key of the config names."""
    return paths.match(name)[0] if paths.match(name) else expand_home(name)


def read_table(key: str, name: str, columns: tuple[str, ...], optional: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Return the rows of a table with these columns and `where`, the place of the row. Columns in `optional` may have empty values.

    Raises UserError for a missing column, an empty value, a damaged row, and a table without rows.
    """
    path = find_file(key, name)
    first, second, *others = columns
    data = DataConfig(source="files", columns=ColumnsConfig(text=first, text_pair=second, label=others or None))
    if path.stat().st_size == 0:
        raise UserError(f"{key}={name}: the file is empty.")
    try:
        rows = [{"where": f"{path}, line {row[LINE]}", **row} for row in files.rows(path, data)]
    except MissingColumn as missing:
        raise UserError(
            f"{key}={name}: there is no column '{missing.column}'; a table with the columns {join_names(columns)} is needed."
        ) from None
    if not rows:
        raise UserError(f"{key}={name}: there is no row in it.")
    for row in rows:
        if row[PROBLEM] is not None:
            raise UserError(f"{row['where']}: {row[PROBLEM]}. Mend the row.")
        for column in columns:
            value = row[column]
            if not (isinstance(value, str) and value.strip()) and column not in optional:
                raise UserError(f"{row['where']}: column '{column}' is empty. Mend the row, or remove it.")
    return rows
