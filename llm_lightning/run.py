"""The story of one run, read from top to bottom: text, objective, model, trainer, record."""

from __future__ import annotations

import logging
import os
import time
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from hydra.utils import get_class, instantiate

from llm_lightning.config import Config, plain
from llm_lightning.data import tokenizers
from llm_lightning.data.module import DataModule, Text, prepare
from llm_lightning.inference.evaluate import evaluate_split, evaluate_splits, stored
from llm_lightning.inference.export import export
from llm_lightning.models import build
from llm_lightning.objectives.base import Objective
from llm_lightning.reporting import record
from llm_lightning.training import loggers, preflight, trainer
from llm_lightning.training.checkpoints import Checkpoints, require_same_run, saved
from llm_lightning.training.energy import Energy
from llm_lightning.training.monitor import Monitor

log = logging.getLogger(__name__)


def run(config: Config, overrides: list[str]) -> dict[str, Any]:
    """Do what `config.task` says; returns the run's summary."""
    quiet_libraries()
    if config.task == "evaluate":
        return evaluate(config, overrides)
    folder = record.open_folder(config)
    record.start_log(folder, show=int(os.environ.get("LOCAL_RANK", "0")) == 0)
    log.info("run: %s", folder)
    try:
        return train(config, folder)
    except BaseException:
        log.exception("the run failed", extra={"file_only": True})
        raise
    finally:
        record.close()


def train(config: Config, folder: Path) -> dict[str, Any]:
    """Pretrain or fine-tune, then evaluate the best weights and write the record."""
    started = time.perf_counter()
    energy = Energy(config.callbacks)
    lightning.seed_everything(config.seed, verbose=False)
    record.write_config(folder, config)

    text, objective = prepared(config)
    data = DataModule(config, text, objective.masking(text, config.seed))
    model = build.build(config.model, objective.auto_class, text.tokenizer, data.longest_input, text.label_names)
    about = describe(config, text, data, model, objective)

    def make_optimizer(module: torch.nn.Module) -> torch.optim.Optimizer:
        return instantiate(config.optimizer, module)

    factor = instantiate(config.scheduler, data.total_steps)
    objective.connect(model, make_optimizer, factor, config.trainer.clip_norm, config.seed)
    if config.trainer.compile:
        model.compile()

    identity = {"config": plain(config), "versions": record.versions(), "git": record.git_commit(), "data": text.fingerprint}
    checkpoints = Checkpoints(config.checkpoint, folder, lambda: export(model, text.tokenizer, folder / "hf"), identity)
    monitor = Monitor(config.trainer.log_every_steps, data.total_steps, config.trainer.progress == "bar")
    callbacks = [monitor, checkpoints]
    if config.callbacks.patience is not None:
        callbacks.append(early_stopping(objective, config.callbacks.patience))
    tags = [option for group, option in config.choices.items() if group in ("task", "objective", "model", "data")]
    sinks = loggers.build(config.logger, folder, plain(config), tags)
    engine = trainer.build(config.trainer, folder, data.total_steps, data.validate_every, sinks, callbacks)

    outcomes = preflight.run(folder, data, objective, engine, thorough=config.task == "check")
    if config.task == "check":
        return {"checks": [vars(outcome) for outcome in outcomes]}

    setup = time.perf_counter() - started
    resume = resume_point(config, folder, identity)
    loggers.resume_at(sinks, resume)
    engine.fit(objective, data, ckpt_path=resume, weights_only=True)
    trained = time.perf_counter() - started - setup
    if checkpoints.decided_step != engine.global_step:  # training ended between two validations
        evaluate_split(engine, objective, data, "validation")
        checkpoints.decide(engine, objective)

    objective.model = build.reload(folder / "hf", objective.auto_class)
    metrics, details = evaluate_splits(engine, objective, data)
    summary = {
        "task": config.task,
        "objective": config.choices["objective"],
        **about,
        "metrics": metrics | objective.summary(text),
        "steps": engine.global_step,
        "best_step": checkpoints.best_step,
        "tokens_seen": monitor.tokens,
        "throughput": monitor.throughput(),
        "seconds": {"setup": setup, "train": trained, "total": time.perf_counter() - started},
        "energy": energy.stop(),
        "seed": config.seed,
        "versions": identity["versions"],
        "git": identity["git"],
        "checkpoint": str(saved(folder / "checkpoints")[-1]),
        "export": str(folder / "hf"),
    }
    if engine.is_global_zero:
        record.finish(folder, summary, details)
        loggers.finish(sinks, summary)
    return summary


def evaluate(config: Config, overrides: list[str]) -> dict[str, Any]:
    """Repeat a run's evaluation from its weights; the metrics are those of its summary, unless the data was changed."""
    folder = Path(str(config.run)).expanduser()
    config = stored(folder, overrides)
    record.start_log(folder, show=True)
    log.info("evaluate: %s", folder)
    text, objective = prepared(config, tokenizer=tokenizers.load(str(folder / "hf")))
    data = DataModule(config, text, objective.masking(text, config.seed))
    objective.model = build.reload(folder / "hf", objective.auto_class)
    engine = trainer.build(config.trainer, folder, 1, 1, [], [])
    metrics = evaluate_splits(engine, objective, data)[0] | objective.summary(text)
    log.info("%s", "\n".join(f"  {name:<32} {value:.6g}" for name, value in metrics.items()))
    record.close()
    return {"metrics": metrics}


def prepared(config: Config, tokenizer: Any | None = None) -> tuple[Text, Objective]:
    """The encoded data and the objective that reads it."""
    objective_class: type[Objective] = get_class(config.objective["_target_"])
    tokenizer = tokenizer or build.tokenizer(config.model)
    text = prepare(config, objective_class.encoding, objective_class.labelled, tokenizer)
    return text, instantiate(config.objective, text)


def describe(config: Config, text: Text, data: DataModule, model: Any, objective: Objective) -> dict[str, Any]:
    """Say what the run is about to do; returns what of it belongs into the summary."""
    parameters = sum(p.numel() for p in model.parameters())
    rows = {split: part.facts.rows for split, part in text.splits.items()}
    tokens = {split: int(part.lengths.sum()) for split, part in text.splits.items()}
    sizes = " · ".join(f"{split} {rows[split]:,} rows, {tokens[split]:,} tokens" for split in rows)
    name, source = config.choices.get("data", config.data.source), build.checkpoint(config.model)
    log.info("data: %s · %s", name, sizes)
    log.info(
        "tokenizer: %s entries, %s",
        f"{len(text.tokenizer):,}",
        f"from {source}" if source else f"{config.model.tokenizer.kind}, trained on train",
    )
    log.info(
        "model: %s · %s parameters · %s",
        model.config.model_type,
        f"{parameters / 1e6:.1f}M",
        f"from {source}" if source else "from scratch",
    )
    epochs = data.total_steps / len(data.plan.epoch(0))
    log.info(
        "plan: %s optimizer steps (%.2f epochs), validation every %s",
        f"{data.total_steps:,}",
        epochs,
        f"{data.validate_every:,}",
    )
    gib = parameters * 4 / 2**30
    log.info("disk: %.2f GiB of best weights, %s × %.2f GiB of full state", gib, config.checkpoint.keep, 3 * gib)
    return {
        "model": {"name": source or config.choices.get("model", model.config.model_type), "parameters": parameters},
        "data": {"name": config.data.name or name, "fingerprint": text.fingerprint, "rows": rows, "tokens": tokens},
    }


def resume_point(config: Config, folder: Path, identity: dict[str, Any]) -> Path | None:
    """The checkpoint to continue from, if any. Raises UserError where it belongs to another run than the config describes."""
    if config.resume not in ("auto", "never"):
        state = Path(config.resume).expanduser()
    elif config.resume == "auto" and (states := saved(folder / "checkpoints")):
        state = states[-1]
    else:
        return None
    require_same_run(state, identity)
    log.info("resume: continuing from %s", state)
    return state


def early_stopping(objective: Objective, patience: int) -> lightning.Callback:
    from lightning.pytorch.callbacks import EarlyStopping

    return EarlyStopping(objective.monitor, patience=patience, mode="max" if objective.maximize else "min")


def quiet_libraries() -> None:
    """Lightning's and torch's hints about choices that are made here on purpose."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*training batches .* is smaller than the logging interval.*",  # the monitor logs, not Lightning
        ".*your dataloader is not resumable.*",  # the plan resumes from the step
        ".*lr_scheduler.step.*",
        ".*isinstance.treespec.*",
    ):
        warnings.filterwarnings("ignore", message)
