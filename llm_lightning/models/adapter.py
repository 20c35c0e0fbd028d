"""Low-rank adapters (LoRA, Hu et al. 2022; DoRA, Liu et al. 2024) by `peft`, put into a Hugging Face model that stays what it is.

Beside the adapter, whatever is new is trained as it is: a head, a pooler that the checkpoint does not have.
"""

from __future__ import annotations

import copy
import warnings
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import peft
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llm_lightning.config.schema import AdapterConfig
from llm_lightning.errors import UserError, join_names
from llm_lightning.models.layers import layers

WEIGHTS = "adapter_model.safetensors"


def add(model: PreTrainedModel, config: AdapterConfig, new: list[str]) -> None:
    """Put an adapter into the model; nothing else is trained but its head and the weights named in `new`, which are no checkpoint's.

    Raises UserError where `config.targets` names no linear layer.
    """
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        use_dora=config.kind == "dora",
        target_modules=_targets(model, config.targets),
        modules_to_save=[*head(model), *dict.fromkeys(name.rpartition(".")[0] for name in new if "pooler" in name)],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of settings that peft then corrects by itself
        peft.get_peft_model(model, settings)


def state(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights that are trained, whole on rank 0. To be called on every rank."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    trained: Any = get_model_state_dict(model, options=options)
    return trained


def save(model: PreTrainedModel, trained: dict[str, Tensor], origin: str, folder: Path) -> None:
    """Write the trained weights as a peft folder, which names the checkpoint that they are for."""
    state: dict[str, Tensor] = peft.get_peft_model_state_dict(model, state_dict=trained)
    save_file({f"base_model.model.{name}": tensor.contiguous() for name, tensor in state.items()}, folder / WEIGHTS)
    settings: Any = model.peft_config["default"]
    settings.base_model_name_or_path = str(Path(origin).resolve()) if Path(origin).is_dir() else origin
    settings.inference_mode = True
    settings.save_pretrained(folder)
    settings.inference_mode = False
    config = copy.deepcopy(model.config)
    config.__dict__.pop("quantization_config", None)  # of the weights below, which are not here
    config.save_pretrained(folder)  # what the head is for


def merge_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The model, without an adapter until now, with the weights that a peft folder adds to its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole: PreTrainedModel = peft.PeftModel.from_pretrained(model, folder).merge_and_unload()
    whole.config = type(model.config).from_pretrained(folder)
    return whole


def freeze(model: PreTrainedModel, patterns: list[str]) -> None:
    """Leave parameters untrained whose names match. Raises UserError for a pattern that matches none."""
    names = dict(model.named_parameters())
    for pattern in patterns:
        matching = [name for name in names if fnmatchcase(name, pattern)]
        if not matching:
            raise UserError(f"model.freeze: no parameter matches '{pattern}'; there are {join_names(names, 8)}.")
        for name in matching:
            names[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"model.freeze={patterns}: nothing is left to train.")


def _targets(model: PreTrainedModel, endings: list[str] | None) -> list[str]:
    """Names of the linear layers inside the transformer's layers, or of all whose names end so."""
    inside = {id(module) for layer in layers(model) for module in layer.modules()}
    linear = {name: id(module) in inside for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    if endings is None:
        return [name for name, in_layer in linear.items() if in_layer]
    found: list[str] = []
    for ending in endings:
        matching = [name for name in linear if f".{name}".endswith(f".{ending}")]
        if not matching:
            there = dict.fromkeys(name.rpartition(".")[2] for name in linear)
            raise UserError(f"model.adapter.targets: no linear layer's name ends in '{ending}'; there are {join_names(there)}.")
        found += matching
    return found


def head(model: PreTrainedModel) -> list[str]:
    """The modules on top of the transformer; the head of a language model is the checkpoint's own and stays as it is."""
    if model.get_output_embeddings() is not None:
        return []
    return [
        name for name, child in model.named_children() if child is not model.base_model and any(True for _ in child.parameters())
    ]
