"""Sequences to tensors: one optimizer step at a time, as the micro-batches of one rank.

The unit that the Trainer sees is a whole step. So a checkpoint always falls between steps, the position of a run is one integer,
and the loss can be divided by the number of targets in the step, which is known before its first micro-batch runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from llm_lightning.config import BatchConfig
from llm_lightning.data.encode import Encoded
from llm_lightning.data.masking import IGNORED, Masking
from llm_lightning.data.plan import Plan, Row, cut

EVALUATION = -1
"""The epoch that evaluation stands for where masks are drawn."""


@dataclass
class MicroBatch:
    """What a model sees at once; padded on the right to the longest row."""

    input_ids: Tensor
    """(rows, time) int64"""
    attention_mask: Tensor
    """(rows, time) int64: 1 at real tokens."""
    targets: Tensor
    """(rows, time) int64 token targets, -100 where there is none; or (rows,) classes."""
    indices: Tensor
    """(sequences,) int64: which sequences of the split these are."""
    token_type_ids: Tensor | None = None
    """(rows, time) int64: 1 in the second text of a pair, for models that tell the two apart so."""
    position_ids: Tensor | None = None
    """(rows, time) int64: position of a token in its sequence, where a row holds several."""
    segments: Tensor | None = None
    """(rows, time) int64: which of its row's sequences a token belongs to, -1 for padding; where a row holds several."""
    place: int = 0
    """Which batch of an evaluation pass this is."""
    blank: bool = False
    """Computed only because another rank has one batch more, and all gather a sharded model together: counts for nothing."""

    def inputs(self) -> dict[str, Any]:
        """Keyword arguments of a Hugging Face model, for rows of one sequence each."""
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
    reader: tuple[int, dict[str, Any]] | None = None
    """Of streamed data: which reader made it, and that reader's state after it."""


def as_step(batches: list[MicroBatch], step: int, epoch: float, reader: tuple[int, dict[str, Any]] | None = None) -> Step:
    """The rank's part of a step from its micro-batches; blank ones count for nothing."""
    real = [batch for batch in batches if not batch.blank]
    return Step(
        micro_batches=batches,
        step=step,
        epoch=epoch,
        targets=sum(map(count_targets, real)),
        tokens=sum(int(b.attention_mask.sum()) for b in real),
        positions=sum(b.input_ids.numel() for b in real),
        sequences=sum(len(b.indices) for b in real),
        reader=reader,
    )


@dataclass(frozen=True)
class Collator:
    """Builds micro-batches for one encoding of the data."""

    encoding: str
    pad_id: int
    masking: Masking | None = None
    packed: bool = False
    """Whether a row may hold several sequences."""
    token_types: bool = False
    """Whether the model's tokenizer tells the texts of a pair apart by token types."""

    def __call__(self, data: Any, rows: Sequence[Row], epoch: int) -> MicroBatch:
        pairs = [[self._pair(data, int(i), epoch) for i in row] for row in rows]
        longest = max(sum(len(inputs) for inputs, _ in row) for row in pairs)
        shape = (len(pairs), longest)
        input_ids, targets = np.full(shape, self.pad_id, dtype=np.int64), np.full(shape, IGNORED, dtype=np.int64)
        segments, positions = np.full(shape, -1, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        for r, row in enumerate(pairs):
            start = 0
            for number, (inputs, wanted) in enumerate(row):
                end = start + len(inputs)
                input_ids[r, start:end], segments[r, start:end], positions[r, start:end] = inputs, number, np.arange(len(inputs))
                if wanted is not None:
                    targets[r, start:end] = wanted
                start = end
        indices = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
        attention_mask = (segments >= 0).astype(np.int64)
        if self.encoding == "texts":
            assert data.labels is not None
            targets = data.labels[indices]
        types = None
        if data.second is not None and self.token_types:
            types = torch.from_numpy((np.arange(longest) >= data.second[indices][:, None]) * attention_mask)
        return MicroBatch(
            input_ids=torch.from_numpy(input_ids),
            attention_mask=torch.from_numpy(attention_mask),
            targets=torch.from_numpy(targets),
            indices=torch.from_numpy(indices),
            token_type_ids=types,
            position_ids=torch.from_numpy(positions) if self.packed else None,
            segments=torch.from_numpy(segments) if self.packed else None,
        )

    def _pair(self, data: Any, index: int, epoch: int) -> tuple[np.ndarray, np.ndarray | None]:
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
        rows = schedule[inside]
        parts = [cut(rows, self.plan.lengths, self.spec, rank, self.world) for rank in range(self.world)]
        batches = [self.collator(self.data, part, epoch) for part in parts[self.rank]]
        blanks = max(map(len, parts)) - len(batches)
        batches += [replace(self.collator(self.data, rows[:1], epoch), blank=True) for _ in range(blanks)]
        return as_step(batches, step, epoch + (inside + 1) / len(schedule))


class EvaluationBatches(Dataset[MicroBatch]):
    """Map-style: one pass over a split, each sequence once over all ranks, as many batches on each."""

    def __init__(self, data: Encoded, batches: list[list[Row]], collator: Collator, rank: int, world: int) -> None:
        self.data, self.batches, self.collator, self.rank, self.world = data, batches, collator, rank, world

    def __len__(self) -> int:
        return -(-len(self.batches) // self.world)

    def __getitem__(self, index: int) -> MicroBatch:
        place = index * self.world + self.rank
        blank = place >= len(self.batches)
        batch = self.collator(self.data, self.batches[0][-1:] if blank else self.batches[place], EVALUATION)
        return replace(batch, place=place, blank=blank)


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
