"""Send metrics to metrics.csv always, and to Weights & Biases and other loggers if the config says so."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers.logger import Logger

from llm_lightning.config.schema import LoggerConfig
from llm_lightning.config.targets import instantiate_all
from llm_lightning.tracking.csv_logger import CSVLogger
from llm_lightning.tracking.wandb_logger import WandbLogger
from llm_lightning.tracking.wandb_mode import read_mode

log = logging.getLogger(__name__)


def build_loggers(
    config: LoggerConfig, folder: Path, settings: dict[str, Any], tags: list[str], group: str | None, monitor: str, maximize: bool
) -> list[Logger]:
    """Build the loggers of a run.

    `group` gathers a sweep's runs; `monitor` is the metric that decides which weights are the best. Loggers of another package save to
    the run's folder by default. An environment variable that sets W&B's mode is logged once; if it switches W&B off, nothing of W&B is
    imported or written.
    """
    loggers: list[Logger] = [CSVLogger(folder), *build_custom_loggers(config, folder)]
    if config.name != "wandb":
        return loggers
    mode = read_mode()
    if mode.name == "disabled":
        log.info("wandb: switched off (%s); metrics are in metrics.csv", mode.reason)
    else:
        if mode.name == "offline" and mode.reason:
            log.info("wandb: offline (%s)", mode.reason)
        loggers.append(WandbLogger(config, folder, settings, tags, group, monitor, maximize))
    return loggers


def build_custom_loggers(config: LoggerConfig, folder: Path) -> list[Logger]:
    """Build the loggers of other packages. Raises UserError for one that cannot be built, or is no logger."""
    return instantiate_all("logger", config.custom, Logger, save_dir=str(folder))  # type: ignore[type-abstract]


def begin(loggers: list[Logger], checkpoint: Path | None) -> None:
    """Start W&B's run; drop rows logged after the checkpoint that a run continues from, as they are logged again."""
    step = 0 if checkpoint is None else int(torch.load(checkpoint, weights_only=True, mmap=True)["global_step"])
    for logger in loggers:
        if isinstance(logger, CSVLogger):
            logger.resume_at(step)
        elif isinstance(logger, WandbLogger):
            logger.begin()


def succeed(loggers: list[Logger], summary: dict[str, Any], details: dict[str, dict[str, Any]]) -> None:
    """Close W&B's run with the summary and the evaluation tables."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.succeed(summary, details)


def fail(loggers: list[Logger], error: BaseException) -> None:
    """Close W&B's run as failed or stopped."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.fail(error)
