"""Run a sweep: read its dimensions, run each job in a process, show a table at the end. A restarted sweep runs only the missing jobs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import xxhash
import yaml
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher

from llm_lightning import distributed
from llm_lightning.config import compose, validation
from llm_lightning.config.overrides import write_override
from llm_lightning.config.redaction import redact
from llm_lightning.config.saved_runs import STORED
from llm_lightning.config.schema import Config, SweepConfig, expand_home
from llm_lightning.errors import UserError
from llm_lightning.reporting.leaderboard import write_comparison
from llm_lightning.reporting.runs import find, group_runs
from llm_lightning.reporting.table import show
from llm_lightning.runs.folder import lock
from llm_lightning.runs.identity import load_finished_by_name
from llm_lightning.sweep import space
from llm_lightning.sweep.process import Outcome, Share, ShouldContinue, run_job, shares
from llm_lightning.sweep.ranks import STOPPING, Ranks
from llm_lightning.sweep.results import Job, Result, Results

LONGEST = 120  # characters of a folder's name


class Sweep:
    """A sweep: its jobs, and the processes of the running ones."""

    def __init__(self, arguments: list[str], settings: SweepConfig, task: str, run_dir: str | None, ranks: Ranks) -> None:
        self.settings, self._ranks = settings, ranks
        self.fixed, self.dimensions = space.read(arguments, settings.space.get(task, {}), settings.choices)
        self.folder = self._folder(run_dir)
        self.results = Results(self.folder, [d.key for d in self.dimensions])
        self.stopping = False
        self._running: set[BaseProcess] = set()
        self._writing, self._composing = threading.Lock(), threading.Lock()
        self._shares: SimpleQueue[Share | None] = SimpleQueue()

    def _folder(self, run_dir: str | None) -> Path:
        """Return the folder: the same for the same command, so that it continues; a new one with `sweep.redo`."""
        keys = [d.key if self.settings.method == "grid" else repr(d) for d in self.dimensions]
        digest = xxhash.xxh64_hexdigest(json.dumps([sorted(self.fixed), keys, self.settings.method]).encode())[:8]
        varied = "-".join(d.key.rpartition(".")[2].replace("/", "-") for d in self.dimensions) or "one"
        folder = expand_home(run_dir) if run_dir else Path("runs") / "sweeps" / f"{varied[:LONGEST]}-{digest}"
        return folder.with_name(f"{folder.name}-{datetime.now():%Y%m%d-%H%M%S}") if self.settings.redo else folder

    # ---- running jobs ----

    def grid(self) -> list[Job]:
        """Return a job for every combination. Raises UserError before any job runs if one of them could not run."""
        points = list(space.grid(self.dimensions))
        names = [_name_folder(point) for point in points]
        alike = {name for name, count in Counter(names).items() if count > 1}
        jobs = []
        for name, point in zip(names, points, strict=True):
            digest = xxhash.xxh64_hexdigest(json.dumps(point, sort_keys=True).encode())[:8]  # whatever else is in the list
            jobs.append(self._job(f"{name}-{digest}" if name in alike else name, point))
            compose.load_config(jobs[-1].overrides)
        return jobs

    def _job(self, name: str, point: dict[str, Any]) -> Job:
        point_overrides, folder = space.overrides(self.dimensions, point), self.folder / name
        trains = not any(f"task={task}" in self.fixed for task in STORED)
        return Job(
            name,
            tuple(point_overrides),
            [*self.fixed, *point_overrides, *([write_override("run_dir", str(folder))] if trains else [])],
            folder,
        )

    def run_grid(self) -> None:
        jobs = self.grid()
        self.folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(self._workers()) as pool:
            list(pool.map(lambda numbered: self._run(numbered[1], f"job {numbered[0]} of {len(jobs)}"), enumerate(jobs, 1)))

    def launch_grid(self, launcher: Launcher) -> None:
        """Run the grid on other machines, by a launcher of Hydra's."""
        jobs = self.grid()
        self.folder.mkdir(parents=True, exist_ok=True)
        missing = [job for job in jobs if self._seconds_if_done(job) is None]
        returned: dict[str, JobReturn] = {}
        gave_up = ""
        try:
            returned = dict(zip((job.name for job in missing), launcher.launch([job.overrides for job in missing], 0), strict=True))
        except Exception as error:  # some end with the first job that fails
            gave_up = f"{type(error).__name__}: {error}"
        for job in jobs:
            seconds, job_return = self._seconds_if_done(job), returned.get(job.name)
            if seconds is not None or (job_return is not None and job_return.status is JobStatus.COMPLETED):
                self.results.add(job, Outcome("done", "", seconds or 0.0))
            else:
                # private; read in Hydra 1.3: the public attribute raises the job's error
                self.results.add(job, Outcome("failed", redact(str(job_return._return_value) if job_return else gave_up), 0.0))

    def run_study(self) -> list[dict[str, Any]]:
        """Run trials until all have been drawn. Return the study's charts."""
        try:
            from llm_lightning.sweep.study import Study
        except ImportError as error:
            raise UserError(f"sweep={self.settings.method}: needs optuna; pip install 'llm_lightning[sweeps]'.") from error
        if not self.dimensions:
            raise UserError(
                "sweep.space is empty, and the command line gives nothing to draw from: give a range, "
                "'optimizer.lr=tag(log,interval(1e-5,1e-3))' for example."
            )
        within = {d.key: next(iter(d.options), d.middle) for d in self.dimensions}
        config = compose.load_config(self._job("0", within).overrides)
        self.folder.mkdir(parents=True, exist_ok=True)
        study = Study(self.folder, self.settings, self.dimensions, _maximizes(config), config.seed)
        drawing = threading.Lock()

        def work(_: int) -> None:
            while not self.stopping:
                with drawing:
                    trial = study.next()
                if trial is None:
                    return
                job = self._job(str(trial.number), study.point(trial))
                result = self._run(job, f"trial {trial.number + 1} of {study.most}", study.build_pruning(trial))
                with drawing:
                    study.tell(trial, result.outcome.status, result.value, result.outcome.message)

        workers = self._workers()
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(work, range(workers)))
        for trial in study.study.trials:  # trials of an earlier start, or of another process
            if str(trial.number) not in self.results and trial.state.is_finished():
                job = self._job(str(trial.number), study.point(trial))
                failed = "replaced" if trial.number in study.replaced else "failed"
                status = {"COMPLETE": "done", "PRUNED": "pruned"}.get(trial.state.name, failed)
                seconds = trial.duration.total_seconds() if trial.duration else 0.0
                self.results.add(job, Outcome(status, trial.user_attrs.get("why", ""), seconds))
        return study.figures()

    def _workers(self) -> int:
        worker_shares = shares(self.settings.jobs)
        for share in worker_shares:
            self._shares.put(share)
        return len(worker_shares)

    def _run(self, job: Job, title: str, should_continue: ShouldContinue | None = None) -> Result:
        """Run a job, unless it is done already or the sweep is being stopped. Print and record its result at once."""
        self._wait_for_others(job)
        if self.stopping:
            return Result(job, Outcome("stopped", "", 0.0))
        if (seconds := self._seconds_if_done(job)) is not None:
            outcome, already = Outcome("done", "", seconds), " already"
        else:
            share, already = self._shares.get(), ""
            if share is not None:
                job.folder.mkdir(exist_ok=True)
            else:
                _say(f"\n{title} · {' '.join(job.varied)}")
            output = None if share is None else job.folder / "output.log"
            try:
                with self._ranks.together(job.overrides, self.folder.name):
                    outcome = run_job(
                        job.overrides, self.folder.name, should_continue, share, output, self._register, self._running.discard
                    )
            finally:
                self._shares.put(share)
            if self.stopping and outcome.status == "failed":  # the signal came before there was a state to save
                outcome = replace(outcome, status="stopped")
        with self._writing:
            result = self.results.add(job, outcome)
            self.results.write()
        metric_text = "" if result.value is None else f" · {result.metric} {result.value:.4f}"
        _say(
            f"{title} · {' '.join(job.varied)} · {outcome.status}{already}{metric_text}{': ' * bool(outcome.message)}{outcome.message}"
        )
        return result

    def _register(self, process: BaseProcess) -> None:
        self._running.add(process)
        if self.stopping:  # the signal came while the process was made
            process.terminate()

    def _wait_for_others(self, job: Job) -> None:
        """Wait until nothing else trains in a job's folder: the run of a killed sweep saves its state, or the same sweep runs twice."""
        waiting = False
        while job.folder.is_dir() and not self.stopping:
            handle = lock(job.folder)
            if handle is not None:
                os.close(handle)
                return
            if not waiting:
                _say(f"{job.folder}: another process trains in this folder; waiting for its end")
            waiting = True
            time.sleep(0.2)

    def _seconds_if_done(self, job: Job) -> float | None:
        """Return the seconds that a finished job took; None if it is not finished."""
        if not (job.folder / "summary.json").is_file():
            return None
        with self._composing:  # Hydra composes one config at a time
            summary = load_finished_by_name(job.folder, compose.load_config(job.overrides))
        return None if summary is None else float(summary["seconds"]["total"])

    def stop(self, number: int, frame: Any) -> None:
        """Handle a signal: let the running jobs save their state, and start no other."""
        if not self.stopping:
            _say(f"\n{signal.Signals(number).name}: the running jobs save their states; no other is begun")
        self.stopping = True
        for process in list(self._running):
            with contextlib.suppress(ValueError):  # it has just ended
                process.terminate()

    # ---- results ----

    def close(self, figures: list[dict[str, Any]]) -> int:
        """Show the results and write the report. Return the exit code."""
        self.results.write()
        show([self.results.table()])
        if trained := self.results.comparable_results():
            _say(self.results.best())
            groups = group_runs(find([result.job.folder for result in trained]))
            page = write_comparison(groups, self.folder / "report.html", self.folder.name, figures)
            self._write_wandb(trained[0].metric, trained[0].maximize)
            _say(f"report: {page}")
        if self.stopping or self.results.count("stopped"):
            _say("to go on: the same command")
            return 3
        failed = self.results.count("failed")
        if failed:
            _say(f"{failed} of {len(self.results)} failed; the same command runs them again")
        return 1 if failed else 0

    def _write_wandb(self, name: str, maximize: bool) -> None:
        if not any(d.key != "choice" for d in self.dimensions):
            return
        sweep_config = space.wandb_sweep(sys.argv[0], self.fixed, self.dimensions, self.settings.method, name, maximize)
        (self.folder / "wandb-sweep.yaml").write_text(yaml.safe_dump(redact(sweep_config), sort_keys=False), encoding="utf-8")


def run(arguments: list[str], settings: SweepConfig, task: str, run_dir: str | None, launcher: Launcher | None) -> int:
    """Run a sweep, on another launcher of Hydra's if one is given. Return the exit code.

    The exit code is 0 if all jobs are done, 1 if a job failed, 3 if the sweep was stopped.
    """
    validation.check_sweep(settings)
    ranks = Ranks(settings, launcher)
    if not distributed.is_rank_zero():
        return ranks.follow()
    with ranks.leading():
        sweep = Sweep(arguments, settings, task, run_dir, ranks)
        for number in STOPPING:
            signal.signal(number, sweep.stop)
        figures: list[dict[str, Any]] = []
        if settings.method != "grid":
            figures = sweep.run_study()
        elif launcher is not None:
            sweep.launch_grid(launcher)
        else:
            sweep.run_grid()
        return sweep.close(figures)


def _name_folder(point: dict[str, str]) -> str:
    """Return a folder's name made of the settings in which a run differs from the others."""
    parts = (
        value.split()[0] if key == "choice" else f"{key.rpartition('.')[2]}-{Path(value).name}" for key, value in point.items()
    )
    return re.sub(r"[^\w.+-]", "-", "_".join(parts))[:LONGEST] or "run"


def _maximizes(config: Config) -> bool:
    """Return whether a higher value is better for the metric that chooses the objective's best weights."""
    from hydra.utils import get_object

    return bool(get_object(config.objective["_target_"]).maximize)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
