"""A run that is killed at any moment, any number of times, ends with the weights of one that was not: bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_lightning.training.checkpoint_io import damage
from llm_lightning.training.checkpoints import list_checkpoints

from ..conftest import QUIET, TINY_BERT, TINY_GPT
from .conftest import Launch, Launched
from .test_runs import losses, same_weights

KILLS = 8
PLAIN = ["data=text", "data.document=line", "data.block_size=32", "batch.sequences=4", "trainer.max_steps=48"]
CASES = {
    "causal packed": ["task=pretrain", *TINY_GPT, "++model.config.resid_pdrop=0.1", *PLAIN],
    "causal streamed, with workers": [
        *("task=pretrain", *TINY_GPT, *PLAIN, "data.streaming=true", "data.workers=2", "data.validation=validation.txt"),
    ],
    "masked": ["task=pretrain", "objective=masked_lm", *TINY_BERT, *PLAIN],
    "classification with workers": [
        "task=finetune",
        "data=files",
        "data.columns.text=body",
        "data.columns.label=stars",
        *TINY_BERT,
        "data.workers=2",
        "batch.sequences=16",
        "batch.micro_sequences=6",
        "trainer.max_epochs=4",
    ],
}
TRAINING = ["trainer.validate_every_steps=7", "checkpoint.every_steps=2", "trainer.log_every_steps=3", "optimizer.lr=3e-3"]


def given(case: str, corpus: Path, reviews: Path, cache: Path) -> list[str]:
    train = reviews if "classification" in case else corpus
    named = [argument.replace("validation.txt", str(corpus)) for argument in CASES[case]]
    return [*QUIET, *named, *TRAINING, f"data.train={train}", f"cache_dir={cache}"]


def until(condition: Callable[[], bool], run: Launched) -> None:
    """Wait for the condition, or for the end of the run."""
    while run.running() and not condition():
        time.sleep(0.001)


def wait_for_a_save(states: Path, run: Launched) -> None:
    reached = list_checkpoints(states)[-1:]
    until(lambda: list_checkpoints(states)[-1:] != reached, run)


@pytest.mark.parametrize("case", CASES)
def test_killed_at_any_moment(case: str, launch: Launch, corpus: Path, reviews: Path, cache: Path, tmp_path: Path) -> None:
    arguments = given(case, corpus, reviews, cache)
    assert launch(arguments, tmp_path / "whole").wait() == 0

    rng, folder, kills = random.Random(case), tmp_path / "killed", 0
    for attempt in range(KILLS):
        run = launch(arguments, folder)
        wait_for_a_save(folder / "checkpoints", run)
        if attempt % 2:
            until(lambda: any((folder / "checkpoints").glob(".step-*.partial")), run)  # in the middle of the next one
        else:
            time.sleep(rng.uniform(0, 0.05))
        run.kill(signal.SIGKILL)
        kills += run.wait() == -signal.SIGKILL
    assert kills == KILLS, run.log.read_text()[-2000:]
    assert launch(arguments, folder).wait() == 0, (tmp_path / "killed.log").read_text()[-3000:]

    assert same_weights(tmp_path / "whole", folder)
    assert losses(tmp_path / "whole") == losses(folder)
    whole, killed = (json.loads((place / "summary.json").read_text()) for place in (tmp_path / "whole", folder))
    assert {**killed["metrics"]} == {**whole["metrics"]}
    assert killed["tokens_seen"] == whole["tokens_seen"]


@pytest.mark.parametrize("options", [[], ["data.workers=2"], ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]])
def test_a_second_interrupt_ends_a_save_at_once(
    options: list[str], launch: Launch, corpus: Path, reviews: Path, cache: Path, tmp_path: Path
) -> None:
    """The files are pipes that nobody reads: a save after the first would never end."""
    states = tmp_path / "run" / "checkpoints"
    states.mkdir(parents=True)
    blocked = [states / f".step-{step:08d}.ckpt.partial" for step in range(3, 49)]
    for path in blocked:
        os.mkfifo(path)
    run = launch([*given("causal packed", corpus, reviews, cache), *options], tmp_path / "run")
    until(lambda: bool(list_checkpoints(states)), run)
    for _ in range(2):
        time.sleep(1)
        run.kill(signal.SIGINT)
    until(lambda: False, run)
    text = run.log.read_text()
    assert run.wait() == 1, text[-3000:]
    assert "interrupted; where a state was saved before" in text
    assert text.count("SIGINT: finishing the step") == 1
    assert "Traceback" not in text
    assert "error:" not in text
    assert list_checkpoints(states) == [states / "step-00000002.ckpt"]
    assert damage(states / "step-00000002.ckpt") is None
    assert sum(path.exists() for path in blocked) == len(blocked) - 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1], ids=lambda s: s.name)
def test_a_signal_ends_the_run_in_good_order(
    number: signal.Signals, launch: Launch, corpus: Path, reviews: Path, cache: Path, tmp_path: Path
) -> None:
    """It saves at the step it is at, exits with 3 and says how to go on; and what goes on ends where an undisturbed run does."""
    arguments = [*given("causal packed", corpus, reviews, cache), "checkpoint.every_steps=1000"]  # nothing saves but the signal
    assert launch(arguments, tmp_path / "whole").wait() == 0

    folder = tmp_path / "stopped"
    run = launch(arguments, folder)
    until(lambda: (folder / "metrics.csv").is_file() and "\n3," in (folder / "metrics.csv").read_text(), run)
    run.kill(number)
    assert run.wait() == 3, run.log.read_text()[-3000:]
    said = run.log.read_text()
    assert f"stopped by {number.name} after step" in said
    assert f"run_dir={folder}" in said.split("to go on: ")[1]
    assert "Traceback" not in said
    assert len(list_checkpoints(folder / "checkpoints")) == 1

    assert launch(arguments, folder).wait() == 0, run.log.read_text()[-3000:]
    assert "resume: continuing from" in run.log.read_text()
    assert same_weights(tmp_path / "whole", folder)
    assert losses(tmp_path / "whole") == losses(folder)
