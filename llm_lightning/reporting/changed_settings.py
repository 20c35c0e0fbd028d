"""List the settings in which a run differs from the plain run of its task: `python train.py task=<task>` and nothing else."""

from __future__ import annotations

from typing import Any

from llm_lightning.config.compose import default_config
from llm_lightning.config.schema import flat
from llm_lightning.runs.identity import LISTED, select


def differences(config: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return (key, the run's value, the plain run's value) of the settings that differ and matter, chosen groups first."""
    run_settings, default_settings = flat(config), flat(default_config(config["task"]))
    listed = [key for key in run_settings if key.startswith("choices.")] + list(select(config, LISTED))
    keys = [key for key in listed if run_settings[key] != default_settings.get(key)]
    return [(key.removeprefix("choices."), run_settings[key], default_settings.get(key)) for key in keys]
