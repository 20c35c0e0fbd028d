"""The schedule of training as a pure function of (seed, epoch, sequence lengths, batch spec).

It says which sequences form optimizer step s, and how a step is cut into ranks and micro-batches. Nothing before that last cut
depends on the number of devices. A step is made of rows: a row is one sequence, or, packed, several that fill it together.

Unpacked sequences are shuffled, then sorted by length inside windows of some steps, so that a step holds like lengths (less
padding) while the order of steps and most of the randomness stay. Packed rows are all nearly full: see `packing.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llm_lightning.config import BatchConfig
from llm_lightning.data.packing import Patterns
from llm_lightning.errors import UserError

Row = np.ndarray
"""Indices of the sequences in a row."""


@dataclass(frozen=True)
class EpochPlan:
    """The steps of one epoch: step s is rows `steps[s]` to `steps[s + 1]`, row r is `order[rows[r] : rows[r + 1]]`."""

    order: np.ndarray
    """(sequences,) a permutation of the sequences."""
    rows: np.ndarray | None
    """(rows + 1,) bounds into `order`; None where every sequence is a row of its own."""
    steps: np.ndarray
    """(steps + 1,) bounds into the rows."""

    def __len__(self) -> int:
        return len(self.steps) - 1

    def __getitem__(self, step: int) -> list[Row]:
        first, last = self.steps[step], self.steps[step + 1]
        if self.rows is None:
            return list(self.order[first:last, None])
        return [self.order[self.rows[row] : self.rows[row + 1]] for row in range(first, last)]


class Plan:
    """The steps of every epoch. Raises UserError where a sequence is longer than a step or a micro-batch may be."""

    def __init__(self, lengths: np.ndarray, spec: BatchConfig, seed: int, row_size: int | None = None) -> None:
        """`lengths` are those of the sequences as the model is given them; where `row_size` is given, they are packed into such rows."""
        self.lengths, self.spec, self.seed = lengths, spec, seed
        self.patterns = None if row_size is None else Patterns.best_fit(lengths, row_size)
        longest = int(row_size or lengths.max())
        for key, limit in (("batch.tokens", spec.tokens), ("batch.micro_tokens", spec.micro_tokens)):
            if limit is not None and longest > limit:
                what = "a row" if row_size else "the longest sequence"
                raise UserError(f"{key}={limit}: {what} has {longest} tokens and has to fit.")
        self._epochs: dict[int, EpochPlan] = {}
        self._first_steps = [0]
        """The global step that each epoch begins with, for the epochs counted so far."""

    def epoch(self, epoch: int) -> EpochPlan:
        """The schedule of an epoch; the last two asked for are kept."""
        if epoch not in self._epochs:
            self._epochs = {e: p for e, p in self._epochs.items() if e == epoch - 1}
            self._epochs[epoch] = self._schedule(np.random.default_rng([self.seed, epoch]))
        return self._epochs[epoch]

    def steps(self, epochs: float) -> int:
        """Optimizer steps of so many epochs; a fraction of an epoch is rounded to a whole step, and to one at least."""
        whole = self._first_step(int(epochs))
        part = epochs - int(epochs)
        return max(1, whole + round(part * len(self.epoch(int(epochs)))) if part else whole)

    def locate(self, step: int) -> tuple[int, int]:
        """(epoch, step inside it) of a global step."""
        if self.spec.tokens is None:  # then every epoch has as many steps
            return divmod(step, self._first_step(1))
        while step >= self._first_steps[-1]:
            self._first_step(len(self._first_steps))
        epoch = int(np.searchsorted(self._first_steps, step, side="right")) - 1
        return epoch, step - self._first_steps[epoch]

    def _first_step(self, epoch: int) -> int:
        if self.spec.tokens is None and len(self._first_steps) > 1:
            return epoch * self._first_steps[1]
        while len(self._first_steps) <= epoch:
            self._first_steps.append(self._first_steps[-1] + len(self.epoch(len(self._first_steps) - 1)))
        return self._first_steps[epoch]

    def _schedule(self, rng: np.random.Generator) -> EpochPlan:
        if self.patterns is not None:
            order, rows = self.patterns.filled(rng)
            sizes = np.add.reduceat(self.lengths[order], rows[:-1], dtype=np.int64)
            return EpochPlan(order, rows, self._cut_steps(sizes))
        order = rng.permutation(len(self.lengths)).astype(np.int32 if len(self.lengths) < 1 << 31 else np.int64)
        if self.spec.length_window == 1:
            return EpochPlan(order, None, self._cut_steps(self.lengths[order]))
        self._sort_windows(order)
        return self._shuffled(order, self._cut_steps(self.lengths[order]), rng)

    def _sort_windows(self, order: np.ndarray) -> None:
        """Sort the order by length inside windows of `length_window` steps, in place."""
        step = self.spec.sequences if self.spec.tokens is None else max(1, int(self.spec.tokens / self.lengths.mean()))
        window = step * self.spec.length_window
        whole = len(order) // window * window
        for part in (order[:whole].reshape(-1, window), order[whole:].reshape(1, -1)):
            part[:] = np.take_along_axis(part, np.argsort(self.lengths[part], axis=1, kind="stable"), axis=1)

    def _cut_steps(self, sizes: np.ndarray) -> np.ndarray:
        """Bounds of the steps over rows of such sizes, in tokens."""
        if self.spec.tokens is None:
            return np.append(np.arange(0, len(sizes), self.spec.sequences), len(sizes))
        ends = np.cumsum(sizes, dtype=np.int64)
        bounds = [0]
        while bounds[-1] < len(sizes):
            used = ends[bounds[-1] - 1] if bounds[-1] else 0
            bounds.append(int(np.searchsorted(ends, used + self.spec.tokens, side="right")))
        return np.array(bounds)

    def _shuffled(self, order: np.ndarray, bounds: np.ndarray, rng: np.random.Generator) -> EpochPlan:
        """The same steps in random order, so that a model does not see a window's short texts before its long ones."""
        steps = np.arange(len(bounds) - 1)
        windows = steps // self.spec.length_window
        shuffled = steps[np.lexsort((rng.random(len(steps)), windows))]
        sizes = np.diff(bounds)[shuffled]
        new = np.concatenate([[0], np.cumsum(sizes)])
        gather = np.repeat(bounds[shuffled] - new[:-1], sizes)
        gather += np.arange(len(order))
        return EpochPlan(order[gather], None, new)


def row_lengths(rows: list[Row], lengths: np.ndarray) -> np.ndarray:
    """(rows,) tokens of each row."""
    return np.array([int(lengths[row].sum()) for row in rows], dtype=np.int64)


def cut(rows: list[Row], lengths: np.ndarray, spec: BatchConfig, rank: int = 0, world: int = 1) -> list[list[Row]]:
    """A rank's micro-batches of a step: its share of the rows, longest first, within the micro-batch bounds.

    Rows are dealt to ranks in a snake by length, which balances their tokens. `lengths` are those of all sequences.
    """
    sizes = row_lengths(rows, lengths)
    longest_first = np.argsort(-sizes, kind="stable")
    turn = np.arange(len(rows)) % (2 * world)
    mine = longest_first[np.minimum(turn, 2 * world - 1 - turn) == rank]
    batches, start = [], 0
    while start < len(mine):
        size = min(most_rows(spec, int(sizes[mine[start]])), len(mine) - start)
        batches.append([rows[i] for i in mine[start : start + size]])
        start += size
    return batches


def most_rows(spec: BatchConfig, longest: int, world: int = 1) -> int:
    """Rows that may be on a device at once, padded to the longest of them."""
    step = spec.sequences if spec.tokens is None else max(1, spec.tokens // longest)
    bounds = [-(-step // world), spec.micro_sequences, spec.micro_tokens and max(1, spec.micro_tokens // longest)]
    return min(bound for bound in bounds if bound is not None)


EVALUATION_TOKENS = 16_384  # positions of an evaluation batch where batch.micro_tokens names no other: bounds the logits


def evaluation(lengths: np.ndarray, spec: BatchConfig, row_size: int | None = None) -> list[list[Row]]:
    """The batches of one pass over a split, for ranks to take in turns: every sequence once, in batches of like lengths.

    They do not depend on the number of ranks, and so neither do the scores.
    """
    bounds = BatchConfig(
        sequences=spec.sequences if spec.tokens is None else len(lengths),
        micro_sequences=spec.micro_sequences,
        micro_tokens=spec.micro_tokens or max(EVALUATION_TOKENS, int(row_size or lengths.max())),
    )
    if row_size is None:
        rows = list(np.arange(len(lengths))[:, None])
    else:
        order, ends = Patterns.best_fit(lengths, row_size).filled(np.random.default_rng(0))
        rows = np.split(order, ends[1:-1])
    return cut(rows, lengths, bounds)
