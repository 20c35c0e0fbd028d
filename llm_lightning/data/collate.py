"""Collate sequences to tensors: one optimizer step at a time, as the micro-batches of one rank.

The Trainer's unit is a whole step. So a checkpoint always falls between steps, the position of a run is one integer,
and the loss can be divided by the number of targets in the step, which is known before its first micro-batch runs.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from llm_lightning.config.schema import BatchConfig
from llm_lightning.data.encode import TokenizedSplit
from llm_lightning.data.masking import IGNORED, Masking
from llm_lightning.data.plan import PackedRows, Plan
from llm_lightning.data.reader_state import ReaderChange

EVALUATION = -1
"""The epoch by which masks are drawn in evaluation."""


@dataclass
class MicroBatch:
    """The input of one forward pass: whole sequences, concatenated without padding. Sequences of like lengths are neighbours.

    Of rows that are read in windows, each window is a sequence, and a row has one target and one index.
    """

    input_ids: Tensor
    """(tokens,) int64"""
    position_ids: Tensor
    """(tokens,) int64: the position of each token in its sequence."""
    cu_seqlens: Tensor
    """(sequences + 1,) int32: the start of each sequence, then the number of tokens."""
    longest: int
    """Tokens of the longest sequence."""
    targets: Tensor
    """(targets,) int64: the tokens to predict, or (sequences, …) the class or the numbers of each sequence, or row of windows."""
    indices: Tensor
    """(sequences,) int64: the indices of the sequences in the split; (rows,) those of the rows of windows."""
    target_places: Tensor | None = None
    """(targets,) int64: the tokens that the targets belong to; None if every token, or every sequence, has a target."""
    token_type_ids: Tensor | None = None
    """(tokens,) int64: 1 in the second text of a pair, for models with token types."""
    cu_targets: Tensor | None = None
    """(sequences + 1,) int32: the start of each sequence's targets, if these are a text of their own, as in translation."""
    longest_target: int = 0
    """Tokens of the longest target text."""
    window_rows: Tensor | None = None
    """(sequences,) int64: the place in `indices` of the row that each sequence is a window of; None if each row is one sequence."""
    place: int = 0
    """The number of this batch in an evaluation pass."""
    blank: bool = False
    """Whether the batch counts for nothing: it runs because another rank has one more, and all gather a sharded model together."""

    @property
    def segments(self) -> int:
        """Sequences in `input_ids`, including the padding that `fill` adds."""
        return len(self.cu_seqlens) - 1

    @property
    def texts(self) -> int:
        """Sequences that belong to a row, without the padding that `fill` adds; with it where rows have windows."""
        return len(self.indices) if self.window_rows is None else len(self.window_rows)

    @property
    def target_count(self) -> int:
        return 0 if self.blank else len(self.targets)

    @property
    def tokens(self) -> int:
        """Real tokens, including the target texts of translations, which the model reads too."""
        return len(self.input_ids) + (0 if self.cu_targets is None else len(self.targets))

    @property
    def padded(self) -> int:
        """Positions that the texts would take as rows padded to the longest."""
        return self.texts * (self.longest + self.longest_target)

    def pin_memory(self) -> MicroBatch:
        """Return the batch in pinned memory, from which a GPU copies while the program runs."""
        return self._map_tensors(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device) -> MicroBatch:
        """Return the batch with its tensors on a device. The copy to a GPU runs asynchronously."""
        asynchronous = device.type == "cuda"
        return self._map_tensors(lambda tensor: tensor.to(device, non_blocking=asynchronous))

    def clone(self) -> MicroBatch:
        """Return the batch with copies of its tensors."""
        return self._map_tensors(lambda tensor: tensor.clone())

    def tensors(self) -> dict[str, Tensor]:
        """Return the fields that are tensors, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def _map_tensors(self, change: Callable[[Tensor], Tensor]) -> MicroBatch:
        """Return the batch with every tensor replaced by what `change` returns for it."""
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in self.tensors().items()}
        return replace(self, **changed)


ROUND = 32
"""Flat batches are filled up to a multiple of this: libraries build and keep a kernel for each number of rows."""


def rounded(tokens: int) -> int:
    return -(-tokens // ROUND) * ROUND


def split_micro_batch(batch: MicroBatch, count: int) -> list[MicroBatch]:
    """Return the batch in `count` parts (a power of two) of about as many tokens, or in single sequences if it has fewer.

    All windows of a row stay in one part.
    """
    sequences = len(batch.indices)
    if count == 1 or sequences == 1:
        return [batch]
    bounds = batch.cu_seqlens.tolist() if batch.window_rows is None else [0, *np.cumsum(_row_sizes(batch)).tolist()]
    first = min(max(bisect(bounds, bounds[-1] // 2), 1), sequences - 1)
    parts = (slice(0, first), slice(first, sequences))
    halves = [_part(batch, part, bounds) if batch.window_rows is None else _part_of_rows(batch, part) for part in parts]
    return [piece for half in halves for piece in split_micro_batch(half, count // 2)]


def _row_sizes(batch: MicroBatch) -> np.ndarray:
    """Return (rows,) the tokens of all windows of each row."""
    assert batch.window_rows is not None
    sizes: np.ndarray = np.bincount(batch.window_rows.cpu().numpy(), batch.cu_seqlens.diff().cpu().numpy(), len(batch.indices))
    return sizes.astype(np.int64)


def _part_of_rows(batch: MicroBatch, part: slice) -> MicroBatch:
    """Return some neighbouring rows of a batch of windows, with all their windows."""
    assert batch.window_rows is not None
    is_inside = (batch.window_rows >= part.start) & (batch.window_rows < part.stop)
    lengths = batch.cu_seqlens.diff()
    tokens = torch.repeat_interleave(is_inside, lengths)
    lengths = lengths[is_inside]
    return replace(
        batch,
        input_ids=batch.input_ids[tokens],
        position_ids=batch.position_ids[tokens],
        cu_seqlens=F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0)),
        longest=int(lengths.max()),
        targets=batch.targets[part],
        indices=batch.indices[part],
        token_type_ids=None if batch.token_type_ids is None else batch.token_type_ids[tokens],
        window_rows=batch.window_rows[is_inside] - part.start,
    )


def _part(batch: MicroBatch, part: slice, bounds: list[int]) -> MicroBatch:
    """Return neighbouring sequences of a batch. `bounds` are those of all its sequences."""
    tokens = slice(bounds[part.start], bounds[part.stop])
    longest_target = 0
    places, cu_targets = batch.target_places, batch.cu_targets
    if cu_targets is not None:
        cu_targets = cu_targets[part.start : part.stop + 1]
        targets, cu_targets = batch.targets[cu_targets[0] : cu_targets[-1]], cu_targets - cu_targets[0]
        longest_target = int(cu_targets.diff().max())
    elif places is not None:
        inside = (places >= tokens.start) & (places < tokens.stop)
        targets, places = batch.targets[inside], places[inside] - tokens.start
    else:
        targets = batch.targets[tokens if len(batch.targets) == bounds[-1] else part]
    return replace(
        batch,
        input_ids=batch.input_ids[tokens],
        position_ids=batch.position_ids[tokens],
        cu_seqlens=batch.cu_seqlens[part.start : part.stop + 1] - tokens.start,
        longest=max(end - start for start, end in pairwise(bounds[part.start : part.stop + 1])),
        targets=targets,
        indices=batch.indices[part],
        target_places=places,
        token_type_ids=None if batch.token_type_ids is None else batch.token_type_ids[tokens],
        cu_targets=cu_targets,
        longest_target=longest_target,
    )


@dataclass
class StepBatch:
    """One rank's part of an optimizer step."""

    micro_batches: list[MicroBatch]
    index: int
    """The number of the step in the run."""
    epoch: float
    rank_targets: int
    """Targets of this rank's part."""
    tokens: int
    """Real tokens of this rank's part."""
    positions: int
    """Positions of its flat batches."""
    padded: int
    """Positions that its texts would take as rows padded to the longest."""
    sequences: int
    change: ReaderChange | None = None
    """Of streamed data: the change that the step made in the state of its reader."""

    def pin_memory(self) -> StepBatch:
        return replace(self, micro_batches=[batch.pin_memory() for batch in self.micro_batches])

    def to(self, device: torch.device) -> StepBatch:
        """Return the step with its micro-batches on a device. Lightning calls this, and uses no other part of the step."""
        return replace(self, micro_batches=[batch.to(device) for batch in self.micro_batches])

    def __getstate__(self) -> dict[str, Any]:
        """Return the state that a loader process sends: one tensor for each dtype, as every tensor takes an open file in both processes."""
        tensors: dict[torch.dtype, list[Tensor]] = {}
        ends: Counter[torch.dtype] = Counter()
        batches = []
        for batch in self.micro_batches:
            values = dict(vars(batch))
            for name, tensor in batch.tensors().items():
                values[name] = _Place(tensor.dtype, ends[tensor.dtype], tuple(tensor.shape))
                tensors.setdefault(tensor.dtype, []).append(tensor.flatten())
                ends[tensor.dtype] += tensor.numel()
            batches.append(values)
        merged = {dtype: torch.cat(parts) for dtype, parts in tensors.items()}
        return {**vars(self), "micro_batches": batches, "tensors": merged}

    def __setstate__(self, state: dict[str, Any]) -> None:
        tensors = state.pop("tensors")
        batches = []
        for stored in state["micro_batches"]:
            values = {name: _value(value, tensors) for name, value in stored.items()}
            batches.append(MicroBatch(**values))
        self.__dict__.update(state, micro_batches=batches)


@dataclass(frozen=True)
class _Place:
    """The place of a tensor's values in the tensor that holds all values of its dtype."""

    dtype: torch.dtype
    start: int
    shape: tuple[int, ...]


def _value(value: Any, tensors: dict[torch.dtype, Tensor]) -> Any:
    """Return the tensor at a place, and any other value unchanged."""
    if not isinstance(value, _Place):
        return value
    return tensors[value.dtype][value.start : value.start + math.prod(value.shape)].view(value.shape)


def build_step_batch(batches: list[MicroBatch], index: int, epoch: float, change: ReaderChange | None = None) -> StepBatch:
    """Build the rank's part of a step from its micro-batches. Blank micro-batches count for nothing."""
    real = [batch for batch in batches if not batch.blank]
    return StepBatch(
        micro_batches=batches,
        index=index,
        epoch=epoch,
        rank_targets=sum(b.target_count for b in real),
        tokens=sum(b.tokens for b in real),
        positions=sum(rounded(len(b.input_ids)) for b in real),
        padded=sum(b.padded for b in real),
        sequences=sum(len(b.indices) for b in real),
        change=change,
    )


@dataclass(frozen=True)
class Collator:
    """Builds micro-batches of encoded sequences."""

    next_token: bool = False
    """Whether the targets are the next tokens: then a sequence has one token more than the model's input."""
    translates: bool = False
    """Whether the second part of a sequence is the text that the model learns to write."""
    masking: Masking | None = None
    token_types: bool = False
    """Whether the model's tokenizer distinguishes the texts of a pair by token types."""

    def __call__(self, data: Any, rows: PackedRows, epoch: int) -> MicroBatch:
        indices = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
        lengths = (data.second if self.translates else data.inputs)[indices]
        order = np.argsort(-lengths, kind="stable")
        indices, lengths = indices[order], lengths[order].astype(np.int64)
        windows = getattr(data, "windows", None)  # pieces of a stream have none
        if windows is not None and (windows[indices + 1] - windows[indices]).max() > 1:
            return self._collate_windows(data, indices)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        pairs = [self._pair(data, int(i), epoch) for i in indices]
        positions = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
        places = cu_targets = None
        longest_target = 0
        if data.labels is not None:
            targets = data.labels[indices]
        else:
            targets = np.concatenate([sequence_targets for _, sequence_targets in pairs])
            if self.translates:
                sizes = [len(sequence_targets) for _, sequence_targets in pairs]
                cu_targets, longest_target = torch.from_numpy(np.cumsum([0, *sizes]).astype(np.int32)), max(sizes)
            elif self.masking is not None or data.token_targets is not None:
                places = np.flatnonzero(targets != IGNORED)
                targets = targets[places]
        types = None
        if data.second is not None and self.token_types and not self.translates:
            types = torch.from_numpy((positions >= np.repeat(data.second[indices], lengths)).astype(np.int64))
        return MicroBatch(
            input_ids=torch.from_numpy(np.concatenate([inputs for inputs, _ in pairs])),
            position_ids=torch.from_numpy(positions),
            cu_seqlens=torch.from_numpy(starts.astype(np.int32)),
            longest=int(lengths[0]),
            targets=torch.from_numpy(targets),
            indices=torch.from_numpy(indices),
            target_places=None if places is None else torch.from_numpy(places),
            token_type_ids=types,
            cu_targets=cu_targets,
            longest_target=longest_target,
        )

    def _collate_windows(self, data: TokenizedSplit, indices: np.ndarray) -> MicroBatch:
        """Build the micro-batch of some rows, of which one or more have several windows: longest windows first."""
        assert data.windows is not None
        assert data.window_lengths is not None
        counts = data.windows[indices + 1] - data.windows[indices]
        rows = np.repeat(np.arange(len(indices)), counts)
        first = np.cumsum(counts) - counts  # place of each row's first window among all
        numbers = np.arange(len(rows)) + np.repeat(data.windows[indices] - first, counts)
        lengths = data.window_lengths[numbers].astype(np.int64)
        before = np.cumsum(lengths) - lengths
        begins = before + np.repeat(data.starts[indices] - before[first], counts)  # in the tokens of the split
        order = np.argsort(-lengths, kind="stable")
        rows, lengths, begins = rows[order], lengths[order], begins[order]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        positions = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
        types = None
        if data.second is not None and self.token_types:
            types = torch.from_numpy((positions >= np.repeat(data.second[indices[rows]], lengths)).astype(np.int64))
        tokens = [data.tokens[begin : begin + length] for begin, length in zip(begins, lengths, strict=True)]
        return MicroBatch(
            input_ids=torch.from_numpy(np.concatenate(tokens).astype(np.int64)),
            position_ids=torch.from_numpy(positions),
            cu_seqlens=torch.from_numpy(starts.astype(np.int32)),
            longest=int(lengths[0]),
            targets=torch.from_numpy(np.empty(0, np.int64) if data.labels is None else data.labels[indices]),
            indices=torch.from_numpy(indices),
            token_type_ids=types,
            window_rows=torch.from_numpy(rows),
        )

    def _pair(self, data: Any, index: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (inputs, token targets) of a sequence."""
        tokens = data[index].astype(np.int64)
        if self.translates:
            return tokens[: data.second[index]], tokens[data.second[index] :]
        if self.masking is not None:
            return self.masking(tokens, epoch, index)
        targets = tokens
        if data.token_targets is not None:
            start = data.starts[index]
            targets = data.token_targets[start : start + len(tokens)].astype(np.int64)
        if self.next_token:
            return tokens[:-1], targets[1:]
        return tokens, targets if data.token_targets is not None else tokens[:0]


class TrainingSteps(Dataset[StepBatch]):
    """A map-style dataset: item s is the rank's part of optimizer step s, from the plan alone."""

    def __init__(
        self, data: TokenizedSplit, plan: Plan, spec: BatchConfig, collator: Collator, total: int, rank: int, world: int
    ) -> None:
        self.data, self.plan, self.spec, self.collator = data, plan, spec, collator
        self.total, self.rank, self.world = total, rank, world

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, step: int) -> StepBatch:
        epoch, step_of_epoch = self.plan.locate(step)
        plan = self.plan.epoch_plan(epoch)
        micro_batches, max_micro_batches = plan.micro_batches(step_of_epoch, self.plan.lengths, self.spec, self.rank, self.world)
        batches = [self.collator(self.data, [sequences], epoch) for sequences in micro_batches]
        for _ in range(max_micro_batches - len(micro_batches)):
            first_row = plan.row_at(int(plan.steps[step_of_epoch]))
            batches.append(replace(self.collator(self.data, [first_row], epoch), blank=True))
        return build_step_batch(batches, step, epoch + (step_of_epoch + 1) / len(plan))


class EvaluationBatches(Dataset[MicroBatch]):
    """A map-style dataset: one pass over a split. Each sequence comes once over all ranks; every rank has as many batches."""

    def __init__(self, data: TokenizedSplit, batches: list[PackedRows], collator: Collator, rank: int, world: int) -> None:
        self.data, self.batches, self.collator, self.rank, self.world = data, batches, collator, rank, world

    def __len__(self) -> int:
        return -(-len(self.batches) // self.world)

    def __getitem__(self, index: int) -> MicroBatch:
        place = index * self.world + self.rank
        blank = place >= len(self.batches)
        batch = self.collator(self.data, self.batches[0][-1:] if blank else self.batches[place], EVALUATION)
        return replace(batch, place=place, blank=blank)


class FromStep(Sequence[int]):
    """A sampler over the remaining steps. Its length is that of the whole run, as Lightning counts from the run's start on resume."""

    def __init__(self, start: int, total: int) -> None:
        self.start, self.total = start, total

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return range(self.start, self.total)[index]

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.total))
