"""Folders as people have them: loaded in fp32 whatever form their weights have, or refused with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

from llm_lightning.config.compose import load_config
from llm_lightning.config.schema import ModelConfig
from llm_lightning.data import tokenizers
from llm_lightning.errors import UserError
from llm_lightning.models import build

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 16}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad"]
CLASSIFIER = "AutoModelForSequenceClassification"
HEAD = build.classes(("bad", "good"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    BertForMaskedLM(BertConfig(**SIZES)).save_pretrained(tmp_path)
    BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(tmp_path)
    return tmp_path


def shard(folder: Path) -> None:
    model = BertForMaskedLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="3KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1


def as_bin(folder: Path) -> None:
    torch.save(BertForMaskedLM.from_pretrained(folder).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def in_half(dtype: torch.dtype) -> Callable[[Path], None]:
    return lambda folder: BertForMaskedLM.from_pretrained(folder).to(dtype).save_pretrained(folder)


@pytest.mark.parametrize("change", [shard, as_bin, in_half(torch.float16), in_half(torch.bfloat16)])
def test_weights_of_any_form_are_loaded_in_fp32(change: Callable[[Path], None], folder: Path) -> None:
    expected = BertForMaskedLM.from_pretrained(folder).bert.state_dict()
    change(folder)
    config = ModelConfig(name_or_path=str(folder))
    model = build.build_model(config, CLASSIFIER, build.tokenizer(config), 8, HEAD)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    built = model.base_model.state_dict()
    assert all(torch.allclose(built[name], tensor, atol=1e-2) for name, tensor in expected.items())


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def rename_type(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}))


def without_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 9999\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut, "cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").write_text(LFS), "git lfs pull"),
        (lambda folder: (folder / "config.json").write_text("{nope"), "cannot be loaded"),
        (lambda folder: (folder / "tokenizer.json").write_text("{nope"), "cannot be loaded"),
        (lambda folder: BertForMaskedLM(BertConfig(**SIZES | {"vocab_size": 5})).save_pretrained(folder), "do not belong together"),
        (rename_type, r"model\.trust_remote_code=true"),
        (without_tokenizer, "no tokenizer files"),
    ],
)
def test_a_folder_that_cannot_be_used_says_why(change: Callable[[Path], None], message: str, folder: Path) -> None:
    change(folder)
    config = ModelConfig(name_or_path=str(folder))
    with pytest.raises(UserError, match=message):
        build.build_model(config, CLASSIFIER, build.tokenizer(config), 8, HEAD)


@pytest.mark.parametrize(
    ("file", "content", "name", "message"),
    [
        ("adapter_config.json", '{"base_model_name_or_path": "some/base"}', "", "adapter for some/base"),
        ("model.gguf", "GGUF", "", "no config.json .GGUF"),
        ("model.gguf", "GGUF", "model.gguf", "llama.cpp"),
        ("epoch=1.ckpt", "x", "epoch=1.ckpt", "model.init_from"),
        ("model.safetensors", "x", "model.safetensors", "the folder that has config.json"),
        ("hf/config.json", "{}", "", "model.init_from="),
    ],
)
def test_what_is_no_checkpoint_is_told_apart(file: str, content: str, name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(content)
    path = f"{tmp_path}/{name}".rstrip("/")
    with pytest.raises(UserError, match=message):
        load_config(["task=finetune", "data=docs_topics", f"model.name_or_path='{path}'"])


def test_a_model_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=f"a folder of a model and not of a run; give model.name_or_path={tmp_path}"):
        load_config(["task=pretrain", f"model.init_from={tmp_path}"])


def test_an_adapter_is_told_apart_also_beside_a_config(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    (tmp_path / "adapter_model.safetensors").write_text("x")
    BertConfig(**SIZES).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="adapter for some/base"):
        load_config(["task=finetune", "data=docs_topics", f"model.name_or_path='{tmp_path}'"])


def test_a_tokenizer_of_special_tokens_alone_is_none(folder: Path) -> None:
    without_tokenizer(folder)
    with pytest.raises(UserError, match="no tokenizer files"):
        tokenizers.load(str(folder))
