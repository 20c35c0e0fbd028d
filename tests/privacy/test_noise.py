"""Noise is normal, tails included; secure noise never comes twice, seeded noise always does."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from llm_lightning.privacy import noise


def test_secure_noise_is_normal() -> None:
    """By the largest distance of its distribution: by chance it is above this bound once in 10^9 times."""
    values = noise.secure_noise(200_001, 0, 0)
    assert values.shape == (200_001,)
    assert values.isfinite().all()
    assert stats.kstest(values.numpy(), "norm").statistic < math.sqrt(-math.log(0.5e-9) / (2 * len(values)))
    assert not values.equal(noise.secure_noise(200_001, 0, 0))


@pytest.mark.parametrize(("byte", "radius"), [(0x00, math.sqrt(2 * 64 * math.log(2))), (0xFF, math.sqrt(2 * 2.0**-64))])
def test_the_ends_of_the_uniform_numbers_have_the_right_radius(byte: int, radius: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """u = 2^-64 and u = 1 - 2^-64, where a number in fp32 would be 0 or 1."""
    monkeypatch.setattr("os.urandom", lambda count: bytes([byte]) * count)
    first, second = noise.secure_noise(2, 0, 0).tolist()
    assert math.hypot(first, second) == pytest.approx(radius, rel=1e-5)


def test_seeded_noise_is_a_function_of_its_place() -> None:
    draw = noise.SeededNoise(1, 0)
    assert draw(1000, 2, 3).equal(noise.SeededNoise(1, 0)(1000, 2, 3))
    others = [noise.SeededNoise(2, 0)(1000, 2, 3), noise.SeededNoise(1, 1)(1000, 2, 3), draw(1000, 3, 3), draw(1000, 2, 4)]
    assert all(abs(float(torch.corrcoef(torch.stack([draw(1000, 2, 3), other]))[0, 1])) < 0.2 for other in others)
