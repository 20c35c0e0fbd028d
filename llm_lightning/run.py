"""Do one run from top to bottom: dataset, objective, model, trainer, results."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
from transformers import PreTrainedModel

from llm_lightning import distributed, launch
from llm_lightning.config.schema import AdapterConfig, Config, ModelConfig, cache_folder, expand_home, plain
from llm_lightning.config.signatures import import_target, instantiate
from llm_lightning.data import tokenizers
from llm_lightning.data.module import DataModule, TokenizedDataset, prepare_dataset
from llm_lightning.data.preview import show_rows
from llm_lightning.errors import OtherRankFailed, Stopped, UserError
from llm_lightning.inference import use
from llm_lightning.inference.evaluate import evaluate_split, evaluate_splits, require_same_labels
from llm_lightning.inference.export import Best, recover
from llm_lightning.inference.latency import latency_ms
from llm_lightning.models import build, float8
from llm_lightning.models.flat_check import agree_on_batch_form
from llm_lightning.models.recompute import recompute_layers
from llm_lightning.objectives.base import Objective
from llm_lightning.reporting import about
from llm_lightning.reporting.data_card import data_card
from llm_lightning.reporting.results import write_pages, write_results
from llm_lightning.runs.folder import (
    forget_launch,
    open_folder,
    release_folder,
    resume_command,
    scratch_folder,
    write_config,
    write_json,
)
from llm_lightning.runs.identity import configuration, load_finished, run_identity
from llm_lightning.runs.log import close_log, log_failure, start_log
from llm_lightning.runs.versions import package_versions
from llm_lightning.runs.weights import fingerprint_weights
from llm_lightning.tracking import loggers
from llm_lightning.tracking.energy import Energy
from llm_lightning.training import preflight, trainer
from llm_lightning.training.checkpoints import Checkpoints, resume_point
from llm_lightning.training.custom_callbacks import build_custom_callbacks
from llm_lightning.training.monitor import Monitor
from llm_lightning.training.samples import Samples
from llm_lightning.training.signals import StopOnSignal, raise_interrupts

log = logging.getLogger(__name__)


def run(config: Config, sweep: str | None = None, judge: Callable[[int, float], bool] | None = None) -> dict[str, Any]:
    """Do the task of `config.task`. Return the run's summary.

    `sweep`: the name of the sweep that the run is a job of. `judge(progress, metric)`: called after each validation; returns whether the
    run should continue.
    """
    trainer.quiet_libraries()
    if config.task in use.TASKS and (config.task != "evaluate" or config.evaluate.weighs):
        return use.TASKS[config.task](config) if distributed.is_rank_zero() else {}
    try:
        with launch.processes(config, sweep), raise_interrupts():
            if config.task == "evaluate":
                return evaluate(config)
            return check(config) if config.task == "check" else train_unless_finished(config, sweep, judge)
    except OtherRankFailed:
        raise
    except Stopped as stopped:
        log.info("%s", stopped, extra={"file_only": True})
        raise
    except BaseException:
        log_failure()
        raise
    finally:
        release_folder()
        close_log()


def train_unless_finished(config: Config, sweep: str | None, judge: Callable[[int, float], bool] | None) -> dict[str, Any]:
    """Train in the run's folder, unless it holds the finished run."""
    folder = open_folder(config)
    start_log(folder)
    done = load_finished(folder, config) if distributed.is_rank_zero() else None
    summary: dict[str, Any] | None = distributed.broadcast(done)
    if summary is None:
        log.info("run: %s", folder)
        summary = train(config, folder, sweep, judge)
    else:
        announce_finished(folder)
    if distributed.is_rank_zero():
        forget_launch(config)
    return summary


def announce_finished(folder: Path) -> None:
    """Log that there is nothing to do, and write the report if it is missing."""
    if distributed.is_rank_zero():
        log.info("run: %s is finished already; to train it again, give another run_dir", folder)
        if not (folder / "report.html").is_file():  # killed while it was written
            write_pages(folder)


def train(config: Config, folder: Path, sweep: str | None, judge: Callable[[int, float], bool] | None = None) -> dict[str, Any]:
    """Pretrain or fine-tune, then evaluate the best weights and write the results."""
    started = time.perf_counter()
    energy = Energy(config.callbacks)
    text, objective, data = prepare(config)
    model = build_and_connect(config, text, objective, data)
    facts = about.describe(config, text, data, model)
    show_rows(data)

    shared = distributed.is_shared(folder)
    identity = run_identity(config) | {
        "data": text.fingerprints,
        "weights": fingerprint_weights(build.checkpoint(config.model)) if distributed.is_rank_zero() else None,
        "precision": trainer.resolve_precision(config.trainer),
        "total_steps": data.total_steps,
    }
    done: dict[str, Any] | None = distributed.broadcast(
        load_finished(folder, config, identity) if distributed.is_rank_zero() else None
    )
    if done is not None:  # with the same files elsewhere
        announce_finished(folder)
        return done
    best = Best(folder, model, text.tokenizer, build.checkpoint(config.model) if config.model.adapter.kind != "none" else None)
    resume = resume_point(config.resume, folder, shared, identity)
    if distributed.is_rank_zero():
        write_config(folder, config)
        recover(best.folder)
    shown = config.trainer.progress == "bar"
    monitor = Monitor(config.trainer.log_every_steps, data.total_steps, shown, cache_folder(config), energy)
    checkpoints = Checkpoints(
        config.checkpoint,
        folder,
        identity,
        data,
        monitor,
        best.folder,
        best.keep,
        patience=config.callbacks.patience,
        judge=judge,
    )
    stop = StopOnSignal(checkpoints.save, f"to go on: {resume_command(config, folder)}")
    tags = [option for group, option in config.choices.items() if group in ("task", "objective", "model", "data")]
    settings = plain(config) | {"configuration": configuration(plain(config), text.fingerprints), "facts": facts}
    sinks = loggers.build_loggers(config.logger, folder, settings, tags, sweep, objective.monitor, objective.maximize)
    custom = build_custom_callbacks(config.callbacks.custom)
    callbacks = [energy, monitor, Samples(folder, monitor), *custom, checkpoints, stop]
    engine = trainer.build_trainer(config.trainer, folder, data.total_steps, data.validate_every, sinks, callbacks)

    try:
        loggers.begin(sinks, resume)
        checks = preflight.run(folder, data, objective, engine, thorough=False)
        compiling = sum(check.seconds for check in checks if check.name in ("compile", "fastest step"))
        setup = time.perf_counter() - started
        engine.fit(objective, data, ckpt_path=resume, weights_only=True)
        if checkpoints.decided_step != engine.global_step:  # training ended between two validations
            evaluate_split(engine, objective, data, "validation")
            monitor.emit(engine, objective.latest, None)
            checkpoints.decide(engine, objective)
        if not checkpoints.is_saved(engine.global_step):
            checkpoints.save(engine)
        trained = monitor.earlier + time.perf_counter() - started - setup

        best.complete(lambda: build_for_data(replace(config.model, adapter=AdapterConfig()), text, objective, data))
        distributed.barrier()
        if not shared:
            distributed.send_folder(folder / "hf")
        objective.model = build.reload(folder / "hf", objective.auto_class, config.model.trust_remote_code)
        metrics, details = evaluate_splits(engine, objective, data)
        latency = latency_ms(engine, objective, data)
        total = monitor.earlier + time.perf_counter() - started
        summary = {
            "task": config.task,
            "objective": config.choices["objective"],
            **facts,
            "metrics": metrics | objective.summary(),
            "monitor": {"name": objective.monitor, "maximize": objective.maximize},
            "steps": engine.global_step,
            "best_step": checkpoints.best_step,
            "tokens_seen": monitor.tokens,
            "throughput": monitor.throughput() | {"latency_ms": latency},
            "seconds": {"setup": setup - compiling, "compile": compiling, "train": trained, "total": total},
            "energy": energy.stop(monitor.tokens),
            "seed": config.seed,
            "weights": identity["weights"],
            "machine": about.machine(engine),
            "versions": identity["versions"],
            "git": identity["git"],
            "checkpoint": str(checkpoints.path(engine.global_step)),
            "export": str(folder / "hf"),
        }
        if distributed.is_rank_zero():
            write_json(folder / "data.json", data_card(text))
            write_results(folder, summary, details)
    except BaseException as error:
        loggers.fail(sinks, error)
        raise
    loggers.succeed(sinks, summary, details)
    return summary


def check(config: Config) -> dict[str, Any]:
    """Check everything that could fail later, and leave no files behind."""
    with scratch_folder(config) as folder:
        start_log(folder)
        text, objective, data = prepare(config)
        about.describe(config, text, data, build_and_connect(config, text, objective, data))
        if (
            objective.encoding in ("stream", "documents") and config.data.columns.label is not None
        ):  # a command of task=finetune, perhaps
            log.warning(
                "task=check: objective=%s reads no labels, so that data.columns.label=%s is not looked at; objective=classification, or "
                "another, checks them",
                config.choices["objective"],
                config.data.columns.label,
            )
        show_rows(data)
        engine = trainer.build_trainer(config.trainer, folder, data.total_steps, data.validate_every, [], [])
        return {"checks": [vars(outcome) for outcome in preflight.run(folder, data, objective, engine, thorough=True)]}


def evaluate(config: Config) -> dict[str, Any]:
    """Repeat a run's evaluation from its weights; the metrics equal those of its summary, unless the data has changed."""
    folder = expand_home(str(config.run))
    start_log(folder)
    log.info("evaluate: %s", folder)
    text, objective, data = prepare(config, tokenizer=tokenizers.load(str(folder / "hf"), config.model.trust_remote_code))
    objective.model = build.reload(folder / "hf", objective.auto_class, config.model.trust_remote_code)
    objective.adapt(objective.model)
    require_same_labels(objective.model, text.label_names)
    engine = trainer.build_trainer(config.trainer, folder, 1, 1, [], [])
    metrics = evaluate_splits(engine, objective, data)[0] | objective.summary()
    log.info("%s", "\n".join(f"  {name:<32} {value:.9g}" for name, value in metrics.items()))
    if distributed.is_rank_zero():
        write_json(folder / "evaluate.json", {"metrics": metrics, "config": plain(config), "versions": package_versions()})
    return {"metrics": metrics}


def prepare(config: Config, tokenizer: Any | None = None) -> tuple[TokenizedDataset, Objective, DataModule]:
    """Return the encoded dataset, the objective that reads it, and the data module; seed everything random."""
    lightning.seed_everything(config.seed, verbose=False)
    objective_class: type[Objective] = import_target(config.objective["_target_"])
    tokenizer = tokenizer or build.tokenizer(config.model)
    cache = cache_folder(config)
    cache.mkdir(parents=True, exist_ok=True)
    with distributed.rank_zero_first(distributed.is_shared(cache)):
        text = prepare_dataset(config, objective_class.encoding, tokenizer)
    require_same_data(text)
    objective: Objective = instantiate(config.objective, text)
    return text, objective, DataModule(config, text, objective.masking(config.seed))


def require_same_data(text: TokenizedDataset) -> None:
    """Raise UserError if a machine has other data than rank 0. A collective."""
    fingerprints = {name: split.fingerprint for name, split in text.splits.items()}
    everyone = distributed.gather((distributed.read_launch().node_rank, fingerprints))
    for machine, machine_fingerprints in everyone:
        for split, fingerprint in machine_fingerprints.items():
            if fingerprint != everyone[0][1].get(split):
                raise UserError(f"data: the {split} split on machine {machine} is not that of machine 0; give all the same files.")


def build_for_data(config: ModelConfig, text: TokenizedDataset, objective: Objective, data: DataModule) -> PreTrainedModel:
    """Build the model that the objective needs for the data."""
    model = build.build_model(config, objective.auto_class, text.tokenizer, data.longest_input, objective.head())
    objective.adapt(model)
    return model


def build_and_connect(config: Config, text: TokenizedDataset, objective: Objective, data: DataModule) -> PreTrainedModel:
    """Build the model, and connect it to the objective with its optimizer and schedule."""
    model = build_for_data(config.model, text, objective, data)
    agree_on_batch_form(model)
    factor = instantiate(config.scheduler, data.total_steps)
    objective.connect(model, lambda module: instantiate(config.optimizer, module), factor, config.trainer.clip_norm, config.seed)
    if config.trainer.precision == "fp8":
        float8.convert(model)
    if config.trainer.recompute == "layers":
        recompute_layers(model)
    return model
