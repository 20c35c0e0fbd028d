"""AdamW: which parameters are decayed, on real architectures, and its steps against the paper's algorithm written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from transformers import BertConfig, GPT2Config, LlamaConfig, PreTrainedModel

from llm_lightning.optim.adamw import adamw

BERT = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
GPT2 = GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0)
LLAMA = LlamaConfig(
    vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, tie_word_embeddings=True
)
MODELS = {
    "bert": lambda: transformers.BertForMaskedLM(BERT),
    "gpt2": lambda: transformers.GPT2LMHeadModel(GPT2),
    "llama": lambda: transformers.LlamaForCausalLM(LLAMA),
}
SOME_NOT_DECAYED = {
    "bert": {
        "bert.embeddings.LayerNorm.weight",
        "bert.encoder.layer.1.attention.self.query.bias",
        "bert.encoder.layer.1.output.LayerNorm.bias",
        "cls.predictions.bias",
    },
    "gpt2": {"transformer.h.1.ln_1.weight", "transformer.h.1.attn.c_attn.bias", "transformer.ln_f.bias"},
    "llama": {"model.layers.1.input_layernorm.weight", "model.norm.weight"},
}
SOME_DECAYED = {
    "bert": {"bert.embeddings.word_embeddings.weight", "bert.encoder.layer.1.attention.self.query.weight"},
    "gpt2": {"transformer.wte.weight", "transformer.h.1.attn.c_attn.weight"},
    "llama": {"model.embed_tokens.weight", "model.layers.1.mlp.gate_proj.weight"},
}


def decay_by_name(model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [(names[id(p)], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]]
    assert len(found) == len(dict(found))  # a tied matrix is updated once
    return dict(found)


@pytest.mark.parametrize("name", MODELS)
def test_norms_and_biases_are_not_decayed_and_all_else_is(name: str) -> None:
    model = MODELS[name]()
    decay = decay_by_name(model, adamw(model, lr=1e-3, weight_decay=0.3))
    norms = {
        f"{path}.{part}"
        for path, module in model.named_modules()
        if "norm" in type(module).__name__.lower()
        for part, _ in module.named_parameters(recurse=False)
    }
    biases = {path for path in decay if path.endswith("bias")}
    assert {path for path, value in decay.items() if value == 0.0} == norms | biases
    assert set(decay.values()) == {0.0, 0.3}
    assert set(decay) == {path for path, _ in model.named_parameters()}
    assert SOME_NOT_DECAYED[name] <= norms | biases
    assert SOME_DECAYED[name] <= set(decay) - norms - biases


def test_frozen_parameters_are_left_alone() -> None:
    model = MODELS["bert"]()
    model.base_model.requires_grad_(False)
    trained = set(decay_by_name(model, adamw(model, lr=1e-3)))
    assert trained
    assert all(path.startswith("cls.") for path in trained)


def test_fused_steps_equal_the_papers_algorithm() -> None:
    """Loshchilov and Hutter 2019, algorithm 2, with the schedule multiplier η the learning rate, as PyTorch has it: the decay is
    lr · λ · θ. Three steps at changing rates, so that moments and both bias corrections matter."""
    first, second, eps, decay = 0.8, 0.95, 1e-2, 0.25  # an eps that shows where it is added
    rng = np.random.default_rng(0)
    model = nn.Linear(3, 2).double()
    optimizer = adamw(model, lr=1.0, weight_decay=decay, betas=(first, second), eps=eps)
    assert all(group["fused"] for group in optimizer.param_groups)
    theta = [model.weight.detach().numpy().copy(), model.bias.detach().numpy().copy()]
    m, v = [np.zeros_like(p) for p in theta], [np.zeros_like(p) for p in theta]
    for t, rate in enumerate((0.1, 0.2, 0.05), start=1):
        gradients = [rng.normal(size=p.shape) for p in theta]
        for i, (g, parameter, strength) in enumerate(zip(gradients, (model.weight, model.bias), (decay, 0.0), strict=True)):
            m[i] = first * m[i] + (1 - first) * g
            v[i] = second * v[i] + (1 - second) * g**2
            adapted = (m[i] / (1 - first**t)) / (np.sqrt(v[i] / (1 - second**t)) + eps)
            theta[i] = theta[i] - rate * (adapted + strength * theta[i])
            parameter.grad = torch.from_numpy(g)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        np.testing.assert_allclose(model.weight.detach().numpy(), theta[0], rtol=1e-12)
        np.testing.assert_allclose(model.bias.detach().numpy(), theta[1], rtol=1e-12)
