"""Cut train into parts for runs that each leave one part out, so that every row is scored by weights that never saw it.

A row's part depends on the rows and the seed alone. Rows with the same tokens are in the same part, or a copy would give a row away. The
parts have about as many rows of each label. No row is encoded again: the parts are selected from the encoded train split.
"""

from __future__ import annotations

import heapq
import logging
from dataclasses import replace

import numpy as np
import xxhash

from llm_lightning.data.encode import TokenizedSplit
from llm_lightning.data.masking import IGNORED
from llm_lightning.data.rows import Rows
from llm_lightning.errors import UserError, join_names

LEFT_OUT = "left_out"
"""The name of the split of rows that a run scores and does not train on."""

log = logging.getLogger(__name__)


def leave_out(
    rows: dict[str, Rows], splits: dict[str, TokenizedSplit], part: str, names: tuple[str, ...], seed: int
) -> tuple[dict[str, Rows], dict[str, TokenizedSplit]]:
    """Return rows and splits with train without the part `2/5`, and that part as the split `left_out`; test is not needed.

    Row numbers stay those of the whole train split, in both splits. `names` are those of the labels.
    """
    train, (number, count) = splits["train"], map(int, part.split("/"))
    fold_of_row = assign_folds(train, names, count, seed)
    is_left_out = fold_of_row[train.rows] == number - 1
    masks = zip((~is_left_out, is_left_out), fingerprint_parts(train.fingerprint, part, seed), strict=True)
    parts = [select(train, np.flatnonzero(chosen), fingerprint) for chosen, fingerprint in masks]
    log.info("data.left_out=%s: trains on %s rows of train and scores %s", part, *(f"{part.facts.rows:,}" for part in parts))
    trained, scored = (replace(rows["train"], fingerprint=part.fingerprint) for part in parts)
    return (
        {"train": trained, "validation": rows["validation"], LEFT_OUT: scored},
        {"train": parts[0], "validation": splits["validation"], LEFT_OUT: parts[1]},
    )


def fingerprint_parts(train: str, part: str, seed: int) -> tuple[str, str]:
    """Return the fingerprints of train without a part, and of the part, from the fingerprint of the whole train split."""
    without, only = (xxhash.xxh3_128_hexdigest(f"{train} {title} {part} seed {seed}".encode()) for title in ("without", "only"))
    return without, only


def assign_folds(train: TokenizedSplit, names: tuple[str, ...], count: int, seed: int) -> np.ndarray:
    """Return (largest row number + 1,) the part, from 0, of each row of train; -1 for rows without a sequence.

    Of the rows of each label, groups of equal rows are dealt, the largest first, each to the part with the fewest rows of that label
    so far. A row with several labels counts for its rarest one. Raises UserError if a part would have no row.
    """
    assert train.rows is not None
    first = np.flatnonzero(np.append(True, train.rows[1:] != train.rows[:-1]))  # the sequences of a row are neighbours
    rows, labels = train.rows[first], _list_labels(train, first)
    groups = _group_copies(train, first)
    sizes = np.bincount(groups)
    if len(sizes) < count:
        raise UserError(f"data.folds={count}: train has {len(sizes)} different rows; give a smaller number, or more rows.")
    label_counts = np.bincount(labels[:, 1], minlength=len(names))
    if rare := [names[label] for label in np.flatnonzero(label_counts == 1)]:
        log.warning("data.folds: %s: one row of train has this label, and the run that scores it cannot know it", join_names(rare))
    strata = _find_strata(labels, label_counts, len(rows))
    stratum_of_group = strata[np.unique(groups, return_index=True)[1]]  # that of the first of its rows
    shuffled = np.random.default_rng([seed, count]).permutation(len(sizes))
    fold_of_group, totals = np.empty(len(sizes), dtype=np.int64), [0] * count
    for stratum in np.unique(stratum_of_group):
        members = shuffled[stratum_of_group[shuffled] == stratum]
        members = members[np.argsort(-sizes[members], kind="stable")]
        heap = [(0, total, fold) for fold, total in enumerate(totals)]  # rows of this stratum, of all, and the part
        heapq.heapify(heap)
        for group, size in zip(members.tolist(), sizes[members].tolist(), strict=True):
            of_stratum, total, fold = heap[0]
            fold_of_group[group] = fold
            totals[fold] += size
            heapq.heapreplace(heap, (of_stratum + size, total + size, fold))
    folds = np.full(int(rows.max()) + 1, -1, dtype=np.int64)
    folds[rows] = fold_of_group[groups]
    return folds


def _list_labels(train: TokenizedSplit, first: np.ndarray) -> np.ndarray:
    """Return (pairs, 2) each row, counted from 0, with each of its labels. `first` is the first sequence of each row."""
    if train.labels is not None and train.labels.ndim == 1:
        return np.stack([np.arange(len(first)), train.labels[first]], axis=1)
    if train.labels is not None:
        return np.argwhere(train.labels[first])
    assert train.token_targets is not None
    is_target = train.token_targets != IGNORED
    row_of_sequence = np.repeat(np.arange(len(first)), np.diff(np.append(first, len(train))))
    pairs = np.stack([np.repeat(row_of_sequence, train.lengths)[is_target], train.token_targets[is_target]], axis=1)
    return np.unique(pairs, axis=0)


def _find_strata(labels: np.ndarray, label_counts: np.ndarray, rows: int) -> np.ndarray:
    """Return (rows,) the rank of the rarest label of each row, from 0 for the rarest of all; rows without a label have the last."""
    rank = np.argsort(np.argsort(label_counts, kind="stable"), kind="stable")
    strata = np.full(rows, len(label_counts), dtype=np.int64)
    np.minimum.at(strata, labels[:, 0], rank[labels[:, 1]])
    return strata


def _group_copies(train: TokenizedSplit, first: np.ndarray) -> np.ndarray:
    """Return (rows,) the group of each row; rows with the same tokens are in one. Groups are numbered by their first row."""
    numbers: dict[int, int] = {}
    ends = np.append(first[1:], len(train)) - 1
    bounds = zip(train.starts[first].tolist(), (train.starts[ends] + train.lengths[ends]).tolist(), strict=True)
    hashes = (xxhash.xxh3_64_intdigest(train.tokens[start:end].tobytes()) for start, end in bounds)
    return np.array([numbers.setdefault(value, len(numbers)) for value in hashes])


def select(split: TokenizedSplit, indices: np.ndarray, fingerprint: str) -> TokenizedSplit:
    """Return some sequences of a split, in their order. Tokens stay where they are mapped unless each of them has a target."""
    assert split.rows is not None
    lengths, rows = split.lengths[indices], split.rows[indices]
    tokens, starts, targets = split.tokens, split.starts[indices], split.token_targets
    if targets is not None:  # readers take all targets of a split for its own
        ends = np.cumsum(lengths, dtype=np.int64)
        places = np.repeat(starts - (ends - lengths), lengths) + np.arange(ends[-1] if len(ends) else 0)
        tokens, targets, starts = tokens[places], targets[places], ends - lengths
    count = len(np.unique(rows))
    facts = replace(split.facts, rows=count, bytes=round(split.facts.bytes * count / max(split.facts.rows, 1)))
    return replace(
        split,
        tokens=tokens,
        starts=starts,
        lengths=lengths,
        inputs=split.inputs[indices],
        labels=None if split.labels is None else split.labels[indices],
        second=None if split.second is None else split.second[indices],
        token_targets=targets,
        rows=rows,
        facts=facts,
        fingerprint=fingerprint,
    )
