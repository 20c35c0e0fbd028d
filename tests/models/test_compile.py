"""Compiled layers give the same on batches of any shape, are compiled once for all layers, and not again for later batches."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter

from llm_lightning.data.collate import Collator
from llm_lightning.models.flat_check import use_flat_batches
from llm_lightning.models.forward import token_logits
from llm_lightning.models.layers import layers

from .test_padding_free import Sequences, language_head, made


@pytest.mark.parametrize("architecture", ["bert", "modernbert", "llama"])
def test_compiled_layers(architecture: str) -> None:
    torch._dynamo.reset()
    eager = use_flat_batches(made(architecture, language_head(architecture)))
    compiled, counter = copy.deepcopy(eager), CompileCounter()
    for layer in layers(compiled):
        layer.compile(backend=counter)
    rng, counts = np.random.default_rng(0), []
    for number in (3, 8, 5, 2, 7, 11):
        lengths = rng.integers(1, 20, number).tolist()
        batch = Collator(next_token=True)(Sequences(1, lengths), [np.array([i]) for i in range(number)], 0)
        losses = [token_logits(model, batch).logsumexp(-1).sum() for model in (compiled, eager)]
        for loss in losses:
            loss.backward()
        assert float(losses[0].detach()) == pytest.approx(float(losses[1].detach()), rel=1e-5)
        counts.append(counter.frame_count)
    for p, q in zip(compiled.parameters(), eager.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None and q.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, atol=1e-4, rtol=1e-3)
    assert 0 < counts[0] < counts[2]  # as it comes, then for any number of sequences and of tokens
    assert counts[2:] == counts[2:3] * 4
