"""What a command line and a search space come to."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_lightning.config.compose import load_config
from llm_lightning.config.schema import CONF
from llm_lightning.errors import UserError
from llm_lightning.sweep import space
from llm_lightning.sweep.ranks import Ranks
from llm_lightning.sweep.sweep import Sweep


def test_values_of_the_command_line_replace_those_of_the_space() -> None:
    given = ["task=finetune", "optimizer.lr=1e-4,3e-4", "scheduler.warmup=0.1", "sweep.trials=3", "launcher=parallel", "run_dir=/x"]
    ranges = {"optimizer.lr": "interval(1e-5,1e-3)", "scheduler.warmup": "interval(0,0.2)", "batch.sequences": "range(8,33,8)"}
    fixed, dimensions = space.read(given, ranges, ["model=bert_tiny optimizer.weight_decay=0.1", "model=gpt_tiny"])
    assert fixed == ["task=finetune", "scheduler.warmup=0.1"]
    found = {d.key: list(d.options) for d in dimensions}
    choices = ["model=bert_tiny optimizer.weight_decay=0.1", "model=gpt_tiny"]
    assert found == {"choice": choices, "optimizer.lr": ["0.0001", "0.0003"], "batch.sequences": ["8", "16", "24", "32"]}
    points = [space.overrides(dimensions, point) for point in space.grid(dimensions)]
    assert len(points) == 2 * 2 * 4
    assert points[0] == ["model=bert_tiny", "optimizer.weight_decay=0.1", "optimizer.lr=0.0001", "batch.sequences=8"]
    assert points[-1] == ["model=gpt_tiny", "optimizer.lr=0.0003", "batch.sequences=32"]


def test_a_range_is_for_those_that_draw() -> None:
    _, dimensions = space.read(["optimizer.lr=tag(log,interval(1e-5,1e-3))"], {}, [])
    assert (dimensions[0].low, dimensions[0].high, dimensions[0].log) == (1e-5, 1e-3, True)
    assert space.overrides(dimensions, {"optimizer.lr": 0.000123456789}) == ["optimizer.lr=0.000123457"]
    with pytest.raises(UserError, match=r"optimizer\.lr: sweep=grid takes values"):
        list(space.grid(dimensions))


def test_a_range_of_whole_numbers() -> None:
    _, dimensions = space.read(["batch.sequences=tag(log,int(interval(8,64)))", "scheduler.warmup=interval(0,1)"], {}, [])
    assert [d.step for d in dimensions] == [1, None]
    assert dimensions[0].middle == 22
    assert space.overrides(dimensions, {"batch.sequences": 13, "scheduler.warmup": 0.25}) == [
        "batch.sequences=13",
        "scheduler.warmup=0.25",
    ]
    given = space.wandb_sweep("train.py", [], dimensions, "optuna", "validation/loss", False)["parameters"]
    assert given["batch.sequences"] == {"distribution": "q_log_uniform_values", "min": 8, "max": 64}


def test_a_space_may_list_values_or_fix_one() -> None:
    ranges = {"batch.sequences": [16, 32], "optimizer.lr": "1e-4", "seed": 1}
    fixed, dimensions = space.read(["task=finetune", "++optimizer.lr=1e-3"], ranges, [])
    assert fixed == ["task=finetune", "++optimizer.lr=1e-3", "seed=1"]
    assert {d.key: list(d.options) for d in dimensions} == {"batch.sequences": ["16", "32"]}


@pytest.mark.parametrize("wrong", ["interval(1e-3,1e-5)", "tag(log,interval(0,1))"])
def test_a_range_that_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(UserError, match=r"from the lower to the higher end"):
        space.read([f"optimizer.lr={wrong}"], {}, [])


@pytest.mark.parametrize("task", ["pretrain", "finetune"])
@pytest.mark.parametrize("sweep", sorted(file.stem for file in (CONF / "sweep").glob("*.yaml")))
def test_what_the_shipped_sweeps_vary_is_what_a_run_has(sweep: str, task: str) -> None:
    settings = load_config([f"sweep={sweep}", f"task={task}"]).sweep
    _, dimensions = space.read([], settings.space.get(task, {}), settings.choices if task == "finetune" else [])
    for dimension in dimensions:
        for value in dimension.options or (dimension.low, dimension.high):
            load_config([f"task={task}", *dimension.at(value)])


def test_wandb_is_given_the_same_space() -> None:
    fixed, dimensions = space.read(
        ["task=finetune", "seed=1,2", "optimizer.lr=tag(log,interval(1e-5,1e-3))", "scheduler.warmup=interval(0,0.2)"], {}, []
    )
    given = space.wandb_sweep("train.py", fixed, dimensions, "optuna", "validation/accuracy", True)
    assert given["method"] == "bayes"
    assert given["metric"] == {"name": "validation/accuracy", "goal": "maximize"}
    assert given["parameters"] == {
        "seed": {"values": ["1", "2"]},
        "optimizer.lr": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-3},
        "scheduler.warmup": {"distribution": "uniform", "min": 0.0, "max": 0.2},
    }
    assert given["command"] == ["${env}", "python", "${program}", "task=finetune", "${args_no_hyphens}"]


def test_a_job_keeps_its_folder_whatever_else_is_in_the_list(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.csv").write_text("text,label\na,0\nb,1\n")

    def folders(*names: str) -> dict[str, str]:
        files = ",".join(f"{tmp_path}/{name}/train.csv" for name in names)
        settings = load_config(["task=finetune"]).sweep
        given = ["task=finetune", "data=files", "data.columns.label=label", f"data.train={files}"]
        sweep = Sweep(given, settings, "finetune", str(tmp_path / "sweep"), Ranks(settings, None))
        return {job.varied[0]: job.name for job in sweep.grid()}

    two, three = folders("a", "b"), folders("c", "b", "a")
    assert len(set(three.values())) == 3
    assert all(three[job] == name for job, name in two.items())
