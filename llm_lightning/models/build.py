"""Build Hugging Face models: from scratch by a preset, from a checkpoint by name or folder, or from an earlier run."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedModel

from llm_lightning.config.schema import ModelConfig, expand_home
from llm_lightning.config.targets import import_target, instantiate
from llm_lightning.data import tokenizers
from llm_lightning.errors import UserError, first_line, join_names, nearest
from llm_lightning.models import adapter, dropout, embedding, temperature
from llm_lightning.models import head as head_rows
from llm_lightning.models.flat_check import use_flat_batches
from llm_lightning.models.forward import head_reads_last_place
from llm_lightning.models.positions import count_positions
from llm_lightning.models.settings import check_settings

log = logging.getLogger(__name__)


def pretrained_origin(config: ModelConfig) -> str | None:
    """Return the folder or hub name of weights and tokenizer; None from scratch."""
    if config.init_from:
        return str(expand_home(config.init_from) / "hf")
    if config.name_or_path:
        path = expand_home(config.name_or_path)
        return str(path) if path.is_dir() else config.name_or_path
    return None


def tokenizer(config: ModelConfig) -> Any | None:
    """Return the tokenizer of the checkpoint; None without a checkpoint, where a tokenizer must be trained."""
    origin = pretrained_origin(config)
    return None if origin is None else tokenizers.load(origin, config.trust_remote_code)


def build_model(
    config: ModelConfig, auto_class: str, tokenizer: Any, longest: int, head: dict[str, Any] | None = None, bf16: bool = False
) -> PreTrainedModel:
    """Build the model with the head of `auto_class` (`AutoModelFor…`), in fp32.

    `longest` is the longest input in tokens; `head` holds entries of the model's config, such as label names, which every export has.
    `bf16`: whether the run computes in bf16; frozen weights under an adapter are then read as such from a checkpoint that has them so.
    Raises UserError if the checkpoint cannot be loaded, has no such head, or has too few positions for the data.
    """
    settings = head or {}
    if config._target_ is not None:
        return _call_builder(config, auto_class, tokenizer, longest, settings)
    auto = getattr(transformers, auto_class)
    origin = pretrained_origin(config)
    model_config = _load_config(config, origin, settings) if origin else _new_config(config, tokenizer, settings)
    _check_end(model_config, auto_class, tokenizer)
    model_config.pad_token_id = tokenizer.pad_token_id  # decoder classifiers use it to find the last real token
    # private; read in transformers 5.23
    if type(model_config) not in auto._model_mapping and auto_class not in getattr(model_config, "auto_map", {}):
        raise UserError(f"model type '{model_config.model_type}' has no {auto_class} head: choose another model or objective.")
    if origin is None:
        try:
            model = auto.from_config(model_config)
        except Exception as error:  # any error of a model's code for settings that do not fit together
            raise UserError(f"model.config: {first_line(error)}.") from error
        _limit_length(model, tokenizer, longest)
        return _choose_trained(config, model, [])
    with quiet_transformers():
        try:
            model, info = auto.from_pretrained(
                origin,
                config=model_config,
                trust_remote_code=config.trust_remote_code,
                dtype=_choose_dtype(config, model_config, bf16),
                ignore_mismatched_sizes=True,  # a head for other labels is a new head
                output_loading_info=True,
                **_quantization_settings(config, auto, model_config),
            )
        except Exception as error:  # a checkpoint's own code, damaged files, missing packages: each has its own exceptions
            raise UserError(tokenizers.unreachable(origin, error)) from error
    new = _check_weights(model, info, origin)
    if "id2label" in settings:
        before = _load_config(config, origin, {}).id2label
        new += head_rows.fit_rows(model, before, list(settings["id2label"].values()), new)
    rows = embedding.count_rows(model)
    if rows is not None and len(tokenizer) > rows:
        raise UserError(f"the tokenizer has {len(tokenizer)} entries, and the model {rows}: they do not belong together.")
    _limit_length(model, tokenizer, longest)
    return _choose_trained(config, model.train(), new)  # from_pretrained leaves dropout off, and Lightning does not change the mode


def _call_builder(config: ModelConfig, auto_class: str, tokenizer: Any, longest: int, settings: dict[str, Any]) -> PreTrainedModel:
    """Build the model by the function of another package that `model._target_` names."""
    target = {"_target_": config._target_, **config.arguments}
    model = instantiate("model", target, config, auto_class, tokenizer, longest, settings)
    if not isinstance(model, PreTrainedModel):
        raise UserError(f"model: {config._target_} returns a {type(model).__name__}, no transformers.PreTrainedModel.")
    for name, value in ({"pad_token_id": tokenizer.pad_token_id} | settings).items():
        setattr(model.config, name, value)
    _limit_length(model, tokenizer, longest)
    return _choose_trained(config, model.train(), [])


def classes(names: tuple[str, ...]) -> dict[str, Any]:
    """Return the entries of a model's config for the classes of its head."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


def build_empty(settings: dict[str, Any], auto_class: str) -> PreTrainedModel:
    """Build a model with new weights from the entries of its config, for the weights of a checkpoint."""
    model_config = AutoConfig.for_model(**settings)
    return _quick(getattr(transformers, auto_class).from_config(model_config))


def register_classes(config: ModelConfig) -> None:
    """Import the module of a builder of another package, which registers classes of its own with transformers."""
    if config._target_ is not None:
        import_target(config._target_)


def reload(folder: Path | str, auto_class: str, config: ModelConfig) -> PreTrainedModel:
    """Load a model from the folder that it was exported to."""
    register_classes(config)
    with quiet_transformers():
        try:
            auto = getattr(transformers, auto_class)
            return _quick(auto.from_pretrained(folder, dtype="float32", trust_remote_code=config.trust_remote_code))
        except Exception as error:
            raise UserError(f"{folder}: the weights cannot be loaded ({first_line(error)}).") from error


def _choose_dtype(config: ModelConfig, model_config: Any, bf16: bool) -> torch.dtype:
    """Return the type that weights are read in: bf16 where they are frozen in it, which takes half the memory, else fp32."""
    has_frozen_base = config.adapter.kind != "none" and config.adapter.quantize is None
    return torch.bfloat16 if bf16 and has_frozen_base and model_config.dtype == torch.bfloat16 else torch.float32


def _choose_trained(config: ModelConfig, model: PreTrainedModel, new: list[str]) -> PreTrainedModel:
    """Return the model with an adapter, if configured, and with frozen weights."""
    if config.adapter.kind != "none":
        adapter.add(model, config.adapter, new)
    adapter.freeze(model, config.freeze)
    return _quick(model)


def _quantization_settings(config: ModelConfig, auto: Any, model_config: Any) -> dict[str, Any]:
    """Return from_pretrained's arguments for quantized weights; {} for fp32. A trained head is not quantized."""
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
    """Return the same model with fast dropout and embeddings, on batches without padding if its kind takes them."""
    dropout.replace(model)
    embedding.replace(model)
    return use_flat_batches(model)


def _load_config(config: ModelConfig, origin: str, settings: dict[str, Any]) -> Any:
    if config.config:
        log.warning(
            "model.config (%s) is for models from scratch: the checkpoint's own settings hold", join_names(config.config, 6)
        )
    try:
        model_config = AutoConfig.from_pretrained(origin, trust_remote_code=config.trust_remote_code, **settings)
        model_config.__dict__.pop(temperature.ENTRY, None)  # training makes other logits of its weights
        return model_config
    except Exception as error:
        raise UserError(tokenizers.unreachable(origin, error)) from error


def _check_weights(model: PreTrainedModel, info: dict[str, Any], origin: str) -> list[str]:
    """Return and log the new weights; only a head may have any. Raises UserError if weights of the transformer are missing."""
    new = sorted({*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])})
    body = f"{model.base_model_prefix}."
    missing = [name for name in new if name.startswith(body) and "pooler" not in name]
    if missing:
        raise UserError(
            f"{origin}: {len(missing)} weights of the transformer are missing or of another size (first: {missing[0]}); this is not "
            f"a checkpoint of a {model.config.model_type} model of this configuration."
        )
    if new:
        log.info("model: new weights, not in the checkpoint: %s", join_names(new, 6))
    return new


def _new_config(config: ModelConfig, tokenizer: Any, settings: dict[str, Any]) -> Any:
    architecture = str(config.architecture)
    if architecture not in CONFIG_MAPPING:
        hint = nearest(architecture, CONFIG_MAPPING)
        raise UserError(f"model.architecture={architecture}: transformers has no such model type.{hint}")
    default = AutoConfig.for_model(architecture)
    check_settings(default, config.config)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    if default.is_encoder_decoder:
        special["eos_token_id"] = _end(tokenizer)
        special |= {"decoder_start_token_id": tokenizer.pad_token_id, "forced_eos_token_id": special["eos_token_id"]}
    try:
        return AutoConfig.for_model(str(config.architecture), vocab_size=len(tokenizer), **special, **config.config, **settings)
    except Exception as error:
        raise UserError(f"model.architecture={config.architecture}: {first_line(error)}") from error


def _end(tokenizer: Any) -> int | None:
    """Return the token that ends a text: the end-of-text token, or else [SEP]."""
    end: int | None = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    return end


def _check_end(model_config: Any, auto_class: str, tokenizer: Any) -> None:
    """Raise UserError if an encoder-decoder reads the class at an end-of-text token that the tokenizer does not write."""
    if not (model_config.is_encoder_decoder and auto_class == "AutoModelForSequenceClassification"):
        return
    if model_config.eos_token_id is None or model_config.eos_token_id not in tokenizer("text")["input_ids"]:
        raise UserError(
            f"model type '{model_config.model_type}' reads the class of a text at its end-of-text token, which the tokenizer does not put "
            f"there; choose another model, or where it is trained from scratch model.tokenizer.kind=wordpiece."
        )


def _limit_length(model: PreTrainedModel, tokenizer: Any, longest: int) -> None:
    """Raise UserError if the data is longer than the model's positions.

    The tokenizer gets the limit, so that an export cuts longer texts, and the side on which the model is padded.
    """
    if head_reads_last_place(model):
        tokenizer.padding_side = "left"
    limit = count_positions(model)
    if limit is None:
        return
    if longest > limit:
        raise UserError(
            f"data.block_size: there are sequences of {longest} tokens, and the model has {limit} positions; "
            f"set data.block_size={limit}."
        )
    tokenizer.model_max_length = min(tokenizer.model_max_length, limit)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide transformers' progress bars and its report of new and unused weights, as a new head is intended."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        transformers.logging.enable_progress_bar()
