"""Check where the weights come from, and the adapter."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

from llm_lightning.config import signatures
from llm_lightning.config.schema import (
    AdapterConfig,
    Config,
    expand_home,
)

OTHER_FORMATS = {
    ".gguf": "GGUF is llama.cpp's format of quantised weights; give the Hugging Face folder that it was made from",
    ".ckpt": "this is a training state; give the folder of a model, for a run of ours model.init_from=<run folder>",
    ".pth": "these are weights without a config; save the model with save_pretrained(<folder>)",
    ".pt": "these are weights without a config; save the model with save_pretrained(<folder>)",
    ".bin": "these are weights without their config; give the folder that has config.json",
    ".safetensors": "these are weights without their config; give the folder that has config.json",
    ".onnx": "ONNX files cannot be trained; give the Hugging Face folder that it was made from",
    ".h5": "these are TensorFlow's weights; give a folder with model.safetensors or pytorch_model.bin",
    ".msgpack": "these are Flax's weights; give a folder with model.safetensors or pytorch_model.bin",
}
"""Suffix of a file that people have for a model -> how to use it."""


def check_model(config: Config) -> Iterator[str]:
    model = config.model
    if model._target_ is not None:
        pass
    elif model.init_from and model.name_or_path:
        yield "model.init_from and model.name_or_path are both set: give one of them."
    elif model.init_from:
        folder = expand_home(model.init_from)
        if not (folder / "hf" / "config.json").is_file():
            is_model = (folder / "config.json").is_file()
            yield f"model.init_from={model.init_from}: " + (
                f"this is a folder of a model and not of a run; give model.name_or_path={model.init_from}."
                if is_model
                else "not a finished run (it has no hf/config.json); give a run folder such as runs/<date>/<time>-pretrain-docs-gpt_tiny."
            )
    elif model.name_or_path:
        yield from _checkpoint(model.name_or_path)
    elif not model.architecture:
        yield "model: one of model.architecture (from scratch), model.name_or_path or model.init_from is needed."
    yield from _adapter(config)
    encoding = signatures.constants(str(config.objective.get("_target_"))).get("encoding")
    if encoding != "translation" and (config.data.prefix is not None or any(vars(config.data.languages).values())):
        key = "data.prefix" if config.data.prefix is not None else "data.languages"
        yield f"{key}: only objective=translation has such a setting; leave it out."


def _checkpoint(name: str) -> Iterator[str]:
    """Yield the problem of a `model.name_or_path` that is a path, but no Hugging Face folder."""
    path, key = expand_home(name), f"model.name_or_path={name}"
    if path.is_file():
        yield f"{key}: {OTHER_FORMATS.get(path.suffix, 'this is a file; give the folder that has config.json')}."
    elif (path / "adapter_config.json").is_file() and not any(_has_weights(file) for file in path.iterdir()):
        base = (
            json.loads((path / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
            or "its base model"
        )
        yield (
            f"{key}: this is an adapter for {base}, without that model's weights. Merge the two (peft's merge_and_unload, then "
            f"save_pretrained) and give that folder; the hf/ folder of a run of ours is merged already."
        )
    elif path.is_dir() and not (path / "config.json").is_file():
        if (path / "hf" / "config.json").is_file():
            yield f"{key}: this is a run of ours; give model.init_from={name}."
            return
        endings = {file.suffix for file in path.iterdir()} & {".gguf", ".ckpt", ".pth", ".pt", ".onnx", ".msgpack", ".h5"}
        reason = f" ({OTHER_FORMATS[min(endings)]})" if endings else ""
        yield f"{key}: the folder has no config.json{reason}; give a Hugging Face folder or a hub name."
    elif not path.is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        yield f"{key}: the folder does not exist; give a Hugging Face folder or a hub name."


def _has_weights(file: Path) -> bool:
    """Return whether a file of a folder holds weights of a model, or lists them, and not those of an adapter."""
    return file.name.startswith(("model", "pytorch_model")) and any(kind in file.name for kind in (".safetensors", ".bin"))


def _adapter(config: Config) -> Iterator[str]:
    adapter = config.model.adapter
    if adapter.kind == "none":
        if changed := [key for key, value in vars(adapter).items() if value != getattr(AdapterConfig(), key)]:
            yield f"model.adapter.{changed[0]}: there is no adapter; choose model/adapter=lora."
        return
    if not (config.model.name_or_path or config.model.init_from):
        yield (
            f"model/adapter={adapter.kind}: weights from scratch have to be trained themselves; give model.name_or_path or "
            f"model.init_from."
        )
    if config.trainer.precision == "fp8":
        yield "trainer.precision=fp8: not together with an adapter, whose matrices are too narrow; use bf16-mixed."
    if adapter.quantize and adapter.kind == "dora":
        yield "model.adapter.quantize: with lora only; choose model/adapter=qlora."
    if adapter.quantize and importlib.util.find_spec("bitsandbytes") is None:
        yield "model.adapter.quantize: needs bitsandbytes; pip install 'llm_lightning[qlora]'."
