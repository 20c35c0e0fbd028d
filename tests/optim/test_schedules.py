"""Schedules against the formulas of their papers, and what holds for all of them whatever their settings.

η_t / η_max at step t of T with a warm-up of W steps. The warm-up is (t + 1) / W, so that the first step learns something and step
W - 1 has the peak; the papers' formulas then start at step W.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm_lightning.errors import UserError
from llm_lightning.optim.schedules import Factor, cosine, linear, warmup_stable_decay

TOTAL = 200
SCHEDULES: dict[str, Callable[..., Factor]] = {"linear": linear, "cosine": cosine, "wsd": warmup_stable_decay}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("warmup", "steps"), [(40, 40), (0.2, 40), (1, 1), (0.999, TOTAL), (TOTAL, TOTAL)])
def test_warm_up_rises_evenly_over_a_number_or_a_share_of_steps(name: str, warmup: float, steps: int) -> None:
    factor = SCHEDULES[name](TOTAL, warmup=warmup)
    assert [factor(t) for t in range(steps)] == pytest.approx([(t + 1) / steps for t in range(steps)])
    if steps < TOTAL:
        assert factor(steps) == 1.0  # the decay starts from the peak


@pytest.mark.parametrize("name", SCHEDULES)
def test_without_warm_up_the_first_step_has_the_peak(name: str) -> None:
    assert SCHEDULES[name](TOTAL, warmup=0)(0) == 1.0


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_warm_up_longer_than_the_run_is_refused(name: str) -> None:
    """Its peak would never be reached."""
    with pytest.raises(UserError, match=r"warmup=11.* 10 steps"):
        SCHEDULES[name](10, warmup=11)


@pytest.mark.parametrize("warmup", [0, 40])
def test_linear_equals_its_formula(warmup: int) -> None:
    """(T - t) / (T - W) (Devlin et al. 2019, appendix A.2: warm-up, then linear decay)."""
    factor = linear(TOTAL, warmup=warmup)
    for t in range(warmup, TOTAL + 1):
        assert factor(t) == pytest.approx((TOTAL - t) / (TOTAL - warmup))
    assert [factor((TOTAL + warmup) // 2), factor(TOTAL)] == pytest.approx([0.5, 0.0])


@pytest.mark.parametrize("warmup", [0, 40])
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_cosine_equals_its_formula(warmup: int, floor: float) -> None:
    """η_min + (η_max - η_min) (1 + cos(π T_cur / T_i)) / 2 (Loshchilov and Hutter 2017, equation 5)."""
    factor = cosine(TOTAL, warmup=warmup, floor=floor)
    for t in range(warmup, TOTAL + 1):
        assert factor(t) == pytest.approx(floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (t - warmup) / (TOTAL - warmup))))
    assert [factor((TOTAL + warmup) // 2), factor(TOTAL)] == pytest.approx([(1 + floor) / 2, floor])


@pytest.mark.parametrize("warmup", [0, 40])
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_wsd_equals_its_formula(warmup: int, floor: float) -> None:
    """1 up to step T - D, then 1 - √((t - (T - D)) / D), D a share of all T steps (Hägele et al. 2024, equations 1 and 2)."""
    factor = warmup_stable_decay(TOTAL, warmup=warmup, decay=0.2, floor=floor)
    length = 0.2 * TOTAL
    start = TOTAL - length
    for t in range(warmup, TOTAL + 1):
        shape = 1.0 if t <= start else 1 - math.sqrt((t - start) / length)
        assert factor(t) == pytest.approx(floor + (1 - floor) * shape), f"step {t}"
    assert factor(TOTAL - 30) == pytest.approx((1 + floor) / 2)  # a quarter into the decay


def test_wsd_without_decay_stays_at_the_peak() -> None:
    factor = warmup_stable_decay(TOTAL, warmup=0, decay=0.0)
    assert [factor(t) for t in range(TOTAL)] == [1.0] * TOTAL


SHARES = st.floats(0, 1)
CASES = st.integers(1, 60).flatmap(
    lambda total: st.tuples(
        st.just(total),
        st.one_of(st.integers(0, total), st.floats(0, 1, exclude_max=True)),
        st.one_of(
            st.tuples(st.just("linear"), st.just({})),
            st.tuples(st.just("cosine"), st.fixed_dictionaries({"floor": SHARES})),
            st.tuples(st.just("wsd"), st.fixed_dictionaries({"floor": SHARES, "decay": SHARES})),
        ),
    )
)


@example((10, 0, ("wsd", {"floor": 0.0, "decay": 1e-3})), random.Random(0))  # a share whose complement is rounded
@given(CASES, st.randoms(use_true_random=False))
@settings(max_examples=500, deadline=None)
def test_any_schedule_stays_between_zero_and_a_peak_that_it_reaches_and_is_pure(
    case: tuple[int, float, tuple[str, dict[str, Any]]], rng: random.Random
) -> None:
    total, warmup, (name, shape) = case
    factor = SCHEDULES[name](total, warmup=warmup, **shape)
    steps = range(total + 3)  # torch asks for the step after the last as well
    values = [factor(t) for t in steps]
    assert all(0.0 <= value <= 1.0 for value in values)
    assert max(values[:total]) == 1.0
    # neither what was asked before nor which object is asked matters: a resumed run goes on from a step alone
    shuffled = rng.sample(steps, len(steps))
    again = SCHEDULES[name](total, warmup=warmup, **shape)
    assert {t: again(t) for t in shuffled} == dict(zip(steps, values, strict=True))
