"""Muon: on which parameters, and its steps against torch's own, one matrix at a time, and against the singular vectors."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from lightning.pytorch.plugins.precision.amp import _optimizer_handles_unscaling
from torch import nn
from transformers import LlamaConfig

from llm_lightning.optim import muon as module
from llm_lightning.optim.muon import Muon, muon, orthogonal

LLAMA = LlamaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)


def made(**options: float) -> tuple[nn.Module, Muon]:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(LLAMA)
    optimizer = muon(model, **{"lr": 0.02, **options})  # type: ignore[arg-type]
    assert isinstance(optimizer, Muon)
    return model, optimizer


def backward(model: nn.Module, step: int) -> None:
    ids = torch.randint(50, (2, 12), generator=torch.Generator().manual_seed(step))
    model(input_ids=ids, labels=ids).loss.backward()


def test_it_takes_the_matrices_of_the_layers_and_adamw_the_rest() -> None:
    model, optimizer = made()
    names = {id(p): name for name, p in model.named_parameters()}
    taken = {names[id(p)] for group in optimizer.param_groups if group["muon"] for p in group["params"]}
    assert taken == {name for name in names.values() if name.endswith("_proj.weight")}
    assert {names[id(p)] for group in optimizer.param_groups for p in group["params"]} == set(names.values())


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon is in torch since 2.9")
def test_steps_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The matrices' of `torch.optim.Muon`, the others' of `torch.optim.AdamW`; only stacked, and in bf16 as torch's."""
    monkeypatch.setattr(module, "bf16_unit", lambda accelerator: "as torch does")
    model, optimizer = made(weight_decay=0.3, momentum=0.9)
    reference = copy.deepcopy(model)
    matrices = [p for name, p in reference.named_parameters() if name.endswith("_proj.weight")]
    embeddings = [p for name, p in reference.named_parameters() if "embed" in name or "lm_head" in name]
    norms = [p for name, p in reference.named_parameters() if "norm" in name]
    theirs = [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.3, momentum=0.9, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(
            [{"params": embeddings, "weight_decay": 0.3}, {"params": norms, "weight_decay": 0.0}], lr=0.02, betas=(0.9, 0.95)
        ),
    ]
    start = [p.detach().clone() for p in model.parameters()]
    for step in range(3):
        for net in (model, reference):
            backward(net, step)
        for p, q in zip(model.parameters(), reference.parameters(), strict=True):
            q.grad = p.grad.clone()  # type: ignore[union-attr]
        for each in (optimizer, *theirs):
            for group in each.param_groups:
                group["lr"] = 0.02 / (step + 1)
            each.step()
            each.zero_grad()
    for (name, p), q, before in zip(model.named_parameters(), reference.parameters(), start, strict=True):
        assert (p - q).norm() < 0.01 * (q - before).norm(), name


@pytest.mark.parametrize("shape", [(3, 20, 8), (2, 8, 20), (1, 16, 16)])
def test_a_step_has_the_singular_vectors_of_its_matrix_and_values_near_one(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = orthogonal(matrices).float()
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    inside = u.transpose(1, 2) @ result @ v.transpose(1, 2)
    values = inside.diagonal(dim1=1, dim2=2)
    assert values.min() > 0.3  # near-zero singular values are still on their way
    assert values.max() < 1.3
    assert (inside - torch.diag_embed(values)).abs().max() < 0.1


def test_its_state_survives_a_checkpoint() -> None:
    model, optimizer = made()
    twin, resumed = made()
    backward(model, 0)
    optimizer.step()
    twin.load_state_dict(model.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for net, each in ((model, optimizer), (twin, resumed)):
        net.zero_grad()
        backward(net, 1)
        each.step()
    assert all(p.equal(q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


def test_it_says_when_steps_are_too_small_for_it() -> None:
    _, optimizer = made()
    assert optimizer.hint(10_000) is None
    assert "80%" in str(optimizer.hint(100))


@pytest.mark.parametrize("overflow", [False, True])
def test_steps_under_a_scaler_of_gradients(overflow: bool) -> None:
    """As in trainer.precision=16-mixed: they are those without it, and none where gradients overflowed. Lightning unscales gradients
    by itself only where the optimizer does not say that it can, and we have done so before."""
    model, optimizer = made()
    plain = copy.deepcopy(model)
    without = muon(plain, lr=0.02)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    assert _optimizer_handles_unscaling(optimizer)
    ids = torch.randint(50, (2, 12))
    scaler.scale(model(input_ids=ids, labels=ids).loss).backward()
    plain(input_ids=ids, labels=ids).loss.backward()
    if overflow:
        next(model.parameters()).grad[0, 0] = torch.inf  # type: ignore[index]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    without.step()
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, before[name] if overflow else q, atol=1e-5, rtol=1e-4)
