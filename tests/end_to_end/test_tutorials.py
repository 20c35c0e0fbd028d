"""Every tutorial leads from an example file to a used model: its commands run in the order of the page, as a reader runs them.

The commands of a page run in this process with few training steps, those of `choose_model` exactly as written, by the command line. A
block that begins with `# needs the network` is composed and checked only. A command that is followed by `error: …` must fail so.
"""

from __future__ import annotations

import ast
import io
import json
import math
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import llm_lightning
from llm_lightning.config.compose import load_config
from llm_lightning.errors import UserError

from ..conftest import QUIET, ROOT
from ..test_documentation import blocks

PAGES = ["classify", "tag", "answer", "pretrain", "chat", "choose_model"]
NETWORK = "# needs the network"
FEW_STEPS = ["trainer.max_epochs=null", "trainer.max_steps=4", "trainer.validate_every_steps=4"]
ANSWERS = {"label", "tags", "answer"}
"""What a row of predictions has, by objective."""


@dataclass(frozen=True)
class Step:
    """A block of a page: a command with the text on its standard input, or Python; the error that the page shows for it."""

    command: str = ""
    python: str = ""
    needs_network: bool = False
    error: str = ""

    @property
    def overrides(self) -> list[str]:
        return shlex.split(self.command.rpartition("train.py")[2])


def collect_steps(page: str) -> list[Step]:
    """Return the commands and the Python of a tutorial, in order. Blocks that begin otherwise show files and output."""
    steps = []
    for block in blocks(ROOT / "docs" / "tutorials" / f"{page}.md"):
        needs_network = block[0] == NETWORK
        text = "\n".join(block[needs_network:]).replace("\\\n", " ").strip()
        first, _, rest = text.partition("\n")
        if re.match(r"(import|from) ", first):
            steps.append(Step(python=text, needs_network=needs_network))
        elif re.match(r"(\$ )?(python |printf )", first):
            assert not rest or rest.strip().startswith("error: "), f"{page}: one command a block: {rest}"
            error = " ".join(rest.split()).removeprefix("error: ")
            steps.append(Step(re.sub(r"\s+", " ", first.removeprefix("$ ")), needs_network=needs_network, error=error))
    return steps


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the examples and train.py, in which a reader works."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_command(step: Step, cache: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run a command of train.py in this process, with few steps if it trains. Return the summary."""
    from llm_lightning.run import run

    overrides = step.overrides
    task = load_config(overrides).task
    if task in ("pretrain", "finetune", "check"):
        overrides += [*QUIET, f"cache_dir={cache}"]
    if task in ("pretrain", "finetune"):
        overrides += FEW_STEPS
    before, bar, _ = step.command.rpartition("|")
    typed = subprocess.run(["bash", "-c", before], capture_output=True, check=True).stdout if bar else b""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed), encoding="utf-8"))
    return run(load_config(overrides))


def require_results(step: Step, summary: dict[str, Any]) -> None:
    """Assert that a command has done what the page says."""
    config = load_config(step.overrides)
    if config.task in ("pretrain", "finetune"):
        folder = Path(str(config.run_dir))
        for name in ("config.yaml", "metrics.csv", "summary.json", "report.html", "hf/config.json"):
            assert (folder / name).is_file(), name
        assert math.isfinite(summary["metrics"]["validation/loss"])
    elif config.task == "check":
        assert {"tokenizer", "monitored metric"} < {check["name"] for check in summary["checks"]}
    elif config.task == "predict":
        require_predictions(Path(str(config.out)), summary["rows"])
    elif config.task == "generate":
        assert isinstance(summary["text"], str)
    elif config.task == "chat":
        assert {message["role"] for message in summary["messages"]} == {"user", "assistant"}
    else:
        assert config.task == "evaluate"
        assert 0 < summary["metrics"]["text/bits_per_byte"] < 8


def require_predictions(file: Path, rows: int) -> None:
    predictions = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert len(predictions) == rows > 0
    assert [row["row"] for row in predictions] == [*range(rows)]
    assert all(ANSWERS & row.keys() and "error" not in row for row in predictions)


@pytest.mark.parametrize("page", PAGES[:-1])
def test_a_tutorial_leads_to_a_used_model(page: str, shop: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = collect_steps(page)
    tasks = [re.search(r"task=(\w+)", step.command)[1] for step in steps if "task=" in step.command]  # type: ignore[index]
    assert {"check"} < set(tasks)
    assert {"predict", "generate"} & set(tasks), "the model is used"
    assert any(step.needs_network for step in steps), "the page shows the way to a pretrained checkpoint"
    assert any(step.python for step in steps)
    for step in steps:
        if step.python:
            run_python(step.python)
        elif step.error:
            with pytest.raises(UserError) as error:
                run_command(step, cache, monkeypatch)
            assert " ".join(str(error.value).split()) == step.error
        elif step.needs_network:
            load_config(step.overrides)
        else:
            require_results(step, run_command(step, cache, monkeypatch))


def run_python(text: str) -> None:
    """Run the Python of a page; its last assignment is what it is about."""
    names: dict[str, Any] = {"__name__": "tutorial"}
    program = ast.parse(text)
    exec(compile(program, "tutorial", "exec"), names)
    assert isinstance(names["model"], llm_lightning.api.Model)


def test_choose_model_runs_as_written(shop: Path, tmp_path: Path) -> None:
    steps = collect_steps("choose_model")
    assert len(steps) > 3
    environment = os.environ | {"HOME": str(tmp_path / "home"), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment["PYTHONPATH"] = str(ROOT)
    for step in steps:
        if step.needs_network:
            compose_choices(step)
            continue
        done = subprocess.run(["bash", "-c", step.command], env=environment, capture_output=True, text=True)
        assert done.returncode == (2 if step.error else 0), done.stderr
        assert step.error in " ".join(done.stderr.split())
    results = (shop / "runs/choice/results.csv").read_text().splitlines()
    assert len(results) > 2
    assert all(",done,validation/accuracy," in line for line in results[1:])
    assert (shop / "runs/choice/report.html").is_file()
    predicted = next(step for step in steps if "task=predict" in step.command)
    require_predictions(shop / str(load_config(predicted.overrides).out), len(read_rows(shop / "examples/new_tickets.csv")))


def compose_choices(step: Step) -> None:
    """Compose the command line of each choice of a sweep."""
    assert " -m " in step.command
    choices = next(word for word in step.overrides if word.startswith("sweep.choices=")).partition("=")[2]
    others = [word for word in step.overrides if "=" in word and not word.startswith(("sweep", "seed="))]
    for choice in json.loads(choices):
        load_config([*others, *shlex.split(choice), "seed=1"])


def read_rows(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()[1:]


def test_the_examples_are_what_their_generator_writes(tmp_path: Path) -> None:
    write: Callable[[Path], None] = runpy.run_path(str(ROOT / "examples" / "generate.py"))["write_examples"]
    write(tmp_path)
    files = sorted(file.relative_to(tmp_path) for file in tmp_path.rglob("*") if file.is_file())
    assert len(files) > 10
    for file in files:
        assert (ROOT / "examples" / file).read_bytes() == (tmp_path / file).read_bytes(), file
