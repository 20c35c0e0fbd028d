"""Trials on disk: none is lost, none is done twice, and what is hopeless ends early."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llm_lightning.config import SweepConfig
from llm_lightning.sweep.space import Dimension

pytest.importorskip("optuna")
from optuna.trial import TrialState

from llm_lightning.sweep.study import FIRST, Study

SPACE = [
    Dimension("optimizer.lr", {}, 1e-5, 1e-3, log=True),
    Dimension("batch.sequences", {"8": ("batch.sequences=8",), "16": ("batch.sequences=16",)}, 8, 16, step=8),
    Dimension("model", {"bert_tiny": ("model=bert_tiny",), "minilm": ("model=minilm",)}),
]


def study(folder: Path, trials: int, method: str = "optuna") -> Study:
    return Study(folder, SweepConfig(method=method, trials=trials), SPACE, maximize=True, seed=0)


def test_a_trial_that_nobody_works_on_is_taken_up_again(tmp_path: Path) -> None:
    first = study(tmp_path, 3)
    done, left, held = (first.next() for _ in range(3))
    assert done is not None
    assert left is not None
    assert held is not None
    first.tell(done, "done", 0.5)
    assert first.next() is None
    os.close(first._held.pop(left.number))  # as the end of its process would
    second = study(tmp_path, 3)
    again = second.next()
    assert again is not None
    assert (again.number, second.point(again)) == (left.number, first.point(left))
    assert second.next() is None  # the third is still held by the first process
    second.tell(again, "stopped", None)
    assert [trial.state for trial in second.study.trials] == [TrialState.COMPLETE, TrialState.RUNNING, TrialState.RUNNING]


@pytest.mark.parametrize("method", ["random", "optuna"])
def test_a_sweep_that_goes_on_draws_other_points(tmp_path: Path, method: str) -> None:
    drawn = []
    for _ in range(4):
        trials = study(tmp_path, 4, method)
        trial = trials.next()  # held to the end of this process, so each draws anew
        assert trial is not None
        point = trials.point(trial)
        drawn.append(point["optimizer.lr"])
        assert 1e-5 <= drawn[-1] <= 1e-3
        assert point["batch.sequences"] in ("8", "16")
    assert len(set(drawn)) == 4


def test_runs_below_the_median_of_their_step_end_and_others_go_on(tmp_path: Path) -> None:
    trials = study(tmp_path, FIRST + 3)
    for value in range(FIRST):  # 0, 1, 2, 3: a median of 1.5
        trial = trials.next() or pytest.fail("no trial")
        goes_on = trials.judge(trial)
        assert goes_on(10, float(value))
        trials.tell(trial, "done", float(value))
    trial = trials.next() or pytest.fail("no trial")
    assert trials.judge(trial)(10, 1.6)
    trials.tell(trial, "done", 1.6)
    trial = trials.next() or pytest.fail("no trial")
    assert not trials.judge(trial)(10, 1.4)
    trials.tell(trial, "pruned", None)
    assert trials.study.trials[-1].state is TrialState.PRUNED
