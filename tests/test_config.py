"""The command line is checked before anything heavy is imported, and says what is wrong, what is allowed, and what was meant."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

from llm_lightning.config import signatures
from llm_lightning.config.compose import load_config
from llm_lightning.config.schema import CONF, OPEN_GROUPS, Config, plain
from llm_lightning.errors import UserError

from .conftest import ROOT

FINETUNE = ["task=finetune"]
FILES = ["task=finetune", "data=files", "data.columns.label=label"]

BAD: list[tuple[list[str], list[str]]] = [  # command line, what its message must hold
    (["taskk=finetune"], ["taskk", "no such key", "Did you mean 'task'?"]),
    (
        ["task=finetun"],
        ["task=finetun", "can be chat, check, evaluate, export, finetune, generate, predict, pretrain", "Did you mean 'finetune'?"],
    ),
    (["model=bert_tini"], ["model=bert_tini", "Did you mean 'bert_tiny'?"]),
    (["optimizer=adam"], ["optimizer=adam", "Did you mean 'adamw'?"]),
    (["trainer.max_stepz=3"], ["trainer.max_stepz", "no such key", "Did you mean 'trainer.max_steps'?"]),
    (["data.columns.lable=x"], ["data.columns.lable", "Did you mean 'data.columns.label'?"]),
    (["optimizer.weigth_decay=0.1"], ["optimizer.weigth_decay", "lr", "Did you mean 'weight_decay'?"]),
    (["objective=masked_lm", "objective.whole_word=true"], ["objective.whole_word", "Did you mean 'whole_words'?"]),
    (["scheduler.warmup=ten"], ["scheduler.warmup=ten", "expected a number"]),
    (["trainer.max_steps=abc"], ["trainer.max_steps", "'abc'", "Integer"]),
    (["optimizer.lr=-0.1"], ["optimizer.lr=-0.1", "a number above 0"]),
    (["batch.sequences=0"], ["batch.sequences=0", "at least 1"]),
    (["trainer.precision=bf17"], ["trainer.precision=bf17", "bf16-mixed"]),
    (["objective=masked_lm", "objective.mask_probability=1.5"], ["objective.mask_probability=1.5", "above 0 and below 1"]),
    (["trainer.max_steps=null"], ["trainer.max_steps and trainer.max_epochs are both null"]),
    ([*FILES, "data.train=nowhere.csv"], ["data.train=nowhere.csv", "no such file"]),
    (["task=finetune", "data=docs"], ["data=docs has no labels", "data.columns.label", "docs_topics"]),
    (["objective=masked_lm", "model=gpt_tiny"], ["model=gpt_tiny is a decoder", "needs an encoder", "bert_tiny"]),
    (["objective=masked_lm", "data.packing=concat"], ["data.packing=concat", "whole texts"]),
    (["model.init_from=nowhere"], ["model.init_from=nowhere", "hf/config.json"]),
    (["model.name_or_path=./nowhere"], ["model.name_or_path=./nowhere", "does not exist"]),
    (["task=evaluate"], ["run is not set", "run=<run folder>"]),
    (["task=evaluate", "run=nowhere"], ["run=nowhere", "not a run folder"]),
    (["task=pretrain", "data=hub"], ["data.name is not set", "data=hub"]),
    (["resume=alway"], ["resume=alway", "auto, never, or a checkpoint file"]),
    (["trainer.compile=maybe"], ["trainer.compile=maybe", "one of auto, true, false"]),
    (["trainer.devices=none"], ["trainer.devices=none", "auto, or a whole number"]),
    (["batch.micro_tokens=600.5"], ["batch.micro_tokens=600.5", "at least 1, or auto"]),
    (["trainer.precision=fp8", "trainer=fsdp"], ["trainer.precision=fp8", "trainer=ddp"]),
    (["batch.micro_tokens=auto", "trainer=fsdp"], ["batch.micro_tokens=auto", "trainer=fsdp", "a number"]),
    (["batch.micro_tokens=10"], ["batch.micro_tokens=10", "data.block_size"]),
    (["data.train=mine.txt"], ["data.train=mine.txt", "data=docs is built in", "data=text or data=files"]),
    (["data.train=a(1).txt"], ["data.train=a(1).txt", "data=docs is built in"]),
    (["trainer.max_steps=a(1"], ["trainer.max_steps=a(1", "cannot be read"]),
    (["new?"], ["new?", "key=value, or group=option"]),
    (["cache_dir=/proc/cache"], ["cache_dir=/proc/cache", "cannot be written", "cache_dir=<folder>"]),
    (["run_dir=/proc/run"], ["run_dir=/proc/run", "cannot be written"]),
    (["run_dir=/dev/null/run"], ["run_dir=/dev/null/run", "/dev/null is a file"]),
    (["run_dir="], ["run_dir is empty"]),
    (["run=runs/x"], ["only task=evaluate, predict, generate, chat and export read a run", "model.init_from=runs/x"]),
    (["optimizer.lr=inf"], ["optimizer.lr=inf", "a number above 0"]),
    (["optimizer.betas=[0.9]"], ["optimizer.betas", "a list of 2 values"]),
    (["optimizer.betas=[0.9,1.5]"], ["optimizer.betas", "below 1"]),
    (["task=finetune", "objective.class_weights=[1,-2]"], ["objective.class_weights", "at least 0"]),
    (["data.block_size=1000"], ["data.block_size=1000", "512 positions", "n_positions"]),
    (["data.share=0.5", "data=docs_topics", "objective=classification"], ["data.share=0.5", "only data=docs has"]),
    (["trainer.num_nodes=2"], ["trainer.num_nodes=2", "torchrun"]),
    (["trainer.devices=5000", "trainer=cpu"], ["trainer.devices=5000", "cores"]),
    ([*FILES, "data.train=train.py", "data.delimiter=ab"], ["data.delimiter=ab", "one character"]),
    (["data.streaming=true"], ["data.streaming=true", "data=docs is built in"]),
    (["data=hub", "data.name=a/b", "data.streaming=true", "data.test=test"], ["data.test=test", "task=evaluate"]),
]


@pytest.mark.parametrize(("arguments", "expected"), BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else None)
def test_bad_config(arguments: list[str], expected: list[str]) -> None:
    with pytest.raises(UserError) as error:
        load_config(arguments)
    message = str(error.value)
    for part in expected:
        assert part in message


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(UserError) as error:
        load_config(["optimizer.lr=-1", "optimizer.lrr=1", "resume=alway"])
    assert len(str(error.value).splitlines()) == 3


def test_nearest_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "reviews.csv").write_text("text,label\na,b\n")
    with pytest.raises(UserError, match=r"did you mean 'reviews\.csv'"):
        load_config([*FILES, f"data.train={tmp_path}/review.csv"])


def test_command_line_exits_with_2_and_one_message(command: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    result = command("task=finetune", "optimizer.lr=-1")
    assert result.returncode == 2
    assert result.stderr.strip() == "error: optimizer.lr=-1: expected a number above 0."
    assert "Traceback" in command("task=finetune", "optimizer.lr=-1", "debug=true").stderr


def test_wrong_config_is_refused_before_torch_is_imported() -> None:
    code = (
        "import sys; sys.argv = ['train.py', 'task=finetune', 'optimizer.lr=-1']\n"
        "from llm_lightning.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert stop.code == 2\n"
        "heavy = {'torch', 'lightning', 'transformers', 'datasets', 'pandas', 'wandb'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)


OPTIONS = [
    (str(file.parent.relative_to(CONF)), file.stem)
    for file in sorted(CONF.glob("*/**/*.yaml"))
    if file.relative_to(CONF).parts[0] != "hydra"
]


def test_help_shows_groups_options_and_seven_examples(command: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    shown = command("--help").stdout
    for group in {group for group, _ in OPTIONS}:
        assert f"{group}: {', '.join(option for each, option in OPTIONS if each == group)}" in shown
    assert shown.split("Examples:")[1].count("python train.py") == 7


def with_files(overrides: list[str], folder: Path) -> Config:
    """The config of a command line, given files where it has none."""
    try:
        return load_config(overrides)
    except UserError as error:
        if "data.train is not set" not in str(error) and "no such file" not in str(error):
            raise
        for name in ("train.csv", "MSRpar.train.tsv", "MSRpar.test.tsv", "test_2016_flickr.en"):
            (folder / name).touch()
        return load_config([*overrides, f"data.dir={folder}"])


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_shipped_option_composes(group: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each option of each group gives a valid config with whatever it needs beside it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)  # every extra is installed
    (tmp_path / "train.csv").write_text("text,label\na,0\nb,1\n")
    (tmp_path / "train.txt").write_text("some text")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    OmegaConf.save(OmegaConf.create(plain(load_config([]))), tmp_path / "config.yaml")
    needs = {
        ("data", "files"): ["data.train=" + str(tmp_path / "train.csv")],
        ("data", "text"): ["data.train=" + str(tmp_path / "train.txt")],
        ("data", "hub"): ["data.name=some/data"],
        ("task", "evaluate"): [f"run={tmp_path}"],
        ("task", "chat"): [f"run={tmp_path}"],
        ("task", "generate"): [f"run={tmp_path}", "prompt=a"],
        ("task", "export"): [f"run={tmp_path}"],
        ("task", "predict"): [f"run={tmp_path}", f"data.predict={tmp_path}/train.txt"],
    }
    extra = {"model": ["objective=classification"], "data": ["objective=causal_lm"], "model/adapter": ["model=gpt2"]}.get(group, [])
    config = with_files([*extra, f"{group}={option}", *needs.get((group, option), [])], tmp_path)
    assert config.choices[group] == option or config.run is not None  # which has its choices


@pytest.mark.parametrize(("group", "option"), [(g, o) for g, o in OPTIONS if g in OPEN_GROUPS])
def test_targets_read_from_source_are_those_that_run(group: str, option: str, tmp_path: Path) -> None:
    """The schema that is parsed without importing is the signature that will be called."""
    target = getattr(with_files([f"{group}={option}"], tmp_path), group)["_target_"]
    real = inspect.signature(get_object(target)).parameters.values()
    parsed = signatures.parameters(target)
    assert parsed is not None
    assert set(parsed) == {p.name for p in real if p.kind is p.KEYWORD_ONLY}
    assert {name for name, p in parsed.items() if p.required} == {
        p.name for p in real if p.kind is p.KEYWORD_ONLY and p.default is p.empty
    }


def test_no_yaml_repeats_a_default() -> None:
    """What a yaml sets is a choice: it differs from the default of the signature or of the schema."""
    for group, option in OPTIONS:
        if group not in ("optimizer", "scheduler"):
            continue
        settings = dict(getattr(load_config([f"{group}={option}"]), group))
        signature = inspect.signature(get_object(settings.pop("_target_")))
        for key, value in settings.items():
            assert signature.parameters[key].default != value, f"{group}/{option}: {key}"


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["recipe=gpt2_124m_pretrain", "trainer=debug"], "trainer.max_steps", 10),
        (["task=finetune", "data=squad", "objective=question_answering", "model=bert_tiny"], "data.block_size", 384),
        (["recipe=xquad_minilm"], "data.block_size", 256),
        (["recipe=sst2_minilm", "optimizer=muon"], "optimizer.lr", 1e-4),  # a preset's rate is the model's
        (["recipe=sst2_minilm", "optimizer=muon", "optimizer.lr=1e-3"], "optimizer.lr", 1e-3),
    ],
)
def test_who_has_the_last_word(overrides: list[str], key: str, value: float, tmp_path: Path) -> None:
    assert OmegaConf.select(OmegaConf.create(plain(with_files(overrides, tmp_path))), key) == value


def test_zero_is_a_seed() -> None:
    assert load_config(["seed=0"]).seed == 0
