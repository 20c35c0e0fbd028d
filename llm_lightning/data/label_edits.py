"""Apply a list of wrong labels to train: leave rows out (`data.drop`), or give them other labels (`data.relabel`).

Both name a csv with the columns file, row and label; of tags also word, and for other labels suggested_label. The label is that of the row
now, so that a list written for other data is refused. Of several labels of a row, a line without a label adds the suggested one, and a
line without a suggested label removes the label. Only train changes. Other labels are set in the encoded split: no row is encoded again.
"""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from llm_lightning.config.schema import DataConfig, expand_home
from llm_lightning.data import examples
from llm_lightning.data.encode import TokenizedSplit
from llm_lightning.data.encodings import Encoding, label_sets, words
from llm_lightning.data.label_values import canonical
from llm_lightning.data.masking import IGNORED
from llm_lightning.data.rows import Rows, split_place
from llm_lightning.errors import UserError, join_names, nearest

log = logging.getLogger(__name__)

COLUMNS = {"drop": ("file", "row", "label"), "relabel": ("file", "row", "label", "suggested_label")}
"""The columns that a file of each setting needs."""


@dataclass(frozen=True)
class Line:
    """A line of the csv file."""

    place: str
    """`issues.csv, line 3`"""
    file: str
    row: str
    word: str
    """The number of the word in its sentence, from 1; empty unless words have labels."""
    label: str
    suggested: str


@dataclass(frozen=True)
class LabelEdits:
    """The lines of both files, by the number of their row in the whole train split."""

    dropped: dict[int, list[Line]] = field(default_factory=dict)
    relabelled: dict[int, list[Line]] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """Return how many rows of train are left out, and how many get another label; {} without a change."""
        changed = sum(any(line.label != line.suggested for line in lines) for lines in self.relabelled.values())
        counts = {"dropped": len(self.dropped), "relabelled": changed}
        return counts if any(counts.values()) else {}

    def describe(self, rows: int) -> str:
        """Return a clause on the changes of train, which had so many rows; empty without a change."""
        parts = {"dropped": "rows are left out (data.drop)", "relabelled": "rows have another label (data.relabel)"}
        return "; ".join(f"{self.counts[name]:,} of {rows:,} {text}" for name, text in parts.items() if self.counts.get(name))

    def drop(self, train: Rows) -> Rows:
        """Return train without the dropped rows. Raises UserError if none is left."""
        if not self.dropped:
            return train
        indices = [i for i in range(len(train)) if i not in self.dropped]
        if not indices:
            raise UserError("data.drop: the file names every row of train, and there is nothing left to learn.")
        rows = ",".join(map(str, sorted(self.dropped)))
        return replace(
            train,
            table=train.table.select(indices),
            fingerprint=f"{train.fingerprint}-without-{xxhash.xxh3_64_hexdigest(rows.encode())}",
            where=lambda i: train.where(indices[i]),
        )

    def relabel(self, split: TokenizedSplit, train: Rows, encoding: Encoding) -> TokenizedSplit:
        """Return the encoded train split, which has no dropped row, with the suggested labels. `train` are the rows before the drop.

        Raises UserError for a line whose label the row does not have, and for a suggested label that train does not have.
        """
        for row, lines in self.dropped.items():
            target = _read_target(row, lines, train, encoding)
            for line in lines:
                _require_label(line, target, encoding, train.where(row))
        targets = {row: _read_target(row, lines, train, encoding) for row, lines in self.relabelled.items()}
        changed = {row: _apply(lines, targets[row], encoding, train.where(row)) for row, lines in self.relabelled.items()}
        changed = {row: target for row, target in changed.items() if target != targets[row]}
        if self.counts:
            log.info("train: %s", self.describe(len(train)))
        if not changed:
            return split
        dropped = np.array(sorted(self.dropped), dtype=np.int64)
        in_split = {row - int(np.searchsorted(dropped, row)): label for row, label in changed.items()}
        return _set_labels(split, in_split, train, encoding, dict(zip(in_split, changed, strict=True)))


NO_EDITS = LabelEdits()


def read_edits(rows: dict[str, Rows], data: DataConfig) -> LabelEdits:
    """Return the lines of the files that `data.drop` and `data.relabel` name, each with its row of train.

    Raises UserError, with file and line, for a line whose row is not in train.
    """
    lines = {name: list(read_lines(Path(value), name)) for name in COLUMNS if (value := getattr(data, name)) is not None}
    if not lines:
        return NO_EDITS
    numbers: dict[tuple[str, str], list[int]] = {}
    for i in range(len(rows["train"])):
        numbers.setdefault(split_place(rows["train"].where(i)), []).append(i)
    rows_by_name: dict[str, dict[int, list[Line]]] = {name: {} for name in COLUMNS}
    files = {_resolve(file): file for file in dict.fromkeys(file for file, _ in numbers)}
    for name, file_lines in lines.items():
        for line in file_lines:
            rows_by_name[name].setdefault(_find_row(line, numbers, files, rows), []).append(line)
    if both := rows_by_name["drop"].keys() & rows_by_name["relabel"].keys():
        line = rows_by_name["relabel"][min(both)][0]
        raise UserError(
            f"{line.place}: data.drop leaves this row out ({rows_by_name['drop'][min(both)][0].place}); delete one line."
        )
    return LabelEdits(rows_by_name["drop"], rows_by_name["relabel"])


def read_lines(path: Path, name: str) -> Iterator[Line]:
    """Yield the lines of the csv file of `data.drop` or `data.relabel`. Raises UserError for a missing column or value."""
    path = expand_home(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header = file.readline()
            delimiter = max(",;\t", key=header.count)  # a spreadsheet may have saved it
            file.seek(0)
            reader = csv.DictReader(file, delimiter=delimiter)
            columns = reader.fieldnames or []
            if missing := [column for column in COLUMNS[name] if column not in columns]:
                raise UserError(
                    f"data.{name}={path}: there is no column {join_names(missing)}; the file has {join_names(columns) or 'none'}, and "
                    f"needs {join_names(COLUMNS[name])}, as evaluation/label_issues.csv of a run has them."
                )
            for values in reader:
                if any(value for value in values.values() if isinstance(value, str)):
                    yield _build_line({key: value for key, value in values.items() if key}, f"{path}, line {reader.line_num}")
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"data.{name}={path}: cannot be read as csv in UTF-8 ({error}).") from error


def _build_line(values: dict[str, Any], place: str) -> Line:
    file, row, word, label, suggested = (
        (values.get(name) or "").strip() for name in ("file", "row", "word", "label", "suggested_label")
    )
    if not file:
        raise UserError(f"{place}: the column file is empty.")
    return Line(place, file, canonical(row), canonical(word), label, suggested)


def _resolve(file: str) -> str:
    """Return the same path for all paths of a file."""
    return os.path.realpath(expand_home(file))


def _find_row(line: Line, numbers: dict[tuple[str, str], list[int]], files: dict[str, str], rows: dict[str, Rows]) -> int:
    """Return the number of the line's row in train. `numbers` has those of each place, `files` the name in places of each resolved path.

    Raises UserError if the row is not there, or if several rows have its place.
    """
    key = files.get(_resolve(line.file), line.file), line.row
    if len(places := numbers.get(key, [])) == 1:
        return places[0]
    if places:
        raise UserError(f"{line.place}: {len(places)} rows of train have the place {line.file}, and cannot be told apart.")
    for split, part in rows.items():
        if split != "train" and any(
            _resolve(file) == _resolve(line.file) and row == line.row
            for file, row in (split_place(part.where(i)) for i in range(len(part)))
        ):
            raise UserError(
                f"{line.place}: row {line.row} of {line.file} belongs to {split}, and only train is changed; delete the line."
            )
    if _resolve(line.file) not in files:
        raise UserError(f"{line.place}: {line.file} is not a file of train, which is read from {join_names(files.values())}.")
    raise UserError(f"{line.place}: train has no row {line.row or 'without a number'} of {line.file}.")


def _read_target(row: int, lines: list[Line], train: Rows, encoding: Encoding) -> Any:
    """Return the target of a row. Raises UserError, with the first of its lines, for a malformed row."""
    try:
        return examples.read_row(train, encoding.data, encoding, row).label
    except examples.BadRow as problem:
        raise UserError(f"{lines[0].place}: {train.where(row)}: {problem}; delete the line.") from problem


def _apply(lines: list[Line], target: Any, encoding: Encoding, where: str) -> Any:
    """Return the target of a row, which is at `where`, with the suggested labels."""
    is_set = isinstance(encoding, label_sets.Encoder)
    new = list(target) if isinstance(target, list) else [target]
    changed: set[int] = set()
    for line in lines:
        _require_label(line, target, encoding, where)
        suggested = None if is_set and not line.suggested else _index(line.suggested, "suggested_label", line, encoding)
        if is_set:
            removed = _index(line.label, "label", line, encoding) if line.label else None
            if removed is None and (suggested is None or new[suggested]):
                reason = "both labels are empty" if suggested is None else f"the row has the label '{line.suggested}' already"
                raise UserError(f"{line.place}: {reason} ({where}); delete the line.")
            slots = {slot: value for slot, value in ((removed, 0), (suggested, 1)) if slot is not None}
        else:
            assert suggested is not None
            slots = {_find_slot(line, target, encoding, where): suggested}
        if twice := changed & slots.keys():
            name = f"word {line.word}" if line.word else encoding.labels.names[min(twice)] if is_set else "the row"  # type: ignore[union-attr]
            raise UserError(f"{line.place}: a line above changes the label of {name} already ({where}); delete one of them.")
        changed |= slots.keys()
        for slot, value in slots.items():
            new[slot] = value
    return new if isinstance(target, list) else new[0]


def _require_label(line: Line, target: Any, encoding: Encoding, where: str) -> None:
    """Raise UserError unless the row at `where`, which has this target, has the label that the line names."""
    assert encoding.labels is not None
    names = encoding.labels.names
    label = encoding.labels.index(line.label)
    if isinstance(encoding, label_sets.Encoder):
        if not line.label or (label is not None and target[label]):
            return
        actual = join_names(name for name, applies in zip(names, target, strict=True) if applies) or "no label"
    else:
        place = _find_slot(line, target, encoding, where)
        index = target[place] if isinstance(target, list) else target
        if label == index:
            return
        actual = f"'{names[index]}'"
    raise UserError(
        f"{line.place}: the label is '{line.label}', and {where} has {actual}: the file was written for other data, or the row has been "
        f"corrected already; delete the line."
    )


def _find_slot(line: Line, target: Any, encoding: Encoding, where: str) -> int:
    """Return the place of the label in the target: of a tag, that of its word."""
    if not isinstance(encoding, words.Encoder):
        return 0
    if not line.word.isdigit() or not 1 <= int(line.word) <= len(target):
        raise UserError(f"{line.place}: the column word holds '{line.word}', and {where} has the words 1 to {len(target)}.")
    return int(line.word) - 1


def _index(label: str, column: str, line: Line, encoding: Encoding) -> int:
    """Return the index of a label. Raises UserError if train does not have it."""
    assert encoding.labels is not None
    index = encoding.labels.index(canonical(label)) if label else None
    if index is None:
        names = encoding.labels.names
        what = (
            f"holds '{label}', which is no label of train ({join_names(names)}).{nearest(label, names)}" if label else "is empty."
        )
        raise UserError(f"{line.place}: the column {column} {what}")
    return index


def _set_labels(
    split: TokenizedSplit, changed: dict[int, Any], train: Rows, encoding: Encoding, whole_rows: dict[int, int]
) -> TokenizedSplit:
    """Return the split with other targets. `changed` maps a row to its target, `whole_rows` a row to its number in `train`."""
    assert split.rows is not None
    content = repr(sorted(changed.items()))
    fingerprint = xxhash.xxh3_128_hexdigest(f"{split.fingerprint} relabelled {content}".encode())
    numbers = np.array([*changed])
    first, last = (np.searchsorted(split.rows, numbers, side=side) for side in ("left", "right"))
    if split.labels is not None:
        labels = np.array(split.labels)
        for begin, end, label in zip(first.tolist(), last.tolist(), changed.values(), strict=True):
            labels[begin:end] = label
        return replace(split, labels=labels, fingerprint=fingerprint)
    assert split.token_targets is not None
    assert isinstance(encoding, words.Encoder)
    targets = np.array(split.token_targets)
    for (row, tags), begin, end in zip(changed.items(), first.tolist(), last.tolist(), strict=True):
        if begin == end:  # a row without a token was left out
            continue
        start, stop = int(split.starts[begin]), int(split.starts[end - 1] + split.lengths[end - 1])
        places = start + np.flatnonzero(targets[start:stop] != IGNORED)
        numbers_of_words = encoding.list_learnt_words(examples.read_row(train, encoding.data, encoding, whole_rows[row]).text)
        targets[places] = [tags[word] for word in numbers_of_words]
    return replace(split, token_targets=targets, fingerprint=fingerprint)
