"""Sweeps as users start them: every job a run like any other, none lost, and a table at the end."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ..conftest import QUIET, ROOT, TINY_BERT, TINY_GPT
from .test_runs import FINETUNE, PRETRAIN, same_weights

Command = Callable[..., subprocess.CompletedProcess[str]]


def results(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_job_that_fails_does_not_end_the_sweep_and_what_is_done_is_left(
    corpus: Path, cache: Path, tmp_path: Path, command: Command
) -> None:
    given = [*QUIET, *PRETRAIN, *TINY_GPT, f"data.train={corpus}", "trainer.max_steps=2", f"cache_dir={cache}"]
    swept = ["-m", *given, "model.config.n_head=2,3", "seed=1,2", f"run_dir={tmp_path}/sweep"]
    result = command(*swept)
    assert result.returncode == 1, result.stderr
    found = {row["job"]: row for row in results(tmp_path / "sweep")}
    assert {job: row["status"] for job, row in found.items()} == {
        "n_head-2_seed-1": "done",
        "n_head-2_seed-2": "done",
        "n_head-3_seed-1": "failed",
        "n_head-3_seed-2": "failed",
    }
    assert "n_head" in found["n_head-3_seed-1"]["message"] or "divisible" in found["n_head-3_seed-1"]["message"]
    assert "best: model.config.n_head=2 · validation/loss" in result.stderr
    assert "the mean of 2 seeds" in result.stderr

    alone = command(*given, "model.config.n_head=2", "seed=2", f"run_dir={tmp_path}/alone")
    assert alone.returncode == 0, alone.stderr
    assert same_weights(tmp_path / "alone", tmp_path / "sweep" / "n_head-2_seed-2")
    ran = json.loads((tmp_path / "sweep/n_head-2_seed-2/summary.json").read_text())
    assert ran["metrics"] == json.loads((tmp_path / "alone/summary.json").read_text())["metrics"]
    assert "seed=2" in OmegaConf.load(tmp_path / "sweep/n_head-2_seed-2/config.yaml").command

    written = (tmp_path / "sweep/n_head-2_seed-1/summary.json").stat().st_mtime_ns
    again = command(*swept, "launcher=parallel")
    assert again.returncode == 1
    assert again.stderr.count("done already") == 2
    assert (tmp_path / "sweep/n_head-2_seed-1/summary.json").stat().st_mtime_ns == written


def test_two_jobs_of_two_processes(corpus: Path, cache: Path, tmp_path: Path, command: Command) -> None:
    """Each rank trains the job that it belongs to, in its folder, and no other."""
    given = [*QUIET, *PRETRAIN, *TINY_GPT, f"data.train={corpus}", "trainer.max_steps=4", f"cache_dir={cache}"]
    result = command(
        "-m", *given, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "seed=1,2", f"run_dir={tmp_path}/sweep"
    )
    assert result.returncode == 0, result.stderr
    assert sorted(p.name for p in (tmp_path / "sweep").iterdir() if p.is_dir()) == ["seed-1", "seed-2"]
    for seed in ("1", "2"):
        assert command(*given, f"seed={seed}", f"run_dir={tmp_path}/alone-{seed}").returncode == 0
        together, alone = (
            json.loads((folder / "summary.json").read_text())
            for folder in (tmp_path / "sweep" / f"seed-{seed}", tmp_path / f"alone-{seed}")
        )
        assert together["steps"] == alone["steps"] == 4
        assert together["tokens_seen"] == alone["tokens_seen"]
        assert together["metrics"]["validation/loss"] == pytest.approx(alone["metrics"]["validation/loss"], rel=1e-3)
        log = (tmp_path / "sweep" / f"seed-{seed}" / "train.log").read_text()
        assert log.count("plan: ") == 1  # rank 0 speaks for both


def test_a_killed_search_goes_on_and_loses_nothing(reviews: Path, cache: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    given = [*QUIET, *FINETUNE, *TINY_BERT, f"data.train={reviews}", "trainer.max_epochs=15", f"cache_dir={cache}"]
    folder = tmp_path / "sweep"
    arguments = [sys.executable, str(ROOT / "train.py"), "-m", *given, "sweep=optuna", "sweep.trials=4", f"run_dir={folder}"]
    with (tmp_path / "log").open("w") as log:
        sweep = subprocess.Popen(arguments, cwd=ROOT, stdout=log, stderr=log, env=os.environ)
        third = folder / "2" / "metrics.csv"
        while not (third.is_file() and "\n10," in third.read_text()):  # the third is training
            assert sweep.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
        sweep.send_signal(signal.SIGKILL)
        sweep.wait()
    before = {n: (folder / n / "summary.json").read_text() for n in ("0", "1")}
    result = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, env=os.environ)
    assert result.returncode == 0, result.stderr
    said = (tmp_path / "log").read_text()
    assert "stopped by SIGTERM" in said  # the run of a killed sweep saved its state
    assert "Traceback" not in said
    assert "resume: continuing from" in (folder / "2" / "train.log").read_text()
    found = results(folder)
    assert sorted(row["job"] for row in found) == ["0", "1", "2", "3"]
    assert all(row["status"] in ("done", "pruned") for row in found)
    assert all((folder / n / "summary.json").read_text() == text for n, text in before.items())
    assert len({row["optimizer.lr"] for row in found}) == 4


def test_a_stopped_sweep_goes_on_and_tells_no_secret(corpus: Path, cache: Path, tmp_path: Path) -> None:
    """By SIGTERM, with two jobs at once: both save their states, and the same command finishes them."""
    secret, folder = "hf_plantedplantedplanted01", tmp_path / "sweep"
    given = [
        *QUIET,
        *PRETRAIN,
        *TINY_GPT,
        f"data.train={corpus}",
        "trainer.max_steps=400",
        f"cache_dir={cache}",
        f"prompt={secret}",
    ]
    swept = ["-m", *given, "launcher=parallel", "sweep.jobs=2", "seed=1,2", f"run_dir={folder}"]
    arguments = [sys.executable, str(ROOT / "train.py"), *swept]
    files = [folder / f"seed-{seed}" / "metrics.csv" for seed in (1, 2)]
    sweep = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not all(file.is_file() and "\n10," in file.read_text() for file in files):
        assert sweep.poll() is None, sweep.communicate()[0]
        time.sleep(0.02)
    sweep.send_signal(signal.SIGTERM)
    said = sweep.communicate()[0]
    assert sweep.returncode == 3, said
    assert {row["status"] for row in results(folder)} == {"stopped"}
    assert "to go on: " in (folder / "seed-1" / "output.log").read_text()
    written = [file for file in folder.rglob("*") if file.is_file()]
    assert [file.name for file in written if secret.encode() in file.read_bytes()] == []
    assert secret not in said
    result = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert {row["status"] for row in results(folder)} == {"done"}
    assert all("resume: continuing from" in (folder / f"seed-{seed}" / "train.log").read_text() for seed in (1, 2))
