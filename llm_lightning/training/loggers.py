"""Where metrics go: metrics.csv always, Weights & Biases where the config says so."""

from __future__ import annotations

import logging
import netrc
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import Logger, WandbLogger

from llm_lightning.config import LoggerConfig
from llm_lightning.training.csv_logger import CSVLogger

log = logging.getLogger(__name__)


def build(config: LoggerConfig, folder: Path, settings: dict[str, Any], tags: list[str]) -> list[Logger]:
    """The loggers of a run; W&B is online where a key is configured, else offline, and never asks."""
    loggers: list[Logger] = [CSVLogger(folder)]
    if config.name == "wandb":
        loggers.append(_wandb(config, folder, settings, tags))
    return loggers


def resume_at(loggers: list[Logger], checkpoint: Path | None) -> None:
    """Forget what was logged after the checkpoint that a run continues from: it will come again."""
    step = 0 if checkpoint is None else int(torch.load(checkpoint, weights_only=True, mmap=True)["global_step"])
    for logger in loggers:
        if isinstance(logger, CSVLogger):
            logger.resume_at(step)


def finish(loggers: list[Logger], summary: dict[str, Any]) -> None:
    """Close W&B's run with the metrics of the best weights as its summary."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.summary.update(
                summary["metrics"] | {"steps": summary["steps"], "tokens_seen": summary["tokens_seen"]}
            )
            logger.experiment.finish()


def _wandb(config: LoggerConfig, folder: Path, settings: dict[str, Any], tags: list[str]) -> Logger:
    import wandb

    mode = os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")
    if mode == "offline":
        log.info("wandb: offline (no key configured); upload later with: wandb sync %s/wandb/offline-run-*", folder)
    run = wandb.init(
        project=config.project,
        entity=config.entity,
        name=folder.name,
        dir=folder,
        config=settings,
        tags=tags,
        mode=mode,  # type: ignore[arg-type]
        settings=wandb.Settings(silent=True, console="off"),
    )
    run.define_metric("tokens")
    for prefix in ("train/*", "validation/*"):
        run.define_metric(prefix, step_metric="tokens")
    return WandbLogger(experiment=run)


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
