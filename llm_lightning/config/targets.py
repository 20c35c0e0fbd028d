"""Import and call the `_target_` of a config by `hydra.utils.instantiate`, with the run's own arguments first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import hydra
from hydra.errors import HydraException, InstantiationException

from llm_lightning.config.overrides import escape_interpolations
from llm_lightning.config.signatures import is_of_another_package, parameters
from llm_lightning.errors import RunError, UserError

T = TypeVar("T")


def instantiate(key: str, settings: Mapping[str, Any], *arguments: Any) -> Any:
    """Call the `_target_` of the settings at `key` with the arguments, then its settings by name. Return the result.

    Nested settings with a `_target_` are instantiated too. Raises UserError if the target cannot be imported, or if it belongs to another
    package and does not take its arguments.
    """
    target = str(settings["_target_"])
    try:
        return hydra.utils.instantiate(escape_interpolations(dict(settings)), *arguments, _convert_="all")
    except HydraException as error:
        cause = error.__cause__
        if isinstance(cause, RunError):
            raise cause from None
        if cause is not None and isinstance(error, InstantiationException) and not is_of_another_package(target):
            raise cause from error  # an error of this program keeps its traceback
        reason = _join_lines(cause or error)
        raise UserError(f"{key}: {target} cannot be built ({reason}).") from error


def instantiate_all(key: str, settings: Mapping[str, Mapping[str, Any]], kind: type[T], **defaults: Any) -> list[T]:
    """Return an instance of `kind` for each name in the settings, in their order.

    `defaults` are given to each target that accepts them, unless its settings do. Raises UserError if an instance is no `kind`.
    """
    instances = []
    for name, arguments in settings.items():
        target = str(arguments["_target_"])
        accepted = parameters(target) or {}
        defaults_taken = {default: value for default, value in defaults.items() if default in accepted}
        instance = instantiate(f"{key}.{name}", defaults_taken | dict(arguments))
        if not isinstance(instance, kind):
            raise UserError(f"{key}.{name}: {target} is no {kind.__module__}.{kind.__name__}.")
        instances.append(instance)
    return instances


def import_target(target: str) -> Any:
    """Import the function, class or module that a dotted path names. Raises UserError if it cannot be imported."""
    try:
        return hydra.utils.get_object(target)
    except Exception as error:  # whatever a module raises when it is imported
        reason = _join_lines(error)
        raise UserError(f"{target}: cannot be imported ({reason}).") from error


def _join_lines(error: BaseException) -> str:
    """Return an error's message in one line, without Hydra's question at its end."""
    return " ".join(str(error).split()).partition(" Are you sure")[0] or type(error).__name__
