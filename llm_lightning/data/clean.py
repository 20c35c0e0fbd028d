"""Leave rows out of train that would mislead the model or its scores (`data.clean`). Validation and test stay as they are.

The rows are found before validation is cut off train, so that they depend on the files alone. What was found is kept in the cache.
"""

from __future__ import annotations

import csv
import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import xxhash

from llm_lightning.atomic_files import write_atomically
from llm_lightning.config.schema import DataConfig
from llm_lightning.data.copies import find_conflicts, find_copies, group_rows
from llm_lightning.data.encodings import Encoding
from llm_lightning.data.personal_rows import find_personal_rows
from llm_lightning.data.row_texts import RowTexts, read_texts
from llm_lightning.data.rows import CONTINUES, Rows
from llm_lightning.errors import UserError

log = logging.getLogger(__name__)

FORMAT = 1
FILE = "data_cleaned.csv"


@dataclass(frozen=True)
class CleanedRow:
    """A row that is left out of train for a reason; a row may have several reasons."""

    row: int
    """Number of the row in train, from 0."""
    file: str
    place: str
    """Its place in the file: `line 17`."""
    reason: str
    """The name in `data.clean`, for personal data with its kind: `pii: email`."""
    other_split: str = ""
    other_row: int | None = None
    other_file: str = ""
    other_place: str = ""


def clean(
    splits: dict[str, Rows], data: DataConfig, encoder: type[Encoding], cache_dir: Path
) -> tuple[dict[str, Rows], tuple[CleanedRow, ...]]:
    """Return the splits without the rows of train that `data.clean` names, and these rows. Raises UserError if none is left."""
    if not data.clean:
        return splits, ()
    texts = read_texts(splits, data.columns, encoder)
    cleaned = _load_or_find(texts, data.clean, not encoder.shares_contexts, cache_dir)
    left_out = {row.row for row in cleaned}
    train = splits["train"]
    if len(left_out) == len(train):
        raise UserError(f"data.clean={list(data.clean)}: no row of train is left of {len(train):,}; task=inspect shows why.")
    log.info("data.clean: %s of %s rows of train are left out%s", f"{len(left_out):,}", f"{len(train):,}", _count(cleaned))
    if not left_out:
        return splits, ()
    return {**splits, "train": _without(train, left_out)}, cleaned


def count_reasons(cleaned: tuple[CleanedRow, ...]) -> dict[str, int]:
    """Return the number of rows that are left out, in all and for each reason."""
    reasons = Counter(reason for _, reason in {(row.row, row.reason.partition(":")[0]) for row in cleaned})
    return {"rows": len({row.row for row in cleaned}), **dict(sorted(reasons.items()))}


def write_cleaned(folder: Path, cleaned: tuple[CleanedRow, ...]) -> None:
    """Write data_cleaned.csv: each row that was left out, why, and the row that it resembles."""
    columns = ["split", "file", "row", "place", "reason", "other_split", "other_file", "other_row", "other_place"]
    with write_atomically(folder / FILE) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({"split": "train", **asdict(row)} for row in cleaned)


def _count(cleaned: tuple[CleanedRow, ...]) -> str:
    counts = ", ".join(f"{name} {number:,}" for name, number in count_reasons(cleaned).items() if name != "rows")
    return f" ({counts}): {FILE}" if counts else ""


def _load_or_find(texts: dict[str, RowTexts], names: list[str], near: bool, cache_dir: Path) -> tuple[CleanedRow, ...]:
    """Return the rows to leave out, from the cache if the same files were searched before."""
    parts = [(split, part.rows.fingerprint, part.text_columns, part.label) for split, part in texts.items()]
    file = cache_dir / "cleaned" / f"{xxhash.xxh3_128_hexdigest(f'{FORMAT} {parts} {sorted(names)} {near}'.encode())}.json"
    try:
        entries = [tuple(entry) for entry in json.loads(file.read_text(encoding="utf-8"))]
    except (OSError, ValueError):
        entries = list(_find(texts, names, near))
        file.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(file) as partial:
            partial.write_text(json.dumps(entries), encoding="utf-8")
    cleaned = []
    for row, reason, split, other_row in entries:  # the files may lie elsewhere now
        other = (split, other_row, *texts[split].place(other_row)) if split else ()
        cleaned.append(CleanedRow(row, *texts["train"].place(row), reason, *other))
    return tuple(cleaned)


def _find(texts: dict[str, RowTexts], names: list[str], near: bool) -> Iterator[tuple[int, str, str | None, int | None]]:
    """Yield (row of train, reason, split and row of the row that it resembles)."""
    used = texts if "leaks" in names else {"train": texts["train"]}
    copies = None
    if {"near_duplicates", "leaks", "conflicts"} & set(names):
        groups = group_rows(used)
        copies = find_copies(groups, near) if {"near_duplicates", "leaks"} & set(names) else None
    if copies is not None and "near_duplicates" in names:
        for copy in copies.duplicates:
            if copy.split == "train":
                yield copy.row, "near_duplicates", "train", copy.other_row
    if copies is not None and "leaks" in names:
        for copy in copies.leaks:
            if copy.split == "train":
                yield copy.row, "leaks", copy.other_split, copy.other_row
    if "conflicts" in names:
        for conflict in find_conflicts(groups):
            if conflict.split == conflict.other_split == "train":  # labels of validation and test decide nothing
                yield conflict.row, "conflicts", "train", conflict.other_row
    if "pii" in names:
        for personal in find_personal_rows({"train": texts["train"]}):
            yield personal.row, f"pii: {personal.kind}", None, None


def _without(rows: Rows, left_out: set[int]) -> Rows:
    """Return rows without some. A piece of a document whose piece before is left out begins a document."""
    numbers = np.setdiff1d(np.arange(len(rows)), np.fromiter(left_out, np.int64))
    table = rows.table.select(numbers)
    if CONTINUES in rows.table.column_names:
        continues = np.array(rows.table[CONTINUES][:], bool)[numbers]
        continues[1:] &= np.diff(numbers) == 1
        continues[:1] = False
        table = table.remove_columns([CONTINUES])
        table = table.add_column(CONTINUES, continues.tolist()) if continues.any() else table
    identity = xxhash.xxh3_64_hexdigest(numbers.astype(np.int64).tobytes())
    return replace(
        rows, table=table, fingerprint=f"{rows.fingerprint}-cleaned-{identity}", where=lambda i: rows.where(int(numbers[i]))
    )
