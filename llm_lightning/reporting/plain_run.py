"""What a run has different from the plainest run of its task: `python train.py task=<task>` and nothing else."""

from __future__ import annotations

from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from llm_lightning.config.schema import CONF, flat, plain, typed
from llm_lightning.runs.identity import LISTED, select


def differences(config: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return (key, the run's value, the plain run's value) of the settings that differ and matter, chosen groups first."""
    own, usual = flat(config), flat(plain_run(config["task"]))
    listed = [key for key in own if key.startswith("choices.")] + list(select(config, LISTED))
    keys = [key for key in listed if own[key] != usual.get(key)]
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
