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
from pathlib import Path
from typing import Any


class Turn:
    """A peer's side: counts its steps, and waits when its turn of so many is over."""

    def __init__(self, steps: int) -> None:
        self.length = steps
        self.tokens = self.steps = 0
        self.since = 0.0

    def begin(self) -> None:
        """Before the first step."""
        self._wait({"tokens": 0, "steps": 0, "seconds": 0.0})

    def step(self, tokens: int) -> None:
        """After a step of so many real tokens."""
        self.tokens, self.steps = self.tokens + tokens, self.steps + 1
        seconds = time.perf_counter() - self.since
        if self.steps == self.length:
            self._wait({"tokens": self.tokens, "steps": self.steps, "seconds": seconds})

    def _wait(self, report: dict[str, Any]) -> None:
        print("TURN " + json.dumps(report), flush=True)
        if not sys.stdin.readline():
            os._exit(0)
        self.tokens = self.steps = 0
        self.since = time.perf_counter()


def compare(peers: list[str], rounds: int, *arguments: str) -> dict[str, list[dict[str, Any]]]:
    """Each peer's turns, after one that warms it up."""
    here = [sys.executable, str(Path(sys.argv[0]).resolve()), "peer"]
    pipe = subprocess.PIPE
    running = {name: subprocess.Popen([*here, name, *arguments], stdin=pipe, stdout=pipe, text=True) for name in peers}
    for name, process in running.items():
        _turn(name, process)
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in peers}
    for number in range(rounds + 1):
        for name, process in running.items():
            assert process.stdin is not None
            process.stdin.write("go on\n")
            process.stdin.flush()
            turn = _turn(name, process)
            if number > 0:
                turns[name].append(turn)
                print(f"  {name}: {turn['tokens'] / turn['seconds']:,.0f} tokens/s", file=sys.stderr, flush=True)
    for process in running.values():
        process.kill()
    return turns


def _turn(name: str, process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("TURN "):
            found: dict[str, Any] = json.loads(line.removeprefix("TURN "))
            return found
    raise SystemExit(f"the peer {name} ended with {process.wait()}")


def speeds(turns: dict[str, list[dict[str, Any]]], first: str) -> list[list[Any]]:
    """(peer, real tokens/s over all turns, median ms a step, how many times as fast `first` is)"""
    rates = {name: sum(turn["tokens"] for turn in taken) / sum(turn["seconds"] for turn in taken) for name, taken in turns.items()}
    rows = []
    for name, taken in turns.items():
        times = [turn["seconds"] / turn["steps"] for turn in taken]
        rows.append([name, rates[name], 1000 * statistics.median(times), rates[first] / rates[name]])
    return rows


def train_ours(arguments: list[str], turn: Turn) -> None:
    """Train as `train.py` does with these arguments, the default logging included, in turns."""
    import tempfile

    from lightning.pytorch.callbacks import Callback

    from llm_lightning.cli import load
    from llm_lightning.config import cache_folder
    from llm_lightning.run import built, prepared
    from llm_lightning.training import loggers, trainer
    from llm_lightning.training.monitor import Monitor

    class Waiting(Callback):
        def on_train_start(self, *_: Any) -> None:
            turn.begin()

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            turn.step(batch.tokens)

    trainer.quiet_libraries()
    config = load([*arguments, "logger=csv", "trainer=cpu", "trainer.max_steps=1000000", "trainer.max_epochs=1000"])
    text, objective, data = prepared(config)
    built(config, text, objective, data)
    with tempfile.TemporaryDirectory() as folder:
        monitor = Monitor(config.trainer.log_every_steps, data.total_steps, progress=False, cache=cache_folder(config))
        sinks = loggers.build(config.logger, Path(folder), {}, [], None)
        engine = trainer.build(config.trainer, Path(folder), data.total_steps, data.total_steps, sinks, [monitor, Waiting()])
        engine.fit(objective, data)


def train_hugging_face(model: Any, rows: Any, collate: Any, turn: Turn, **options: Any) -> None:
    """Train with Hugging Face's Trainer, in turns."""
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
        settings = {"output_dir": folder, "num_train_epochs": 1000, "save_strategy": "no", "report_to": "none", "use_cpu": True}
        arguments = transformers.TrainingArguments(**settings, disable_tqdm=True, **options)
        transformers.Trainer(model, arguments, data_collator=counted, train_dataset=rows, callbacks=[Waiting()]).train()
