"""What a job gets of the machine, and what becomes of jobs on others."""

from __future__ import annotations

import csv
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher

from llm_lightning.config.compose import load_config
from llm_lightning.errors import UserError
from llm_lightning.sweep import process
from llm_lightning.sweep.process import Share, shares
from llm_lightning.sweep.sweep import run


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """A sweep heeds signals by itself."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_jobs_get_the_gpus_that_the_sweep_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "cores", lambda: 8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert shares("auto") == [Share(4, "0"), Share(4, "1")]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-8f2a")
    assert shares("auto") == [Share(4, "3"), Share(4, "GPU-8f2a")]
    assert shares(1) == [None]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert shares("auto") == [Share(1)] * 8
    assert shares(3) == [Share(2)] * 3


class Elsewhere(Launcher):
    """Another launcher of Hydra's, on whose machines every job fails; `gives_up` says whether with an exception."""

    gives_up = False

    def setup(self, **_: Any) -> None: ...

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        failure = UserError("no such file https://me:pa55word@host/x")
        if self.gives_up:
            raise failure
        return [JobReturn(overrides=list(given), status=JobStatus.FAILED, _return_value=failure) for given in job_overrides]


@pytest.mark.parametrize("gives_up", [False, True])
def test_jobs_that_fail_on_other_machines_are_recorded(gives_up: bool, tmp_path: Path) -> None:
    launcher = Elsewhere()
    launcher.gives_up = gives_up
    folder = tmp_path / "sweep"
    assert run(["task=finetune", "seed=1,2"], load_config(["task=finetune"]).sweep, "finetune", str(folder), launcher) == 1
    with (folder / "results.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [(row["job"], row["status"]) for row in found] == [("seed-1", "failed"), ("seed-2", "failed")]
    assert all("no such file https://***@host/x" in row["message"] for row in found)
