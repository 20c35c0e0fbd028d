"""A private step without noise and clipping is an ordinary one; with them it is the sum of clipped gradients with noise."""

from __future__ import annotations

import pytest
import torch

from llm_lightning.data.collate import build_step_batch
from llm_lightning.privacy.noise import SeededNoise
from llm_lightning.privacy.step import PrivateGradient
from llm_lightning.training.step import OptimizerStep

from ..training.test_parallel import batch_of
from ..training.test_step import Bare


def take_step(bare: Bare, private: PrivateGradient | None, *batches: object) -> list[torch.Tensor]:
    step = OptimizerStep(bare)  # type: ignore[arg-type]
    if private is not None:
        step.use_private_gradient(private)
    with bare.in_precision():
        step(build_step_batch(list(batches), 3, 0.0))  # type: ignore[arg-type]
    return bare.gradients


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_without_noise_and_clipping_it_is_the_ordinary_gradient(kind: str, precision: str) -> None:
    """Dropout included: the draws of a step are the same."""
    batches = batch_of(9, 7, 4, 6), batch_of(12, 3, 5, seed=1)
    bare = Bare(kind, precision)
    bare.clip_norm = None  # type: ignore[assignment]
    targets = sum(batch.target_count for batch in batches)
    expected = take_step(bare, None, *batches)
    bare.model.zero_grad()
    private = PrivateGradient(bare.model, 1e9, 0.0, targets, is_automatic=False, noise=SeededNoise(0, 0))
    found = take_step(bare, private, *batches)
    for gradient, other in zip(found, expected, strict=True):
        size = max(float(e.norm()) for e in expected)
        assert float((gradient - other).norm()) <= (1e-6 if precision == "32-true" else 1e-2) * size


def test_gradients_are_clipped_row_by_row_and_noise_is_added() -> None:
    batch = batch_of(9, 7, 4, 6)
    bare = Bare("untied")
    bare.clip_norm = None  # type: ignore[assignment]
    bare.model.eval()
    noiseless = PrivateGradient(bare.model, 0.5, 0.0, 10.0, is_automatic=False, noise=SeededNoise(0, 0))
    clipped = take_step(bare, noiseless, batch)
    assert sum(float(g.square().sum()) for g in clipped) ** 0.5 <= 4 * 0.5 / 10.0 + 1e-6
    bare.model.zero_grad()
    noisy = PrivateGradient(bare.model, 0.5, 2.0, 10.0, is_automatic=False, noise=SeededNoise(0, 0))
    added = torch.cat([(a - b).flatten() for a, b in zip(take_step(bare, noisy, batch), clipped, strict=True)])
    assert float(added.std()) == pytest.approx(0.5 * 2.0 / 10.0, rel=0.02)
    bare.model.zero_grad()
    empty = take_step(bare, noisy)
    assert float(torch.cat([g.flatten() for g in empty]).std()) == pytest.approx(0.5 * 2.0 / 10.0, rel=0.02)


def test_factors() -> None:
    norms = torch.tensor([0.0, 0.1, 1.0, 4.0])
    flat, automatic = (
        PrivateGradient(Bare("untied").model, 0.5, 0.0, 1.0, is_automatic=kind, noise=SeededNoise(0, 0)).factors(norms)
        for kind in (False, True)
    )
    assert flat.tolist() == pytest.approx([1.0, 1.0, 0.5, 0.125])
    assert automatic.tolist() == pytest.approx([50.0, 0.5 / 0.11, 0.5 / 1.01, 0.5 / 4.01])
    assert bool((automatic * norms <= 0.5).all())
