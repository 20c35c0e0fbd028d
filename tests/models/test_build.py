"""Models as they are built: of the promised size, with named classes, reading the last real token, training; or refused and why.

Checkpoints are tiny models of real architectures, written by plain `transformers`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, GPT2Config, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from llm_lightning.config.compose import load_config
from llm_lightning.config.schema import CONF, ModelConfig
from llm_lightning.data.collate import Collator
from llm_lightning.errors import UserError
from llm_lightning.models import build
from llm_lightning.models.forward import sequence_logits

from ..conftest import published

VOCABULARY, POSITIONS = 60, 32
CLASSIFIER = "AutoModelForSequenceClassification"
NAMES = ("negative", "neutral", "positive", "mixed")
HEAD = build.classes(NAMES)
END = 1
BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": POSITIONS}
IDS = {"vocab_size": VOCABULARY, "bos_token_id": END, "eos_token_id": END, "pad_token_id": None}
WIDE = {"initializer_range": 0.3}  # or all hidden states are much alike
CHECKPOINTS: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": lambda: transformers.BertForMaskedLM(BertConfig(**BERT, vocab_size=VOCABULARY, max_position_embeddings=POSITIONS)),
    "bert of three classes": lambda: transformers.BertForSequenceClassification(
        BertConfig(**BERT, vocab_size=VOCABULARY, num_labels=3)
    ),
    "gpt2": lambda: transformers.GPT2LMHeadModel(GPT2Config(**GPT2, **IDS, **WIDE)),
    "llama": lambda: transformers.LlamaForCausalLM(LlamaConfig(**BERT, **IDS, **WIDE, num_key_value_heads=1)),
}
SCRATCH = ModelConfig(architecture="bert", config=BERT)


def tokenizer(entries: int = VOCABULARY, **special: str) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words w2, w3, …; the first entries are the special tokens."""
    names = list(dict.fromkeys(special.values()))
    vocabulary = {token: i for i, token in enumerate([*names, *(f"w{i}" for i in range(len(names), entries))])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=f"w{entries - 1}"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


PADDED = {"pad_token": "[PAD]", "eos_token": "[END]"}


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., ModelConfig]:
    """A checkpoint on disk, with a tokenizer of the given special tokens."""

    def save(name: str, special: dict[str, str] = PADDED) -> ModelConfig:
        torch.manual_seed(0)
        CHECKPOINTS[name]().save_pretrained(tmp_path / "hf")
        tokenizer(**special).save_pretrained(tmp_path / "hf")
        return ModelConfig(name_or_path=str(tmp_path / "hf"))

    return save


def words(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(2, VOCABULARY, count).tolist()


# ---- presets ----


@pytest.mark.parametrize(
    ("preset", "auto_class"),
    [("gpt_tiny", "AutoModelForCausalLM"), ("llama_tiny", "AutoModelForCausalLM"), ("bert_tiny", "AutoModelForMaskedLM")],
)
def test_presets_have_the_number_of_parameters_that_their_comment_says(preset: str, auto_class: str) -> None:
    comment = (CONF / "model" / f"{preset}.yaml").read_text(encoding="utf-8")
    said = re.search(r"([\d.]+)M parameters", comment)
    assert said is not None
    config = load_config(["task=finetune", f"model={preset}", "objective=classification"]).model
    model = build.build_model(config, auto_class, tokenizer(config.tokenizer.vocab_size, **PADDED), 128, None)
    decimals = len(said[1].partition(".")[2])
    assert f"{model.num_parameters() / 1e6:.{decimals}f}" == said[1]


# ---- labels ----


@pytest.mark.parametrize("origin", ["scratch", "checkpoint"])
def test_label_names_go_into_the_config_and_from_there_into_an_export(
    origin: str, saved: Callable[..., ModelConfig], tmp_path: Path
) -> None:
    config = saved("bert") if origin == "checkpoint" else SCRATCH
    model = build.build_model(config, CLASSIFIER, tokenizer(**PADDED), POSITIONS, HEAD)
    model.save_pretrained(tmp_path / "export")
    exported = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "export")
    for found in (model, exported):
        assert found.config.id2label == dict(enumerate(NAMES))
        assert found.config.label2id == {name: i for i, name in enumerate(NAMES)}
        assert published(found)(input_ids=torch.tensor([words(5)])).logits.shape == (1, len(NAMES))


def test_a_new_head_keeps_the_weights_below_it(saved: Callable[..., ModelConfig]) -> None:
    config = saved("bert")
    built = build.build_model(config, CLASSIFIER, tokenizer(**PADDED), POSITIONS, HEAD).base_model.state_dict()
    kept = transformers.BertForMaskedLM.from_pretrained(str(config.name_or_path)).base_model.state_dict()
    assert set(kept) <= set(built)
    assert all(torch.equal(built[name], tensor) for name, tensor in kept.items())


def test_a_classifier_of_other_classes_gets_a_new_head(saved: Callable[..., ModelConfig]) -> None:
    """The weights that fit are taken; the head of three classes does not fit four."""
    config = saved("bert of three classes")
    built = build.build_model(config, CLASSIFIER, tokenizer(**PADDED), POSITIONS, HEAD)
    assert built.config.num_labels == len(NAMES)
    kept = transformers.BertForSequenceClassification.from_pretrained(str(config.name_or_path)).base_model.state_dict()
    assert all(torch.equal(built.base_model.state_dict()[name], tensor) for name, tensor in kept.items())


# ---- the last real token ----

TOKENIZERS = {"with padding": PADDED, "without padding": {"unk_token": "[UNK]", "eos_token": "[END]"}}


def classified(model: PreTrainedModel, sequences: list[list[int]]) -> torch.Tensor:
    """Logits of sequences, in their order, from one flat batch."""

    class Rows:
        inputs, labels = np.array([len(s) for s in sequences]), np.zeros(len(sequences), int)
        second = token_targets = None

        def __getitem__(self, index: int) -> np.ndarray:
            return np.array(sequences[index])

    batch = Collator()(Rows(), [np.arange(len(sequences))], 0)
    with torch.no_grad():
        return sequence_logits(model, batch)[batch.indices.argsort()]


def read_last(model: Any, sequence: list[int]) -> torch.Tensor:
    """The classification head on the last token's hidden state, by hand."""
    ids = torch.tensor([sequence])
    with torch.no_grad():
        return model.score(model.base_model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0, -1])


@pytest.mark.parametrize("special", TOKENIZERS)
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_decoder_classifier_reads_the_last_real_token_whatever_the_padding(
    architecture: str, special: str, saved: Callable[..., ModelConfig]
) -> None:
    config = saved(architecture, TOKENIZERS[special])
    loaded = build.tokenizer(config)
    assert loaded is not None
    pad = loaded.pad_token_id
    assert (pad == loaded.eos_token_id) == (special == "without padding")
    model = build.build_model(config, CLASSIFIER, loaded, POSITIONS, HEAD).eval()
    # padding's id inside a text is no end of it
    sequences = [words(3), words(9, seed=1), [*words(2, seed=2), pad, *words(2, seed=3)], words(1, seed=4)]
    ends_in_padding = [*words(4, seed=5), pad]  # the head passes over it, but padding that follows still changes nothing
    logits = classified(model, [*sequences, ends_in_padding])
    model = published(model)
    torch.testing.assert_close(logits[-1], read_last(model, ends_in_padding[:-1]))
    for row, sequence in zip(logits, sequences, strict=False):
        torch.testing.assert_close(row, read_last(model, sequence))
    assert (logits[0] - logits[1]).abs().max() > 1e-2  # it matters what is read


# ---- training ----


@pytest.mark.parametrize("origin", ["scratch", "checkpoint"])
def test_a_built_model_is_in_fp32_and_drops_out(origin: str, saved: Callable[..., ModelConfig], tmp_path: Path) -> None:
    config = SCRATCH
    if origin == "checkpoint":
        config = saved("bert")
        CHECKPOINTS["bert"]().half().save_pretrained(str(config.name_or_path))  # as many on the hub are
    model = build.build_model(config, CLASSIFIER, tokenizer(**PADDED), POSITIONS, HEAD)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(module.training for module in model.modules())
    ids = torch.tensor([words(POSITIONS)])
    model = published(model)
    first, second = (model.base_model(input_ids=ids).last_hidden_state for _ in range(2))
    assert not torch.allclose(first, second)
    model.eval()
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)


# ---- refusals ----


def refusal(*arguments: Any) -> str:
    with pytest.raises(UserError) as error:
        build.build_model(*arguments)
    return str(error.value)


def test_a_checkpoint_too_short_for_the_data_is_refused(saved: Callable[..., ModelConfig]) -> None:
    for name in ("bert", "gpt2"):
        config = saved(name)
        message = refusal(config, CLASSIFIER, tokenizer(**PADDED), POSITIONS + 1, HEAD)
        for part in (f"{POSITIONS + 1} tokens", f"{POSITIONS} positions", f"data.block_size={POSITIONS}"):
            assert part in message
        build.build_model(config, CLASSIFIER, tokenizer(**PADDED), POSITIONS, HEAD)  # as long as it is: fits


def test_positions_that_padding_takes_are_not_promised(tmp_path: Path) -> None:
    """RoBERTa's positions start behind its padding's id: of 514 it has 512 to give."""
    settings = {**BERT, "vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS + 2, "pad_token_id": 1}
    transformers.RobertaForMaskedLM(transformers.RobertaConfig(**settings)).save_pretrained(tmp_path)
    config = ModelConfig(name_or_path=str(tmp_path))
    fitting = tokenizer(bos_token="<s>", pad_token="<pad>", eos_token="</s>")
    assert f"data.block_size={POSITIONS}" in refusal(config, CLASSIFIER, fitting, POSITIONS + 1, HEAD)
    model = build.build_model(config, CLASSIFIER, fitting, POSITIONS, HEAD)
    assert classified(model, [words(POSITIONS)]).isfinite().all()


def test_a_tokenizer_of_another_model_is_refused(saved: Callable[..., ModelConfig]) -> None:
    config = saved("bert")
    message = refusal(config, CLASSIFIER, tokenizer(VOCABULARY + 1, **PADDED), POSITIONS, HEAD)
    assert "tokenizer" in message
    assert str(VOCABULARY + 1) in message
    assert str(VOCABULARY) in message
    build.build_model(config, CLASSIFIER, tokenizer(VOCABULARY - 1, **PADDED), POSITIONS, HEAD)  # rows to spare are common


@pytest.mark.parametrize("origin", ["scratch", "checkpoint"])
def test_an_architecture_without_the_head_is_refused(origin: str, saved: Callable[..., ModelConfig]) -> None:
    config = saved("gpt2") if origin == "checkpoint" else ModelConfig(architecture="gpt2")
    message = refusal(config, "AutoModelForMaskedLM", tokenizer(**PADDED), POSITIONS, None)
    for part in ("gpt2", "AutoModelForMaskedLM", "another model or objective"):
        assert part in message


def test_an_unknown_architecture_is_refused() -> None:
    message = refusal(ModelConfig(architecture="gptt2"), CLASSIFIER, tokenizer(**PADDED), POSITIONS, HEAD)
    assert "model.architecture=gptt2" in message
    assert "Did you mean 'gpt2'?" in message


def test_a_setting_that_contradicts_the_architecture_is_refused() -> None:
    config = ModelConfig(architecture="bert", config={**BERT, "hidden_size": 15})
    message = refusal(config, CLASSIFIER, tokenizer(**PADDED), POSITIONS, HEAD)
    assert "model." in message
    assert "hidden size (15)" in message


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": VOCABULARY, **BERT}))
    message = refusal(ModelConfig(name_or_path=str(tmp_path)), CLASSIFIER, tokenizer(**PADDED), POSITIONS, HEAD)
    assert f"model.name_or_path={tmp_path}" in message


# ---- code that comes with a checkpoint ----

OWN = """
from transformers import BertConfig, BertForSequenceClassification

class OwnConfig(BertConfig):
    model_type = "own"

class OwnClassifier(BertForSequenceClassification):
    config_class = OwnConfig
"""


def test_code_that_comes_with_a_checkpoint_runs_where_it_is_trusted_and_nowhere_else(
    saved: Callable[..., ModelConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    name = saved("bert").name_or_path
    folder = Path(str(name))
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", CLASSIFIER: "own.OwnClassifier"}}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "own.py").write_text(OWN)
    refusal(ModelConfig(name_or_path=name), CLASSIFIER, tokenizer(**PADDED), POSITIONS, HEAD)
    model = build.build_model(
        ModelConfig(name_or_path=name, trust_remote_code=True), CLASSIFIER, tokenizer(**PADDED), POSITIONS, HEAD
    )
    assert type(model).__name__ == "OwnClassifier"
