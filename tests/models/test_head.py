"""The head of a checkpoint: reused by the names of its classes, or new."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedModel

from llm_lightning.config.schema import ModelConfig
from llm_lightning.models import build
from llm_lightning.models.head import match_rows

from ..conftest import published
from .test_build import CLASSIFIER, PADDED, POSITIONS, VOCABULARY, tokenizer, words

TAGGER = "AutoModelForTokenClassification"
SMALL = {"vocab_size": VOCABULARY, "pad_token_id": 0}
BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
T5 = {"d_model": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2, "d_kv": 8, "decoder_start_token_id": 0, "eos_token_id": 1}
BART = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "eos_token_id": 1}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": (CLASSIFIER, BERT),
    "roberta": (CLASSIFIER, BERT | {"pad_token_id": 0, "max_position_embeddings": 40}),
    "distilbert": (CLASSIFIER, {"dim": 4, "n_layers": 1, "n_heads": 2, "hidden_dim": 8}),  # both layers of its head are 4 by 4
    "deberta-v2": (CLASSIFIER, BERT),
    "electra": (CLASSIFIER, BERT | {"embedding_size": 16}),
    "gpt2": (CLASSIFIER, {"n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 1, "eos_token_id": 1}),
    "t5": (CLASSIFIER, T5),
    "bart": (CLASSIFIER, BART),
    "albert": (CLASSIFIER, BERT | {"embedding_size": 8}),
    "modernbert": (CLASSIFIER, BERT | {"cls_token_id": 1, "sep_token_id": 1, "bos_token_id": 1, "eos_token_id": 1}),
    "bert tags": (TAGGER, BERT),
}
TRAINED = ("neutral", "positive", "mixed", "negative")
NAMES = ("mixed", "Negative", "neutral", "POSITIVE")


def closing_tokenizer() -> Any:
    """Return a tokenizer that puts the end-of-text token behind a text, where encoder-decoders read its class."""
    closing = tokenizer(**PADDED)
    closing.backend_tokenizer.post_processor = TemplateProcessing(single="$A [END]", special_tokens=[("[END]", 1)])
    return closing


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., tuple[PreTrainedModel, ModelConfig]]:
    """A checkpoint with a head that was trained to tell apart classes of the given names."""

    def save(kind: str, names: tuple[str, ...] | None) -> tuple[PreTrainedModel, ModelConfig]:
        torch.manual_seed(1)
        auto_class, settings = MODELS[kind]
        head = {"num_labels": 4} if names is None else build.classes(names)
        config = transformers.AutoConfig.for_model(kind.split()[0], **{**SMALL, **settings}, **head)
        model = getattr(transformers, auto_class).from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))  # also biases, which begin at zero
        model.save_pretrained(tmp_path / "hf")
        closing_tokenizer().save_pretrained(tmp_path / "hf")
        return model, ModelConfig(name_or_path=str(tmp_path / "hf"))

    return save


def scores(model: Any, ids: list[int]) -> dict[str, torch.Tensor]:
    """The logit of each class (of each token) by its name, from Hugging Face's own forward."""
    logits = model(input_ids=torch.tensor([ids])).logits[0].detach()
    return {model.config.id2label[i].casefold(): logits[..., i] for i in range(logits.shape[-1])}


@pytest.mark.parametrize("kind", MODELS)
def test_a_head_of_the_same_classes_answers_as_before_in_any_order(kind: str, saved: Callable[..., Any]) -> None:
    model, config = saved(kind, TRAINED)
    auto_class = MODELS[kind][0]
    built = build.build_model(config, auto_class, closing_tokenizer(), POSITIONS, build.classes(NAMES)).eval()
    assert built.config.id2label == dict(enumerate(NAMES))
    ids = [*words(9), 1]
    expected, found = scores(model, ids), scores(published(built), ids)
    assert expected.keys() == found.keys()
    for name, logit in expected.items():
        torch.testing.assert_close(found[name], logit, rtol=1e-5, atol=1e-5)
    assert len({round(float(logit.flatten()[0]), 4) for logit in expected.values()}) == 4  # else any order would do


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("trained", [("a", "b", "c", "d"), None])
def test_a_head_of_other_classes_is_new(
    kind: str, trained: Any, saved: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    model, config = saved(kind, trained)
    built = build.build_model(config, MODELS[kind][0], closing_tokenizer(), POSITIONS, build.classes(NAMES))
    state = model.state_dict()
    changed = {name for name, tensor in built.state_dict().items() if name in state and not torch.equal(tensor, state[name])}
    outputs = {name for name in changed if state[name].shape[0] == len(NAMES)}
    assert outputs, "no layer was initialised"
    assert changed == outputs
    assert len({name.rpartition(".")[0] for name in changed}) == 1
    assert "the head is new" in caplog.text
    assert ("data.labels=[LABEL_0, LABEL_1, LABEL_2, …]" in caplog.text) == (trained is None)


def test_a_head_of_another_number_of_classes_is_new_and_it_is_said(
    saved: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    _, config = saved("bert", TRAINED)
    built = build.build_model(config, CLASSIFIER, closing_tokenizer(), POSITIONS, build.classes(NAMES[:3]))
    assert built.config.num_labels == 3
    assert "tells apart 4 classes (neutral, positive, mixed, negative) and the data 3 classes" in caplog.text


@pytest.mark.parametrize(
    ("trained", "names", "rows"),
    [
        (("a", "b"), ("b", "a"), [1, 0]),
        (("LABEL_0", "LABEL_1"), ("0", "1"), [0, 1]),
        (("LABEL_0", "LABEL_1"), ("LABEL_1", "LABEL_0"), [1, 0]),
        (("LABEL_0", "LABEL_1"), ("neg", "pos"), None),
        (("LABEL_0", "LABEL_1"), ("1", "2"), None),
        (("0", "1"), ("neg", "pos"), None),
        (("a", "b", "c"), ("a", "b"), None),
        (("a", "b"), ("a", "b", "c"), None),
        (("A", "a"), ("a", "b"), None),
    ],
)
def test_rows_follow_names(trained: tuple[str, ...], names: tuple[str, ...], rows: list[int] | None) -> None:
    assert match_rows(trained, names) == rows
