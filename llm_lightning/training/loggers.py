"""Where metrics go: metrics.csv always, Weights & Biases where the config says so."""

from __future__ import annotations

import logging
import netrc
import os
import uuid
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import Logger, WandbLogger

from llm_lightning.config import LoggerConfig
from llm_lightning.training.csv_logger import CSVLogger

log = logging.getLogger(__name__)


def build(config: LoggerConfig, folder: Path, settings: dict[str, Any], tags: list[str], group: str | None) -> list[Logger]:
    """The loggers of a run; W&B is online where a key is configured, else offline, and never asks. `group` gathers a sweep's runs."""
    loggers: list[Logger] = [CSVLogger(folder)]
    if config.name == "wandb":
        loggers.append(_wandb(config, folder, settings, tags, group))
    return loggers


def resume_at(loggers: list[Logger], checkpoint: Path | None) -> None:
    """Forget what was logged after the checkpoint that a run continues from: it will come again."""
    step = 0 if checkpoint is None else int(torch.load(checkpoint, weights_only=True, mmap=True)["global_step"])
    for logger in loggers:
        if isinstance(logger, CSVLogger):
            logger.resume_at(step)


def finish(loggers: list[Logger], summary: dict[str, Any] | None) -> None:
    """Close W&B's run: with the metrics of the best weights as its summary, or, where there is none, as failed."""
    if not any(isinstance(logger, WandbLogger) for logger in loggers):
        return
    import wandb

    if wandb.run is None:
        return
    if summary is not None:
        wandb.run.summary.update(summary["metrics"] | {"steps": summary["steps"], "tokens_seen": summary["tokens_seen"]})
    wandb.finish(exit_code=0 if summary is not None else 1)


def _wandb(config: LoggerConfig, folder: Path, settings: dict[str, Any], tags: list[str], group: str | None) -> Logger:
    """W&B's run begins with the first thing that rank 0 logs: after the preflight, and once. A resumed run goes on in the same one."""
    import wandb

    mode = os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")
    if mode == "offline":
        log.info("wandb: offline (no key configured); upload later with: wandb sync %s/wandb/offline-run-*", folder)
    logger = WandbLogger(
        name=folder.name if group is None else f"{group}/{folder.name}",
        save_dir=folder,
        id=_run_id(folder),
        project=config.project,
        entity=config.entity,
        group=group,
        config=settings,
        tags=tags,
        mode=mode,
        settings=wandb.Settings(silent=True, console="off"),
    )
    logger._wandb_init.pop("anonymous", None)  # Lightning hands it on, and wandb warns that it is of no use
    return logger


def _run_id(folder: Path) -> str:
    file = folder / "wandb" / "run-id.txt"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(uuid.uuid4().hex[:12])
    return file.read_text().strip()


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
