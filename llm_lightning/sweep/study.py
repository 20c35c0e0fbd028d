"""Random search and Optuna: trials that are drawn one after the other, in a journal on disk that several processes may work on.

The journal (`study.journal`) is Optuna's own: optuna-dashboard opens it. A trial that a killed sweep left running is taken up again, in
its folder and from its last state.
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

from llm_lightning.config import SweepConfig
from llm_lightning.reporting import record
from llm_lightning.sweep.process import Judge
from llm_lightning.sweep.space import Dimension

FIRST = 4
"""Trials that are never pruned: the median of fewer says little."""


class Study:
    """The trials of one sweep."""

    def __init__(self, folder: Path, settings: SweepConfig, dimensions: list[Dimension], maximize: bool, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder, self.most, self.dimensions = folder, settings.trials, dimensions
        self._held: dict[int, int] = {}
        with self._alone():
            storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / "study.journal")))
            self.study = optuna.create_study(
                study_name=folder.name,
                storage=storage,
                direction="maximize" if maximize else "minimize",
                pruner=optuna.pruners.MedianPruner(n_startup_trials=FIRST) if settings.prune else optuna.pruners.NopPruner(),
                load_if_exists=True,
            )
        seed += len(self.study.trials)  # a sweep that goes on does not draw the same once more
        random = settings.method == "random"
        self.study.sampler = optuna.samplers.RandomSampler(seed) if random else optuna.samplers.TPESampler(seed=seed)

    def next(self) -> Trial | None:
        """A trial that nobody works on any more, else a new one; None where there are enough."""
        with self._alone():
            for left in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if self._hold(left.number):
                    return Trial(self.study, left._trial_id)
            if len(self.study.get_trials(deepcopy=False)) >= self.most:
                return None
            trial = self.study.ask()
            self._hold(trial.number)
            self.point(trial)  # drawn now, so that it is in the journal
            return trial

    def point(self, trial: BaseTrial) -> dict[str, Any]:
        """What a trial stands for: of each dimension, by its key, an option's name or a number."""
        point: dict[str, Any] = {}
        for d in self.dimensions:
            if d.step is not None and len(d.options) > 1:
                point[d.key] = str(trial.suggest_int(d.key, int(d.low), int(d.high), step=d.step))
            elif d.options:
                point[d.key] = trial.suggest_categorical(d.key, list(d.options))
            else:
                point[d.key] = trial.suggest_float(d.key, d.low, d.high, log=d.log)
        return point

    def judge(self, trial: Trial) -> Judge:
        """Hopeless are runs whose best validation so far is worse than the median of the others' at that step."""
        known = self.study.trials[trial.number].intermediate_values

        def goes_on(step: int, value: float) -> bool:
            if step not in known:
                trial.report(value, step)
            return not trial.should_prune()

        return goes_on

    def tell(self, trial: Trial, status: str, value: float | None) -> None:
        """How a trial ended; one that was stopped stays as it is, to be taken up again."""
        if status == "done" and value is not None:
            self.study.tell(trial, value)
        elif status != "stopped":
            self.study.tell(trial, state=TrialState.PRUNED if status == "pruned" else TrialState.FAIL)
        os.close(self._held.pop(trial.number))

    def figures(self) -> list[dict[str, Any]]:
        """How the search went, and how much each setting matters (PED-ANOVA, Watanabe et al. 2023); nothing of fewer than three trials."""
        done = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        varied = [d.key for d in self.dimensions if len({trial.params[d.key] for trial in done}) > 1]
        if len(done) < 3 or not varied:
            return []
        values = [trial.value or 0.0 for trial in done]
        better = max if self.study.direction == StudyDirection.MAXIMIZE else min
        best, numbers = list(itertools.accumulate(values, better)), [trial.number + 1 for trial in done]
        found: list[dict[str, Any]] = [
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
            found.append({"title": "What mattered", "traces": [bars], "x": "importance", "y": "", "layout": layout})
        return found

    def _hold(self, number: int) -> bool:
        """Take a trial for this process until its end, however that comes; False where another has it."""
        if number in self._held:
            return False
        file = self.folder / str(number) / "trial.lock"
        file.parent.mkdir(exist_ok=True)
        file.touch()
        handle = record.locked(file)
        if handle is not None:
            self._held[number] = handle
        return handle is not None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process and no other thread looks for a trial meanwhile."""
        with (self.folder / "study.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
