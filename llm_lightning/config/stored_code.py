"""Keep code that the config of a stored run names from running, unless the user trusts it: a run folder may come from anyone.

A config can name every installed function by `_target_`, `os.system` too, and let the code beside weights run (`trust_remote_code`).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from llm_lightning.config.definitions import find_definition
from llm_lightning.errors import UserError

USED = ("objective", "data", "model")
"""Groups with a `_target_` that tasks on a stored run call; they never build optimizers, schedules, callbacks and loggers."""


def keep_data_only(run: str, config: dict[str, Any], trusted: Any) -> dict[str, Any]:
    """Return a stored config whose code is this program's or that of trusted packages, without what tasks on a stored run do not use.

    `trusted` is the command's value of `trust`. Raises UserError if the config names other code.
    """
    packages = trusted if isinstance(trusted, list) else []
    trainer, model = _drop_targets(config.get("trainer") or {}), dict(config.get("model") or {})  # such as a profiler's
    model["trust_remote_code"] = False  # the command says so anew
    reduced = config | {"trainer": trainer, "model": model}
    for key, target in (pair for group in USED for pair in _find_targets(reduced.get(group), group)):
        package = target.partition(".")[0]
        if package in packages or (key == "objective._target_" and _is_own_objective(target)):
            continue
        raise UserError(
            f"run={run}: its config.yaml names code that is not an objective of llm_lightning: {key}={target}. A run folder from someone "
            f"else is data, and runs no code; where you trust this one, add trust=[{package}]."
        )
    return reduced


def _is_own_objective(target: str) -> bool:
    """Return whether a target is a class of a module of ours, defined there: not `llm_lightning.objectives.base.torch.load`."""
    module, _, _ = target.rpartition(".")
    definition = find_definition(target) if module.rpartition(".")[0] == "llm_lightning.objectives" else None
    return definition is not None and definition.module == module and isinstance(definition.node, ast.ClassDef)


def _drop_targets(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings without those that hold a `_target_`, at any depth."""
    parts = {
        name: _drop_targets(value) if name == "flags" and isinstance(value, dict) else value for name, value in settings.items()
    }
    return {name: value for name, value in parts.items() if not any(_find_targets(value, name))}


def _find_targets(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Yield (key, target) of every `_target_` in a value, at any depth."""
    if isinstance(value, dict):
        for name, part in value.items():
            if name == "_target_" and part is not None:
                yield f"{key}._target_", str(part)
            else:
                yield from _find_targets(part, f"{key}.{name}")
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from _find_targets(part, f"{key}[{number}]")
