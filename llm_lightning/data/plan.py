"""Schedule training as a pure function of (seed, epoch, sequence lengths, batch spec).

The plan assigns sequences to optimizer steps, then the rows of a step to ranks and micro-batches. Only that last assignment depends on the
number of devices. A row here is never a row of a table: it is one sequence, or, packed, several sequences that fill it together.

Unpacked sequences are shuffled, then sorted by length inside windows of a few steps. So a step holds like lengths (less padding), while
the order of steps and most of the randomness stay. Packed rows are all nearly full: see `packing.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from llm_lightning.config.schema import BatchConfig
from llm_lightning.data.packing import Patterns
from llm_lightning.errors import UserError

PackedRow = np.ndarray
"""Indices of the sequences in a row; only one if sequences are not packed."""
PackedRows = list[PackedRow] | np.ndarray
"""Rows: a list of them, or an array (rows, 1) if each is a single sequence."""


@dataclass(frozen=True)
class RankShare:
    """A rank's rows of a step, in micro-batches."""

    rows: np.ndarray
    """(rows,) numbers of the rank's rows, counted from the first row of the step; longest first."""
    bounds: np.ndarray
    """(micro-batches + 1,) bounds of the micro-batches in `rows`."""
    max_micro_batches: int
    """The largest number of micro-batches of any rank."""


@dataclass(frozen=True)
class EpochPlan:
    """The steps of one epoch: step s is rows `steps[s]` to `steps[s + 1]`, row r is `order[rows[r] : rows[r + 1]]`."""

    order: np.ndarray
    """(sequences,) a permutation of the sequences."""
    rows: np.ndarray | None
    """(rows + 1,) bounds into `order`; None if every sequence is a row of its own."""
    steps: np.ndarray
    """(steps + 1,) bounds into the rows."""
    sizes: np.ndarray | None = None
    """(rows,) tokens of each row; None if every sequence is a row of its own."""

    def __len__(self) -> int:
        return len(self.steps) - 1

    def __getitem__(self, step: int) -> list[PackedRow]:
        return [self.row_at(i) for i in range(self.steps[step], self.steps[step + 1])]

    def row_at(self, i: int) -> PackedRow:
        """Return the sequences of the row i of the epoch."""
        return self.order[i : i + 1] if self.rows is None else self.order[self.rows[i] : self.rows[i + 1]]

    def micro_batches(
        self, step: int, lengths: np.ndarray, spec: BatchConfig, rank: int, world: int
    ) -> tuple[list[np.ndarray], int]:
        """Return a rank's micro-batches of a step, and the largest number of micro-batches of any rank.

        A micro-batch is the indices of its sequences, (sequences,), row after row: a Python object for each row would take too long.
        `lengths` holds the lengths of all sequences.
        """
        first, last = int(self.steps[step]), int(self.steps[step + 1])
        if first == last:  # a Poisson sample may hold no row
            return [], 0
        sizes = lengths.take(self.order[first:last]) if self.sizes is None else self.sizes[first:last]
        share = assign_to_rank(sizes, spec, rank, world)
        rows, bounds = share.rows + first, share.bounds
        if self.rows is not None:
            starts, counts = self.rows[rows], self.rows[rows + 1] - self.rows[rows]
            ends = np.concatenate([[0], np.cumsum(counts)])
            rows, bounds = np.repeat(starts - ends[:-1], counts) + np.arange(ends[-1]), ends[bounds]
        sequences, bounds = self.order.take(rows), bounds.tolist()
        return [sequences[start:end] for start, end in pairwise(bounds)], share.max_micro_batches


class Plan:
    """The steps of every epoch. Raises UserError if a sequence is longer than a step or a micro-batch may be."""

    def __init__(
        self, lengths: np.ndarray, spec: BatchConfig, seed: int, row_size: int | None = None, window: int | None = None
    ) -> None:
        """`lengths`: tokens of each sequence as model input. With `row_size`, sequences are packed into rows of this size.

        `window`: tokens of the longest window, if a sequence holds the windows of a row. A sequence of several windows may be longer
        than `micro_tokens`: it is alone in its micro-batch.
        """
        self.lengths, self.spec, self.seed = lengths, spec, seed
        self.patterns = None if row_size is None else Patterns.best_fit(lengths, row_size)
        longest = int(row_size or lengths.max())
        for key, limit, size in (
            ("batch.tokens", spec.tokens, longest),
            ("batch.micro_tokens", spec.micro_tokens, window or longest),
        ):
            if limit is not None and size > limit:
                what = (
                    "a row" if row_size else "the longest sequence" if window is None else "the longest row, with all its windows,"
                )
                raise UserError(f"{key}={limit}: {what} has {size} tokens and has to fit.")
        self._epochs: dict[int, EpochPlan] = {}
        self._first_steps = [0]
        """The first global step of each epoch, for the epochs counted so far."""

    def epoch_plan(self, epoch: int) -> EpochPlan:
        """Return the plan of an epoch. The last two are kept."""
        if epoch not in self._epochs:
            self._epochs = {e: p for e, p in self._epochs.items() if e == epoch - 1}
            self._epochs[epoch] = self._plan_epoch(np.random.default_rng([self.seed, epoch]))
        return self._epochs[epoch]

    def steps(self, epochs: float) -> int:
        """Return the optimizer steps of `epochs`. A fraction of an epoch is rounded to a whole step, and to at least one."""
        whole_epoch_steps = self._first_step(int(epochs))
        fraction = epochs - int(epochs)
        if fraction:
            return max(1, whole_epoch_steps + round(fraction * len(self.epoch_plan(int(epochs)))))
        return max(1, whole_epoch_steps)

    def locate(self, step: int) -> tuple[int, int]:
        """Return (epoch, step inside it) of a global step."""
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
            self._first_steps.append(self._first_steps[-1] + len(self.epoch_plan(len(self._first_steps) - 1)))
        return self._first_steps[epoch]

    def _plan_epoch(self, rng: np.random.Generator) -> EpochPlan:
        if self.patterns is not None:
            order, rows = self.patterns.fill(rng)
            sizes = np.add.reduceat(self.lengths[order], rows[:-1], dtype=np.int64)
            return EpochPlan(order, rows, self._cut_steps(sizes), sizes.astype(np.int32))
        order = rng.permutation(len(self.lengths)).astype(np.int32 if len(self.lengths) < 1 << 31 else np.int64)
        if self.spec.length_window == 1:
            return EpochPlan(order, None, self._cut_steps(self.lengths[order]))
        self._sort_windows(order)
        return self._shuffle_steps(order, self._cut_steps(self.lengths[order]), rng)

    def _sort_windows(self, order: np.ndarray) -> None:
        """Sort the order by length inside windows of `length_window` steps, in place."""
        step = self.spec.sequences if self.spec.tokens is None else max(1, int(self.spec.tokens / self.lengths.mean()))
        window = step * self.spec.length_window
        full_windows_end = len(order) // window * window
        for part in (order[:full_windows_end].reshape(-1, window), order[full_windows_end:].reshape(1, -1)):
            part[:] = np.take_along_axis(part, np.argsort(self.lengths[part], axis=1, kind="stable"), axis=1)

    def _cut_steps(self, sizes: np.ndarray) -> np.ndarray:
        """Return the bounds of the steps over rows of these sizes, in tokens."""
        if self.spec.tokens is None:
            return np.append(np.arange(0, len(sizes), self.spec.sequences), len(sizes))
        ends = np.cumsum(sizes, dtype=np.int64)
        bounds = [0]
        while bounds[-1] < len(sizes):
            used = ends[bounds[-1] - 1] if bounds[-1] else 0
            bounds.append(int(np.searchsorted(ends, used + self.spec.tokens, side="right")))
        return np.array(bounds)

    def _shuffle_steps(self, order: np.ndarray, bounds: np.ndarray, rng: np.random.Generator) -> EpochPlan:
        """Return the same steps in random order, so that a model does not see a window's short texts before its long ones."""
        steps = np.arange(len(bounds) - 1)
        windows = steps // self.spec.length_window
        shuffled = steps[np.lexsort((rng.random(len(steps)), windows))]
        sizes = np.diff(bounds)[shuffled]
        new = np.concatenate([[0], np.cumsum(sizes)])
        gather = np.repeat(bounds[shuffled] - new[:-1], sizes)
        gather += np.arange(len(order))
        return EpochPlan(order[gather], None, new)


class PoissonPlan(Plan):
    """Steps that hold each row with the same probability, independently (Poisson sampling), as differential privacy is accounted for.

    A step has `batch.sequences` rows on average, and perhaps none. An epoch is as many steps as an ordinary one.
    """

    @property
    def sampling_rate(self) -> float:
        """Return the probability that a step holds a row."""
        return min(1.0, self.spec.sequences / len(self.lengths))

    def _plan_epoch(self, rng: np.random.Generator) -> EpochPlan:
        count = len(self.lengths)
        steps = [np.flatnonzero(rng.random(count) < self.sampling_rate) for _ in range(-(-count // self.spec.sequences))]
        order = np.concatenate(steps).astype(np.int32 if count < 1 << 31 else np.int64)
        return EpochPlan(order, None, np.concatenate([[0], np.cumsum([len(step) for step in steps])]))


def assign_to_rank(sizes: np.ndarray, spec: BatchConfig, rank: int = 0, world: int = 1) -> RankShare:
    """Return a rank's share of a step whose rows have these sizes, (rows,), in tokens.

    Ranks get their rows in a snake by size (rank 0, 1, 2, 2, 1, 0, 0, 1, …), which balances their tokens. A rank takes its rows longest
    first, and puts as many into each micro-batch as may be on a device at once, padded to the longest of them.
    """
    largest, smallest = int(sizes.max()), int(sizes.min())
    keys = largest - sizes
    if largest - smallest < np.iinfo(np.uint16).max:
        keys = keys.astype(np.uint16)  # NumPy sorts uint16 by radix, five times as fast
    longest_first = np.argsort(keys, kind="stable")
    groups = _group_micro_batches(keys.take(longest_first), largest, spec, world)
    rank_groups = [(int(first_row[rank]), int(rows[rank]), int(count[rank])) for first_row, rows, count in groups]
    starts = [np.arange(count) * rows + first_row for first_row, rows, count in rank_groups]
    row_numbers = np.arange(int(_rows_among(len(sizes), rank, world)))
    rank_rows = longest_first[_place(row_numbers, rank, world)]
    max_micro_batches = int(np.sum([count for _, _, count in groups], axis=0).max())
    return RankShare(rank_rows, np.concatenate([*starts, [len(rank_rows)]]), max_micro_batches)


def _place(i: np.ndarray, rank: int | np.ndarray, world: int) -> np.ndarray:
    """Return the place, among all rows longest first, of row i of a rank."""
    return i // 2 * (2 * world) + np.where(i % 2 == 0, rank, 2 * world - 1 - rank)


def _rows_among(count: int | np.ndarray, rank: int | np.ndarray, world: int) -> np.ndarray:
    """Return how many of the `count` longest rows a rank gets."""
    rounds, rest = np.divmod(count, 2 * world)
    return 2 * rounds + (rest > rank) + (rest > 2 * world - 1 - rank)


def _group_micro_batches(
    keys: np.ndarray, largest: int, spec: BatchConfig, world: int
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return the micro-batches of every rank in groups of equally many rows: (first row, rows each, number of them), each (ranks,).

    `keys`, ascending, are `largest` less the size of each row. A rank's micro-batches grow as its rows become shorter, so 2,048 rows
    make at most 64 groups, however many micro-batches; a loop over the micro-batches of every rank takes a hundred times as long.
    """
    limits = [limit for limit in (spec.tokens, spec.micro_tokens) if limit is not None]
    tokens = min(limits) if limits else None
    bounds = [len(keys), spec.micro_sequences, spec.sequences if spec.tokens is None else None]
    max_rows = min(bound for bound in bounds if bound is not None)
    ranks = np.arange(world)
    counts = _rows_among(len(keys), ranks, world)
    start, groups = np.zeros(world, np.int64), []
    while (start < counts).any():
        end, rows = counts, np.full(world, max_rows)
        if tokens is not None:
            longest = largest - keys[np.minimum(_place(start, ranks, world), len(keys) - 1)].astype(np.int64)
            rows = np.minimum(max_rows, np.maximum(1, tokens // longest))
            shorter = largest - tokens // (rows + 1)  # of rows up to that size, one more fits
            longer_rows = np.searchsorted(keys, np.clip(shorter, 0, int(keys[-1]) + 1).astype(keys.dtype))
            end = np.where(rows == max_rows, counts, _rows_among(longer_rows, ranks, world))
        number = np.maximum(-(-(end - start) // rows), 0)
        groups.append((start, rows, number))
        start = start + number * rows
    return groups


def max_rows_at_once(spec: BatchConfig, longest: int, world: int = 1) -> int:
    """Return how many rows may be on a device at once, padded to the longest of them, if `world` ranks share a step."""
    step = spec.sequences if spec.tokens is None else max(1, spec.tokens // longest)
    bounds = [-(-step // world), spec.micro_sequences, spec.micro_tokens and max(1, spec.micro_tokens // longest)]
    return min(bound for bound in bounds if bound is not None)


EVALUATION_TOKENS = 16_384  # positions of an evaluation batch unless batch.micro_tokens is set: bounds the logits


def plan_evaluation(lengths: np.ndarray, spec: BatchConfig, row_size: int | None = None) -> list[PackedRows]:
    """Return the batches of one pass over a split, one rank after the other takes one: every sequence once, in batches of like lengths.

    Batches, and so the scores, do not depend on the number of ranks.
    """
    bounds = BatchConfig(
        sequences=spec.sequences if spec.tokens is None else len(lengths),
        micro_sequences=spec.micro_sequences,
        micro_tokens=spec.micro_tokens or max(EVALUATION_TOKENS, int(row_size or lengths.max())),
    )
    if row_size is None:
        share = assign_to_rank(lengths, bounds)
        return [share.rows[start:end, None] for start, end in pairwise(share.bounds)]
    order, ends = Patterns.best_fit(lengths, row_size).fill(np.random.default_rng(0))
    share = assign_to_rank(np.add.reduceat(lengths[order], ends[:-1], dtype=np.int64), bounds)
    return [[order[ends[i] : ends[i + 1]] for i in share.rows[start:end]] for start, end in pairwise(share.bounds)]
