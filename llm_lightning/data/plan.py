"""The schedule of training as a pure function of (seed, epoch, sequence lengths, batch spec).

It says which sequences form optimizer step s, and how a step is cut into ranks and micro-batches. Nothing before that last cut
depends on the number of devices. Sequences are shuffled, then sorted by length inside windows of some steps, so that a step holds
like lengths (less padding) while the order of steps and most of the randomness stay.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llm_lightning.config import BatchConfig
from llm_lightning.errors import UserError


@dataclass(frozen=True)
class EpochPlan:
    """The steps of one epoch: step s is `order[bounds[s] : bounds[s + 1]]`."""

    order: np.ndarray
    """(sequences,) int64: a permutation of the sequences."""
    bounds: np.ndarray
    """(steps + 1,) int64"""

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, step: int) -> np.ndarray:
        return self.order[self.bounds[step] : self.bounds[step + 1]]


class Plan:
    """The steps of every epoch. Raises UserError where a sequence is longer than a micro-batch may be."""

    def __init__(self, lengths: np.ndarray, spec: BatchConfig, seed: int) -> None:
        self.lengths, self.spec, self.seed = lengths, spec, seed
        limits = {"batch.tokens": spec.tokens, "batch.micro_tokens": spec.micro_tokens}
        for key, limit in limits.items():
            if limit is not None and lengths.max() > limit:
                raise UserError(f"{key}={limit}: the longest sequence has {lengths.max()} tokens and has to fit.")
        self._epochs: dict[int, EpochPlan] = {}

    def epoch(self, epoch: int) -> EpochPlan:
        """The schedule of an epoch; the last two asked for are kept."""
        if epoch not in self._epochs:
            self._epochs = {e: p for e, p in self._epochs.items() if e == epoch - 1}
            self._epochs[epoch] = self._schedule(np.random.default_rng([self.seed, epoch]))
        return self._epochs[epoch]

    def steps(self, epochs: float) -> int:
        """Optimizer steps of so many epochs; a fraction of an epoch is rounded to a whole step, and to one at least."""
        whole = sum(len(self.epoch(e)) for e in range(int(epochs)))
        part = epochs - int(epochs)
        return max(1, whole + round(part * len(self.epoch(int(epochs)))) if part else whole)

    def locate(self, step: int) -> tuple[int, int]:
        """(epoch, step inside it) of a global step."""
        if self.spec.tokens is None:  # then every epoch has as many steps
            return divmod(step, len(self.epoch(0)))
        epoch = 0
        while step >= len(self.epoch(epoch)):
            step -= len(self.epoch(epoch))
            epoch += 1
        return epoch, step

    def _schedule(self, rng: np.random.Generator) -> EpochPlan:
        order = rng.permutation(len(self.lengths))
        step_size = self.spec.sequences
        if self.spec.tokens is not None:
            step_size = max(1, int(self.spec.tokens / self.lengths.mean()))
        window = step_size * self.spec.length_window
        if self.spec.length_window > 1:
            order = order[np.lexsort((self.lengths[order], np.arange(len(order)) // window))]
        bounds = self._bounds(order, step_size)
        return self._shuffled(order, bounds, rng) if self.spec.length_window > 1 else EpochPlan(order, bounds)

    def _bounds(self, order: np.ndarray, step_size: int) -> np.ndarray:
        if self.spec.tokens is None:
            return np.append(np.arange(0, len(order), step_size), len(order))
        ends = np.cumsum(self.lengths[order], dtype=np.int64)
        bounds = [0]
        while bounds[-1] < len(order):
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
        gather = np.repeat(bounds[shuffled] - new[:-1], sizes) + np.arange(len(order))
        return EpochPlan(order[gather], new)


def cut(sequences: np.ndarray, lengths: np.ndarray, spec: BatchConfig, rank: int = 0, world: int = 1) -> list[np.ndarray]:
    """A rank's micro-batches of a step: its share of the sequences, longest first, within the micro-batch bounds.

    Sequences are dealt to ranks in a snake by length, which balances their tokens. `lengths` are those of `sequences`.
    """
    longest_first = np.argsort(-lengths, kind="stable")
    turn = np.arange(len(sequences)) % (2 * world)
    mine = longest_first[np.minimum(turn, 2 * world - 1 - turn) == rank]
    batches, start = [], 0
    while start < len(mine):
        size = len(mine) - start
        if spec.micro_sequences is not None:
            size = min(size, spec.micro_sequences)
        if spec.micro_tokens is not None:  # padded to the first, the longest
            size = min(size, max(1, spec.micro_tokens // int(lengths[mine[start]])))
        batches.append(sequences[mine[start : start + size]])
        start += size
    return batches


def evaluation(lengths: np.ndarray, spec: BatchConfig) -> list[np.ndarray]:
    """The batches of one pass over a split, for ranks to take in turns: every sequence once, in batches of like lengths."""
    order = np.argsort(-lengths, kind="stable")
    step = min(spec.sequences, spec.micro_sequences or spec.sequences)
    whole = BatchConfig(sequences=len(order), micro_sequences=step, micro_tokens=spec.micro_tokens)
    return cut(order, lengths[order], whole)
