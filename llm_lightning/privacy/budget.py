"""The privacy budget of a run: its noise, and what its steps cost."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from llm_lightning.config.schema import PrivacyConfig
from llm_lightning.errors import UserError
from llm_lightning.privacy.accountant import ACCOUNTANT, compute_epsilon, solve_noise

POINTS = 8
"""Numbers of steps whose epsilon is computed for the progress of a run; between two of them, that of the later one is shown."""


@dataclass(frozen=True)
class Budget:
    """What training may cost, and how it is spent: each step samples the rows at a rate, and adds noise."""

    config: PrivacyConfig
    sampling_rate: float
    steps: int
    """Steps that the run would take, were the budget larger."""

    @cached_property
    def noise_multiplier(self) -> float:
        """The standard deviation of the noise in thresholds: as configured, or solved for epsilon over all steps."""
        config = self.config
        if config.noise_multiplier is not None:
            return config.noise_multiplier
        return solve_noise(config.epsilon, config.delta, self.sampling_rate, self.steps)

    @cached_property
    def most_steps(self) -> int:
        """The steps that cost at most epsilon. Raises UserError if not even one does."""
        if self.config.noise_multiplier in (None, 0.0):
            return self.steps
        low, high = 0, self.steps
        while low < high:
            middle = (low + high + 1) // 2
            if self.epsilon_after(middle) > self.config.epsilon:
                high = middle - 1
            else:
                low = middle
        if not low:
            raise UserError(
                f"privacy.noise_multiplier={self.config.noise_multiplier:g}: one step costs {self.epsilon_after(1):.3g}, more than "
                f"privacy.epsilon={self.config.epsilon:g}; raise one of them, or leave noise_multiplier out, which solves it."
            )
        return low

    def epsilon_after(self, steps: int) -> float:
        """Return the epsilon of some steps, at the configured delta."""
        return compute_epsilon(self.noise_multiplier, self.sampling_rate, steps, self.config.delta)

    @cached_property
    def _points(self) -> list[tuple[int, float]]:
        counts = sorted({-(-self.most_steps * (i + 1) // POINTS) for i in range(POINTS)})
        return [(count, self.epsilon_after(count)) for count in counts]

    def bound_after(self, steps: int) -> float:
        """Return an upper bound of the epsilon of some steps, without computing it anew."""
        return next(epsilon for count, epsilon in self._points if count >= steps)

    def describe(self, steps: int) -> dict[str, Any]:
        """Return the guarantee after some steps, as `summary.json` holds it."""
        return {
            "epsilon": self.epsilon_after(steps),
            "delta": self.config.delta,
            "noise_multiplier": self.noise_multiplier,
            "sampling_rate": self.sampling_rate,
            "steps": steps,
            "unit": "row",
            "clipping": self.config.clipping,
            "accountant": ACCOUNTANT,
        }
