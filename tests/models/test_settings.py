"""Settings of an architecture: those that its code reads are accepted, others are refused with the nearest name."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig

from llm_lightning.errors import UserError
from llm_lightning.models.settings import check_settings


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("deberta-v2", {"relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True}),
        ("gpt2", {"n_layer": 2, "num_hidden_layers": 2, "hidden_size": 8}),
        ("bert", {"hidden_size": 8, "num_labels": 3}),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}, "rope_scaling": None}),
    ],
)
def test_settings_that_a_model_reads_are_accepted(architecture: str, settings: dict[str, Any]) -> None:
    check_settings(AutoConfig.for_model(architecture), settings)


@pytest.mark.parametrize(
    ("architecture", "settings", "parts"),
    [
        ("deberta-v2", {"position_bucket": 8}, ("model.config.position_bucket", "Did you mean 'position_buckets'?")),
        ("gpt2", {"n_layers": 2}, ("model.config.n_layers", "Did you mean 'n_layer'?")),
        ("bert", {"hiden_size": 2}, ("bert has no such setting", "Did you mean 'hidden_size'?")),
        ("llama", {"sliding_window": 2}, ("llama has no such setting",)),
        ("gpt2", {"n_layer": 1, "num_hidden_layers": 2}, ("n_layer=1", "num_hidden_layers=2", "two names")),
        ("gemma3", {"hidden_size": 64}, ("more than text", "model.architecture=gemma3_text")),
        ("qwen3_5", {}, ("more than text", "model.architecture=qwen3_5_text")),
        ("bert", {"vocab_size": 10}, ("model.tokenizer.vocab_size",)),
    ],
)
def test_other_settings_are_refused(architecture: str, settings: dict[str, Any], parts: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as error:
        check_settings(AutoConfig.for_model(architecture), settings)
    assert all(part in str(error.value) for part in parts)
