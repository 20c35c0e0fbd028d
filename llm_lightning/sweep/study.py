"""Draw trials by random search or Optuna, one after the other, in a journal on disk that several processes may share.

The journal (`study.journal`) is Optuna's own: optuna-dashboard opens it. A trial that a killed sweep left running is resumed in its folder,
from its last state.
"""

from __future__ import annotations

import fcntl
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import BaseTrial, Trial, TrialState

from llm_lightning.config.schema import SweepConfig
from llm_lightning.errors import UserError
from llm_lightning.runs.folder import lock
from llm_lightning.sweep.process import ShouldContinue
from llm_lightning.sweep.space import Dimension

FIRST = 4
"""Trials that are never pruned: the median of fewer is not reliable."""


class Study:
    """The trials of one sweep."""

    def __init__(self, folder: Path, settings: SweepConfig, dimensions: list[Dimension], maximize: bool, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder, self.most, self.dimensions = folder, settings.trials, dimensions
        self._held: dict[int, int] = {}
        with self._alone():
            storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / "study.journal")))
            self.study = optuna.create_study(
                study_name=next(iter(optuna.get_all_study_names(storage)), folder.name),  # a folder may be renamed
                storage=storage,
                direction="maximize" if maximize else "minimize",
                pruner=optuna.pruners.MedianPruner(n_startup_trials=FIRST) if settings.prune else optuna.pruners.NopPruner(),
                load_if_exists=True,
            )
            drawn = repr(dimensions)
            if self.study.user_attrs.setdefault("space", drawn) != drawn:
                raise UserError(f"{folder}: the search there is over another space; repeat its command, or give another run_dir.")
            self.study.set_user_attr("space", drawn)
        self.random, self.seed = settings.method == "random", seed
        self.replaced = {trial.number for trial in self.study.trials if trial.state is TrialState.FAIL}
        """Trials that failed before this start: new ones are drawn in their place."""

    def next(self) -> Trial | None:
        """Return an unfinished trial that no process runs, else a new one; None if all trials have been drawn."""
        with self._alone():
            for unfinished in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if self._hold(unfinished.number):
                    return Trial(self.study, unfinished._trial_id)  # private; read in optuna 5.0
            count = len(self.study.get_trials(deepcopy=False))
            if count - len(self.replaced) >= self.most:
                return None
            # each trial has its own seed: every process would draw the same values for it, and none draws it twice
            seed = self.seed + count
            self.study.sampler = optuna.samplers.RandomSampler(seed) if self.random else optuna.samplers.TPESampler(seed=seed)
            trial = self.study.ask()
            self._hold(trial.number)
            self.point(trial)  # drawn now, so that it is in the journal
            return trial

    def point(self, trial: BaseTrial) -> dict[str, Any]:
        """Return the point of a trial: for each dimension, by its key, an option's name or a number."""
        point: dict[str, Any] = {}
        for d in self.dimensions:
            if d.step is not None and len(d.options) != 1:
                number = trial.suggest_int(d.key, int(d.low), int(d.high), step=d.step, log=d.log)
                point[d.key] = str(number) if d.options else number
            elif d.options:
                point[d.key] = trial.suggest_categorical(d.key, list(d.options))
            else:
                point[d.key] = trial.suggest_float(d.key, d.low, d.high, log=d.log)
        return point

    def build_pruning(self, trial: Trial) -> ShouldContinue:
        """Return a function that prunes a run if its best validation is worse than the median of the others' at the same progress."""
        reported = self.study.trials[trial.number].intermediate_values

        def should_continue(done: int, value: float) -> bool:
            if done not in reported:
                trial.report(value, done)
            return not trial.should_prune()

        return should_continue

    def tell(self, trial: Trial, status: str, value: float | None, why: str = "") -> None:
        """Record how a trial ended. A stopped trial stays unfinished, to be resumed."""
        if status == "done" and value is not None:
            self.study.tell(trial, value)
        elif status != "stopped":
            trial.set_user_attr("why", why)
            self.study.tell(trial, state=TrialState.PRUNED if status == "pruned" else TrialState.FAIL)
        os.close(self._held.pop(trial.number))

    def figures(self) -> list[dict[str, Any]]:
        """Return charts of the search and of each setting's importance (PED-ANOVA, Watanabe et al. 2023); none below three trials."""
        done = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        varied = [d.key for d in self.dimensions if len({trial.params[d.key] for trial in done}) > 1]
        if len(done) < 3 or not varied:
            return []
        values = [trial.value or 0.0 for trial in done]
        better = max if self.study.direction == StudyDirection.MAXIMIZE else min
        best, numbers = list(itertools.accumulate(values, better)), [trial.number + 1 for trial in done]
        figures: list[dict[str, Any]] = [
            {
                "title": "Trials",
                "traces": [
                    {"x": numbers, "y": values, "mode": "markers", "name": "a trial"},
                    {"x": numbers, "y": best, "mode": "lines", "line": {"shape": "hv"}, "name": "the best so far"},
                ],
                "x": "trial",
                "y": "metric that decides",
            }
        ]
        if len(varied) > 1:
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            matters = optuna.importance.get_param_importances(self.study, evaluator=evaluator, params=varied)
            shares, names = list(matters.values())[::-1], list(matters)[::-1]
            bars = {"x": shares, "y": names, "type": "bar", "orientation": "h", "texttemplate": "%{x:.2f}"}
            layout = {"hovermode": "closest", "yaxis": {"type": "category"}, "xaxis": {"range": [0, 1]}}
            figures.append({"title": "What mattered", "traces": [bars], "x": "importance", "y": "", "layout": layout})
        return figures

    def _hold(self, number: int) -> bool:
        """Lock a trial for this process until it ends in any way. Return False if another process has it."""
        if number in self._held:
            return False
        file = self.folder / str(number) / "trial.lock"
        file.parent.mkdir(exist_ok=True)
        file.touch()
        handle = lock(file)
        if handle is not None:
            self._held[number] = handle
        return handle is not None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Run the block while no other process and no other thread looks for a trial."""
        with (self.folder / "study.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
