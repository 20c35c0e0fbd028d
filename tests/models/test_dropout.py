"""Our dropout is dropout: its rate, its scale, its gradient, independent of place and of the step before."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForMaskedLM, BertConfig

from llm_lightning.models import dropout

COUNT = 400_003  # no multiple of the four elements that share a draw


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_elements_are_dropped_at_their_rate_and_scaled(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.ones(COUNT, dtype=dtype, requires_grad=True)
    out = dropout.dropout(x, p)
    out.sum().backward()
    dropped = (out == 0).float()
    assert float(dropped.mean()) == pytest.approx(p, abs=4 * (p * (1 - p) / COUNT) ** 0.5)
    assert set(out.detach().unique().tolist()) == {0.0, torch.tensor(1 / (1 - p), dtype=dtype).item()}
    assert x.grad is not None
    assert x.grad.equal(out.detach())  # of ones: the factors themselves
    for lag in (1, 2, 3, 4):  # the lanes of one draw, and neighbouring draws
        assert float(np.corrcoef(dropped[:-lag], dropped[lag:])[0, 1]) == pytest.approx(0, abs=0.01)
    assert float(np.corrcoef(dropped, (dropout.dropout(x, p) == 0).float())[0, 1]) == pytest.approx(0, abs=0.01)


def test_it_follows_the_seed_and_nothing_is_dropped_at_zero() -> None:
    x = torch.randn(7, 11)
    first, second = (torch.manual_seed(3) and dropout.dropout(x, 0.3) for _ in range(2))
    assert first.equal(second)
    assert dropout.dropout(x, 0.0) is x


def test_a_models_dropouts_are_replaced_and_nothing_else() -> None:
    model = AutoModelForMaskedLM.from_config(
        BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    )
    names, modes = list(model.state_dict()), [module.training for module in model.modules()]
    before = sum(type(module) is nn.Dropout for module in model.modules())
    dropout.replace(model)
    ours = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    assert len(ours) == before > 0
    assert {(type(module), module.p) for module in ours} == {(dropout.Dropout, 0.1)}
    assert (list(model.state_dict()), [module.training for module in model.modules()]) == (names, modes)
    assert ours[0].eval()(torch.ones(4)).equal(torch.ones(4))


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU there is nothing left for later")
def test_seeding_a_step_on_a_cpu_is_torchs_own_and_leaves_nothing_for_absent_gpus() -> None:
    waiting = len(torch.cuda._queued_calls)
    dropout.seed(7, torch.device("cpu"))
    drawn = torch.rand(3)
    assert len(torch.cuda._queued_calls) == waiting
    torch.manual_seed(7)
    assert torch.equal(torch.rand(3), drawn)
