"""Hugging Face models: from scratch by a preset, from a checkpoint by name or folder, or from a run of ours."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedModel

from llm_lightning.config import ModelConfig
from llm_lightning.data import tokenizers
from llm_lightning.errors import UserError, listed, nearest
from llm_lightning.models import adapter, dropout, embedding
from llm_lightning.models.flat_check import use_flat_batches

log = logging.getLogger(__name__)


def checkpoint(config: ModelConfig) -> str | None:
    """The folder or hub name that weights and tokenizer come from; None from scratch."""
    if config.init_from:
        return str(Path(config.init_from).expanduser() / "hf")
    if config.name_or_path:
        path = Path(config.name_or_path).expanduser()
        return str(path) if path.is_dir() else config.name_or_path
    return None


def tokenizer(config: ModelConfig) -> Any | None:
    """The tokenizer of the checkpoint; None where there is no checkpoint and one has to be trained."""
    origin = checkpoint(config)
    return None if origin is None else tokenizers.load(origin, config.trust_remote_code)


def build(
    config: ModelConfig, auto_class: str, tokenizer: Any, longest: int, head: dict[str, Any] | None = None
) -> PreTrainedModel:
    """The model with the head that `auto_class` (`AutoModelFor…`) gives it, in fp32.

    `longest` is the longest input in tokens; `head` goes into the model's config, label names above all, and so into every export.
    Raises UserError where the checkpoint cannot be loaded, does not have such a head, or is too short for the data.
    """
    settings = head or {}
    auto = getattr(transformers, auto_class)
    origin = checkpoint(config)
    model_config = _loaded_config(config, origin, settings) if origin else _new_config(config, tokenizer, settings)
    _check_length(model_config, longest)
    _limit_tokenizer(tokenizer, model_config)
    model_config.pad_token_id = tokenizer.pad_token_id  # decoder classifiers find the last real token by it
    if type(model_config) not in auto._model_mapping and auto_class not in getattr(model_config, "auto_map", {}):
        raise UserError(f"model type '{model_config.model_type}' has no {auto_class} head: choose another model or objective.")
    if origin is None:
        try:
            return _trained(config, auto.from_config(model_config), [])
        except (ValueError, TypeError, RuntimeError) as error:
            raise UserError(f"model.config: {str(error).splitlines()[0]}.") from error
    with quiet_transformers():
        try:
            model, info = auto.from_pretrained(
                origin,
                config=model_config,
                trust_remote_code=config.trust_remote_code,
                dtype="float32",
                ignore_mismatched_sizes=True,  # a head for other labels is a new head
                output_loading_info=True,
                **_quantized(config, auto, model_config),
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise UserError(tokenizers.unreachable(origin, error)) from error
    new = _check_weights(model, info, origin)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} entries, and the model {model.get_input_embeddings().num_embeddings}: "
            f"they do not belong together."
        )
    return _trained(config, model.train(), new)  # from_pretrained leaves dropout off, and Lightning keeps what it finds


def classes(names: tuple[str, ...]) -> dict[str, Any]:
    """What a model's config says of the classes that its head tells apart."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


def reload(folder: Path | str, auto_class: str, trust_remote_code: bool) -> PreTrainedModel:
    """The model as it was exported to a folder."""
    with quiet_transformers():
        try:
            auto = getattr(transformers, auto_class)
            return _quick(auto.from_pretrained(folder, dtype="float32", trust_remote_code=trust_remote_code))
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise UserError(f"{folder}: the weights cannot be loaded ({str(error).splitlines()[0]}).") from error


def _trained(config: ModelConfig, model: PreTrainedModel, new: list[str]) -> PreTrainedModel:
    """The model with what is trained of it."""
    if config.adapter.kind != "none":
        adapter.add(model, config.adapter, new)
    adapter.freeze(model, config.freeze)
    return _quick(model)


def _quantized(config: ModelConfig, auto: Any, model_config: Any) -> dict[str, Any]:
    """How from_pretrained is to keep the weights, where not in fp32; a head that is trained stays as it is."""
    if config.adapter.quantize is None:
        return {}
    with torch.device("meta"):
        head = adapter.head(auto.from_config(model_config))
    four_bits = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=config.adapter.quantize,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=[*head, "pooler"] if head else None,  # None: all but the head of a language model
    )
    return {"quantization_config": four_bits}


def _quick(model: PreTrainedModel) -> PreTrainedModel:
    """The same model, on batches without padding where it can be."""
    dropout.replace(model)
    embedding.replace(model)
    return use_flat_batches(model)


def _loaded_config(config: ModelConfig, origin: str, settings: dict[str, Any]) -> Any:
    try:
        return AutoConfig.from_pretrained(origin, trust_remote_code=config.trust_remote_code, **settings)
    except (OSError, ValueError) as error:
        raise UserError(tokenizers.unreachable(origin, error)) from error


def _check_weights(model: PreTrainedModel, info: dict[str, Any], origin: str) -> list[str]:
    """Say which weights are new; only a head's may be. Raises UserError where the transformer itself has weights missing."""
    new = sorted({*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])})
    body = f"{model.base_model_prefix}."
    missing = [name for name in new if name.startswith(body) and "pooler" not in name]
    if missing:
        raise UserError(
            f"{origin}: {len(missing)} weights of the transformer are missing or of another size (first: {missing[0]}); this is not "
            f"a checkpoint of a {model.config.model_type} model of this configuration."
        )
    if new:
        log.info("model: new weights, not in the checkpoint: %s", listed(new, 6))
    return new


def _new_config(config: ModelConfig, tokenizer: Any, settings: dict[str, Any]) -> Any:
    architecture = str(config.architecture)
    if architecture not in CONFIG_MAPPING:
        hint = nearest(architecture, CONFIG_MAPPING)
        raise UserError(f"model.architecture={architecture}: transformers has no such model type.{hint}")
    known = AutoConfig.for_model(architecture)
    for key in config.config:
        if key == "vocab_size":
            raise UserError("model.config.vocab_size: the tokenizer says how many there are; set model.tokenizer.vocab_size.")
        if not hasattr(known, key):
            names = [*known.to_dict(), *known.attribute_map]
            raise UserError(f"model.config.{key}: {config.architecture} has no such setting.{nearest(key, names)}")
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    if known.is_encoder_decoder:
        special |= {"decoder_start_token_id": tokenizer.pad_token_id, "forced_eos_token_id": tokenizer.eos_token_id}
    try:
        return AutoConfig.for_model(str(config.architecture), vocab_size=len(tokenizer), **special, **config.config, **settings)
    except (ValueError, TypeError) as error:
        raise UserError(f"model.architecture={config.architecture}: {str(error).splitlines()[0][:300]}") from error


def _positions(model_config: Any) -> int | None:
    """The longest sequence in tokens, where the architecture has a limit."""
    limit = getattr(model_config, "max_position_embeddings", None)  # GPT-2 maps n_positions to this name
    if limit is not None and model_config.model_type in ("roberta", "xlm-roberta", "camembert"):
        return int(limit) - model_config.pad_token_id - 1  # their positions start behind the padding's
    return limit


def _limit_tokenizer(tokenizer: Any, model_config: Any) -> None:
    """A tokenizer that was trained here learns the model's limit, so that an export cuts longer texts."""
    limit = _positions(model_config)
    if limit is not None and tokenizer.model_max_length > limit:
        tokenizer.model_max_length = limit


def _check_length(model_config: Any, longest: int) -> None:
    limit = _positions(model_config)
    if limit is not None and longest > limit:
        raise UserError(
            f"data.block_size: there are sequences of {longest} tokens, and the model has {limit} positions; "
            f"set data.block_size={limit}."
        )


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' progress bars and its report of new and unused weights: a new head is what was asked for."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        transformers.logging.enable_progress_bar()
