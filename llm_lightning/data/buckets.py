"""Pad flat batches to few shapes, so that a GPU runs a step from a CUDA graph, or from a kernel compiled for its shape.

Sequences of padding are appended to a batch. They have no target, and no sequence attends to another: losses, gradients and the dropout
of the real sequences do not change.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from llm_lightning.data.collate import ROUND, MicroBatch
from llm_lightning.data.masking import IGNORED

SHARE = 0.05
"""The largest share of padding in a batch of more than ROUND / SHARE positions."""
SEQUENCES = 8
"""Batches whose targets are tokens are filled up to a multiple of this number of sequences."""
SHORTEST = 128
"""The least bound on the longest sequence: FlashAttention takes this number of queries at once, also for shorter sequences."""
LONG = 256
"""Length from which on sequences of equal length are not padded: as dense blocks they may go to cuDNN's kernel, which makes a plan for
each shape."""


def bucket(count: int) -> int:
    """Return the size that a number of positions is filled up to."""
    step = max(ROUND, 2 ** int(math.log2(max(count * SHARE, 1))))
    return -(-count // step) * step


def longest_bucket(length: int) -> int:
    """Return the bound that kernels are given for the longest sequence: a power of two."""
    return max(SHORTEST, 2 ** math.ceil(math.log2(length)))


def fill(batch: MicroBatch) -> MicroBatch:
    """Return the batch filled up to a size that few batches have, on its device.

    Targets of padding are IGNORED, and their places are 0. If targets belong to sequences, `indices` stay those of the real sequences.
    Windows of padding belong to a row behind the last, which does not count.
    Translations, whose targets are a text of their own, and equal long sequences are returned unchanged.
    """
    tokens, sequences = len(batch.input_ids), batch.segments
    dense = batch.longest >= LONG and sequences * batch.longest == tokens == bucket(tokens)
    if batch.cu_targets is not None or dense or tokens == sequences:
        return batch
    of_tokens = batch.target_places is not None or len(batch.targets) == tokens
    fillers = SEQUENCES - sequences % SEQUENCES if of_tokens or batch.window_rows is not None else 1
    total = bucket(tokens + fillers)
    bounds = [batch.cu_seqlens, torch.arange(tokens + 1, tokens + fillers, dtype=torch.int32, device=batch.cu_seqlens.device)]
    targets, places = batch.targets, batch.target_places
    if places is not None:
        target_count = bucket(max(len(places), 1))
        targets, places = _fill(targets, target_count, IGNORED), _fill(places, target_count)
    elif of_tokens:
        targets = _fill(targets, total, IGNORED)
    return replace(
        batch,
        input_ids=_fill(batch.input_ids, total),
        position_ids=_fill(batch.position_ids, total),
        cu_seqlens=F.pad(torch.cat(bounds), (0, 1), value=total),
        longest=longest_bucket(max(batch.longest, total - tokens - fillers + 1)),
        targets=targets,
        indices=_fill(batch.indices, sequences + fillers) if of_tokens else batch.indices,
        target_places=places,
        token_type_ids=None if batch.token_type_ids is None else _fill(batch.token_type_ids, total),
        window_rows=None if batch.window_rows is None else _fill(batch.window_rows, sequences + fillers, len(batch.indices)),
    )


def _fill(values: Tensor, count: int, value: int = 0) -> Tensor:
    return F.pad(values, (0, count - len(values)), value=value)
