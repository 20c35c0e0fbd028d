"""Small models in plain Hugging Face folders: a masked one, a causal one and classifiers, with weights that are drawn or set by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from llm_lightning.audit.terms import build_occupation_probes, build_probes, list_templates
from llm_lightning.config.compose import load_config

from ..conftest import ROOT

EXAMPLES = ROOT / "examples" / "audit"
Audit = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def audit() -> Audit:
    """Runs task=audit in this process on one core, and returns the record."""

    def start(run: Path, *more: str) -> dict[str, Any]:
        from llm_lightning.run import run as start_run

        return start_run(load_config(["task=audit", f"run={run}", "trainer.accelerator=cpu", *more]))

    return start


def build_wordpiece(words: set[str]) -> PreTrainedTokenizerFast:
    """Build a lower-cased WordPiece of some whole words; it spells other words in letters."""
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *letters,
        *(f"##{c}" for c in letters),
        *sorted(words - set(letters)),
    ]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=["input_ids", "token_type_ids", "attention_mask"], **names
    )


SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="session")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked language model with drawn weights, large enough that tokens have different probabilities."""
    folder = tmp_path_factory.mktemp("masked")
    tokenizer = build_wordpiece({"the", "women", "of", "workshop", "cannot", "a", "person", "bike", "she", "courier", "came"})
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), initializer_range=0.4, **SMALL))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal language model of bytes with drawn weights."""
    folder = tmp_path_factory.mktemp("causal")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({"<|endoftext|>": 0, **{c: i for i, c in enumerate(alphabet, 1)}}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=257, bos_token_id=0, eos_token_id=0, initializer_range=0.3, **sizes))
    model.save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return folder


MakeClassifier = Callable[..., Path]


@pytest.fixture(scope="session")
def make_classifier(tmp_path_factory: pytest.TempPathFactory) -> MakeClassifier:
    """Makes a classifier that answers `classes[1]`, but `classes[0]` for a text with one of some words."""

    def make(disliked: set[str], classes: tuple[str, ...] = ("negative", "positive"), **config: Any) -> Path:
        folder = tmp_path_factory.mktemp("classifier")
        probes = [*build_probes(list_templates(None)), *build_occupation_probes()]
        texts = [text for probe in probes for row in probe.texts for text in row]
        words = {word.strip(".,!").lower() for text in texts for word in text.replace("-", " ").split()}
        tokenizer = build_wordpiece(words | {word.lower() for word in disliked})
        names = {"id2label": dict(enumerate(classes)), "label2id": {name: i for i, name in enumerate(classes)}}
        settings = SMALL | {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 4}
        model = BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), **settings, **names, **config))
        set_weights(model, [tokenizer.convert_tokens_to_ids(word.lower()) for word in disliked])
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


def set_weights(model: BertForSequenceClassification, disliked: list[int]) -> None:
    """Let the first token read the mean of all tokens, which is zero unless a disliked word is among them, and the head read its sign."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(float("LayerNorm.weight" in name))
        for word in disliked:
            model.bert.embeddings.word_embeddings.weight[word, 0] = 1
        layer = model.bert.encoder.layer[0]
        for linear in (layer.attention.self.value, layer.attention.output.dense, model.bert.pooler.dense):
            linear.weight.copy_(torch.eye(4))
        model.classifier.weight[0, 0] = 8
        model.classifier.bias.copy_(torch.tensor([-2.0, 2.0]))


def write_pairs(path: Path, rows: list[tuple[str, ...]], header: str = "term,swap") -> Path:
    path.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n", encoding="utf-8")
    return path


def read_record(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    return record


def pick(record: dict[str, Any], key: str, table: str) -> dict[str, dict[str, Any]]:
    """The scores of a table of a measure, by their names."""
    measure = next(measure for measure in record["measures"] if measure["key"] == key)
    return {score["name"]: score for score in measure["scores"] if score["table"] == table}
