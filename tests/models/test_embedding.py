"""Our embeddings train as torch's do, step after step, and leave tied ones alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, BertConfig

from llm_lightning.models import embedding

CONFIG = BertConfig(
    vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, hidden_dropout_prob=0.0
)


@pytest.mark.parametrize("clear", [True, False], ids=["grad is None", "grad is zero"])
def test_gradients_are_those_of_torch_over_steps_and_micro_batches(clear: bool) -> None:
    plain = AutoModelForSequenceClassification.from_config(CONFIG).train(False)
    ours = copy.deepcopy(plain)
    embedding.replace(ours)
    assert type(ours.get_input_embeddings()) is embedding.Embedding
    assert list(ours.state_dict()) == list(plain.state_dict())
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-2) for model in (plain, ours)]
    draw = torch.Generator().manual_seed(0)
    for step in range(4):
        for _ in range(1 + step % 2):
            ids = torch.randint(0, 40, (2, 5), generator=draw)
            ids[0, -1] = 0  # padding, whose row gets no gradient
            for model in (plain, ours):
                model(input_ids=ids).logits.square().sum().backward()
        for (name, a), b in zip(plain.named_parameters(), ours.parameters(), strict=True):
            torch.testing.assert_close(b.grad, a.grad, msg=lambda text, name=name: f"{name}: {text}")
        norms = [torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)]
        with embedding.written_only(ours, list(ours.parameters())) as parameters:
            norms.append(torch.nn.utils.clip_grad_norm_(parameters, 0.5))
        torch.testing.assert_close(norms[1], norms[0])
        torch.testing.assert_close(ours.get_input_embeddings().weight.grad, plain.get_input_embeddings().weight.grad)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=clear)
    torch.testing.assert_close(plain.get_input_embeddings().weight, ours.get_input_embeddings().weight)


def test_tied_and_frozen_embeddings_stay_as_torch_has_them() -> None:
    tied = AutoModelForMaskedLM.from_config(CONFIG)
    embedding.replace(tied)
    assert type(tied.get_input_embeddings()) is nn.Embedding
    frozen = AutoModelForSequenceClassification.from_config(CONFIG)
    embedding.replace(frozen)
    weight = frozen.get_input_embeddings().weight.requires_grad_(False)
    frozen(input_ids=torch.ones(1, 3, dtype=torch.long)).logits.sum().backward()
    assert weight.grad is None
