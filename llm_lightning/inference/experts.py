"""Compute the experts of a mixture by plain matrix products, which ONNX can express.

transformers sorts the tokens by their experts and multiplies each group with its expert's weights, by an operator that ONNX lacks.
Its other implementations branch on the router's choice, or copy an expert's weights for every token: gigabytes for a sentence at a
real model's size.
Here every expert computes every token, and the router's weights are zero for the tokens that did not choose it. This multiplies the
work of the experts by (number of experts) / (experts chosen for a token).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

NAME = "every_expert"


@contextlib.contextmanager
def computing_every_expert(model: PreTrainedModel) -> Iterator[None]:
    """Use `compute_experts` for the model's experts within. A model without experts, or with its own code for them, stays unchanged."""
    published = model.get_experts_implementation()
    model.set_experts_implementation(NAME)
    try:
        yield
    finally:
        model.set_experts_implementation(published)


def compute_experts(experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Return (tokens, hidden) the sums of the chosen experts' outputs, weighted by the router. Its choice is (tokens, chosen experts).

    The arguments are those of transformers' `ExpertsInterface`, and so are the attributes of `experts`
    (`_apply_gate` is private; read in transformers 5.23).
    """
    shares = hidden_states.new_zeros(hidden_states.shape[0], experts.num_experts)  # len() would fix the number of tokens in a trace
    shares = shares.scatter_add(1, top_k_index, top_k_weights.to(shares.dtype))
    inner = _multiply(experts, "gate_up_proj" if experts.has_gate else "up_proj", hidden_states)  # (experts, tokens, inner size)
    inner = experts._apply_gate(inner) if experts.has_gate else experts.act_fn(inner)
    outputs = _multiply(experts, "down_proj", inner)  # (experts, tokens, hidden)
    if experts.has_post_expert_norm:
        outputs = experts.post_expert_norm(outputs)
    return (outputs * shares.T.unsqueeze(-1)).sum(0)


def _multiply(experts: Any, name: str, inputs: Tensor) -> Tensor:
    weights = getattr(experts, name)
    products = torch.matmul(inputs, weights if experts.is_transposed else weights.transpose(-2, -1))
    return products + getattr(experts, f"{name}_bias").unsqueeze(1) if experts.has_bias else products


ALL_EXPERTS_FUNCTIONS.register(NAME, compute_experts)
