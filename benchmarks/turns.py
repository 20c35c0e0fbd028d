"""Peers that train in turns: each in a process of its own, a few steps at a time, so that a noisy machine is noisy for all alike.

A benchmark starts itself once more for each peer, with the peer's name as argument. The peer builds a trainer with one of the two
callbacks below, which stops it after every turn until it is told to go on.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any


class Turn:
    """A peer's side: counts its steps, and waits when its turn of so many is over."""

    def __init__(self, steps: int, scored: bool = False) -> None:
        """`scored`: whether the validation score is computed after each turn, outside of its time."""
        self.length, self.scored = steps, scored
        self.score: Callable[[], float] | None = None
        self.tokens = self.steps = 0
        self.since = 0.0

    def begin(self) -> None:
        """Before the first step."""
        self._wait({})

    def step(self, tokens: int) -> None:
        """After a step of so many real tokens."""
        self.tokens, self.steps = self.tokens + tokens, self.steps + 1
        seconds = time.perf_counter() - self.since
        if self.steps == self.length:
            gib = getrusage(RUSAGE_SELF).ru_maxrss / 2**20
            self._wait({"tokens": self.tokens, "steps": self.steps, "seconds": seconds, "gib": gib})

    def _wait(self, report: dict[str, Any]) -> None:
        if report and self.scored:
            assert self.score is not None
            report["score"] = self.score()
        print("TURN " + json.dumps(report), flush=True)
        if not sys.stdin.readline():
            os._exit(0)
        self.tokens = self.steps = 0
        self.since = time.perf_counter()


def compare(peers: list[str], rounds: int, *arguments: str) -> dict[str, list[dict[str, Any]]]:
    """Each peer's turns, after one that warms it up."""
    running = {name: _started(name, *arguments) for name in peers}
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in peers}
    for number in range(rounds + 1):
        for name, process in running.items():
            turn = _turn(name, process)
            if number > 0:
                turns[name].append(turn)
                print(f"  {name}: {turn['tokens'] / turn['seconds']:,.0f} tokens/s", file=sys.stderr, flush=True)
    for process in running.values():
        process.kill()
    return turns


def race(peers: dict[str, int], *arguments: str) -> dict[str, list[tuple[float, float]]]:
    """(seconds of training so far, score) of each peer after each of its so many turns."""
    running = {name: _started(name, *arguments) for name in peers}
    courses: dict[str, list[tuple[float, float]]] = {name: [] for name in peers}
    for number in range(max(peers.values())):
        for name, process in running.items():
            if number < peers[name]:
                turn, course = _turn(name, process), courses[name]
                course.append((turn["seconds"] + (course[-1][0] if course else 0.0), turn["score"]))
                print(f"  {name}: {course[-1][0]:,.0f} s, {course[-1][1]:.4f}", file=sys.stderr, flush=True)
    for process in running.values():
        process.kill()
    return courses


def _started(name: str, *arguments: str) -> subprocess.Popen[str]:
    """A peer that is ready for its first step."""
    here = [sys.executable, str(Path(sys.argv[0]).resolve()), "peer", name, *arguments]
    process = subprocess.Popen(here, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    _report(name, process)
    return process


def _turn(name: str, process: subprocess.Popen[str]) -> dict[str, Any]:
    """Let a peer have its turn."""
    assert process.stdin is not None
    process.stdin.write("go on\n")
    process.stdin.flush()
    return _report(name, process)


def _report(name: str, process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("TURN "):
            found: dict[str, Any] = json.loads(line.removeprefix("TURN "))
            return found
    raise SystemExit(f"the peer {name} ended with {process.wait()}")


def speeds(turns: dict[str, list[dict[str, Any]]], first: str) -> list[list[Any]]:
    """(peer, median real tokens/s of its turns, median ms a step, how many times as fast `first` is: the median over rounds)"""
    rates = {name: [turn["tokens"] / turn["seconds"] for turn in taken] for name, taken in turns.items()}
    rows = []
    for name, taken in turns.items():
        milliseconds = statistics.median(1000 * turn["seconds"] / turn["steps"] for turn in taken)
        ahead = statistics.median(ours / theirs for ours, theirs in zip(rates[first], rates[name], strict=True))
        rows.append([name, statistics.median(rates[name]), milliseconds, ahead])
    return rows


def train_ours(arguments: list[str], turn: Turn) -> None:
    """Train as `train.py` does with these arguments, the default logging included, in turns."""
    import tempfile

    import torch
    from lightning.pytorch.callbacks import Callback

    from llm_lightning.config.compose import load_config
    from llm_lightning.config.schema import cache_folder
    from llm_lightning.objectives.evaluation import score_batches
    from llm_lightning.run import build_and_connect, prepare
    from llm_lightning.tracking import loggers
    from llm_lightning.training import trainer
    from llm_lightning.training.meter import Meter

    class Waiting(Callback):
        def on_train_start(self, *_: Any) -> None:
            turn.begin()

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            turn.step(batch.tokens)

    def score() -> float:
        batches = data.evaluation_batches("validation")
        objective.eval()
        with torch.inference_mode(), engine.precision_plugin.val_step_context():
            scores = score_batches(objective, (batches[i] for i in range(len(batches))))
        objective.train()
        return float(scores[objective.monitor.split("/")[1]])

    turn.score = score
    trainer.quiet_libraries()
    config = load_config(["trainer.max_steps=1000000", "trainer.max_epochs=1000", *arguments, "logger=csv", "trainer=cpu"])
    dataset, objective, data = prepare(config)
    build_and_connect(config, dataset, objective, data)
    with tempfile.TemporaryDirectory() as folder:
        meter = Meter(config.trainer.log_every_steps, data.total_steps, cache_folder(config))
        sinks = loggers.build_loggers(config.logger, Path(folder), {}, [], None, objective.monitor, objective.maximize)
        engine = trainer.build_trainer(config.trainer, Path(folder), data.total_steps, data.total_steps, sinks, [meter, Waiting()])
        engine.fit(objective, data)


def train_hugging_face(model: Any, rows: Any, collate: Any, turn: Turn, **options: Any) -> None:
    """Train with Hugging Face's Trainer, in turns, without an end unless the options give one."""
    import tempfile

    import transformers

    sizes: list[int] = []  # real tokens of each batch, in the order of the steps

    def counted(examples: list[Any]) -> Any:
        batch = collate(examples)
        sizes.append(int(batch["attention_mask"].sum()))
        return batch

    class Waiting(transformers.TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            turn.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            turn.step(sizes[state.global_step - 1])

    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {
            "output_dir": folder,
            "num_train_epochs": 1000,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
        }
        arguments = transformers.TrainingArguments(**settings | {"disable_tqdm": True} | options)
        transformers.Trainer(model, arguments, data_collator=counted, train_dataset=rows, callbacks=[Waiting()]).train()
