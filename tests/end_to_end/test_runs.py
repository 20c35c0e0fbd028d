"""Whole runs, as a user starts them: pretrain, fine-tune, evaluate again, load with plain transformers, repeat, resume."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from omegaconf import OmegaConf
from safetensors.torch import load_file

from llm_lightning.config.compose import load_config
from llm_lightning.errors import Pruned, UserError
from llm_lightning.run import evaluate
from llm_lightning.training.checkpoints import list_checkpoints

from ..conftest import QUIET, TINY_BERT, TINY_GPT, Runner

PRETRAIN = [
    "task=pretrain",
    "data=text",
    "data.document=line",
    "data.block_size=32",
    "batch.sequences=8",
    "trainer.log_every_steps=1",
]
FINETUNE = ["task=finetune", "data=files", "data.columns.text=body", "data.columns.label=stars", "batch.sequences=16"]


def losses(folder: Path) -> list[tuple[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [(row["step"], row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def same_weights(a: Path, b: Path) -> bool:
    first, second = (load_file(folder / "hf" / "model.safetensors") for folder in (a, b))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# ---- the way from text to a classifier ----


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def pretrained(folders: Path, corpus: Path, cache: Path) -> tuple[Path, dict[str, Any]]:
    from llm_lightning.run import run

    folder = folders / "pretrained"
    given = [
        *QUIET,
        f"cache_dir={cache}",
        *PRETRAIN,
        *TINY_GPT,
        f"data.train={corpus}",
        "trainer.max_steps=60",
        f"run_dir={folder}",
    ]
    return folder, run(load_config([*given, "trainer.validate_every_steps=20", "optimizer.lr=1e-2"]))


@pytest.fixture(scope="module")
def finetuned(folders: Path, pretrained: tuple[Path, dict[str, Any]], reviews: Path, cache: Path) -> tuple[Path, dict[str, Any]]:
    from llm_lightning.run import run

    folder = folders / "finetuned"
    given = [*QUIET, f"cache_dir={cache}", *FINETUNE, f"data.train={reviews}", f"data.test={reviews}", f"run_dir={folder}"]
    return folder, run(load_config([*given, f"model.init_from={pretrained[0]}", "optimizer.lr=5e-3", "trainer.max_epochs=12"]))


def test_pretraining_learns_more_than_word_frequencies(pretrained: tuple[Path, dict[str, Any]]) -> None:
    metrics = pretrained[1]["metrics"]
    assert metrics["validation/loss"] < 0.6 * metrics["validation/unigram_entropy"]
    assert metrics["validation/perplexity"] == pytest.approx(np.exp(metrics["validation/loss"]))


def test_fine_tuning_learns_the_word_that_decides(finetuned: tuple[Path, dict[str, Any]]) -> None:
    metrics = finetuned[1]["metrics"]
    assert metrics["validation/majority_accuracy"] == 0.5
    assert metrics["validation/accuracy"] > 0.9  # of 24 rows
    assert metrics["test/macro_f1"] > 0.95


def test_the_record_of_a_run(finetuned: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = finetuned
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert set(summary) == {
        *("task", "objective", "model", "data", "metrics", "steps", "best_step", "tokens_seen", "throughput", "seconds", "energy"),
        *("seed", "monitor", "tokenizer", "machine", "versions", "git", "checkpoint", "export", "weights", "calibration"),
    }
    assert set(summary["data"]) == {"name", "fingerprint", "fingerprints", "rows", "tokens"}
    assert set(summary["throughput"]) == {
        *(
            "tokens_per_second",
            "samples_per_second",
            "mfu",
            "padding_fraction",
            "model_flops_per_second",
            "data_wait_fraction",
            "step_seconds",
        ),
        *("peak_memory_gib", "latency_ms"),
    }
    times = summary["throughput"]["step_seconds"]
    assert 0 < times["p50"] <= times["p95"] <= times["max"]
    assert 0 <= summary["throughput"]["data_wait_fraction"] < 1
    assert summary["throughput"]["latency_ms"] > 0
    assert summary["tokens_seen"] == 12 * summary["data"]["tokens"]["train"]  # twelve epochs of real tokens, no padding
    assert summary["throughput"]["padding_fraction"] < 0.1  # batches are flat, and filled up by less than 32 tokens
    assert {p.name for p in folder.iterdir()} == {
        *("config.yaml", "train.log", "metrics.csv", "summary.json", "report.html", "checkpoints", "evaluation", "hf"),
        "data.json",
    }
    assert "«" not in (folder / "train.log").read_text()
    assert "→ good" in (folder / "train.log").read_text()  # a decoded batch, with its target
    assert "<title>classification on reviews" in (folder / "report.html").read_text()


def test_disk_is_what_was_announced(pretrained: tuple[Path, dict[str, Any]]) -> None:
    """Best weights once, two full states of about three times their size, and nothing else."""
    folder, summary = pretrained
    weights = 4 * summary["model"]["parameters"]
    states = list_checkpoints(folder / "checkpoints")
    assert len(states) == 2
    assert sorted((folder / "checkpoints").iterdir()) == states
    assert [state.stat().st_size for state in states] == pytest.approx([3 * weights] * 2, rel=0.3, abs=60_000)
    assert (folder / "hf" / "model.safetensors").stat().st_size == pytest.approx(weights, abs=20_000)


def test_checkpoint_holds_the_run_as_plain_containers(pretrained: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = pretrained
    state = torch.load(list_checkpoints(folder / "checkpoints")[-1], weights_only=True)
    assert state["run"]["config"] == OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    assert state["run"]["versions"] == summary["versions"]
    assert state["run"]["git"] == summary["git"]


def test_evaluation_repeats_the_numbers(finetuned: tuple[Path, dict[str, Any]], pretrained: tuple[Path, dict[str, Any]]) -> None:
    for folder, summary in (finetuned, pretrained):
        again = evaluate(load_config(["task=evaluate", f"run={folder}"]))
        assert again["metrics"] == summary["metrics"]


def test_evaluation_refuses_to_change_the_run(finetuned: tuple[Path, dict[str, Any]]) -> None:
    with pytest.raises(UserError, match=r"optimizer\.lr=1: task=evaluate takes the run as it is"):
        load_config(["task=evaluate", f"run={finetuned[0]}", "optimizer.lr=1"])


def test_export_is_a_plain_classifier(finetuned: tuple[Path, dict[str, Any]]) -> None:
    answer = transformers.pipeline("text-classification", model=str(finetuned[0] / "hf"))
    assert [found["label"] for found in answer(["really great, and film", "plot was awful, quite"])] == ["good", "bad"]


def test_export_gives_the_logits_of_the_best_weights(finetuned: tuple[Path, dict[str, Any]], reviews: Path, cache: Path) -> None:
    """Every validation row, one by one and unpadded through plain transformers, against our own batches."""
    from llm_lightning.models import build
    from llm_lightning.run import prepare

    folder = finetuned[0]
    config = load_config(["task=evaluate", f"run={folder}"])
    dataset, objective, data = prepare(config, transformers.AutoTokenizer.from_pretrained(folder / "hf"))
    objective.model = build.reload(folder / "hf", objective.auto_class, config.model).eval()
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "hf").eval()
    split = dataset.splits["validation"]
    with torch.no_grad():
        for batch in (data.evaluation_batches("validation")[i] for i in range(len(data.evaluation_batches("validation")))):
            ours = objective.loss_and_outputs(batch)[1]
            for row, index in enumerate(batch.indices):
                alone = model(input_ids=torch.from_numpy(split[int(index)].astype(np.int64))[None]).logits[0]
                torch.testing.assert_close(ours[row], alone, atol=1e-5, rtol=1e-5)


def test_export_continues_text(pretrained: tuple[Path, dict[str, Any]]) -> None:
    folder = pretrained[0] / "hf"
    model, tokenizer = transformers.AutoModelForCausalLM.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer("the cat sees", return_tensors="pt")
    said = tokenizer.decode(model.generate(**inputs, max_new_tokens=8, do_sample=False)[0])
    assert any(word in said for word in ("rain", "music", "the sea", "bread"))


# ---- the same again ----


def test_same_seed_same_losses(corpus: Path, run: Runner, tmp_path: Path) -> None:
    given = [*PRETRAIN, *TINY_GPT, "++model.config.resid_pdrop=0.1", f"data.train={corpus}", "trainer.max_steps=12"]
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(*given, f"seed={seed}", f"run_dir={tmp_path / name}")
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert same_weights(tmp_path / "a", tmp_path / "b")
    assert losses(tmp_path / "a") != losses(tmp_path / "c")


@pytest.mark.parametrize("objective", ["causal_lm", "masked_lm"])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    objective: str, corpus: Path, run: Runner, killed: Callable[..., None], tmp_path: Path
) -> None:
    """Bit for bit: weights, losses, learning rates and token counts, with dropout and masks, from the middle of an epoch."""
    tiny = TINY_GPT if objective == "causal_lm" else TINY_BERT
    given = [*PRETRAIN, f"objective={objective}", "scheduler=cosine", *tiny, f"data.train={corpus}", "trainer.max_steps=14"]
    given += ["++model.config.resid_pdrop=0.1", "checkpoint.every_steps=5"] if tiny is TINY_GPT else ["checkpoint.every_steps=5"]
    whole = run(*given, f"run_dir={tmp_path / 'whole'}")

    killed(*given, f"run_dir={tmp_path / 'killed'}", after=5)
    (state,) = list_checkpoints(tmp_path / "killed" / "checkpoints")
    assert state.name == "step-00000005.ckpt"
    contents = torch.load(state, weights_only=True)
    contents["callbacks"]["Monitor"]["elapsed"] += 1000.0  # had the first steps taken that long, the run would have
    torch.save(contents, state)
    resumed = run(*given, f"run_dir={tmp_path / 'killed'}")
    assert same_weights(tmp_path / "whole", tmp_path / "killed")
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")
    assert resumed["metrics"] == whole["metrics"]
    assert resumed["tokens_seen"] == whole["tokens_seen"]
    assert min(resumed["seconds"]["train"], resumed["seconds"]["total"]) > 1000


def test_a_run_is_not_continued_under_other_settings(
    pretrained: tuple[Path, dict[str, Any]], corpus: Path, tmp_path: Path, run: Runner
) -> None:
    folder, _ = pretrained
    (tmp_path / "other.txt").write_text(corpus.read_text().replace("cat", "cow"))
    given = [*PRETRAIN, *TINY_GPT, "trainer.max_steps=61", f"run_dir={folder}"]
    with pytest.raises(UserError) as error:
        run(*given, f"data.train={corpus}", "optimizer.lr=2e-2", "batch.sequences=4")
    assert "optimizer.lr was 0.01 and is 0.02" in str(error.value)
    assert "batch.sequences was 8 and is 4" in str(error.value)
    with pytest.raises(UserError, match="the training and validation data is not the same"):
        run(*given, f"data.train={tmp_path}/other.txt", "optimizer.lr=1e-2")
    with pytest.raises(UserError, match=r"holds a run already.*resume=auto"):
        run(*given, f"data.train={corpus}", "resume=never")


def test_a_damaged_checkpoint_is_named(corpus: Path, run: Runner, tmp_path: Path) -> None:
    file = tmp_path / "broken.ckpt"
    file.write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match=r"broken\.ckpt: this is no checkpoint"):
        run(*PRETRAIN, *TINY_GPT, f"data.train={corpus}", "trainer.max_steps=2", f"resume={file}", f"run_dir={tmp_path}/run")


# ---- folders, sweeps, checks ----


def test_runs_started_in_the_same_second_get_two_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llm_lightning.runs.folder import open_folder, release_folder
    from llm_lightning.runs.log import close_log

    monkeypatch.chdir(tmp_path)
    config = load_config([])
    made = []
    for _ in range(3):
        made.append(open_folder(config))
        release_folder()
        close_log()
    assert len(set(made)) == 3
    assert all(folder.is_dir() for folder in made)


def test_check_ends_with_a_table_and_trains_nothing(
    reviews: Path, cache: Path, tmp_path: Path, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    given = [
        "task=check",
        "objective=classification",
        *FINETUNE[1:],
        *TINY_BERT,
        f"data.train={reviews}",
        *QUIET,
        f"cache_dir={cache}",
    ]
    result = command(*given, f"run_dir={tmp_path}")
    assert result.returncode == 0, result.stderr
    for check in (
        "tokenizer",
        "train batch",
        "validation labels",
        "disk",
        "one step on the longest batch",
        "checkpoint written",
        "monitored",
    ):
        assert check in result.stderr
    assert "FAIL" not in result.stderr
    assert "bad 108, good 108" in result.stderr
    assert not (tmp_path / "hf").exists()


def test_a_check_says_that_it_does_not_look_at_labels(reviews: Path, run: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    """A command of task=finetune, whose objective is classification, becomes one of task=check, whose objective is causal_lm."""
    run("task=check", *FINETUNE[1:], *TINY_GPT, f"data.train={reviews}")
    shown = capsys.readouterr().err
    assert "objective=causal_lm reads no labels, so that data.columns.label=stars is not checked" in shown


def test_a_failed_check_stops_the_run(reviews: Path, run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A metric that nobody produces would make the run fail at its first validation, after hours: it fails now."""
    from llm_lightning.objectives.classification import Classification

    monkeypatch.setattr(Classification, "monitor", "validation/f2")
    with pytest.raises(
        UserError, match=r"1 of \d+ checks failed: monitored metric: validation/f2 is not produced; there are loss, accuracy"
    ):
        run(*FINETUNE, *TINY_BERT, f"data.train={reviews}", f"run_dir={tmp_path}")


def test_a_diverged_run_stops(corpus: Path, run: Runner, tmp_path: Path) -> None:
    from llm_lightning.training.divergence import Diverged

    with pytest.raises(Diverged, match=r"Lower optimizer\.lr"):
        run(*PRETRAIN, *TINY_GPT, f"data.train={corpus}", "trainer.max_steps=50", "optimizer.lr=1e20", f"run_dir={tmp_path}")


def test_early_stopping(reviews: Path, run: Runner, tmp_path: Path) -> None:
    """With a rate of next to nothing the accuracy stays: two validations without improvement end the run."""
    given = [*FINETUNE, *TINY_BERT, f"data.train={reviews}", "callbacks.patience=2", "trainer.max_epochs=20", "optimizer.lr=1e-12"]
    summary = run(*given, "trainer.validate_every_steps=2", f"run_dir={tmp_path}")
    assert summary["steps"] == 6
    assert summary["best_step"] == 6  # of equal accuracies the one with the lower loss, or the later


def test_a_hopeless_run_is_pruned_but_not_when_it_is_trained_anyway(reviews: Path, cache: Path, tmp_path: Path) -> None:
    from llm_lightning.run import run

    given = [
        *QUIET,
        f"cache_dir={cache}",
        *FINETUNE,
        *TINY_BERT,
        f"data.train={reviews}",
        "trainer.max_steps=4",
        "trainer.max_epochs=null",
    ]
    asked: list[int] = []

    def should_continue(done: int, value: float) -> bool:
        asked.append(done)
        return False

    with pytest.raises(Pruned, match="pruned after step 2"):
        run(load_config([*given, "trainer.validate_every_steps=2", f"run_dir={tmp_path / 'hopeless'}"]), None, should_continue)
    summary = run(load_config([*given, "trainer.validate_every_steps=4", f"run_dir={tmp_path / 'over'}"]), None, should_continue)
    assert summary["steps"] == 4
    assert asked == [500]  # thousandths of the run
