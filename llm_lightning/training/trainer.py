"""Build the Lightning Trainer of a run, with the accelerator and the precision that the hardware allows."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
import transformers
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelSummary, ProgressBar, WeightAveraging
from lightning.pytorch.loggers import Logger

from llm_lightning import distributed, machine
from llm_lightning.config.checks.trainer_flags import FOLLOWED
from llm_lightning.config.schema import TrainerConfig
from llm_lightning.config.targets import instantiate
from llm_lightning.errors import UserError
from llm_lightning.training import precision as precisions
from llm_lightning.training.checkpoint_io import AtomicCheckpointIO
from llm_lightning.training.environment import Heartbeat, LaunchedEnvironment
from llm_lightning.training.memory import keep_freed_pages, keep_kernels

log = logging.getLogger(__name__)


def quiet_libraries() -> None:
    """Silence hints of Lightning and torch about choices that are made here on purpose."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*training batches .* is smaller than the logging interval.*",  # the meter logs, not Lightning
        ".*your dataloader is not resumable.*",  # the plan resumes from the step
        ".*lr_scheduler.step.*",
        ".*isinstance.treespec.*",
        ".*WeightAveraging callback with a model that overrides the configure_model.*",  # which shards under FSDP2 alone
        ".*You have overridden .transfer_batch_to_device.*",  # for a CPU, where there is nothing to transfer
    ):
        warnings.filterwarnings("ignore", message)
    if not distributed.is_rank_zero():  # rank 0 warns for all
        warnings.simplefilter("ignore")
        transformers.logging.set_verbosity_error()


def build_trainer(
    config: TrainerConfig,
    folder: Path,
    steps: int,
    validate_every: int,
    loggers: list[Logger],
    callbacks: list[Callback],
) -> lightning.Trainer:
    """Build a Trainer that counts in optimizer steps: one batch of the loader is one step, one pass of the loader the whole run.

    Raises UserError if the requested hardware is missing.
    """
    if config.strategy == "fsdp" and _has(callbacks, WeightAveraging):
        raise UserError(
            "callbacks: Lightning's WeightAveraging does not average a model that trainer=fsdp cuts up; use trainer=ddp."
        )
    accelerator = _accelerator(config.accelerator)
    precision, why = _precision(config.precision, accelerator)
    plugins: list[Any] = [AtomicCheckpointIO()]
    plain: str | None = precision
    sharded = config.strategy == "fsdp"
    if (precision_plugin := precisions.plugin(precision, sharded)) is not None:
        plugins.append(precision_plugin)
        plain = None
    if accelerator == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)  # it plans for each new shape of rows, which takes 2 ms of CPU time
    if accelerator == "cpu":
        keep_freed_pages()
        keep_kernels()
    plugins.append(LaunchedEnvironment())  # under SLURM too: Lightning would handle the signals that we handle
    launch = distributed.read_launch() if distributed.world_size() > 1 else distributed.Launch("none")
    try:
        trainer = lightning.Trainer(
            accelerator=accelerator,
            devices=launch.local_world_size,
            num_nodes=launch.world_size // launch.local_world_size,
            strategy=_strategy(config, launch.world_size),
            precision=plain,  # type: ignore[arg-type]
            max_steps=steps,
            val_check_interval=validate_every,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,  # preflight tries a validation batch
            logger=loggers or False,
            callbacks=[Heartbeat(), *callbacks],
            plugins=plugins,
            default_root_dir=folder,
            enable_checkpointing=_has(callbacks, Checkpoint),  # else our callback alone decides, and writes atomically
            enable_progress_bar=_has(callbacks, ProgressBar),
            enable_model_summary=_has(callbacks, ModelSummary),
            use_distributed_sampler=False,  # the plan cuts steps into ranks
            detect_anomaly=config.detect_anomaly,
            inference_mode=not sharded,  # FSDP2 could not train with tensors gathered in inference mode
            **_instantiate_flags(config.flags),
        )
    except (lightning.fabric.utilities.exceptions.MisconfigurationException, ValueError, RuntimeError) as error:
        raise UserError(f"trainer: {error}") from error
    log.info("trainer: %s × %s · %s (%s)", trainer.num_devices * trainer.num_nodes, accelerator, precision, why)
    return trainer


def _instantiate_flags(flags: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that Lightning follows, with an instance for each `_target_`, of a profiler for example."""
    return {
        name: instantiate(f"trainer.{name}", value) if isinstance(value, dict) and "_target_" in value else value
        for name, value in flags.items()
        if name not in FOLLOWED
    }


def _has(callbacks: list[Callback], kind: type[Callback]) -> bool:
    """Return whether the user has added a callback of a kind that Lightning refuses where it is switched off."""
    return any(isinstance(callback, kind) for callback in callbacks)


def resolve_precision(config: TrainerConfig) -> str:
    """Return the precision that a run has on this hardware. Raises UserError if the requested hardware is missing."""
    return _precision(config.precision, _accelerator(config.accelerator))[0]


def _accelerator(requested: str) -> str:
    available = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    name = {"auto": available, "gpu": "cuda" if available == "cpu" else available}.get(requested, requested)
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"trainer.accelerator={requested}: this machine has no usable GPU (torch {torch.__version__}); use trainer=cpu."
        )
    return name


def _precision(requested: str, accelerator: str) -> tuple[str, str]:
    """Return the precision, and the reason for it."""
    if requested == "fp8" and not (accelerator == "cuda" and torch.cuda.get_device_capability() >= (8, 9)):
        raise UserError("trainer.precision=fp8: nothing here multiplies fp8 (NVIDIA GPUs since Ada and Hopper do); use auto.")
    if requested != "auto":
        return requested, "as configured"
    unit = machine.bf16_unit(accelerator)
    return ("32-true", "nothing here multiplies bf16") if unit is None else ("bf16-mixed", f"{unit} multiplies it")


def _strategy(config: TrainerConfig, world_size: int) -> Any:
    if config.strategy != "fsdp":
        return config.strategy
    from lightning.pytorch.strategies import ModelParallelStrategy

    # Lightning's own "auto" is one group a node: tensor parallelism, which nobody asked for
    return ModelParallelStrategy(data_parallel_size=world_size, tensor_parallel_size=1, save_distributed_checkpoint=False)
