"""Layers in fp8 compute what they compute in bf16, to the precision of fp8; the rest is untouched, weights and names too."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from llm_lightning.data.collate import Collator
from llm_lightning.errors import UserError
from llm_lightning.models import float8
from llm_lightning.models.flat_check import use_flat_batches
from llm_lightning.models.forward import token_loss
from llm_lightning.models.layers import layers
from llm_lightning.training.precision import in_bf16

from .test_padding_free import Sequences, made


@pytest.fixture(autouse=True)
def torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the environment, where `make setup` puts it, or in it."""
    monkeypatch.syspath_prepend(str(Path(sys.prefix) / "fp8"))
    pytest.importorskip("torchao", reason="torchao is not installed: make setup")


def test_loss_and_gradients_are_those_of_bf16_to_fp8s_precision() -> None:
    plain = use_flat_batches(made("llama", "CausalLM"))
    model = copy.deepcopy(plain)
    float8.convert(model, emulate=True)
    assert list(model.state_dict()) == list(plain.state_dict())
    inner = [module for layer in layers(model) for module in layer.modules() if isinstance(module, nn.Linear)]
    assert {type(module).__name__ for module in inner} == {"Float8Linear"}
    assert type(model.get_output_embeddings()) is nn.Linear
    batch = Collator(next_token=True)(Sequences(1, [19, 7, 12]), [np.array([i]) for i in range(3)], 0)
    losses = []
    for m in (plain, model):
        with in_bf16(m):
            losses.append(token_loss(m, batch))
            losses[-1].backward()
    assert float(losses[1].detach()) == pytest.approx(float(losses[0].detach()), rel=0.02)
    for (name, a), b in zip(plain.named_parameters(), model.parameters(), strict=True):
        assert a.grad is not None, name
        assert b.grad is not None, name
        assert b.grad.dtype == torch.float32
        assert torch.cosine_similarity(a.grad.flatten(), b.grad.flatten(), 0) > 0.98, name
    assert any(not a.grad.equal(b.grad) for a, b in zip(plain.parameters(), model.parameters(), strict=True) if a.grad is not None)


def test_a_model_without_linear_modules_is_refused() -> None:
    with pytest.raises(UserError, match=r"precision=fp8: the layers of a gpt2 model have no linear modules"):
        float8.convert(made("gpt2", "CausalLM"), emulate=True)
