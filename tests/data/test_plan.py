"""The plan: every sequence once an epoch, whatever the batch spec, the packing, the number of ranks and the micro-batch bounds."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_lightning.config.schema import BatchConfig
from llm_lightning.data.packing import Patterns
from llm_lightning.data.plan import EVALUATION_TOKENS, EpochPlan, PackedRow, Plan, assign_to_rank, plan_evaluation
from llm_lightning.errors import UserError

ROW = 64
LENGTHS = st.lists(st.integers(1, ROW), min_size=1, max_size=200).map(lambda x: np.array(x, dtype=np.int32))
SPECS = st.builds(
    BatchConfig,
    sequences=st.integers(1, 40),
    tokens=st.none() | st.integers(ROW, 500),
    micro_sequences=st.none() | st.integers(1, 9),
    micro_tokens=st.none() | st.integers(ROW, 200),
    length_window=st.integers(1, 8),
)
PACKING = st.sampled_from([None, ROW])


def steps(plan: EpochPlan) -> list[list[PackedRow]]:
    return [plan[s] for s in range(len(plan))]


def flat(rows: list[PackedRow]) -> list[int]:
    return [int(index) for row in rows for index in row]


@given(LENGTHS, SPECS, PACKING, st.integers(0, 3), st.integers(0, 3))
@settings(max_examples=300, deadline=None)
def test_an_epoch_holds_every_sequence_once(
    lengths: np.ndarray, spec: BatchConfig, packing: int | None, seed: int, epoch: int
) -> None:
    plan = steps(Plan(lengths, spec, seed, packing).epoch_plan(epoch))
    assert sorted(i for step in plan for i in flat(step)) == list(range(len(lengths)))
    assert all(len(row) > 0 for step in plan for row in step)
    rows = sum(map(len, plan))
    assert rows == len(lengths) or packing
    if packing:
        assert all(lengths[row].sum() <= ROW for step in plan for row in step)
    if spec.tokens is None:
        whole, rest = divmod(rows, spec.sequences)
        assert sorted(map(len, plan)) == sorted([spec.sequences] * whole + [rest] * (rest > 0))
    else:
        assert all(lengths[flat(step)].sum() <= spec.tokens for step in plan)


@given(LENGTHS, SPECS, PACKING, st.integers(1, 5))
@settings(max_examples=300, deadline=None)
def test_ranks_and_micro_batches_share_a_step_out(lengths: np.ndarray, spec: BatchConfig, packing: int | None, world: int) -> None:
    for step in steps(Plan(lengths, spec, 0, packing).epoch_plan(0)):
        sizes = np.array([int(lengths[row].sum()) for row in step])
        shares = [assign_to_rank(sizes, spec, rank, world) for rank in range(world)]
        parts = [[[step[i] for i in share.rows[a:b]] for a, b in pairwise(share.bounds)] for share in shares]
        assert sorted(i for part in parts for batch in part for i in flat(batch)) == sorted(flat(step))
        for batch in (batch for part in parts for batch in part):
            assert spec.micro_sequences is None or len(batch) <= spec.micro_sequences
            assert spec.micro_tokens is None or max(lengths[row].sum() for row in batch) * len(batch) <= spec.micro_tokens
        counts = [sum(map(len, part)) for part in parts]
        assert max(counts) - min(counts) <= 1
        tokens = [sum(int(lengths[flat(batch)].sum()) for batch in part) for part in parts]
        assert max(tokens) - min(tokens) <= ROW  # dealing in a snake: never worse than one row


@given(LENGTHS, SPECS, PACKING)
@settings(max_examples=100, deadline=None)
def test_evaluation_sees_every_sequence_once(lengths: np.ndarray, spec: BatchConfig, packing: int | None) -> None:
    batches = plan_evaluation(lengths, spec, packing)
    assert sorted(i for batch in batches for i in flat(batch)) == list(range(len(lengths)))
    most = spec.micro_tokens or EVALUATION_TOKENS
    assert all(max(lengths[row].sum() for row in batch) * len(batch) <= most for batch in batches)


def placed_one_by_one(lengths: np.ndarray) -> list[list[int]]:
    """Best-fit decreasing as a text book has it."""
    rows: list[list[int]] = []
    for length in sorted(lengths.tolist(), reverse=True):
        fitting = [row for row in rows if sum(row) + length <= ROW]
        if fitting:
            max(fitting, key=sum).append(length)
        else:
            rows.append([length])
    return rows


@given(LENGTHS)
@settings(max_examples=300, deadline=None)
def test_packing_by_histogram_is_best_fit_decreasing(lengths: np.ndarray) -> None:
    patterns = Patterns.best_fit(lengths, ROW)
    order, bounds = patterns.fill(np.random.default_rng(0))
    found = [lengths[order[a:b]].tolist() for a, b in pairwise(bounds)]
    assert sorted(map(sum, found)) == sorted(map(sum, placed_one_by_one(lengths)))  # rows of one fullness may trade their contents


def test_packed_neighbours_change_with_the_epoch_and_rows_are_full() -> None:
    lengths = np.random.default_rng(0).integers(1, 60, 5000).astype(np.int32)
    plan = Plan(lengths, BatchConfig(sequences=8), 0, ROW)
    first, second = ({frozenset(row.tolist()) for step in steps(plan.epoch_plan(e)) for row in step} for e in (0, 1))
    assert len(first & second) < 0.1 * len(first)
    assert lengths.sum() / (len(first) * ROW) > 0.99


@given(LENGTHS, SPECS, PACKING, st.integers(0, 400))
@settings(max_examples=100, deadline=None)
def test_a_step_is_found_without_walking_to_it(lengths: np.ndarray, spec: BatchConfig, packing: int | None, step: int) -> None:
    """`locate` on a fresh plan, as after a resume, gives the step that counting through the epochs gives."""
    walked = Plan(lengths, spec, 0, packing)
    epoch, left = 0, step
    while left >= len(walked.epoch_plan(epoch)):
        left -= len(walked.epoch_plan(epoch))
        epoch += 1
    fresh = Plan(lengths, spec, 0, packing)
    assert fresh.locate(step) == (epoch, left)
    assert flat(fresh.epoch_plan(epoch)[left]) == flat(walked.epoch_plan(epoch)[left])
    assert Plan(lengths, spec, 0, packing).steps(epoch + 1) == step - left + len(walked.epoch_plan(epoch))


@pytest.mark.parametrize("packing", [None, ROW])
def test_the_plan_is_the_same_in_another_process_and_under_another_hash_seed(packing: int | None) -> None:
    code = (
        "import numpy as np; from llm_lightning.config.schema import BatchConfig; from llm_lightning.data.plan import Plan\n"
        "lengths = np.random.default_rng(0).integers(1, 60, 500).astype(np.int32)\n"
        f"plan = Plan(lengths, BatchConfig(tokens=300), 7, {packing})\n"
        "print([[row.tolist() for row in plan.epoch_plan(e)[s]] for e in (0, 3) for s in range(len(plan.epoch_plan(e)))])"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("0", "1", "4711")
    }
    assert len(said) == 1


def test_epochs_and_seeds_differ_and_repeat() -> None:
    lengths, spec = np.full(100, 8, np.int32), BatchConfig(sequences=10)

    def order(seed: int, epoch: int) -> list[int]:
        return [i for step in steps(Plan(lengths, spec, seed).epoch_plan(epoch)) for i in flat(step)]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_like_lengths_share_a_step() -> None:
    """Sorting inside windows cuts the padding of lengths from 1 to 100 from about a half to a few per cent."""
    lengths = np.random.default_rng(0).integers(1, 101, 4096).astype(np.int32)

    def padding(window: int) -> float:
        plan = steps(Plan(lengths, BatchConfig(sequences=32, length_window=window), 0).epoch_plan(0))
        return 1 - lengths.sum() / sum(lengths[flat(step)].max() * len(step) for step in plan)

    assert padding(1) > 0.4
    assert padding(32) < 0.05


def test_lengths_do_not_drift_over_a_window() -> None:
    """Steps are shuffled inside their window: a model does not see all short texts first."""
    lengths = np.random.default_rng(0).integers(1, 101, 4096).astype(np.int32)
    plan = Plan(lengths, BatchConfig(sequences=32, length_window=32), 0).epoch_plan(0)
    means = np.array([lengths[flat(plan[s])].mean() for s in range(32)])
    assert abs(np.corrcoef(means, np.arange(32))[0, 1]) < 0.5


@pytest.mark.parametrize(
    ("spec", "packing", "message"),
    [
        (BatchConfig(micro_tokens=50), None, r"batch\.micro_tokens=50: the longest sequence has 64 tokens"),
        (BatchConfig(tokens=50), None, r"batch\.tokens=50: the longest sequence has 64 tokens"),
        (BatchConfig(micro_tokens=50), 100, r"batch\.micro_tokens=50: a row has 100 tokens"),
        (BatchConfig(), 50, r"data\.block_size=50: the longest sequence has 64 tokens"),
    ],
)
def test_a_sequence_that_does_not_fit_is_refused(spec: BatchConfig, packing: int | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Plan(np.array([3, 64], np.int32), spec, 0, packing)


@pytest.mark.parametrize(("epochs", "steps"), [(1, 4), (3, 12), (0.5, 2), (2.25, 9), (0.01, 1)])
def test_epochs_to_steps(epochs: float, steps: int) -> None:
    assert Plan(np.ones(32, np.int32), BatchConfig(sequences=8), 0).steps(epochs) == steps
