"""Do one run from top to bottom: dataset, objective, model, trainer, results."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from transformers import PreTrainedModel

from llm_lightning import distributed, launch
from llm_lightning.audit.audit import audit
from llm_lightning.config.checks.trainer_flags import limit_to_few_steps
from llm_lightning.config.schema import AdapterConfig, Config, ModelConfig, cache_folder, expand_home, plain
from llm_lightning.config.targets import import_target, instantiate, instantiate_all
from llm_lightning.data import tokenizers
from llm_lightning.data.clean import write_cleaned
from llm_lightning.data.datamodule import DataModule
from llm_lightning.data.folds import LEFT_OUT
from llm_lightning.data.prepare import TokenizedDataset, prepare_dataset
from llm_lightning.data.preview import show_rows
from llm_lightning.errors import OtherRankFailed, Stopped, UserError
from llm_lightning.inference import prediction_sets, use
from llm_lightning.inference.calibrate import calibrate_export, describe_calibration
from llm_lightning.inference.evaluate import evaluate_split, evaluate_splits, require_same_labels
from llm_lightning.inference.export import BestExport, recover
from llm_lightning.inference.label_errors import ISSUES, is_listed, list_label_errors, split_into_runs, write_scores
from llm_lightning.inference.latency import latency_ms
from llm_lightning.models import build, float8
from llm_lightning.models.flat_check import agree_on_batch_form
from llm_lightning.models.recompute import recompute_layers
from llm_lightning.objectives.base import Objective
from llm_lightning.optim.build import build_optimizer, build_schedule
from llm_lightning.privacy.build import build_private_gradient, check_units, plan_budget
from llm_lightning.reporting import about
from llm_lightning.reporting.data_card import data_card
from llm_lightning.reporting.inspection import inspect_data
from llm_lightning.reporting.results import write_pages, write_results
from llm_lightning.robustness import measure as robustness
from llm_lightning.runs.folder import (
    forget_launch,
    open_folder,
    release_folder,
    resume_command,
    scratch_folder,
    write_config,
    write_json,
)
from llm_lightning.runs.identity import RunIdentity, configuration_hash, load_finished_by_content, load_finished_by_name
from llm_lightning.runs.log import close_log, log_failure, start_log
from llm_lightning.runs.versions import git_commit, package_versions
from llm_lightning.runs.weights import fingerprint_weights
from llm_lightning.tracking import loggers
from llm_lightning.tracking.energy import Energy
from llm_lightning.training import preflight, trainer
from llm_lightning.training.averaging import remove_averaging
from llm_lightning.training.best_model import BestModel
from llm_lightning.training.checkpoints import Checkpoints, resume_point
from llm_lightning.training.divergence import DivergenceGuard
from llm_lightning.training.meter import Meter
from llm_lightning.training.progress_bar import ProgressBar
from llm_lightning.training.samples import Samples
from llm_lightning.training.shared_metrics import SharedMetrics
from llm_lightning.training.signals import StopOnSignal, raise_interrupts

log = logging.getLogger(__name__)

TASKS = use.TASKS | {"audit": audit}
"""The tasks that use a model on one device, and train nothing."""


def run(config: Config, sweep: str | None = None, should_continue: Callable[[int, float], bool] | None = None) -> dict[str, Any]:
    """Do the task of `config.task`. Return the run's summary.

    `sweep`: the name of the sweep that the run is a job of. `should_continue(progress, metric)`: called after each validation; progress
    runs from 0 to 1000.
    """
    trainer.quiet_libraries()
    if config.task in TASKS and (config.task != "evaluate" or config.evaluate.weighs):
        return TASKS[config.task](config) if distributed.is_rank_zero() else {}
    try:
        if config.task == "inspect":
            return inspect_data(config) if distributed.is_rank_zero() else {}
        with launch.processes(config, sweep), raise_interrupts():
            if config.task == "evaluate":
                return evaluate(config)
            if config.task == "check":
                return check(config)
            if config.trainer.flags.get("fast_dev_run"):
                return train_briefly(config)
            return train_unless_finished(config, sweep, should_continue)
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


def train_unless_finished(
    config: Config, sweep: str | None, should_continue: Callable[[int, float], bool] | None
) -> dict[str, Any]:
    """Train in the run's folder, unless it holds the finished run."""
    folder = open_folder(config)
    start_log(folder)
    if config.data.folds is not None:
        find_label_errors(config, folder)
    done = load_finished_by_name(folder, config) if distributed.is_rank_zero() else None
    summary: dict[str, Any] | None = distributed.broadcast(done)
    if summary is None:
        log.info("run: %s", folder)
        summary = train(config, folder, sweep, should_continue)
    else:
        announce_finished(folder)
        note_unmeasured(config, folder, summary)
    if distributed.is_rank_zero():
        forget_launch(config)
    return summary


def find_label_errors(config: Config, folder: Path) -> None:
    """Train the runs of `data.folds`, each without one part of train, and list the labels that are probably wrong.

    Finished runs are not repeated, and a killed one continues. A finished run's checkpoints, which nothing needs, are removed.
    """
    summaries = []
    for part in split_into_runs(config, folder):
        log.info("data.folds: run %s leaves part %s of train out", part.run_dir, part.data.left_out)
        close_log()
        summaries.append(train_unless_finished(part, None, None))
        if distributed.is_rank_zero():
            shutil.rmtree(Path(str(part.run_dir)) / "checkpoints", ignore_errors=True)
        close_log()
        start_log(folder)
    fingerprints = [summary["data"]["fingerprints"][LEFT_OUT] for summary in summaries]
    if distributed.broadcast(is_listed(folder, fingerprints) if distributed.is_rank_zero() else None):
        log.info("labels: %s lists the labels that are probably wrong", folder / ISSUES)
        return
    dataset = prepare(config)[0]
    if distributed.is_rank_zero():
        list_label_errors(folder, config, dataset, summaries)
    distributed.barrier()


def train_briefly(config: Config) -> dict[str, Any]:
    """Train, validate and evaluate for the few steps of `trainer.fast_dev_run`, and leave no files behind.

    The runs of `data.folds`, which would say nothing after so few steps, are left out.
    """
    config = replace(config, data=replace(config.data, folds=None))
    with scratch_folder(config) as scratch:
        folder = Path(distributed.broadcast(str(scratch / "run")))
        try:
            summary = train_unless_finished(replace(limit_to_few_steps(config), run_dir=str(folder)), None, None)
            log.info("fast_dev_run: everything works; no file is left")
            distributed.barrier()
            return summary
        finally:
            shutil.rmtree(folder.parent, ignore_errors=True)  # on every machine


def announce_finished(folder: Path) -> None:
    """Log that there is nothing to do, and write the report if it is missing."""
    if distributed.is_rank_zero():
        log.info("run: %s is finished already; to train it again, give another run_dir", folder)
        if not (folder / "report.html").is_file():  # killed while it was written
            write_pages(folder)


def note_unmeasured(config: Config, folder: Path, summary: dict[str, Any]) -> None:
    """Log the command that measures slices or invariance of a finished run which has not measured them."""
    requested = {"slices": config.evaluate.slice_names, "invariance": config.evaluate.perturbations}
    missing = [f"'evaluate.{name}=[{','.join(names)}]'" for name, names in requested.items() if names and name not in summary]
    if missing and distributed.is_rank_zero():
        log.warning("not measured by this run: python train.py task=evaluate run=%s %s", folder, " ".join(missing))


def train(
    config: Config, folder: Path, sweep: str | None, should_continue: Callable[[int, float], bool] | None = None
) -> dict[str, Any]:
    """Pretrain or fine-tune, then evaluate the best weights and write the results."""
    started = time.perf_counter()
    energy = Energy(config.callbacks)
    custom = instantiate_all("callbacks", config.callbacks.custom, Callback)  # before the data, as they may be refused
    dataset, objective, data = prepare(config)
    model = build_and_connect(config, dataset, objective, data)
    facts = about.describe(config, dataset, data, model)
    show_rows(data)

    identity = identify(config, dataset, data)
    done: dict[str, Any] | None = distributed.broadcast(
        load_finished_by_content(folder, identity) if distributed.is_rank_zero() else None
    )
    if done is not None:  # with the same files elsewhere
        announce_finished(folder)
        note_unmeasured(config, folder, done)
        return done

    # ---- the Trainer: what is measured, exported, saved and logged on the way ----
    shared = distributed.is_shared(folder)
    origin = build.pretrained_origin(config.model) if config.model.adapter.kind != "none" else None
    export = BestExport(folder, model, dataset.tokenizer, origin)
    resume = resume_point(config.resume, folder, shared, identity)
    if distributed.is_rank_zero():
        write_config(folder, config)
        if config.data.clean:
            write_cleaned(folder, dataset.cleaned)
        recover(export.folder)
    code = {"versions": package_versions(), "git": git_commit()}
    meter = Meter(config.trainer.log_every_steps, data.total_steps, cache_folder(config), energy)
    if config.privacy.kind == "dp":
        meter.measure_privacy = plan_budget(config.privacy, data).bound_after
    best = BestModel(export.folder, export.write, data.total_steps, config.callbacks.patience, should_continue)
    checkpoints = Checkpoints(config.checkpoint, folder, identity.to_record() | code, data, meter, best)
    bars = [ProgressBar(meter)] if config.trainer.progress == "bar" else []
    stop = StopOnSignal(checkpoints.save, f"to go on: {resume_command(config, folder)}")
    custom = [SharedMetrics(meter), *custom] if custom else []
    # in this order: `best` and `Samples` while a callback's averaged weights are in the model, the guard after the meter, states at the end
    callbacks = [energy, meter, DivergenceGuard(meter), best, *bars, Samples(folder, meter), *custom, checkpoints, stop]
    settings = plain(config) | {"configuration": configuration_hash(plain(config), dataset.fingerprints), "facts": facts}
    tags = [option for group, option in config.choices.items() if group in ("task", "objective", "model", "data")]
    sinks = loggers.build_loggers(config.logger, folder, settings, tags, sweep, objective.monitor, objective.maximize)
    engine = trainer.build_trainer(config.trainer, folder, data.total_steps, data.validate_every, sinks, callbacks)

    try:
        # ---- training ----
        loggers.begin(sinks, resume)
        checks = preflight.run(folder, data, objective, engine, thorough=False)
        compiling = sum(check.seconds for check in checks if check.name in ("compile", "fastest step"))
        setup = time.perf_counter() - started
        engine.fit(objective, data, ckpt_path=resume, weights_only=True)  # torch.load's safe mode; the optimizer is restored too
        if best.decided_step != engine.global_step:  # training ended between two validations
            evaluate_split(engine, objective, data, "validation")
            meter.emit(engine, objective.latest, None)
            best.decide(engine, objective)
        if not checkpoints.is_saved(engine.global_step):
            checkpoints.save(engine)
        remove_averaging(engine)
        trained = meter.earlier + time.perf_counter() - started - setup

        # ---- calibration and evaluation of the best weights, as they were exported ----
        def load_export() -> None:
            export.complete(lambda: build_for_data(replace(config.model, adapter=AdapterConfig()), dataset, objective, data))
            distributed.barrier()
            if not shared:
                distributed.send_folder(folder / "hf")
            objective.model = build.reload(folder / "hf", objective.auto_class, config.model)

        load_export()
        if calibrate_export(engine, objective, data, export):
            load_export()
        metrics, details = evaluate_splits(engine, objective, data)
        measured = robustness.measure(config, engine, objective, data, folder / "evaluation")
        latency = latency_ms(engine, objective, data)

        # ---- results ----
        total = meter.earlier + time.perf_counter() - started
        summary = {
            "task": config.task,
            "objective": config.choices["objective"],
            **facts,
            "metrics": metrics | objective.summary(),
            **measured,
            **(
                {} if config.privacy.kind == "none" else {"privacy": plan_budget(config.privacy, data).describe(engine.global_step)}
            ),
            "monitor": {"name": objective.monitor, "maximize": objective.maximize},
            "steps": engine.global_step,
            "best_step": best.best_step,
            "tokens_seen": meter.tokens,
            "throughput": meter.throughput() | {"latency_ms": latency},
            "seconds": {"setup": setup - compiling, "compile": compiling, "train": trained, "total": total},
            "energy": energy.stop(meter.tokens),
            "calibration": describe_calibration(objective, details),
            "seed": config.seed,
            "weights": identity.weights,
            "machine": about.machine(engine),
            **code,
            "checkpoint": str(checkpoints.path(engine.global_step)),
            "export": str(folder / "hf"),
        }
        if distributed.is_rank_zero():
            write_json(folder / "data.json", data_card(dataset))
            if objective.label_scores:
                write_scores(folder, objective.label_scores)
            prediction_sets.write_scores(folder / "hf", objective.conformal_scores(), dataset.rows["validation"].fingerprint)
            write_results(folder, summary, details)
    except BaseException as error:
        loggers.fail(sinks, error)
        raise
    loggers.succeed(sinks, summary, details)
    return summary


def identify(config: Config, dataset: TokenizedDataset, data: DataModule) -> RunIdentity:
    """Return what decides whether another run is the same: the config, and by content the data and the pretrained weights."""
    origin = build.pretrained_origin(config.model)
    return RunIdentity(
        config=plain(config),
        data=dataset.fingerprints,
        weights=fingerprint_weights(origin) if distributed.is_rank_zero() else None,
        precision=trainer.resolve_precision(config.trainer),
        total_steps=data.total_steps,
    )


def check(config: Config) -> dict[str, Any]:
    """Check everything that could fail later, and leave no files behind."""
    with scratch_folder(config) as folder:
        start_log(folder)
        instantiate_all("callbacks", config.callbacks.custom, Callback)
        loggers.build_custom_loggers(config.logger, folder)
        dataset, objective, data = prepare(config)
        about.describe(config, dataset, data, build_and_connect(config, dataset, objective, data))
        if objective.encoding in ("stream", "documents") and config.data.columns.label is not None:
            log.warning(
                "task=check: objective=%s reads no labels, so that data.columns.label=%s is not checked; objective=classification, or "
                "another, checks it",
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
    dataset, objective, data = prepare(config, tokenizer=tokenizers.load(str(folder / "hf"), config.model.trust_remote_code))
    objective.model = build.reload(folder / "hf", objective.auto_class, config.model)
    objective.adapt(objective.model)
    require_same_labels(objective.model, dataset.label_names)
    engine = trainer.build_trainer(config.trainer, folder, 1, 1, [], [])
    metrics = evaluate_splits(engine, objective, data)[0] | objective.summary()
    log.info("%s", "\n".join(f"  {name:<32} {value:.9g}" for name, value in metrics.items()))
    measured = robustness.measure(config, engine, objective, data, robustness.choose_folder(folder, data))
    if distributed.is_rank_zero():
        prediction_sets.write_scores(folder / "hf", objective.conformal_scores(), dataset.rows["validation"].fingerprint)
        earlier = robustness.read_earlier(folder, data)
        result = {"metrics": metrics, **earlier, **measured, "config": plain(config), "versions": package_versions()}
        write_json(folder / "evaluate.json", result)
        if measured and (folder / "summary.json").is_file():
            write_pages(folder)
    return {"metrics": metrics, **measured}


def prepare(config: Config, tokenizer: Any | None = None) -> tuple[TokenizedDataset, Objective, DataModule]:
    """Return the encoded dataset, the objective that reads it, and the data module; seed everything random."""
    lightning.seed_everything(config.seed, verbose=False)
    objective_class: type[Objective] = import_target(config.objective["_target_"])
    tokenizer = tokenizer or build.tokenizer(config.model)
    cache = cache_folder(config)
    cache.mkdir(parents=True, exist_ok=True)
    with distributed.rank_zero_first(distributed.is_shared(cache)):
        dataset = prepare_dataset(config, objective_class.encoding, tokenizer)
    require_same_data(dataset)
    objective: Objective = instantiate("objective", config.objective, dataset)
    data = DataModule(config, dataset, objective.masking(config.seed))
    if config.privacy.kind == "dp" and config.task != "evaluate":
        check_units(dataset)
        data.stop_at(plan_budget(config.privacy, data).most_steps)
    return dataset, objective, data


def require_same_data(dataset: TokenizedDataset) -> None:
    """Raise UserError if a machine has other data than rank 0. A collective."""
    fingerprints = {name: split.fingerprint for name, split in dataset.splits.items()}
    everyone = distributed.gather((distributed.read_launch().node_rank, fingerprints))
    for machine, machine_fingerprints in everyone:
        for split, fingerprint in machine_fingerprints.items():
            if fingerprint != everyone[0][1].get(split):
                raise UserError(f"data: the {split} split on machine {machine} is not that of machine 0; give all the same files.")


def build_for_data(
    config: ModelConfig, dataset: TokenizedDataset, objective: Objective, data: DataModule, bf16: bool = False
) -> PreTrainedModel:
    """Build the model that the objective needs for the data; `bf16` is that of `build_model`."""
    model = build.build_model(config, objective.auto_class, dataset.tokenizer, data.longest_input, objective.head(), bf16)
    objective.adapt(model)
    return model


def build_and_connect(config: Config, dataset: TokenizedDataset, objective: Objective, data: DataModule) -> PreTrainedModel:
    """Build the model, and connect it to the objective with its optimizer and schedule."""
    # FSDP2 shards a layer's weights together, and wants one type
    bf16 = config.trainer.strategy != "fsdp" and trainer.resolve_precision(config.trainer).startswith("bf16")
    model = build_for_data(config.model, dataset, objective, data, bf16)
    agree_on_batch_form(model)
    factor = build_schedule(config.scheduler, data.total_steps, float(config.optimizer.get("lr", 1.0)))
    make_optimizer = partial(build_optimizer, config.optimizer)
    objective.connect(model, make_optimizer, factor, config.trainer.clip_norm, config.seed)
    if config.privacy.kind == "dp":
        objective.take_step.use_private_gradient(build_private_gradient(config, model, data))
    if config.trainer.precision == "fp8":
        float8.convert(model)
    if config.trainer.recompute == "layers":
        recompute_layers(model)
    return model
