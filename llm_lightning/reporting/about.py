"""Describe a run in its log before it starts: data, tokenizer, model, plan, disk use."""

from __future__ import annotations

import logging
import platform
import re
from pathlib import Path
from typing import Any

import lightning
import psutil
import torch
from transformers import PreTrainedModel

from llm_lightning import distributed
from llm_lightning.config.schema import Config
from llm_lightning.data import tokenizers
from llm_lightning.data.clean import count_reasons
from llm_lightning.data.datamodule import DataModule
from llm_lightning.data.prepare import TokenizedDataset
from llm_lightning.machine import cores
from llm_lightning.models import build
from llm_lightning.models.batch_form import batch_form, is_unpadded
from llm_lightning.models.padding_check import warn_of_padding

log = logging.getLogger(__name__)

MANY = 16  # passes over the text above which the log warns


def machine(trainer: lightning.Trainer) -> dict[str, Any]:
    """Return the system, the hardware and the precision that the run uses."""
    device = trainer.strategy.root_device
    return {
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _cpu(),
        "cores": cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "devices": trainer.world_size,
        "precision": str(trainer.precision),
    }


def _cpu() -> str:
    """Return the processor's name; only Linux has it in a file."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def describe(config: Config, dataset: TokenizedDataset, data: DataModule, model: PreTrainedModel) -> dict[str, Any]:
    """Log data, tokenizer, model, plan and disk use of the run. Return the entries for the summary."""
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    counted_splits = {split: part for split, part in dataset.splits.items() if split != "train" or dataset.stream is None}
    rows = {split: part.facts.rows for split, part in counted_splits.items()}
    tokens = {split: int(part.lengths.sum()) for split, part in counted_splits.items()}
    sizes = " · ".join(f"{split} {rows[split]:,} rows, {tokens[split]:,} tokens" for split in counted_splits)
    sizes = sizes if dataset.stream is None else f"train streamed · {sizes}"
    name, source = config.choices.get("data", config.data.source), build.pretrained_origin(config.model)
    log.info("data: %s · %s", name, sizes)
    log.info(
        "tokenizer: %s entries, %s",
        f"{len(dataset.tokenizer):,}",
        f"from {source}" if source else f"{config.model.tokenizer.kind}, trained on train",
    )
    log.info(
        "model: %s · %s parameters%s · %s · %s",
        model.config.model_type,
        f"{parameters / 1e6:.1f}M",
        f", {trained / 1e6:.2f}M of them trained" if trained < parameters else "",
        f"from {source}" if source else "from scratch",
        "batches without padding"
        if is_unpadded(model)
        else f"batches padded to their longest sequence, as {batch_form(model).padded_because}",
    )
    if distributed.is_rank_zero():
        warn_of_padding(model)
    max_steps = config.trainer.max_steps
    sooner = (
        f", trainer.max_epochs comes before trainer.max_steps={max_steps}" if max_steps and data.total_steps < max_steps else ""
    )
    epochs = data.total_steps / len(data.plan.epoch_plan(0))
    log.info(
        "plan: %s optimizer steps%s, validation every %s",
        f"{data.total_steps:,}",
        f" ({epochs:.2f} epochs{sooner})" if dataset.stream is None else "",
        f"{data.validate_every:,}",
    )
    if (
        config.choices.get("objective") == "causal_lm"
        and dataset.stream is None
        and epochs > MANY
        and config.callbacks.patience is None
    ):
        log.info(
            "plan: the text will be read %d times, and a causal model learns little from it after some 4 (Muennighoff et al. 2023): "
            "give more text, fewer trainer.max_steps, or callbacks=early_stopping; the best weights are kept in any case",
            round(epochs),
        )
    weights, state = parameters * 4 / 2**30, trained * 12 / 2**30
    log.info("disk: %.2f GiB of best weights, %s × %.2f GiB of full state", weights, config.checkpoint.keep, state)
    return {
        "model": {
            "name": source or config.choices.get("model", model.config.model_type),
            "parameters": parameters,
            "trained": trained,
        },
        "tokenizer": tokenizers.statistics(dataset.tokenizer, dataset.rows["validation"], _columns(config)),
        "data": {
            "name": data_name(config),
            "fingerprint": dataset.fingerprint,
            "fingerprints": dataset.fingerprints,
            "rows": rows,
            "tokens": tokens,
            **({"left_out": count_reasons(dataset.cleaned)} if dataset.cleaned else {}),
        },
    }


def data_name(config: Config) -> str:
    """Return the name of the data's preset, or, if the preset leaves the data open, of the data set or file."""
    data, preset = config.data, config.choices.get("data", config.data.source)
    if data.source == "hub" and data.dir is None:
        return preset if preset != "hub" else "/".join(filter(None, [data.name, data.config]))
    train = data.train[0] if isinstance(data.train, list) else data.train
    if train is None and preset != data.source:
        return preset
    path = Path(data.dir or "", train or "")
    name = "" if "*" in path.stem else re.sub(r"(^|[._-]+)train$", "", path.stem)
    return name or path.parent.name or preset


def _columns(config: Config) -> list[str]:
    columns = config.data.columns
    return [column for column in (columns.text, columns.text_pair) if column is not None]
