"""Compose the config of a run from `conf/` and overrides, by Hydra: for the command line, for Python, and as the defaults of a task."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from llm_lightning.config import schema, validation
from llm_lightning.config.messages import OF_HYDRA, explain, is_from_hydra, unknown_key
from llm_lightning.config.model_settings import resolve_settings
from llm_lightning.config.overrides import quote_overrides
from llm_lightning.config.saved_runs import STORED, load_saved_config
from llm_lightning.config.schema import CONF, CallbacksConfig, Config, child_sections, plain, to_dataclass
from llm_lightning.errors import RunError, UserError


def register_schema() -> None:
    """Register the schema, and the resolvers that files of conf/ use, with Hydra."""
    ConfigStore.instance().store(name="schema", node=schema.schema())
    OmegaConf.register_new_resolver("unless_pretrained", _unless_pretrained, replace=True)
    OmegaConf.register_new_resolver("json", json.loads, replace=True)  # for mappings whose keys Hydra's grammar does not accept


def _unless_pretrained(fresh: float, pretrained: float, *, _root_: DictConfig) -> float:
    """Return `fresh` for a model from scratch, else `pretrained`: the learning rate of the former would ruin pretrained weights."""
    return fresh if _root_.model.name_or_path is None else pretrained


def load_config(overrides: list[str]) -> Config:
    """Return the checked config of a command line, for use from Python: `load_config(["task=finetune", "data=sst2"])`.

    Raises UserError if the command line is wrong.
    """
    register_schema()
    overrides = quote_overrides(overrides)
    outer = GlobalHydra.instance().hydra  # set inside a sweep, which loads the configs of its jobs
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
            node = hydra.compose("config", overrides, return_hydra_config=True)
            choices = dict(node.hydra.runtime.choices)
            OmegaConf.set_struct(node, False)
            del node["hydra"]
            if node.task in STORED:
                return load_saved_config(node.task, node.run, overrides)
            chosen = build_config(node, choices, overrides)
    except Exception as error:
        if isinstance(error, RunError) or not (isinstance(error, OF_HYDRA) or is_from_hydra(error)):
            raise
        raise UserError(explain(error, in_shell=False)) from error
    finally:
        GlobalHydra.instance().hydra = outer
    validation.check(chosen)
    return chosen


def build_config(node: DictConfig, choices: dict[str, str], overrides: list[str]) -> Config:
    """Return the node as typed dataclasses, with the fields that the program fills in, and without settings of another model."""
    OmegaConf.set_struct(node, False)
    node.model.config, node.model.family = resolve_settings(GlobalHydra.instance().config_loader(), "config", overrides)
    _gather_callbacks(node.callbacks)
    for key in _unknown_keys(node):
        raise UserError(unknown_key(key))
    node.choices = _own_choices(choices)
    node.command = shlex.join(["python", *sys.argv]) if sys.argv[0].endswith(".py") else shlex.join(sys.argv)
    return to_dataclass(node)


def _own_choices(choices: Mapping[str, str]) -> dict[str, str]:
    """Return the chosen options without those of Hydra's own groups."""
    return {group: option for group, option in choices.items() if not group.startswith("hydra/") and option}


def _gather_callbacks(node: DictConfig) -> None:
    """Move the callbacks that a command line or an option names beside our settings into `callbacks.custom`."""
    settings = {field.name for field in fields(CallbacksConfig)}
    for name in [str(name) for name in node if name not in settings]:
        if OmegaConf.is_dict(node[name]) and "_target_" in node[name]:
            node.custom[name] = node.pop(name)


def _unknown_keys(node: DictConfig, prefix: str = "") -> Iterator[str]:
    """Yield the keys that `+key=value` has added and the schema does not have."""
    kind: Any = OmegaConf.get_type(node)
    field_names = {field.name for field in fields(kind)} if is_dataclass(kind) else None
    sections = dict(child_sections(node))
    for name in map(str, node):
        if field_names is not None and name not in field_names:
            yield f"{prefix}{name}"
        elif name in sections:
            yield from _unknown_keys(sections[name], f"{prefix}{name}.")


def default_config(task: str) -> dict[str, Any]:
    """Return the config of `task=<task>`; inside a run of Hydra's, its composer is used."""
    if GlobalHydra.instance().is_initialized():
        node = hydra.compose("config", [f"task={task}"], return_hydra_config=True)
    else:
        register_schema()
        with hydra.initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
            node = hydra.compose("config", [f"task={task}"], return_hydra_config=True)
    return _complete(node)


def _complete(node: DictConfig) -> dict[str, Any]:
    choices = node.hydra.runtime.choices
    OmegaConf.set_struct(node, False)
    node.choices = _own_choices(choices)
    del node["hydra"]
    return plain(to_dataclass(node))
