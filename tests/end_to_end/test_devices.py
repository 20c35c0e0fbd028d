"""Several processes train what one would, and score what one would; and a run may go on on another number of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from llm_lightning.training.checkpoints import list_checkpoints

from ..conftest import QUIET, TINY_BERT, TINY_GPT
from ..objectives.test_supervised import TINY_MARIAN, write
from ..objectives.test_supervised import tasks as conversations
from ..objectives.test_windows import WINDOWS
from ..objectives.test_windows import write as write_long
from .conftest import Launch, LaunchRanks
from .test_launchers import wait
from .test_runs import losses

CAUSAL = ["task=pretrain", "data=text", "data.document=line", "data.block_size=32", *TINY_GPT, "batch.sequences=7"]
CLASSES = ["task=finetune", "data=files", "data.columns.text=body", "data.columns.label=stars", *TINY_BERT, "batch.sequences=7"]
NO_DROPOUT = "++model.config={hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}"
EXACT = ["trainer.precision=32-true", "trainer.log_every_steps=1"]
TWO = ["trainer.accelerator=cpu", "trainer.devices=2"]


def train(launch_ranks: LaunchRanks, arguments: list[str], folder: Path) -> None:
    """Run to the end, on two processes where the arguments name TWO devices."""
    ranks = launch_ranks([*QUIET, *arguments, f"run_dir={folder}"], folder, count=2 if TWO[-1] in arguments else 1)
    assert wait(ranks) == [0] * len(ranks), "\n".join(rank.log.read_text()[-4000:] for rank in ranks)


def tasks(task: str, corpus: Path, reviews: Path, cache: Path) -> list[str]:
    data = [*CAUSAL, f"data.train={corpus}"] if task == "causal" else [*CLASSES, NO_DROPOUT, f"data.train={reviews}"]
    return [*data, f"cache_dir={cache}", *EXACT]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("task", ["causal", "classes"])
def test_two_processes_train_what_one_would(
    task: str, strategy: str, launch_ranks: LaunchRanks, corpus: Path, reviews: Path, cache: Path, tmp_path: Path
) -> None:
    """Steps of seven rows in micro-batches of two: unequal numbers of rows, batches and targets on the two ranks."""
    given = [*tasks(task, corpus, reviews, cache), "batch.micro_sequences=2", "trainer.max_steps=6"]
    given += ["trainer.validate_every_steps=3", "optimizer.lr=1e-2"]
    train(launch_ranks, given, tmp_path / "one")
    train(launch_ranks, [*given, f"trainer={strategy}", *TWO], tmp_path / "two")
    one, two = ([float(loss) for _, loss in losses(tmp_path / name)] for name in ("one", "two"))
    assert len(one) == 6
    assert two == pytest.approx(one, rel=1e-5)
    first, second = (load_file(tmp_path / name / "hf" / "model.safetensors") for name in ("one", "two"))
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(second[name], first[name], atol=1e-4, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two")]
    assert summaries[0]["tokens_seen"] == summaries[1]["tokens_seen"]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_the_adapter_that_one_would(
    strategy: str, launch_ranks: LaunchRanks, corpus: Path, reviews: Path, cache: Path, tmp_path: Path
) -> None:
    given = [*tasks("classes", corpus, reviews, cache), "trainer.max_steps=4", "trainer.validate_every_steps=2"]
    train(launch_ranks, given, tmp_path / "base")
    given += [f"model.init_from={tmp_path}/base", "model/adapter=lora", "batch.micro_sequences=2"]
    train(launch_ranks, given, tmp_path / "one")
    train(launch_ranks, [*given, f"trainer={strategy}", *TWO], tmp_path / "two")
    one, two = ([float(loss) for _, loss in losses(tmp_path / name)] for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-5)
    for file in ("adapter/adapter_model.safetensors", "hf/model.safetensors"):
        first, second = (load_file(tmp_path / name / file) for name in ("one", "two"))
        assert first.keys() == second.keys()
        for name in first:
            torch.testing.assert_close(second[name], first[name], atol=1e-4, rtol=1e-3)


OBJECTIVES = ["masked_lm", "multi_label", "regression", "tagging", "question_answering", "translation", "instruction"]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains_and_scores_on_two_processes_as_on_one(
    objective: str, launch_ranks: LaunchRanks, corpus: Path, cache: Path, tmp_path: Path
) -> None:
    """DDP and FSDP2; batches of seven rows and unequal numbers of evaluation batches. Scores of whole texts and spans included."""
    if objective == "masked_lm":
        data = [
            "task=pretrain",
            "objective=masked_lm",
            "data=text",
            f"data.train={corpus}",
            "data.document=line",
            *TINY_BERT,
            NO_DROPOUT,
        ]
    elif objective == "instruction":
        data = [*conversations(tmp_path), "objective.answered=5", "objective.max_answer=8"]
    elif objective == "translation":
        data = [*write(tmp_path, objective), *TINY_MARIAN, "++model.config.dropout=0.0", "objective.beams=2", "data.block_size=32"]
    else:
        data = [*write(tmp_path, objective), *TINY_BERT, NO_DROPOUT]
    given = [*QUIET, *data, f"cache_dir={cache}", *EXACT, "batch.sequences=7", "batch.micro_sequences=2", "optimizer.lr=3e-3"]
    given += ["trainer.max_steps=4", "trainer.validate_every_steps=2"]
    found = {}
    for name, count in (("one", 1), ("ddp", 2), ("fsdp", 2)):
        strategy = [] if name == "one" else [f"trainer.strategy={name}"]
        ranks = launch_ranks([*given, *strategy, f"run_dir={tmp_path}/{name}"], tmp_path / name, count=count)
        assert wait(ranks) == [0] * count, ranks[0].log.read_text()[-3000:]
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        found[name] = [float(loss) for _, loss in losses(tmp_path / name)], summary["metrics"]
    for name in ("ddp", "fsdp"):
        assert found[name][0] == pytest.approx(found["one"][0], rel=1e-5)
        assert found[name][1] == pytest.approx(found["one"][1], rel=1e-3, abs=1e-4)


def test_rows_in_windows_train_and_score_on_two_processes_as_on_one(launch_ranks: LaunchRanks, cache: Path, tmp_path: Path) -> None:
    given = [*QUIET, *write_long(tmp_path / "data"), *TINY_BERT, NO_DROPOUT, f"cache_dir={cache}", *EXACT, *WINDOWS]
    given += ["batch.sequences=7", "batch.micro_sequences=2", "optimizer.lr=3e-3", "trainer.max_steps=4"]
    found = {}
    for name, count in (("one", 1), ("two", 2)):
        ranks = launch_ranks([*given, f"run_dir={tmp_path}/{name}"], tmp_path / name, count=count)
        assert wait(ranks) == [0] * count, ranks[0].log.read_text()[-3000:]
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        found[name] = [float(loss) for _, loss in losses(tmp_path / name)], summary["metrics"], summary["tokens_seen"]
    assert found["two"][0] == pytest.approx(found["one"][0], rel=1e-5)
    assert found["two"][1] == pytest.approx(found["one"][1], rel=1e-3, abs=1e-4)
    assert found["two"][2] == found["one"][2]


def gradient(folder: Path) -> list[Tensor]:
    """The first step's gradient, as AdamW's first moment has it: (1 - beta1) times it."""
    state = torch.load(list_checkpoints(folder / "checkpoints")[0], weights_only=True)
    assert state["global_step"] == 1
    return [moments["exp_avg"] for moments in state["optimizer_states"][0]["state"].values()]


@pytest.mark.parametrize("task", ["causal", "classes"])
def test_the_gradient_of_a_step_is_that_of_one_big_batch(
    task: str, launch_ranks: LaunchRanks, corpus: Path, reviews: Path, cache: Path, tmp_path: Path
) -> None:
    """1 x 32, 4 x 8, micro-batches of unequal size under a token bound, and two processes of them: one gradient."""
    given = [*tasks(task, corpus, reviews, cache), "batch.sequences=32", "trainer.max_steps=1", "trainer.clip_norm=null"]
    apart = ["data.packing=none"] if task == "causal" else ["objective.class_weights=[1,5]"]  # or the classes' parts cancel out
    ragged = [*apart, "batch.length_window=1", "batch.micro_tokens=150"]
    ways = {
        "1x32": apart,
        "4x8": [*apart, "batch.micro_sequences=8"],
        "shuffled": [*apart, "batch.length_window=1"],
        "ragged": ragged,
        "two processes": [*ragged, "trainer=ddp", *TWO],
    }
    for name, changes in ways.items():
        train(launch_ranks, [*given, *changes], tmp_path / name)
    for name, whole in (("4x8", "1x32"), ("ragged", "shuffled"), ("two processes", "shuffled")):
        found, expected = (torch.cat([g.flatten() for g in gradient(tmp_path / n)]) for n in (name, whole))
        assert float((found - expected).norm()) <= 1e-6 * float(expected.norm()), name


def test_a_run_goes_on_on_another_number_of_processes(
    launch_ranks: LaunchRanks, corpus: Path, reviews: Path, cache: Path, tmp_path: Path
) -> None:
    """One process, then two, then one again, against one all the way: the same steps, the same curve to rounding."""
    given = [*tasks("causal", corpus, reviews, cache), "batch.micro_sequences=2", "trainer.validate_every_steps=3"]
    given += ["scheduler=wsd", "scheduler.warmup=0", "scheduler.decay=0", "optimizer.lr=1e-2"]  # a rate that no length changes
    train(launch_ranks, [*given, "trainer.max_steps=12"], tmp_path / "one")
    for steps, devices in ((4, []), (8, ["trainer=ddp", *TWO]), (12, [])):
        train(launch_ranks, [*given, f"trainer.max_steps={steps}", *devices], tmp_path / "elastic")
    one, elastic = (dict(losses(tmp_path / name)) for name in ("one", "elastic"))
    assert list(elastic) == list(one) == [str(step) for step in range(1, 13)]
    assert [float(loss) for loss in elastic.values()] == pytest.approx([float(loss) for loss in one.values()], rel=1e-5)
    seen = [json.loads((tmp_path / name / "summary.json").read_text())["tokens_seen"] for name in ("one", "elastic")]
    assert seen[0] == seen[1]


def test_streamed_text_goes_on_exactly_on_as_many_processes(
    launch: Launch, launch_ranks: LaunchRanks, corpus: Path, cache: Path, tmp_path: Path
) -> None:
    """Two processes with a loader worker each: every one of the four readers' states is in the checkpoint, rank 0's and rank 1's."""
    given = [*CAUSAL, f"data.train={corpus}", f"data.validation={corpus}", f"cache_dir={cache}", *EXACT, "data.streaming=true"]
    given += ["scheduler=wsd", "scheduler.warmup=0", "scheduler.decay=0", "trainer.validate_every_steps=3", "data.workers=2"]
    for folder, lengths in (("whole", [8]), ("in two parts", [5, 8])):
        for steps in lengths:
            train(launch_ranks, [*given, f"trainer.max_steps={steps}", "trainer=ddp", *TWO], tmp_path / folder)
    whole, parts = (losses(tmp_path / folder) for folder in ("whole", "in two parts"))
    assert len(whole) == 8
    assert whole == parts
    run = launch([*QUIET, *given, "trainer.max_steps=9"], tmp_path / "whole")
    assert run.wait() == 2
    assert "the state was saved by 4 readers (devices × data.workers), and there are 2 now" in run.log.read_text()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_streamed_steps_of_fewer_rows_than_processes(
    strategy: str, launch_ranks: LaunchRanks, corpus: Path, cache: Path, tmp_path: Path
) -> None:
    """A rank without a row runs blank micro-batches that count for nothing: the run is that of one process."""
    arguments = [*CAUSAL, f"data.train={corpus}", f"data.validation={corpus}", f"cache_dir={cache}", *EXACT, "data.streaming=true"]
    arguments += ["batch.sequences=1", "trainer.max_steps=4", "trainer.validate_every_steps=2", "optimizer.lr=1e-2"]
    train(launch_ranks, arguments, tmp_path / "one")
    train(launch_ranks, [*arguments, f"trainer={strategy}", *TWO], tmp_path / "two")
    one, two = ([float(loss) for _, loss in losses(tmp_path / name)] for name in ("one", "two"))
    assert len(one) == 4
    assert two == pytest.approx(one, rel=1e-5)
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two")]
    assert summaries[0]["tokens_seen"] == summaries[1]["tokens_seen"]


def test_streamed_steps_of_unequal_numbers_of_micro_batches(
    launch_ranks: LaunchRanks, corpus: Path, cache: Path, tmp_path: Path
) -> None:
    """Seven rows on two ranks: one whole micro-batch each, or four and three of a row each, which makes a blank one."""
    arguments = [*CAUSAL, f"data.train={corpus}", f"data.validation={corpus}", f"cache_dir={cache}", *EXACT, "data.streaming=true"]
    arguments += ["trainer.max_steps=4", "trainer.validate_every_steps=2", "optimizer.lr=1e-2", *TWO]
    ways = {
        "whole": ["trainer=ddp"],
        "ddp": ["trainer=ddp", "batch.micro_sequences=1"],
        "fsdp": ["trainer=fsdp", "batch.micro_sequences=1"],
    }
    for name, changes in ways.items():
        train(launch_ranks, [*arguments, *changes], tmp_path / name)
    whole, ddp, fsdp = ([float(loss) for _, loss in losses(tmp_path / name)] for name in ways)
    assert len(whole) == 4
    assert ddp == pytest.approx(whole, rel=1e-5)
    assert fsdp == pytest.approx(whole, rel=1e-5)


def test_scores_are_those_of_one_process_to_the_last_digit(
    launch: Launch, launch_ranks: LaunchRanks, reviews: Path, cache: Path, tmp_path: Path
) -> None:
    """Also where a rank has no row left: three evaluation batches on two ranks."""
    given = [*tasks("classes", reviews, reviews, cache), "trainer.max_steps=3", "data.validation_fraction=0.09"]
    train(launch_ranks, given, tmp_path / "run")
    said = []
    for name, devices in (("one", []), ("two", ["trainer.strategy=ddp", *TWO])):
        run = launch(["task=evaluate", f"run={tmp_path / 'run'}", *devices], tmp_path / name)
        assert run.wait() == 0, run.log.read_text()[-3000:]
        said.append([line for line in run.log.read_text().splitlines() if line.startswith("  validation/")])
    assert said[0] == said[1]
    assert len(said[0]) == 6
