"""Select the settings of `model.config` that apply: those for the run's architecture or checkpoint, not for another one.

Presets, recipes and the command line may each name an architecture (or a checkpoint) and settings for it. They are merged in Hydra's
order; a layer that names another architecture starts with no settings. Two names of one setting (`n_layer` and `num_hidden_layers` of
GPT-2) replace each other. Nothing here imports transformers: its `attribute_map` is read from source.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from llm_lightning.config.layers import OptionFile
from llm_lightning.errors import UserError

ORIGINS = ("init_from", "name_or_path", "architecture")
"""Keys of the origin of the weights; if a config sets several, the first applies."""


@dataclass
class Layer:
    """The model's settings in one option file, or on the command line."""

    name: str
    origins: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    """Settings that the command line deletes: `~model.config.n_layer`."""
    names_family: bool = False
    family: str | None = None


def resolve_settings(files: list[OptionFile], overrides: list[Override]) -> tuple[dict[str, Any], str | None]:
    """Return `model.config` and `model.family` of the option files and the overrides of a command line.

    Raises UserError if it names a setting twice, or both an architecture and a checkpoint.
    """
    return merge_layers([*map(_read_file, files), _read_overrides(overrides)])


def merge_layers(layers: list[Layer]) -> tuple[dict[str, Any], str | None]:
    """Return the settings and the family that result from all layers; the last layer is the command line."""
    origins: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    family: str | None = None
    for layer in layers:
        changed = {**origins, **layer.origins}
        before, after = _origin(origins), _origin(changed)
        if layer is layers[-1]:
            _require_effect(layer, changed, after)
        if before is not None and after != before:
            settings = {}
            family = family if after is None or after[0] != "architecture" else None
        family = layer.family if layer.names_family else family
        origins, names = changed, _names(after)
        values: dict[str, tuple[str, Any]] = {}
        for key, value in layer.settings.items():
            other, equal = values.setdefault(names.get(key, key), (key, value))
            if equal != value:
                raise UserError(
                    f"model.config.{other}={equal} and model.config.{key}={value} are two names of one setting; give one of them."
                )
        replaced = {key for key in settings if names.get(key, key) in values and key not in layer.settings}
        settings = _merge({key: settings[key] for key in settings if key not in replaced | layer.deleted}, layer.settings)
    return settings, family


def _require_effect(layer: Layer, origins: dict[str, Any], origin: tuple[str, Any] | None) -> None:
    """Raise UserError if the command line names an architecture, but a checkpoint is loaded instead."""
    architecture = layer.origins.get("architecture")
    if architecture is not None and origin is not None and origin[0] != "architecture":
        raise UserError(
            f"model.architecture={architecture}: model.{origin[0]}={origin[1]} is loaded, whose architecture is its own; leave one of "
            f"the two out (model.{origin[0]}=null trains from scratch)."
        )


def _origin(origins: dict[str, Any]) -> tuple[str, Any] | None:
    return next(((key, origins[key]) for key in ORIGINS if origins.get(key) is not None), None)


def _names(origin: tuple[str, Any] | None) -> dict[str, str]:
    return attribute_map(str(origin[1])) if origin is not None and origin[0] == "architecture" else {}


def _merge(settings: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    merged: dict[str, Any] = OmegaConf.to_container(OmegaConf.merge(settings, more), resolve=False)  # type: ignore[assignment]
    return merged


def _read_file(file: OptionFile) -> Layer:
    model = OmegaConf.select(file.settings, "model")
    if not isinstance(model, DictConfig):
        return Layer(file.path)
    model = OmegaConf.to_container(model, resolve=False)
    assert isinstance(model, dict)
    origins = {key: model[key] for key in ORIGINS if model.get(key) is not None}
    return Layer(file.path, origins, model.get("config") or {}, names_family="family" in model, family=model.get("family"))


def _read_overrides(overrides: list[Override]) -> Layer:
    layer = Layer("the command line")
    for override in overrides:
        key = override.key_or_group
        name = key.removeprefix("model.")
        if name in ORIGINS:
            layer.origins[name] = None if override.is_delete() else override.value()
        elif name == "family":
            value = override.value()
            layer.names_family, layer.family = True, None if value is None or override.is_delete() else str(value)
        if key != "model.config" and not key.startswith("model.config."):
            continue
        path = key.removeprefix("model.config").removeprefix(".")
        node = OmegaConf.create(layer.settings)
        if override.is_delete():
            layer.deleted.add(path)
            layer.settings.pop(path, None)
            continue
        value = override.value()
        if path:
            OmegaConf.update(node, path, value, force_add=True)
        elif value is not None:
            node.merge_with(value)
        layer.settings = OmegaConf.to_container(node, resolve=False)  # type: ignore[assignment]
    return layer


@cache
def attribute_map(architecture: str) -> dict[str, str]:
    """Return alias -> name in the config class for the settings of a model type, `num_hidden_layers` -> `n_layer`."""
    spec = find_spec("transformers")
    folder = Path(str(spec.origin)).parent / "models" / architecture.replace("-", "_") if spec is not None else None
    names: dict[str, str] = {}
    for file in sorted(folder.glob("configuration_*.py")) if folder is not None else []:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target if isinstance(node, ast.AnnAssign) else None
            if isinstance(target, ast.Name) and target.id == "attribute_map":
                names |= ast.literal_eval(node.value)  # type: ignore[attr-defined]
    return names
