"""Check the devices, the precision and the length of a run, and the checkpoint that it resumes."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from llm_lightning import distributed
from llm_lightning.config import signatures
from llm_lightning.config.schema import (
    Config,
    expand_home,
)
from llm_lightning.errors import nearest
from llm_lightning.machine import cores


def check_trainer(config: Config) -> Iterator[str]:
    trainer = config.trainer
    if trainer.num_nodes > 1 and not distributed.is_launched():
        yield f"trainer.num_nodes={trainer.num_nodes}: start it on every node with torchrun or SLURM's srun, or it waits for ever."
    if trainer.accelerator == "cpu" and isinstance(trainer.devices, int) and trainer.devices > max(8, cores()):
        yield f"trainer.devices={trainer.devices}: there are {cores()} cores here."
    if trainer.strategy == "fsdp" and trainer.precision == "fp8":
        yield "trainer.precision=fp8: not together with trainer=fsdp, which gathers weights in bf16; use trainer=ddp, or bf16-mixed."
    if trainer.strategy == "fsdp" and trainer.precision == "16-mixed":
        yield "trainer.precision=16-mixed: not together with trainer=fsdp; use bf16-mixed, or 32-true where nothing multiplies bf16."
    if trainer.strategy == "fsdp" and config.batch.micro_tokens == "auto":
        yield (
            "batch.micro_tokens=auto: a model that trainer=fsdp cuts up is whole on no device where it could be tried before training; "
            "give batch.micro_tokens a number."
        )
    if trainer.max_steps is None and trainer.max_epochs is None:
        yield "trainer.max_steps and trainer.max_epochs are both null: set one, or training would never end."
    if not (trainer.devices == "auto" or (signatures.mismatch(trainer.devices, int) is None and trainer.devices > 0)):
        yield f"trainer.devices={trainer.devices}: expected auto, or a whole number of at least 1."


def check_resume(config: Config) -> Iterator[str]:
    is_missing = config.resume not in ("auto", "never") and not expand_home(config.resume).is_file()
    if is_missing and distributed.is_rank_zero():  # rank 0 sends the file to machines that lack it
        hint = nearest(config.resume, ["auto", "never"])
        yield f"resume={config.resume}: expected auto, never, or a checkpoint file that exists.{hint}"
    if config.run is not None and config.task != "evaluate":
        yield (
            f"run={config.run}: only task=evaluate, predict, generate, chat, export and audit read a run; to start from its weights, give "
            f"{shlex.quote(f'model.init_from={config.run}')}."
        )
    if config.run_dir is not None and expand_home(config.run_dir).is_file():
        yield f"run_dir={config.run_dir}: this is a file; give a folder."
