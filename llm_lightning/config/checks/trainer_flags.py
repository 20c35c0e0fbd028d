"""Say which arguments of Lightning's Trainer a run takes, which it follows itself, and which contradict its plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from llm_lightning.config import signatures
from llm_lightning.config.schema import Config
from llm_lightning.errors import nearest

TRAINER = "lightning.pytorch.trainer.trainer.Trainer"
FOLLOWED = {
    "fast_dev_run": "run so many steps, validations and evaluation batches, in a folder that is removed",
    "overfit_batches": "train and validate on so many batches of rows of train",
    "limit_test_batches": "read so many batches of each split in the last evaluation",
}
"""Arguments that the run follows instead of Lightning, which would replace its loaders, loggers or checkpoints."""
REFUSED = {
    "accumulate_grad_batches": "batch.micro_sequences says how many sequences are on a device at once",
    "gradient_clip_val": "trainer.clip_norm clips the gradient of the whole step",
    "gradient_clip_algorithm": "trainer.clip_norm clips the norm",
    "use_distributed_sampler": "the plan of batches deals each step to the ranks",
    "reload_dataloaders_every_n_epochs": "the plan of batches says what each step reads",
    "val_check_interval": "trainer.validate_every_steps says when to validate",
    "check_val_every_n_epoch": "trainer.validate_every_steps says when to validate",
    "log_every_n_steps": "trainer.log_every_steps says when to log",
    "max_time": "the schedule depends on the number of steps; trainer.max_steps sets it",
    "min_steps": "the schedule depends on the number of steps; trainer.max_steps sets it",
    "min_epochs": "the schedule depends on the number of steps; trainer.max_epochs sets it",
    "limit_train_batches": "trainer.max_steps says how many steps to train",
    "enable_checkpointing": "checkpoint.every_steps and checkpoint.keep say what is saved",
    "enable_progress_bar": "trainer.progress=none hides the bar",
    "enable_model_summary": "the log names the model and its size",
    "default_root_dir": "run_dir names the folder",
    "logger": "logger=csv or logger=wandb chooses it",
    "num_sanity_val_steps": "preflight tries a validation batch",
    "limit_predict_batches": "task=predict reads the whole file",
    "barebones": "a run records its metrics; trainer.progress=none and callbacks.energy=false leave out what costs time",
    "model_registry": "a run saves its own states",
    "inference_mode": "it follows from trainer.strategy",
    "callbacks": "callbacks.<name>._target_=<class> adds one",
    "plugins": "precision, checkpoints and launchers are the run's own; add yours in a script with a lightning.Trainer (docs/extending.md)",
    **dict.fromkeys(("accelerator", "devices", "num_nodes", "strategy", "precision"), "it is a key of trainer"),
    **dict.fromkeys(("max_steps", "max_epochs", "detect_anomaly"), "it is a key of trainer"),
}
"""Arguments of Lightning's Trainer that contradict the plan of a run or have a key of their own, and what to use."""


def check_flags(config: Config) -> Iterator[str]:
    """Yield the arguments that Lightning's Trainer does not have, or that have another way here."""
    if not (flags := config.trainer.flags):
        return
    accepted = signatures.parameters(TRAINER) or {}
    for name, value in flags.items():
        if name in REFUSED:
            yield f"trainer.{name}: {REFUSED[name]}."
        elif accepted and name not in accepted:
            allowed = sorted(accepted.keys() - REFUSED.keys())
            yield f"trainer.flags.{name}: Lightning's Trainer has no such argument.{nearest(name, allowed)}"
        elif name in ("limit_val_batches", "limit_test_batches") and not isinstance(value, bool) and value == 0:
            yield f"trainer.{name}=0: a run keeps the weights of its best validation, and ends with an evaluation; give at least 1."
        elif name == "fast_dev_run" and not (isinstance(value, int) and value >= 0):
            yield f"trainer.fast_dev_run={value}: expected true, or a number of steps."
        elif accepted and (wrong := signatures.mismatch(value, accepted[name].type)):
            yield f"trainer.{name}={value}: expected {wrong}."
    if flags.get("overfit_batches") and config.data.streaming:
        yield "trainer.overfit_batches: a stream has no rows to repeat; give data.train=<small file>."


def limit_to_few_steps(config: Config) -> Config:
    """Return the config for `trainer.fast_dev_run=<steps>`, which limits steps, validation and evaluation batches, and drops loggers."""
    steps = int(config.trainer.flags["fast_dev_run"])
    flags = {**config.trainer.flags, "limit_val_batches": steps, "limit_test_batches": steps}
    del flags["fast_dev_run"]
    warmup = config.scheduler.get("warmup", 0)
    scheduler = config.scheduler | ({"warmup": steps} if isinstance(warmup, int | float) and warmup > steps else {})
    return replace(
        config,
        trainer=replace(config.trainer, max_steps=steps, max_epochs=None, validate_every_steps=None, flags=flags),
        scheduler=scheduler,
        logger=replace(config.logger, name="csv", custom={}),
    )
