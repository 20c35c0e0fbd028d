"""`model.config` of a command line: the settings of the architecture that the run has, the user's before a preset's."""

from __future__ import annotations

import pytest
from transformers import CONFIG_MAPPING

from llm_lightning.config.compose import load_config
from llm_lightning.config.model_settings import attribute_map
from llm_lightning.errors import UserError

FINETUNE = ("task=finetune", "objective=classification", "data=docs_topics")
GPT_TINY = {"n_layer": 4, "n_embd": 256, "n_head": 4, "n_positions": 512, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
SMALL = "model.config={n_layer: 2, n_embd: 64, n_head: 2}"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), GPT_TINY),
        ((*FINETUNE, "model.architecture=gpt2", SMALL), {"n_layer": 2, "n_embd": 64, "n_head": 2}),
        (
            (*FINETUNE, "model.architecture=gpt2", SMALL, "~model.config.intermediate_size"),
            {"n_layer": 2, "n_embd": 64, "n_head": 2},
        ),
        ((*FINETUNE, "model.architecture=gpt2", "+model.config.n_layer=2"), {"n_layer": 2}),
        (("model.architecture=llama",), {}),
        (("model=gpt_tiny", "model.architecture=llama", "+model.config.hidden_size=64"), {"hidden_size": 64}),
        (("recipe=gpt2_124m_pretrain", "model.architecture=llama"), {}),
        (("model.architecture=gpt2", "model.config.n_layer=2"), GPT_TINY | {"n_layer": 2}),
        (("+model.config.num_hidden_layers=2",), {k: v for k, v in GPT_TINY.items() if k != "n_layer"} | {"num_hidden_layers": 2}),
        (("~model.config.n_positions",), {k: v for k, v in GPT_TINY.items() if k != "n_positions"}),
        (
            ("recipe=demo_pretrain",),
            {"num_hidden_layers": 3, "hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 3},
        ),
        (("model.name_or_path=some/model", "+model.config.summary_first_dropout=0.2"), {"summary_first_dropout": 0.2}),
        (("model.config.n_layer=2", "+model.config.num_hidden_layers=2"), None),
    ],
)
def test_the_settings_of_the_runs_own_architecture_hold(overrides: tuple[str, ...], expected: dict[str, object] | None) -> None:
    task = () if any(override.startswith("task=") for override in overrides) else ("task=pretrain",)
    settings = load_config([*task, *overrides]).model.config
    if expected is None:  # two names of one value are no conflict
        assert {settings.get("n_layer"), settings.get("num_hidden_layers")} == {2}
    else:
        assert settings == expected


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (("model.config.n_layer=2", "+model.config.num_hidden_layers=3"), ("n_layer=2", "num_hidden_layers=3", "one of them")),
        (
            ("model=gpt2", "model.architecture=llama"),
            ("model.architecture=llama", "openai-community/gpt2", "model.name_or_path=null"),
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(overrides: tuple[str, ...], parts: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as error:
        load_config(["task=pretrain", *overrides])
    assert all(part in str(error.value) for part in parts)


def test_a_presets_family_goes_with_its_architecture() -> None:
    assert load_config([*FINETUNE, "model.architecture=gpt2"]).model.family is None
    assert load_config([*FINETUNE, "model.family=null"]).model.family is None
    assert load_config([*FINETUNE, "model.architecture=bert"]).model.family == "encoder"


@pytest.mark.parametrize("architecture", ["gpt2", "bert", "t5", "deberta-v2", "xlnet", "opt", "bart", "ctrl", "gpt_neo", "bloom"])
def test_other_names_are_those_of_the_config_class(architecture: str) -> None:
    names = dict(CONFIG_MAPPING[architecture].attribute_map)
    assert {key: attribute_map(architecture).get(key) for key in names} == names
