"""Build the optimizer and the learning-rate schedule of a run from their settings: ours, torch's, or those of another package.

Ours are functions, of the model and of the number of steps. A class of `torch.optim.Optimizer` is given the trained parameters, all in one
group; a class of `torch.optim.lr_scheduler.LRScheduler` an optimizer with the peak rate, and its rates are read off once, before training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from llm_lightning.config.targets import import_target, instantiate
from llm_lightning.errors import UserError, first_line
from llm_lightning.optim.schedules import Factor


def build_optimizer(settings: dict[str, Any], model: nn.Module) -> Optimizer:
    """Build the optimizer of the trained parameters. Raises UserError if the settings do not make one."""
    target = import_target(str(settings["_target_"]))
    arguments = model if not _is_class(target, Optimizer) else [p for p in model.parameters() if p.requires_grad]
    optimizer = _build("optimizer", settings, arguments)
    if not isinstance(optimizer, Optimizer):
        raise UserError(f"optimizer: {settings['_target_']} returns a {type(optimizer).__name__}, no torch.optim.Optimizer.")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise UserError(
            "optimizer: torch.optim.LBFGS evaluates the loss several times a step, which a run does not; choose another."
        )
    return optimizer


def build_schedule(settings: dict[str, Any], total_steps: int, peak_rate: float) -> Factor:
    """Build the function of a step that returns the factor of the peak learning rate. Raises UserError if the settings do not make one."""
    target = import_target(str(settings["_target_"]))
    if _is_class(target, LRScheduler):
        return _read_rates(settings, total_steps, peak_rate)
    factor = _build("scheduler", settings, total_steps)
    if not callable(factor):
        raise UserError(f"scheduler: {settings['_target_']} returns a {type(factor).__name__}, no function of the step.")
    return factor


def _build(key: str, settings: dict[str, Any], argument: Any) -> Any:
    """Call the target with the argument. `_partial_: true`, which Hydra's users write in its settings, changes nothing."""
    return instantiate(key, {name: value for name, value in settings.items() if name != "_partial_"}, argument)


def _is_class(target: Any, base: type) -> bool:
    return isinstance(target, type) and issubclass(target, base)


def _read_rates(settings: dict[str, Any], total_steps: int, peak_rate: float) -> Factor:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak_rate)
    schedule = _build("scheduler", settings, optimizer)
    factors = []
    try:
        for step in range(total_steps + 1):
            if step:
                optimizer.step()
                schedule.step()
            factors.append(optimizer.param_groups[0]["lr"] / peak_rate)
    except Exception as error:  # ReduceLROnPlateau needs a metric; others end after the steps that they were given
        raise UserError(
            f"scheduler: {settings['_target_']} has no rate for step {len(factors)} of {total_steps} ({first_line(error)})."
        ) from error
    return lambda step: factors[min(step, total_steps)]
