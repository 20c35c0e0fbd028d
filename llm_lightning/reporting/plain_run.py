"""What a run has different from the plainest run of its task: `python train.py task=<task>` and nothing else."""

from __future__ import annotations

from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from llm_lightning.config import CONF, flat, plain, typed

OF_THE_PLACE = {"run_dir", "resume", "command", "cache_dir", "debug", "run", "data.column_names"}
"""Settings that say where and how often, and not what."""


def differences(config: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, the run's value, the plain run's value) of every setting that is not the same, groups first."""
    own, usual = flat(config), flat(plain_run(config["task"]))
    keys = [key for key in own if key not in OF_THE_PLACE and own[key] != usual.get(key)]
    keys.sort(key=lambda key: not key.startswith("choices."))
    return [(key.removeprefix("choices."), own[key], usual.get(key)) for key in keys]


def plain_run(task: str) -> dict[str, Any]:
    """The config of `task=<task>`; inside a run of Hydra's it is composed by that."""
    if GlobalHydra.instance().is_initialized():
        node = hydra.compose("config", [f"task={task}"], return_hydra_config=True)
    else:
        from llm_lightning.cli import register

        register()
        with hydra.initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
            node = hydra.compose("config", [f"task={task}"], return_hydra_config=True)
    return _filled(node)


def _filled(node: DictConfig) -> dict[str, Any]:
    choices = node.hydra.runtime.choices
    OmegaConf.set_struct(node, False)
    node.choices = {group: option for group, option in choices.items() if not group.startswith("hydra/") and option}
    del node["hydra"]
    return plain(typed(node))
