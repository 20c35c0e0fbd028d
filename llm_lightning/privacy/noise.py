"""Gaussian noise for the gradients: from the system's cryptographic generator, or from a seed where a test needs the same again."""

from __future__ import annotations

import math
import os
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

AT_ONCE = 1 << 20
"""Pairs of numbers that are drawn together."""
_HALF = 1 << 62


class Noise(Protocol):
    """Draws of a normal distribution."""

    def __call__(self, count: int, step: int, place: int) -> Tensor:
        """Return (count,) fp32 normal numbers for a parameter, the one at `place`, of a step."""


def secure_noise(count: int, step: int, place: int) -> Tensor:
    """Return (count,) normal numbers that nobody can draw again, from the system's generator."""
    parts = [_draw_pairs(min(AT_ONCE, (count + 1) // 2 - start)) for start in range(0, (count + 1) // 2, AT_ONCE)]
    return torch.cat(parts)[:count] if parts else torch.empty(0)


def _draw_pairs(pairs: int) -> Tensor:
    """Return (2 · pairs,) normal numbers by the transform of Box and Muller (1958): r = √(-2 ln u), and an angle.

    u has 63 bits, so that the tail is right beyond 9 standard deviations. Near 1, ln u is computed as ln(1 - v) of v = 1 - u, which is as
    exact there as ln u is near 0.
    """
    drawn = bytearray(os.urandom(12 * pairs))
    integers = torch.frombuffer(drawn, dtype=torch.int64, count=pairs) & (2 * _HALF - 1)
    angles = torch.frombuffer(drawn, dtype=torch.int32, offset=8 * pairs).float() * (math.pi / 2**31)
    is_small = integers < _HALF
    distance = torch.where(is_small, integers, (2 * _HALF - 1) - integers).float().add_(0.5).mul_(0.5 / _HALF)  # to 0 or to 1
    radius = torch.where(is_small, -distance.log(), -torch.log1p(-distance)).mul_(2).sqrt_()
    return torch.cat([radius * angles.cos(), radius * angles.sin()])


class SeededNoise:
    """Normal numbers as a function of seed, rank, step and place: anyone who knows the seed can take them off again."""

    def __init__(self, seed: int, rank: int) -> None:
        self._seed, self._rank = seed, rank

    def __call__(self, count: int, step: int, place: int) -> Tensor:
        generator = np.random.Generator(np.random.SFC64([self._seed, self._rank, step, place]))
        return torch.from_numpy(generator.standard_normal(count, dtype=np.float32))
