"""Dealing a step to ranks gives the micro-batches of a plain loop, and a step of many micro-batches gets through a loader process."""

from __future__ import annotations

import os
import resource
from dataclasses import replace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from llm_lightning.config.schema import BatchConfig
from llm_lightning.data.collate import Collator, MicroBatch, TrainingSteps
from llm_lightning.data.plan import PackedRow, Plan, max_rows_at_once, plan_evaluation

LONGEST = 80
LENGTHS = st.lists(st.integers(1, LONGEST), min_size=1, max_size=300).map(lambda x: np.array(x, dtype=np.int32))
SPECS = st.builds(
    BatchConfig,
    sequences=st.integers(1, 120),
    tokens=st.none() | st.integers(LONGEST, 3000),
    micro_sequences=st.none() | st.integers(1, 9),
    micro_tokens=st.none() | st.integers(LONGEST, 900),
    length_window=st.integers(1, 8),
)


def cut_in_a_loop(rows: list[PackedRow], lengths: np.ndarray, spec: BatchConfig, rank: int, world: int) -> list[list[PackedRow]]:
    """Deal the rows in a snake, longest first, then take as many into each micro-batch as the longest of them lets."""
    sizes = np.array([int(lengths[row].sum()) for row in rows], dtype=np.int64)
    longest_first = np.argsort(-sizes, kind="stable")
    turn = np.arange(len(rows)) % (2 * world)
    mine = longest_first[np.minimum(turn, 2 * world - 1 - turn) == rank]
    batches, start = [], 0
    while start < len(mine):
        size = min(max_rows_at_once(spec, int(sizes[mine[start]])), len(mine) - start)
        batches.append([rows[i] for i in mine[start : start + size]])
        start += size
    return batches


def plain(batches: list[list[PackedRow]]) -> list[list[list[int]]]:
    return [[[int(i) for i in row] for row in batch] for batch in batches]


@given(LENGTHS, SPECS, st.sampled_from([None, LONGEST]), st.integers(1, 7), st.sampled_from([1, 3000]))
@settings(max_examples=200, deadline=None)
def test_every_rank_has_the_micro_batches_of_a_plain_loop(
    lengths: np.ndarray, spec: BatchConfig, packing: int | None, world: int, scale: int
) -> None:
    """Also of lengths beyond 65,535 tokens, which are sorted in another way."""
    if scale > 1:
        tokens, micro_tokens = spec.tokens and spec.tokens * scale, spec.micro_tokens and spec.micro_tokens * scale
        packing, spec = None, replace(spec, tokens=tokens, micro_tokens=micro_tokens)
    plan = Plan(lengths * scale, spec, 0, packing)
    epoch = plan.epoch_plan(0)
    for step in range(len(epoch)):
        rows = epoch[step]
        expected = [cut_in_a_loop(rows, plan.lengths, spec, rank, world) for rank in range(world)]
        for rank in range(world):
            parts, max_micro_batches = epoch.micro_batches(step, plan.lengths, spec, rank, world)
            assert [part.tolist() for part in parts] == [[i for row in batch for i in row] for batch in plain(expected[rank])]
            assert max_micro_batches == max(map(len, expected))


@given(LENGTHS, SPECS)
@settings(max_examples=100, deadline=None)
def test_evaluation_has_the_batches_of_a_plain_loop(lengths: np.ndarray, spec: BatchConfig) -> None:
    bounds = BatchConfig(
        sequences=spec.sequences if spec.tokens is None else len(lengths),
        micro_sequences=spec.micro_sequences,
        micro_tokens=spec.micro_tokens or 16_384,
    )
    rows = list(np.arange(len(lengths))[:, None])
    assert plain(plan_evaluation(lengths, spec)) == plain(cut_in_a_loop(rows, lengths, bounds, 0, 1))  # type: ignore[arg-type]


class Sequences:
    """Sequence i is its number, as often as its length says."""

    labels = second = token_targets = None

    def __init__(self, lengths: np.ndarray) -> None:
        self.inputs = lengths

    def __getitem__(self, index: int) -> np.ndarray:
        return np.full(self.inputs[index], index)


def test_every_rank_runs_as_many_micro_batches_and_blank_ones_count_for_nothing() -> None:
    """Three rows in micro-batches of one on five ranks: two ranks have no row."""
    lengths = np.array([5, 3, 9], np.int32)
    spec = BatchConfig(sequences=3, micro_sequences=1)
    data = Sequences(lengths)
    steps = [TrainingSteps(data, Plan(lengths, spec, 0), spec, Collator(), 1, rank, 5)[0] for rank in range(5)]  # type: ignore[arg-type]
    assert [len(step.micro_batches) for step in steps] == [1] * 5
    assert sorted(step.tokens for step in steps) == [0, 0, 3, 5, 9]
    assert [step.sequences for step in steps] == [1, 1, 1, 0, 0]
    assert all(step.micro_batches[0].blank == (step.tokens == 0) for step in steps)


def equal(first: MicroBatch, second: MicroBatch) -> bool:
    tensors = second.tensors()
    others = [{**vars(batch), **dict.fromkeys(batch.tensors())} for batch in (first, second)]
    return others[0] == others[1] and all(
        tensor.dtype == tensors[name].dtype and torch.equal(tensor, tensors[name]) for name, tensor in first.tensors().items()
    )


def test_steps_of_many_micro_batches_come_from_loader_processes_with_few_open_files() -> None:
    """512 micro-batches of five tensors a step, where a process may open a hundred files more than it has."""
    lengths = np.arange(1, 1025, dtype=np.int32) % 16 + 1
    spec = BatchConfig(sequences=512, micro_sequences=1)
    steps = TrainingSteps(Sequences(lengths), Plan(lengths, spec, 0), spec, Collator(token_types=True), 12, 0, 1)  # type: ignore[arg-type]
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 100, most))
    try:
        for number, step in enumerate(DataLoader(steps, batch_size=None, num_workers=2)):
            expected = steps[number]
            assert vars(step) | {"micro_batches": None} == vars(expected) | {"micro_batches": None}
            assert all(map(equal, step.micro_batches, expected.micro_batches))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))
