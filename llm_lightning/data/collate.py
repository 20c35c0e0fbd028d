"""Sequences to tensors: one optimizer step at a time, as the micro-batches of one rank.

The unit that the Trainer sees is a whole step. So a checkpoint always falls between steps, the position of a run is one integer,
and the loss can be divided by the number of targets in the step, which is known before its first micro-batch runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from llm_lightning.config import BatchConfig
from llm_lightning.data.encode import Encoded
from llm_lightning.data.masking import IGNORED, Masking
from llm_lightning.data.plan import Plan, cut, evaluation


@dataclass
class MicroBatch:
    """What a model sees at once; padded on the right to the longest sequence."""

    input_ids: Tensor
    """(batch, time) int64"""
    attention_mask: Tensor
    """(batch, time) int64: 1 at real tokens."""
    targets: Tensor
    """(batch, time) int64 token targets, -100 where there is none; or (batch,) classes."""
    indices: Tensor
    """(batch,) int64: which sequences of the split these are."""
    token_type_ids: Tensor | None = None
    """(batch, time) int64: 1 in the second text of a pair."""
    blank: bool = False
    """Computed only because another rank has one batch more, and all gather a sharded model together: counts for nothing."""

    def inputs(self) -> dict[str, Tensor]:
        """Keyword arguments of a Hugging Face model."""
        types = {} if self.token_type_ids is None else {"token_type_ids": self.token_type_ids}
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask, **types}


@dataclass
class Step:
    """One rank's part of an optimizer step."""

    micro_batches: list[MicroBatch]
    step: int
    epoch: float
    targets: int
    """Targets of this rank's part."""
    tokens: int
    """Real tokens of this rank's part."""
    positions: int
    """Positions computed, with padding."""
    sequences: int


@dataclass(frozen=True)
class Collator:
    """Builds micro-batches for one encoding of the data."""

    encoding: str
    pad_id: int
    masking: Masking | None = None

    def __call__(self, data: Encoded, indices: np.ndarray, epoch: int) -> MicroBatch:
        pairs = [self._pair(data, int(i), epoch) for i in indices]
        longest = max(len(inputs) for inputs, _ in pairs)
        input_ids = np.full((len(pairs), longest), self.pad_id, dtype=np.int64)
        attention_mask = np.zeros((len(pairs), longest), dtype=np.int64)
        targets = np.full((len(pairs), longest), IGNORED, dtype=np.int64)
        for row, (inputs, wanted) in enumerate(pairs):
            input_ids[row, : len(inputs)] = inputs
            attention_mask[row, : len(inputs)] = 1
            if wanted is not None:
                targets[row, : len(inputs)] = wanted
        if self.encoding == "texts":
            assert data.labels is not None
            targets = data.labels[indices]
        types = None
        if data.second is not None:
            types = torch.from_numpy((np.arange(longest) >= data.second[indices][:, None]) * attention_mask)
        return MicroBatch(
            input_ids=torch.from_numpy(input_ids),
            attention_mask=torch.from_numpy(attention_mask),
            targets=torch.from_numpy(targets),
            indices=torch.from_numpy(np.asarray(indices)),
            token_type_ids=types,
        )

    def _pair(self, data: Encoded, index: int, epoch: int) -> tuple[np.ndarray, np.ndarray | None]:
        """(inputs, token targets) of a sequence, both (time,)."""
        tokens = data[index].astype(np.int64)
        if self.encoding == "stream":
            return tokens[:-1], tokens[1:]
        if self.masking is not None:
            return self.masking(tokens, epoch, index)
        return tokens, None


def count_targets(batch: MicroBatch) -> int:
    return 0 if batch.blank else int((batch.targets != IGNORED).sum())


class TrainingSteps(Dataset[Step]):
    """Map-style: item s is the rank's part of optimizer step s, from the plan alone."""

    def __init__(self, data: Encoded, plan: Plan, spec: BatchConfig, collator: Collator, total: int, rank: int, world: int) -> None:
        self.data, self.plan, self.spec, self.collator = data, plan, spec, collator
        self.total, self.rank, self.world = total, rank, world

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, step: int) -> Step:
        epoch, inside = self.plan.locate(step)
        schedule = self.plan.epoch(epoch)
        sequences = schedule[inside]
        parts = [cut(sequences, self.data.lengths[sequences], self.spec, rank, self.world) for rank in range(self.world)]
        batches = [self.collator(self.data, part, epoch) for part in parts[self.rank]]
        blanks = max(map(len, parts)) - len(batches)
        return Step(
            micro_batches=batches + [replace(self.collator(self.data, sequences[:1], epoch), blank=True) for _ in range(blanks)],
            step=step,
            epoch=epoch + (inside + 1) / len(schedule),
            targets=sum(map(count_targets, batches)),
            tokens=sum(int(b.attention_mask.sum()) for b in batches),
            positions=sum(b.input_ids.numel() for b in batches),
            sequences=sum(len(b.indices) for b in batches),
        )


class EvaluationBatches(Dataset[MicroBatch]):
    """Map-style: one pass over a split, each sequence once over all ranks, as many batches on each."""

    def __init__(self, data: Encoded, spec: BatchConfig, collator: Collator, rank: int, world: int) -> None:
        self.data, self.collator, self.rank, self.world = data, collator, rank, world
        self.batches = evaluation(data.lengths, spec)

    def __len__(self) -> int:
        return -(-len(self.batches) // self.world)

    def __getitem__(self, index: int) -> MicroBatch:
        place = index * self.world + self.rank
        blank = place >= len(self.batches)
        batch = self.collator(self.data, self.batches[0][-1:] if blank else self.batches[place], -1)  # a mask of no training epoch
        return replace(batch, blank=blank)


class FromStep(Sequence[int]):
    """A sampler over the steps that are left; sized as the whole run, as Lightning counts from the run's start when it resumes."""

    def __init__(self, start: int, total: int) -> None:
        self.start, self.total = start, total

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return range(self.start, self.total)[index]

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.total))
