"""The command line is checked before anything heavy is imported, and says what is wrong, what is allowed, and what was meant."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

from llm_lightning.config import signatures
from llm_lightning.config.compose import load_config
from llm_lightning.config.hydra_keys import translate_hydra_keys
from llm_lightning.config.schema import CONF, OPEN_GROUPS, Config, plain
from llm_lightning.errors import UserError

from .conftest import ROOT

FINETUNE = ["task=finetune"]
FILES = ["task=finetune", "data=files", "data.columns.label=label"]

BAD: list[tuple[list[str], list[str]]] = [  # command line, what its message must hold
    (["taskk=finetune"], ["taskk", "no such key", "Did you mean 'task'?"]),
    (
        ["task=finetun"],
        [
            "task=finetun",
            "can be audit, chat, check, evaluate, export, finetune, generate, inspect, predict, pretrain",
            "Did you mean 'finetune'?",
        ],
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
    (["run=runs/x"], ["only task=evaluate, predict, generate, chat, export and audit read a run", "model.init_from=runs/x"]),
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


def test_help_shows_groups_options_and_eight_examples(command: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    shown = command("--help").stdout
    for group in {group for group, _ in OPTIONS}:
        assert f"{group}: {', '.join(option for each, option in OPTIONS if each == group)}" in shown
    assert shown.split("Examples:")[1].count("python train.py") == 8


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
        ("privacy", "dp"): ["privacy.public_tokenizer=true"],
        ("task", "evaluate"): [f"run={tmp_path}"],
        ("task", "chat"): [f"run={tmp_path}"],
        ("task", "generate"): [f"run={tmp_path}", "prompt=a"],
        ("task", "export"): [f"run={tmp_path}"],
        ("task", "audit"): [f"run={tmp_path}"],
        ("task", "predict"): [f"run={tmp_path}", f"data.predict={tmp_path}/train.txt"],
    }
    labelled = ["task=finetune", "objective=classification"]
    extras = {"model": labelled, "objective": labelled[:1], "data": ["objective=causal_lm"], "model/adapter": ["model=gpt2"]}
    extras["privacy"] = [*labelled, "data=docs_topics"]
    config = with_files([*extras.get(group, []), f"{group}={option}", *needs.get((group, option), [])], tmp_path)
    assert config.choices[group] == option or config.run is not None  # which has its choices


@pytest.mark.parametrize(("group", "option"), [(g, o) for g, o in OPTIONS if g in OPEN_GROUPS])
def test_targets_read_from_source_are_those_that_run(group: str, option: str, tmp_path: Path) -> None:
    """The schema that is parsed without importing is the signature that will be called."""
    target = getattr(with_files(["task=finetune", f"{group}={option}"], tmp_path), group)["_target_"]
    real = inspect.signature(get_object(target)).parameters.values()
    parsed = signatures.parameters(target, positions=1)  # which the run passes
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


# ---- Hydra's own habits ----


@pytest.fixture
def own_conf(tmp_path: Path) -> Path:
    """A user's folder of options, as `--config-dir` takes it."""
    files = {
        "recipe/mine.yaml": "# @package _global_\ndefaults:\n  - override /model: bert_tiny\n  - override /objective: masked_lm\n",
        "recipe/unknown.yaml": "# @package _global_\ntrainer:\n  max_stepz: 5\n",
        "recipe/broken.yaml": "a: [1\n",
    }
    for name, text in files.items():
        (tmp_path / "conf" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "conf" / name).write_text(text)
    return tmp_path / "conf"


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": str(ROOT)})


REFUSED_FORMS = {
    ("+experiment=foo",): "recipe=foo: there is no such option; recipe can be ",
    ("+foo=1",): "foo: there is no such key; the config has ",
    ("++foo.bar=1",): "foo: there is no such key; the config has ",
    ("+trainer.foo=1",): "trainer.foo: there is no such key; trainer has ",
    ("+optimizer.foo=1",): "optimizer.foo: adamw has no such setting",
    ("+model.config.foo=1",): "model.config.foo: gpt2 has no such setting",
    ("~optimizer",): "choose optimizer=<option>",
    ("~optimizer.lr",): "optimizer.lr is not set",
    ("hydra.sweep.dir=x",): "hydra.run.dir or run_dir names the folder of a run",
    ("-m", "hydra.run.dir=x"): "hydra.sweep.dir does",
    ("hydra.sweep.subdir=x",): "run_dir=<folder> names the sweep's",
    ("hydra.job.chdir=true",): "a run never changes the working folder",
    ("hydra/job_logging=default",): "train.log",
    ("hydra.run.dir=x", "run_dir=y"): "both name the folder",
    ("optimizer@foo=adamw",): "optimizer@foo: there is no such key",
    ("+logger@x=csv",): "logger/csv: x: there is no such key",
    ("--config-name", "foo"): "foo",
    ("recipe=unknown",): "recipe/unknown: trainer.max_stepz: there is no such key; trainer has ",
    ("recipe=broken",): "broken.yaml, line 2: this is no YAML",
}


@pytest.mark.parametrize("form", REFUSED_FORMS, ids=" ".join)
def test_a_form_that_would_have_no_effect_is_refused(form: tuple[str, ...], own_conf: Path) -> None:
    outcome = start("task=check", "--config-dir", str(own_conf), *form)
    assert (outcome.returncode, "Traceback" in outcome.stderr) == (2, False), outcome.stderr
    assert REFUSED_FORMS[form] in outcome.stderr


@pytest.mark.parametrize(
    ("form", "shown"),
    [
        (("--cfg", "job", "--package", "model.architecture", "+experiment=mine"), "bert"),
        (("--cfg", "job", "--package", "run_dir", "hydra.run.dir=a/${now:%Y}"), "a/20"),
        (("--cfg", "job", "--package", "run_dir", "--resolve", "hydra.run.dir=a/b"), "a/b"),
        (("--cfg", "job", "--package", "optimizer.lr", "++optimizer.lr=0.25"), "0.25"),
        (("--cfg", "hydra", "--package", "hydra.verbose", "hydra.verbose=true"), "True"),
        (("--info", "searchpath"), "command-line"),
        (("--info", "defaults"), "optimizer/adamw"),
        (("--hydra-help",), "--config-dir"),
    ],
)
def test_flags_of_hydra_show_what_is_composed(form: tuple[str, ...], shown: str, own_conf: Path) -> None:
    outcome = start("task=check", *form, "--config-dir", str(own_conf))
    assert outcome.returncode == 0, outcome.stderr
    assert shown in outcome.stdout


def test_the_folder_of_a_sweep_may_be_named_as_hydra_has_it() -> None:
    arguments = ["-m", "task=pretrain", "hydra.sweep.dir=sweeps/a", "seed=1,2"]
    assert translate_hydra_keys(arguments) == ["-m", "task=pretrain", "run_dir=sweeps/a", "seed=1,2"]
