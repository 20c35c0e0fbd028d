"""Check the settings of every `_target_` against its signature."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from llm_lightning.config import signatures
from llm_lightning.config.schema import OPEN_GROUPS, Config
from llm_lightning.errors import join_names, nearest

TRAINING = ("pretrain", "finetune", "check")
"""Tasks that use optimizers, schedules, callbacks and loggers."""


def check_targets(config: Config) -> Iterator[str]:
    """Yield keys and values that the signature of their `_target_` does not have."""
    groups = {group: getattr(config, group) for group in OPEN_GROUPS if config.task in TRAINING or group == "objective"}
    for group, settings in groups.items():
        yield from _target(group, settings, positions=1)
    if config.data._target_ is not None:
        yield from _target("data", {"_target_": config.data._target_, **config.data.arguments}, positions=3)
    if config.model._target_ is not None:
        yield from _target("model", {"_target_": config.model._target_, **config.model.arguments}, positions=5)
    if config.task not in TRAINING:
        return
    for name, arguments in config.callbacks.custom.items():
        yield from _target(f"callbacks.{name}", arguments, positions=0)
    for name, arguments in config.logger.custom.items():
        yield from _target(f"logger.{name}", arguments, positions=0, provided=("save_dir",))


def _target(key: str, settings: dict[str, Any], positions: int, provided: Collection[str] = ()) -> Iterator[str]:
    """Yield the mistakes in the settings of one `_target_`, which the run calls with `positions` arguments of its own, and `provided`."""
    target = str(settings.get("_target_"))
    if not signatures.is_of_another_package(target) and signatures.find_definition(target) is None:
        yield (
            f"{key}._target_={target}: there is no such function or class in llm_lightning or an installed package; "
            + (
                f"choose {key}=<option>."
                if key in OPEN_GROUPS
                else "give <package>.<module>.<name> (PYTHONPATH=. finds your own files)."
            )
        )
        return
    allowed = signatures.parameters(target, positions)
    if allowed is None:  # the source does not show the signature: it is checked when it is called
        return
    for name, value in settings.items():
        if name == "_target_" or name in signatures.OF_HYDRA:
            continue
        if name not in allowed:
            yield (
                f"{key}.{name}: {target.rpartition('.')[2]} has no such setting; "
                f"it has {join_names(allowed) or 'none'}.{nearest(name, allowed)}"
            )
        elif isinstance(value, dict) and "_target_" in value:
            continue  # it is instantiated first
        elif wrong := signatures.mismatch(value, allowed[name].type):
            yield f"{key}.{name}={value}: expected {wrong}."
    for name, parameter in allowed.items():
        if parameter.required and name not in (*settings, *provided):
            yield f"{key}.{name} is not set, and has no default."
