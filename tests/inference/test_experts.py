"""Experts as plain matrix products give what transformers' own give."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers.integrations.moe import _default_apply_gate, batched_mm_experts_forward

from llm_lightning.inference.experts import NAME, compute_experts, computing_every_expert

from ..models.architectures import Tokenizer, build_tiny

EXPERTS, TOKENS, HIDDEN, INNER, CHOSEN = 5, 7, 8, 6, 2


def build_experts(**flags: bool) -> Any:
    """Return what a class of experts holds in transformers, with random weights."""
    torch.manual_seed(0)
    experts = SimpleNamespace(num_experts=EXPERTS, _is_expert_parallel=False, act_fn=torch.nn.SiLU(), **flags)
    first, width = ("gate_up_proj", 2 * INNER) if experts.has_gate else ("up_proj", INNER)
    for name, inputs, outputs in ((first, HIDDEN, width), ("down_proj", INNER, HIDDEN)):
        shape = (inputs, outputs) if experts.is_transposed else (outputs, inputs)
        setattr(experts, name, torch.randn(EXPERTS, *shape))
        setattr(experts, f"{name}_bias", torch.randn(EXPERTS, outputs))
    experts._apply_gate = lambda states: _default_apply_gate(experts, states)
    experts.post_expert_norm = torch.nn.LayerNorm(HIDDEN)
    return experts


FLAGS = ("has_gate", "has_bias", "is_transposed", "has_post_expert_norm")


@pytest.mark.parametrize("values", list(itertools.product([True, False], repeat=len(FLAGS))))
def test_every_kind_of_experts_gives_the_sums_of_transformers(values: tuple[bool, ...]) -> None:
    experts = build_experts(**dict(zip(FLAGS, values, strict=True)))
    states = torch.randn(TOKENS, HIDDEN)
    chosen = torch.rand(TOKENS, EXPERTS).topk(CHOSEN).indices
    weights = torch.rand(TOKENS, CHOSEN)
    assert_close(compute_experts(experts, states, chosen, weights), batched_mm_experts_forward(experts, states, chosen, weights))


@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "jamba"])
def test_a_model_computes_the_same_logits_and_is_itself_afterwards(architecture: str) -> None:
    model = build_tiny(architecture).eval()
    rows = Tokenizer()(["a " * 9, "a " * 4])
    implementation = model.get_experts_implementation()
    model.set_experts_implementation("eager")
    with torch.inference_mode():
        expected = model(**rows, use_cache=False).logits
    model.set_experts_implementation(implementation)
    with torch.inference_mode(), computing_every_expert(model):
        assert model.config._experts_implementation == NAME
        logits = model(**rows, use_cache=False).logits
    real = rows["attention_mask"].bool()
    assert_close(logits[real], expected[real], rtol=1e-4, atol=1e-5)
    assert model.get_experts_implementation() == implementation


def test_a_model_without_experts_stays_as_it_is() -> None:
    model = build_tiny("bert")
    implementation = model.get_experts_implementation()
    with computing_every_expert(model):
        assert model.get_experts_implementation() == implementation
