"""Log to a Weights & Biases run that never stops training: each failure is logged once, and training continues.

The run is online if a key is configured, else offline, without a question. A server that does not answer costs INIT_SECONDS at the start,
and the run is then offline; a server that is lost later costs FINISH_SECONDS at the end. Either way the run's folder holds everything,
and the log says how to upload it. A process of W&B's own receives the values: logging costs the training some 0.1 ms, every
`trainer.log_every_steps`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import uuid
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import _DummyExperiment
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from llm_lightning.config.redaction import redact
from llm_lightning.config.schema import LoggerConfig, flat
from llm_lightning.errors import Pruned, Stopped, first_line
from llm_lightning.tracking import wandb_artifacts, wandb_charts
from llm_lightning.tracking.wandb_mode import read_mode

log = logging.getLogger(__name__)

INIT_SECONDS = 20.0
FINISH_SECONDS = 60.0
LONGEST_TAG, LONGEST_NAME = 64, 128  # characters that W&B takes


class WandbLogger(Logger):
    """Logger with one W&B run per run folder; a resumed run continues it."""

    def __init__(
        self,
        config: LoggerConfig,
        folder: Path,
        settings: dict[str, Any],
        tags: list[str],
        group: str | None,
        monitor: str,
        maximize: bool,
    ) -> None:
        """Prepare a run of W&B: `settings` become its config; its summary keeps the best value of the metric `monitor`."""
        super().__init__()
        self.config, self.folder, self.settings, self.tags, self.group = config, folder, settings, tags, group
        self.monitor, self.best = monitor, "max" if maximize else "min"
        self.run: Any = None
        self._failed = False
        self._written, self._samples_seen = folder / "samples.jsonl", 0

    # ---- Lightning's interface ----

    @property
    def name(self) -> str:
        """Return the project: that of the config, or of the variable WANDB_PROJECT if the config has the default."""
        project = self.config.project
        return os.environ.get("WANDB_PROJECT") or project if project == LoggerConfig().project else project

    @property
    def version(self) -> str:
        return _run_id(self.folder)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Return W&B's run, to log other things to; without a run, an object that accepts any call and does nothing."""
        self.begin()
        return self.run or _DummyExperiment()  # private; read in Lightning 2.6, whose loggers return it

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: `begin` sends them as the run's config."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        values = {"tokens_seen" if name == "tokens" else name: value for name, value in metrics.items()}
        self.begin()
        if self.run is None:
            return
        try:
            self.run.log({"step": step} | values | self._samples())
        except Exception as error:
            log.warning("wandb: cannot log (%s); training goes on without", first_line(error))
            self._failed = True
            self._end(1)

    def _samples(self) -> dict[str, Any]:
        """Return the model's last samples, if they are new. As text: a table would wait for the server."""
        size = self._written.stat().st_size if self._written.is_file() else 0
        if size == self._samples_seen:
            return {}
        self._samples_seen = size
        return wandb_charts.samples(self._written)

    # ---- from begin to end ----

    @rank_zero_only
    def begin(self) -> None:
        """Start the run unless it has started; offline if the server does not answer."""
        if self.run is not None or self._failed:
            return
        for variable, value in (("WANDB_SILENT", "true"), ("WANDB_ERROR_REPORTING", "false")):  # before it is imported
            os.environ.setdefault(variable, value)
        configured_mode = read_mode().name
        for mode in (configured_mode, "offline") if configured_mode == "online" else (configured_mode,):
            before = set(self.folder.glob("wandb/run-*-*"))
            try:
                self.run = self._start_run(mode)
            except Exception as error:
                log.warning("wandb: no %s run can be started (%s)", mode, first_line(error))
                self._forget_attempt()
                for leftover in set(self.folder.glob("wandb/run-*-*")) - before:  # nothing is in it
                    shutil.rmtree(leftover, ignore_errors=True)
                continue
            if mode == "offline":
                log.info("wandb: offline; upload with: wandb sync %s/wandb/offline-run-*", self.folder)
            return
        self._failed = True

    def _forget_attempt(self) -> None:
        """End W&B's process, which would keep the run's id."""
        import wandb

        with contextlib.suppress(Exception):
            wandb.teardown()

    def _start_run(self, chosen: str) -> Any:
        import wandb

        name = self.folder.name if self.group is None else f"{self.group}/{self.folder.name}"
        if self.group is None:  # a sweep's jobs would all have one name
            name = os.environ.get("WANDB_NAME") or name
        tags = [*self.tags, *([] if self.group is None else [self.group])]
        tags += [tag for tag in os.environ.get("WANDB_TAGS", "").split(",") if tag]
        with _command_line_without_secrets(), _mode_variable(chosen):
            run = wandb.init(
                id=_run_id(self.folder),
                resume="allow",
                dir=self.folder,
                project=self.name,
                entity=self.config.entity,
                name=name[-LONGEST_NAME:],
                group=None if self.group is None else self.group[-LONGEST_NAME:],
                job_type=self.settings.get("task"),
                tags=[tag[-LONGEST_TAG:] for tag in tags],
                config=self.settings,
                mode=chosen,  # type: ignore[arg-type]
                reinit="finish_previous",
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    init_timeout=INIT_SECONDS,
                    finish_timeout=FINISH_SECONDS,
                    finish_timeout_raises=True,
                ),
            )
        run.define_metric("step", hidden=True)
        run.define_metric("tokens_seen", hidden=True)
        run.define_metric("*", step_metric="step")
        run.define_metric(self.monitor, step_metric="step", summary=self.best)
        return run

    @rank_zero_only
    def succeed(self, summary: dict[str, Any], details: dict[str, dict[str, Any]]) -> None:
        """End the run with its results: W&B's summary holds the metrics of the best weights."""
        if self.run is None:
            return
        with self._never_in_the_way():  # in one block: each of them would wait for a lost server
            self.run.summary.update(self._figures(summary))
            self._draw(summary, details)
            wandb_artifacts.log(self.run, self.config.artifacts, summary, self.settings)
        self._end(0)

    def _draw(self, summary: dict[str, Any], details: dict[str, dict[str, Any]]) -> None:
        charts = wandb_charts.all_samples(self._written)
        for split, tables in details.items():
            charts |= {f"{split}/{name}": chart for name, chart in wandb_charts.of(tables).items()}
        self.run.log({"step": summary["steps"], "tokens_seen": summary["tokens_seen"]} | charts)

    def _figures(self, summary: dict[str, Any]) -> dict[str, Any]:
        figures = dict(summary["metrics"])
        if self.monitor in figures:
            figures[self.monitor] = {self.best: figures[self.monitor]}  # as define_metric stores it while the run lasts
        rest = flat({name: summary.get(name, {}) for name in ("model", "tokenizer", "throughput", "energy", "seconds")})
        figures |= {name.replace(".", "/"): value for name, value in rest.items() if value is not None}
        return figures | {name: summary[name] for name in ("steps", "tokens_seen", "best_step")}

    @rank_zero_only
    def fail(self, error: BaseException) -> None:
        """End the run as failed; as preempted if a signal stopped it, to be resumed later; as done if a sweep pruned it."""
        with self._never_in_the_way():
            if self.run is not None and isinstance(error, Pruned):
                self.run.summary["pruned"] = True
            elif self.run is not None and isinstance(error, Stopped):
                self.run.mark_preempting()
        self._end(0 if isinstance(error, Pruned) else error.exit_code if isinstance(error, Stopped) else 1)

    def _end(self, exit_code: int) -> None:
        run, self.run = self.run, None
        if run is None:
            return
        try:
            run.finish(exit_code=exit_code)
        except Exception as error:
            where = run.settings.sync_dir
            log.warning("wandb: not everything is uploaded (%s); do it with: wandb sync %s", first_line(error), where)

    @contextlib.contextmanager
    def _never_in_the_way(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            log.warning("wandb: the run's end there is not complete (%s); its folder has it all", first_line(error))


@contextlib.contextmanager
def _command_line_without_secrets() -> Iterator[None]:
    """Redact the command line of the process while W&B records it."""
    arguments = sys.argv
    sys.argv = redact(arguments)
    try:
        yield
    finally:
        sys.argv = arguments


@contextlib.contextmanager
def _mode_variable(chosen: str) -> Iterator[None]:
    """Set WANDB_MODE to the chosen mode: W&B refuses a value it does not know, even if `init` names another mode."""
    before = os.environ.get("WANDB_MODE")
    if before:
        os.environ["WANDB_MODE"] = chosen
    try:
        yield
    finally:
        if before:
            os.environ["WANDB_MODE"] = before


def _run_id(folder: Path) -> str:
    file = folder / "wandb" / "run-id.txt"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(uuid.uuid4().hex[:12])
    return file.read_text().strip()
