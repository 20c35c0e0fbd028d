"""Epsilon against the exact formula without sampling, and against Opacus' accountant with it; noise that meets it; samples as accounted."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from llm_lightning.config.schema import BatchConfig, PrivacyConfig
from llm_lightning.data.plan import PoissonPlan
from llm_lightning.errors import UserError
from llm_lightning.privacy.accountant import compute_epsilon, solve_noise
from llm_lightning.privacy.budget import Budget

pytest.importorskip("dp_accounting")


@pytest.mark.parametrize(("noise", "steps", "delta"), [(2.0, 1, 1e-5), (5.0, 10, 1e-6), (20.0, 400, 1e-5), (1.0, 1, 1e-3)])
def test_without_sampling_epsilon_is_that_of_one_gaussian(noise: float, steps: int, delta: float) -> None:
    """δ(ε) = Φ(μ/2 - ε/μ) - e^ε Φ(-μ/2 - ε/μ) with μ = √steps / noise (Balle & Wang 2018, theorem 8)."""
    mu = math.sqrt(steps) / noise

    def excess(epsilon: float) -> float:
        return float(norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)) - delta

    exact = brentq(excess, 1e-6, 50.0)
    assert exact <= compute_epsilon(noise, 1.0, steps, delta) <= 1.001 * exact + 1e-3


OPACUS = {
    (0.8, 256 / 6920, 81, 1e-5): 4.0772,
    (1.0, 0.01, 1000, 1e-5): 1.8284,
    (2.0, 0.05, 3000, 1e-5): 6.9229,
    (0.6, 0.001, 5000, 1e-5): 2.0553,
}
"""(noise, rate, steps, delta) -> epsilon by the PRV accountant of Opacus 1.6.0, at eps_error=0.001: its estimate."""


@pytest.mark.parametrize("setting", OPACUS)
def test_with_sampling_epsilon_is_that_of_opacus(setting: tuple[float, float, int, float]) -> None:
    assert compute_epsilon(*setting) == pytest.approx(OPACUS[setting], abs=1e-3)


def test_noise_meets_the_budget() -> None:
    noise = solve_noise(3.0, 1e-5, 0.02, 500)
    assert 0.99 * 3.0 < compute_epsilon(noise, 0.02, 500, 1e-5) <= 3.0
    with pytest.raises(UserError, match=r"privacy\.epsilon=1e-09: no noise is enough"):
        solve_noise(1e-9, 1e-12, 1.0, 10)


def test_training_stops_when_the_budget_is_used_up() -> None:
    budget = Budget(PrivacyConfig(kind="dp", epsilon=2.0, noise_multiplier=1.0), 0.05, 10_000)
    assert budget.epsilon_after(budget.most_steps) <= 2.0 < budget.epsilon_after(budget.most_steps + 1)
    assert budget.bound_after(3) >= budget.epsilon_after(3)
    with pytest.raises(UserError, match="one step costs"):
        Budget(PrivacyConfig(kind="dp", epsilon=0.01, noise_multiplier=0.3), 0.5, 10).most_steps  # noqa: B018


def test_steps_are_poisson_samples() -> None:
    """Every row is in a step with the same probability, independently of others and of other steps; sizes are binomial."""
    rows, rate = 200, 0.1
    plan = PoissonPlan(np.full(rows, 7), BatchConfig(sequences=20), seed=3)
    assert plan.sampling_rate == rate
    assert plan.steps(1) == 10
    steps = [[int(row[0]) for row in plan.epoch_plan(epoch)[step]] for epoch in range(200) for step in range(10)]
    assert all(len(set(step)) == len(step) for step in steps)
    counts = np.bincount(np.concatenate(steps), minlength=rows)
    deviation = math.sqrt(2000 * rate * (1 - rate))
    assert np.abs((counts - 2000 * rate) / deviation).max() < 4.5
    assert np.var([len(step) for step in steps]) == pytest.approx(rows * rate * (1 - rate), rel=0.15)
    assert steps[:10] == [
        [int(row[0]) for row in PoissonPlan(np.full(rows, 7), BatchConfig(sequences=20), 3).epoch_plan(0)[i]] for i in range(10)
    ]
