"""Lightning callbacks that the config names by their `_target_` (`callbacks.<name>._target_=…`)."""

from __future__ import annotations

from typing import Any

import hydra
from hydra.errors import HydraException
from lightning.pytorch.callbacks import Callback

from llm_lightning.errors import UserError, first_line


def build_custom_callbacks(settings: dict[str, Any]) -> list[Callback]:
    """Return the callbacks, in the order of the config. Raises UserError for one that cannot be built, or is no callback."""
    callbacks = []
    for name, arguments in settings.items():
        try:
            callback = hydra.utils.instantiate(arguments)
        except HydraException as error:
            reason = first_line(error.__cause__ or error)
            raise UserError(f"callbacks.{name}: {arguments.get('_target_')} cannot be built ({reason}).") from error
        if not isinstance(callback, Callback):
            raise UserError(f"callbacks.{name}: {arguments.get('_target_')} is no Lightning callback.")
        callbacks.append(callback)
    return callbacks
