"""What a differentially private run costs: epsilon by its noise, its sampling rate and its steps, and the noise for an epsilon.

A step adds Gaussian noise of `noise_multiplier` times the clipping threshold to a sum over a Poisson sample of the units (Abadi et al.
2016). The steps are composed by their privacy loss distributions (Koskela et al. 2020; Doroshenko et al. 2022), by Google's
`dp-accounting`, which rounds to the safe side.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from llm_lightning.errors import UserError

ACCOUNTANT = "privacy loss distributions (dp-accounting)"
PRECISION = 1e-3
"""Relative precision of the noise multiplier, to the safe side."""
MOST_NOISE = 1e4


@cache
def compute_epsilon(noise_multiplier: float, sampling_rate: float, steps: int, delta: float) -> float:
    """Return epsilon at `delta` after some steps; infinity without noise."""
    if not steps:
        return 0.0
    if not noise_multiplier:
        return float("inf")
    event, accountant = _import_accounting()
    step = event.PoissonSampledDpEvent(sampling_rate, event.GaussianDpEvent(noise_multiplier))
    return float(accountant().compose(step, steps).get_epsilon(delta))


def solve_noise(epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """Return the least noise multiplier with which the steps cost at most `epsilon`. Raises UserError if there is none."""
    low, high = 0.0, 1.0
    while compute_epsilon(high, sampling_rate, steps, delta) > epsilon:
        low, high = high, 2 * high
        if high > MOST_NOISE:
            raise UserError(
                f"privacy.epsilon={epsilon:g}: no noise is enough for it with privacy.delta={delta:g} over {steps:,} steps; raise epsilon "
                f"or delta, or train for fewer steps."
            )
    while high - low > PRECISION * high:
        middle = (low + high) / 2
        if compute_epsilon(middle, sampling_rate, steps, delta) > epsilon:
            low = middle
        else:
            high = middle
    return high


@cache
def _import_accounting() -> tuple[Any, Any]:
    try:
        from dp_accounting import dp_event
        from dp_accounting.pld import PLDAccountant
    except ImportError as error:
        raise UserError("privacy=dp needs dp-accounting: pip install 'llm_lightning[privacy]'.") from error
    return dp_event, PLDAccountant
