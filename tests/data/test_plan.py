"""The plan: every sequence once an epoch, whatever the batch spec, the number of ranks and the micro-batch bounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_lightning.config import BatchConfig
from llm_lightning.data.plan import Plan, cut, evaluation
from llm_lightning.errors import UserError

LENGTHS = st.lists(st.integers(1, 64), min_size=1, max_size=200).map(lambda x: np.array(x, dtype=np.int32))
SPECS = st.builds(
    BatchConfig,
    sequences=st.integers(1, 40),
    tokens=st.none() | st.integers(64, 500),
    micro_sequences=st.none() | st.integers(1, 9),
    micro_tokens=st.none() | st.integers(64, 200),
    length_window=st.integers(1, 8),
)


@given(LENGTHS, SPECS, st.integers(0, 3), st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_an_epoch_holds_every_sequence_once(lengths: np.ndarray, spec: BatchConfig, seed: int, epoch: int) -> None:
    plan = Plan(lengths, spec, seed).epoch(epoch)
    steps = [plan[s] for s in range(len(plan))]
    assert sorted(np.concatenate(steps)) == list(range(len(lengths)))
    assert all(len(step) > 0 for step in steps)
    if spec.tokens is None:
        assert sorted(map(len, steps), reverse=True)[: len(steps) - 1] == [spec.sequences] * (len(steps) - 1)
    else:
        assert all(lengths[step].sum() <= spec.tokens for step in steps)


@given(LENGTHS, SPECS, st.integers(1, 5))
@settings(max_examples=200, deadline=None)
def test_ranks_and_micro_batches_share_a_step_out(lengths: np.ndarray, spec: BatchConfig, world: int) -> None:
    step = np.random.default_rng(0).permutation(len(lengths))
    parts = [cut(step, lengths[step], spec, rank, world) for rank in range(world)]
    dealt = [index for part in parts for batch in part for index in batch]
    assert sorted(dealt) == sorted(step)
    for part in parts:
        for batch in part:
            assert spec.micro_sequences is None or len(batch) <= spec.micro_sequences
            assert spec.micro_tokens is None or lengths[batch].max() * len(batch) <= spec.micro_tokens
    counts = [sum(map(len, part)) for part in parts]
    assert max(counts) - min(counts) <= 1
    tokens = [sum(int(lengths[batch].sum()) for batch in part) for part in parts]
    assert max(tokens) - min(tokens) <= lengths.max()  # dealing in a snake: never worse than the longest sequence


@given(LENGTHS, SPECS)
@settings(max_examples=100, deadline=None)
def test_evaluation_sees_every_sequence_once(lengths: np.ndarray, spec: BatchConfig) -> None:
    assert sorted(np.concatenate(evaluation(lengths, spec))) == list(range(len(lengths)))


@given(LENGTHS, SPECS, st.integers(0, 400))
@settings(max_examples=100, deadline=None)
def test_a_step_is_found_without_walking_to_it(lengths: np.ndarray, spec: BatchConfig, step: int) -> None:
    """`locate` on a fresh plan, as after a resume, gives the step that counting through the epochs gives."""
    walked = Plan(lengths, spec, 0)
    epoch, left = 0, step
    while left >= len(walked.epoch(epoch)):
        left -= len(walked.epoch(epoch))
        epoch += 1
    assert Plan(lengths, spec, 0).locate(step) == (epoch, left)
    fresh = Plan(lengths, spec, 0)
    assert np.array_equal(fresh.epoch(epoch)[left], walked.epoch(epoch)[left])


def test_epochs_and_seeds_differ_and_repeat() -> None:
    lengths, spec = np.full(100, 8, np.int32), BatchConfig(sequences=10)
    first = np.concatenate([Plan(lengths, spec, 0).epoch(0)[s] for s in range(10)])
    assert np.array_equal(first, np.concatenate([Plan(lengths, spec, 0).epoch(0)[s] for s in range(10)]))
    for seed, epoch in ((0, 1), (1, 0)):
        assert not np.array_equal(first, np.concatenate([Plan(lengths, spec, seed).epoch(epoch)[s] for s in range(10)]))


def test_like_lengths_share_a_step() -> None:
    """Sorting inside windows cuts the padding of lengths from 1 to 100 from about a half to a few per cent."""
    lengths = np.random.default_rng(0).integers(1, 101, 4096).astype(np.int32)

    def padding(window: int) -> float:
        plan = Plan(lengths, BatchConfig(sequences=32, length_window=window), 0).epoch(0)
        computed = sum(lengths[plan[s]].max() * len(plan[s]) for s in range(len(plan)))
        return 1 - lengths.sum() / computed

    assert padding(1) > 0.4
    assert padding(32) < 0.05


def test_lengths_do_not_drift_over_a_window() -> None:
    """Steps are shuffled inside their window: a model does not see all short texts first."""
    lengths = np.random.default_rng(0).integers(1, 101, 4096).astype(np.int32)
    plan = Plan(lengths, BatchConfig(sequences=32, length_window=32), 0).epoch(0)
    means = np.array([lengths[plan[s]].mean() for s in range(32)])
    assert abs(np.corrcoef(means, np.arange(32))[0, 1]) < 0.5


def test_a_sequence_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match=r"batch\.micro_tokens=50: the longest sequence has 64 tokens"):
        Plan(np.array([3, 64], np.int32), BatchConfig(micro_tokens=50), 0)


@pytest.mark.parametrize(("epochs", "steps"), [(1, 4), (3, 12), (0.5, 2), (2.25, 9), (0.01, 1)])
def test_epochs_to_steps(epochs: float, steps: int) -> None:
    assert Plan(np.ones(32, np.int32), BatchConfig(sequences=8), 0).steps(epochs) == steps
