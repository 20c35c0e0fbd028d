"""Low-rank adapters (LoRA, Hu et al. 2022; DoRA, Liu et al. 2024) by `peft`, added to an otherwise unchanged Hugging Face model.

Beside the adapter, new modules are trained in full: a head, or a pooler that the checkpoint does not have.
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
from llm_lightning.models import low_rank
from llm_lightning.models.layers import layers

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""Before the names of the model's parameters in a peft folder."""


def add(model: PreTrainedModel, config: AdapterConfig, new: list[str]) -> None:
    """Add an adapter to the model. Only the adapter, the head, and a pooler among `new` (weights not in the checkpoint) are trained.

    Raises UserError if `config.targets` names no linear layer.
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
        warnings.simplefilter("ignore")  # about settings that peft then corrects itself
        peft.get_peft_model(model, settings)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # a head comes in the type of a bf16 checkpoint
    low_rank.replace(model)


def state(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the trained weights, complete on rank 0. Call it on every rank."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    trained: Any = get_model_state_dict(model, options=options)
    return trained


def save(model: PreTrainedModel, trained: dict[str, Tensor], origin: str, folder: Path) -> None:
    """Write the trained weights as a peft folder, which names their base checkpoint."""
    state: dict[str, Tensor] = peft.get_peft_model_state_dict(model, state_dict=trained)
    save_file({f"{PREFIX}{name}": tensor.contiguous() for name, tensor in state.items()}, folder / WEIGHTS)
    settings: Any = model.peft_config["default"]
    settings.base_model_name_or_path = str(Path(origin).resolve()) if Path(origin).is_dir() else origin
    settings.inference_mode = True
    settings.save_pretrained(folder)
    settings.inference_mode = False
    config = copy.deepcopy(model.config)
    config.__dict__.pop("quantization_config", None)  # it describes the base weights, which are not in the folder
    config.save_pretrained(folder)  # it has the names of the classes


def merge_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Return a model without an adapter, with the weights of a peft folder merged into its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged: PreTrainedModel = peft.PeftModel.from_pretrained(model, folder).merge_and_unload()
    merged.config = type(model.config).from_pretrained(folder)
    return merged


def freeze(model: PreTrainedModel, patterns: list[str]) -> None:
    """Freeze the parameters whose names match a pattern. Raises UserError for a pattern without a match."""
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
    """Return the names of the linear layers inside the transformer's layers, or of all linear layers whose names have these endings."""
    inside = {id(module) for layer in layers(model) for module in layer.modules()}
    linear = {name: id(module) in inside for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    if endings is None:
        return [name for name, in_layer in linear.items() if in_layer]
    names: list[str] = []
    for ending in endings:
        matching = [name for name in linear if f".{name}".endswith(f".{ending}")]
        if not matching:
            last_names = dict.fromkeys(name.rpartition(".")[2] for name in linear)
            raise UserError(
                f"model.adapter.targets: no linear layer's name ends in '{ending}'; there are {join_names(last_names)}."
            )
        names += matching
    return names


def head(model: PreTrainedModel) -> list[str]:
    """Return the names of the modules on top of the transformer; [] for a language model, whose head belongs to the checkpoint."""
    if model.get_output_embeddings() is not None:
        return []
    return [
        name for name, child in model.named_children() if child is not model.base_model and any(True for _ in child.parameters())
    ]
