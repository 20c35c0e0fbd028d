"""No token of a packed row sees another document: logits, losses and gradients are those of the documents alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llm_lightning.data.collate import Collator, MicroBatch
from llm_lightning.objectives.causal_lm import CausalLM

SIZES = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GATED = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64}
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "llama": GATED,
    "qwen2": GATED,
    "qwen3": {**GATED, "head_dim": 8},
    "mistral": {**GATED, "sliding_window": None},
}
LENGTHS = [9, 5, 14, 3, 11]
ROWS = [np.array([2, 1]), np.array([0, 4, 3])]  # of 19 and of 23 tokens, so that one row is padded


def objective(architecture: str, implementation: str) -> CausalLM:
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **MODELS[architecture])
    made = CausalLM(SimpleNamespace(splits={}))  # type: ignore[arg-type]
    made.model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation).eval()
    return made


def documents() -> Any:
    rng = np.random.default_rng(0)
    sequences = [rng.integers(1, 97, length + 1) for length in LENGTHS]

    class Data:
        labels = second = None

        def __getitem__(self, index: int) -> np.ndarray:
            return sequences[index]

    return Data()


def batch(rows: list[np.ndarray], packed: bool) -> MicroBatch:
    return Collator("stream", pad_id=0, packed=packed)(documents(), rows, 0)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", MODELS)
def test_packed_documents_are_alone(architecture: str, implementation: str) -> None:
    trained = objective(architecture, implementation)

    def gradients(batches: list[MicroBatch]) -> tuple[float, list[torch.Tensor]]:
        trained.zero_grad()
        loss = torch.stack([trained.loss_sum(b) for b in batches]).sum()
        loss.backward()
        return float(loss.detach()), [p.grad.clone() for p in trained.model.parameters() if p.grad is not None]

    logits = trained.score(batch(ROWS, packed=True))[1]
    for row, members in enumerate(ROWS):
        start = 0
        for index in members:
            alone = trained.score(batch([np.array([index])], packed=False))[1][0]
            torch.testing.assert_close(logits[row, start : start + LENGTHS[index]], alone, atol=2e-5, rtol=1e-4)
            start += LENGTHS[index]
    assert logits.isfinite().all()  # padding too: what is not a number there would spoil gradients

    together, packed = gradients([batch(ROWS, packed=True)])
    apart, single = gradients([batch([np.array([i])], packed=False) for i in range(len(LENGTHS))])
    assert together == pytest.approx(apart, rel=1e-5)
    for found, expected in zip(packed, single, strict=True):
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("architecture", MODELS)
def test_without_its_mask_a_packed_row_would_leak(architecture: str) -> None:
    """What the test above would see if the mask were lost: the second document's logits move."""
    trained = objective(architecture, "sdpa")
    row = batch(ROWS[:1], packed=True)
    alone = trained.score(batch([ROWS[0][1:]], packed=False))[1][0]
    leaking = trained.model(row.input_ids, attention_mask=row.attention_mask, position_ids=row.position_ids).logits[0, LENGTHS[2] :]
    assert (leaking - alone).abs().max() > 1e-2
