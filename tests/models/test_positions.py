"""The number of positions is the longest text that a model's own forward pass takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from llm_lightning.models.positions import count_positions

B = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
P = {**B, "max_position_embeddings": 34}
S = {
    "vocab_size": 60,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
}
OPT = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "ffn_dim": 16,
    "word_embed_proj_dim": 16,
}
T5 = {"vocab_size": 60, "d_model": 16, "d_ff": 16, "num_layers": 1, "num_heads": 2, "d_kv": 8}
XLNET = {"vocab_size": 60, "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16}


@pytest.mark.parametrize(
    ("architecture", "settings", "expected"),
    [
        ("bert", P, 34),
        ("roberta", {**P, "pad_token_id": 1}, 32),
        ("mpnet", {**P, "pad_token_id": 1}, 32),
        ("esm", {**P, "pad_token_id": 1, "mask_token_id": 5}, 32),
        ("longformer", {**P, "attention_window": [4], "pad_token_id": 1}, 32),
        ("opt", {**OPT, "max_position_embeddings": 34}, 34),
        ("bart", {**S, "max_position_embeddings": 34}, 34),
        ("gpt2", {"vocab_size": 60, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 34}, 34),
        ("mpt", {"vocab_size": 60, "d_model": 16, "n_layers": 1, "n_heads": 2, "max_seq_len": 34}, 34),
        ("deberta-v2", {**P, "relative_attention": True, "position_biased_input": False, "pos_att_type": ["c2p"]}, None),
        ("deberta-v2", P, 34),
        ("xlnet", XLNET, None),
        ("t5", T5, None),
        ("bloom", {"vocab_size": 60, "hidden_size": 16, "n_layer": 1, "n_head": 2}, None),
    ],
)
def test_a_text_of_so_many_tokens_is_the_longest_that_runs(
    architecture: str, settings: dict[str, Any], expected: int | None
) -> None:
    model = AutoModel.from_config(AutoConfig.for_model(architecture, **settings)).eval()
    found = count_positions(model)
    assert found == expected

    def forward(length: int) -> None:
        ids = torch.full((1, length), 11)
        with torch.no_grad():
            model(input_ids=ids, **({"decoder_input_ids": ids[:, :1]} if model.config.is_encoder_decoder else {}))

    forward(found or 80)
    if found is not None:
        with pytest.raises((IndexError, RuntimeError)):
            forward(found + 1)


def test_rotary_positions_have_the_limit_of_the_config() -> None:
    model = AutoModel.from_config(AutoConfig.for_model("llama", **P, num_key_value_heads=2))
    assert count_positions(model) == 34
