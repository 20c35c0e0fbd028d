"""The loss from hidden states is PyTorch's cross-entropy of the logits, and so are its gradients; however many chunks it takes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from llm_lightning.data.masking import IGNORED
from llm_lightning.models import loss as module
from llm_lightning.models.loss import fused_losses_and_gradient, linear_cross_entropy, losses_and_gradient

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
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", {"cpu": rows * VOCABULARY})
    results = []
    for ours in (True, False):
        hidden, weight, targets = drawn(dtype, scale)
        targets[::6] = IGNORED
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_compiled_for_a_gpu_equals_what_a_cpu_runs(dtype: torch.dtype) -> None:
    """Columns behind the vocabulary are padding, whatever they hold."""
    torch.manual_seed(0)
    logits, targets = (8 * torch.randn(TARGETS, VOCABULARY)).to(dtype), torch.randint(VOCABULARY, (TARGETS,))
    losses, slope = losses_and_gradient(logits, targets)
    found_losses, found_slope = fused_losses_and_gradient(F.pad(logits, (0, 9), value=50.0), targets, VOCABULARY)
    tolerance = 1e-5 if dtype == torch.float32 else 5e-3
    torch.testing.assert_close(found_losses, losses, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(found_slope[:, :VOCABULARY], slope, atol=tolerance, rtol=tolerance)
    assert not found_slope[:, VOCABULARY:].any()


def test_the_loss_of_logits_on_a_gpu_is_that_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_compile_fused", lambda whole=False: fused_losses_and_gradient)
    torch.manual_seed(0)
    logits, targets = torch.randn(TARGETS, VOCABULARY, requires_grad=True), torch.randint(VOCABULARY, (TARGETS,))
    targets[::6] = IGNORED
    results = []
    for loss in (module._CrossEntropy.apply(logits, targets), F.cross_entropy(logits, targets, reduction="sum")):
        results.append((loss.detach(), torch.autograd.grad(loss / 7, logits)[0]))
    torch.testing.assert_close(results[0], results[1])
