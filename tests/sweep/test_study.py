"""Trials on disk: none is lost, none is done twice, and what is hopeless ends early."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llm_lightning.config.schema import SweepConfig
from llm_lightning.errors import UserError
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


def test_what_failed_is_drawn_anew_by_the_next_start(tmp_path: Path) -> None:
    first = study(tmp_path, 2)
    for status in ("done", "failed"):
        trial = first.next() or pytest.fail("no trial")
        first.tell(trial, status, 0.5, "no memory")
    assert first.next() is None  # or what always fails would go on for ever
    second = study(tmp_path, 2)
    trial = second.next() or pytest.fail("no trial")
    assert trial.number == 2
    second.tell(trial, "done", 0.5)
    assert second.next() is None
    assert second.replaced == {1}
    assert second.study.trials[1].user_attrs["why"] == "no memory"


def test_processes_that_begin_together_draw_different_points(tmp_path: Path) -> None:
    together = [study(tmp_path, 4, "random") for _ in range(4)]
    drawn = {each.point(trial)["optimizer.lr"] for each in together if (trial := each.next()) is not None}
    assert len(drawn) == 4


def test_a_folder_may_be_renamed_and_its_space_may_not_change(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    first = study(tmp_path / "old", 2)
    first.tell(first.next() or pytest.fail("no trial"), "done", 0.5)
    again = study((tmp_path / "old").rename(tmp_path / "new"), 2)
    assert len(again.study.trials) == 1
    with pytest.raises(UserError, match="another space"):
        Study(tmp_path / "new", SweepConfig(method="optuna", trials=2), SPACE[:1], maximize=True, seed=0)


def test_whole_numbers_are_drawn_from_a_range_of_them(tmp_path: Path) -> None:
    space = [Dimension("batch.sequences", {}, 8, 64, log=True, step=1)]
    trials = Study(tmp_path, SweepConfig(method="random", trials=5), space, maximize=True, seed=0)
    drawn = [trials.point(trials.next() or pytest.fail("no trial"))["batch.sequences"] for _ in range(5)]
    assert all(isinstance(number, int) and 8 <= number <= 64 for number in drawn)
    assert len(set(drawn)) > 1


def test_runs_below_the_median_of_their_step_end_and_others_go_on(tmp_path: Path) -> None:
    trials = study(tmp_path, FIRST + 3)
    for value in range(FIRST):  # 0, 1, 2, 3: a median of 1.5
        trial = trials.next() or pytest.fail("no trial")
        goes_on = trials.build_pruning(trial)
        assert goes_on(10, float(value))
        trials.tell(trial, "done", float(value))
    trial = trials.next() or pytest.fail("no trial")
    assert trials.build_pruning(trial)(10, 1.6)
    trials.tell(trial, "done", 1.6)
    trial = trials.next() or pytest.fail("no trial")
    assert not trials.build_pruning(trial)(10, 1.4)
    trials.tell(trial, "pruned", None)
    assert trials.study.trials[-1].state is TrialState.PRUNED
