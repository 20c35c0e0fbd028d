"""The loss from hidden states is PyTorch's cross-entropy of the logits, and so are its gradients; however many chunks it takes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from llm_lightning.models import loss as module
from llm_lightning.models.loss import linear_cross_entropy

TARGETS, WIDTH, VOCABULARY = 23, 8, 31


def drawn(dtype: torch.dtype, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    hidden = (torch.randn(TARGETS, WIDTH) * scale).to(dtype).requires_grad_()
    return hidden, torch.randn(VOCABULARY, WIDTH).to(dtype).requires_grad_(), torch.randint(VOCABULARY, (TARGETS,))


@pytest.mark.parametrize("rows", [1, 5, 100])
@pytest.mark.parametrize(
    ("dtype", "scale"), [(torch.float64, 1.0), (torch.float32, 1.0), (torch.float32, 100.0), (torch.bfloat16, 1.0)]
)
def test_loss_and_gradients_equal_those_of_the_logits(
    dtype: torch.dtype, scale: float, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scaled, a target's probability underflows; in bf16, the reference computes from the same logits in fp32."""
    monkeypatch.setattr(module, "LOGITS", {"cpu": rows * VOCABULARY})
    results = []
    for ours in (True, False):
        hidden, weight, targets = drawn(dtype, scale)
        logits = hidden @ weight.T
        exact = logits if dtype == torch.float64 else logits.float()
        value = linear_cross_entropy(hidden, weight, targets) if ours else F.cross_entropy(exact, targets, reduction="sum")
        (value / 7).backward()
        results.append([value.detach(), hidden.grad, weight.grad])
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    for found, expected in zip(*results, strict=True):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, atol=tolerance * float(expected.abs().max()), rtol=tolerance)


def test_the_gradient_of_a_frozen_head_is_not_computed() -> None:
    hidden, weight, targets = drawn(torch.float32)
    weight.requires_grad_(False)
    value = linear_cross_entropy(hidden, weight, targets)
    assert value.grad_fn is not None
    assert [saved is None for saved in value.grad_fn.saved_tensors] == [False, True]  # type: ignore[attr-defined]
    value.backward()
    found, hidden.grad = hidden.grad, None
    F.cross_entropy(hidden @ weight.T, targets, reduction="sum").backward()
    torch.testing.assert_close(found, hidden.grad)


def test_without_gradients_nothing_is_kept() -> None:
    hidden, weight, targets = drawn(torch.float32)
    with torch.no_grad():
        value = linear_cross_entropy(hidden, weight, targets)
    assert not value.requires_grad
    torch.testing.assert_close(value, F.cross_entropy(hidden @ weight.T, targets, reduction="sum"))
