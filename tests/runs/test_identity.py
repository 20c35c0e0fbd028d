"""What makes a run the run that it is: the table of every config key, and the four that read it."""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from llm_lightning.config.compose import load_config
from llm_lightning.config.schema import Config, plain
from llm_lightning.errors import UserError
from llm_lightning.reporting.changed_settings import differences
from llm_lightning.runs import identity
from llm_lightning.runs.identity import KEYS, Kind, RunIdentity, configuration_hash, kind_of, load_finished_by_name
from llm_lightning.runs.weights import fingerprint_weights
from llm_lightning.training.checkpoints import list_checkpoints

from ..conftest import ROOT, TINY_BERT, TINY_GPT, Runner
from ..end_to_end.test_runs import losses, same_weights

RUN = ["task=pretrain", "data=text", "data.document=line", "data.block_size=32", "batch.sequences=4", *TINY_GPT]
RUN += ["trainer.max_steps=6", "trainer.log_every_steps=2", "checkpoint.every_steps=2", "trainer.validate_every_steps=6"]


def schema_keys(kind: type = Config, prefix: str = "") -> list[str]:
    """Every key of the schema, `a.*` for a group that takes any."""
    hints, keys = get_type_hints(kind), []
    for field in fields(kind):
        if is_dataclass(hints[field.name]):
            keys += schema_keys(hints[field.name], f"{prefix}{field.name}.")
        else:
            open_group = field.default_factory is dict and field.default is MISSING
            keys.append(f"{prefix}{field.name}{'.*' if open_group else ''}")
    return keys


def test_every_key_of_the_schema_is_classified() -> None:
    assert [key for key in schema_keys() if kind_of(key) is None] == [], "say in llm_lightning/runs/identity.py what they decide"
    covered = {key.removesuffix(".*") for key in KEYS}
    gone = [
        key
        for key in covered
        if not any(f"{real}.".startswith(f"{key}.") for real in (k.removesuffix(".*") for k in schema_keys()))
    ]
    assert gone == [], "no such keys"
    assert kind_of("objective.smoothing.end") is Kind.WEIGHTS
    assert kind_of("trainer.new") is kind_of("new") is None  # not by the group that they are in


def test_the_documentation_has_the_table() -> None:
    text = (ROOT / "docs" / "resuming.md").read_text(encoding="utf-8")
    rows = dict(line.strip("| ").split(" | ")[::3] for line in text.splitlines() if line.count(" | ") == 3)
    for kind in Kind:
        keys = " ".join(f"`{key}`" for key in KEYS if KEYS[key] is kind)
        assert rows.get(kind.value) == keys, f"docs/resuming.md, the row of '{kind.value}'"


# ---- the resume ----


def described(*overrides: str) -> dict[str, Any]:
    config = plain(load_config(["task=pretrain", "data=text", "data.train=a.txt", *TINY_GPT, *overrides]))
    data = {"train": "1", "validation": "2", "test": "3"}
    return {"config": config, "data": data, "weights": None, "precision": "32-true", "total_steps": 10}


def require_same_run(state: Path, before: dict[str, Any], now: dict[str, Any], step: int = 5) -> None:
    identity.require_same_run(state, before, step, RunIdentity.from_record(now))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr=0.5", r"optimizer\.lr was 0\.001 and is 0\.5"),
        ("trainer.clip_norm=3", r"trainer\.clip_norm was 1\.0 and is 3\.0"),
        ("data.packing=none", r"data\.packing was best_fit and is none"),
        ("seed=7", r"seed was 0 and is 7"),
        ("++model.config.n_head=4", r"model\.config\.n_head was 2 and is 4"),
        ("model.tokenizer.vocab_size=500", r"vocab_size was 400 and is 500"),
    ],
)
def test_a_resume_refuses_what_decides_the_weights(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        require_same_run(Path("x/checkpoints/step.ckpt"), described(), described(override))


def test_a_resume_takes_any_hardware_logger_and_length(caplog: pytest.LogCaptureFixture) -> None:
    changed = described(
        "trainer.devices=2", "trainer.strategy=fsdp", "batch.micro_sequences=1", "trainer.compile=true", "data.workers=3"
    )
    require_same_run(Path("x"), described(), changed)
    require_same_run(Path("x"), described(), described("run_dir=y", "checkpoint.keep=5", "callbacks.energy=false"))
    require_same_run(Path("x"), described(), described("generate.top_k=3", "cache_dir=z"))
    assert caplog.text == ""
    longer = described("trainer.max_steps=20", "callbacks.patience=3", "trainer.validate_every_steps=7") | {"total_steps": 20}
    require_same_run(Path("x"), described(), longer)
    assert "was to have 10 steps and now has 20" in caplog.text
    assert "validate_every_steps was 250 and is 7; callbacks.patience was None and is 3" in caplog.text
    assert "max_steps was" not in caplog.text
    average = "callbacks.custom.average._target_=lightning.pytorch.callbacks.WeightAveraging"
    require_same_run(Path("x"), described(), described(f"+{average}"))
    assert "callbacks.custom.average._target_ was None and is lightning.pytorch.callbacks.WeightAveraging" in caplog.text
    with pytest.raises(UserError, match="no step is left, so that this would change nothing"):
        require_same_run(Path("x"), described(), described(f"+{average}"), step=10)


def test_data_is_compared_by_content(caplog: pytest.LogCaptureFixture) -> None:
    elsewhere = described("data.train=b.txt", "data.validation=c.txt")
    require_same_run(Path("x"), described(), elsewhere)
    for split, title in (("train", "training"), ("validation", "validation"), ("test", "test")):
        other = copy.deepcopy(elsewhere)
        other["data"][split] = "9"
        with pytest.raises(UserError, match=rf"the {title} data is not the same \(data\.train was a\.txt and is b\.txt") as error:
            require_same_run(Path("runs/x/checkpoints/step.ckpt"), described(), other)
        assert ("task=evaluate run=runs/x" in str(error.value)) == (split != "train")
    without = described()
    del without["data"]["test"]
    with pytest.raises(UserError, match=r"the test data is not the same \(its content changed"):
        require_same_run(Path("x"), described(), without)
    require_same_run(Path("x"), described() | {"data": "1"}, described())  # as earlier versions wrote it
    assert "does not say what was in the validation and test data" in caplog.text
    with pytest.raises(UserError, match="the training data is not the same"):
        require_same_run(Path("x"), described() | {"data": "7"}, described())


def test_pretrained_weights_are_compared_by_content(caplog: pytest.LogCaptureFixture) -> None:
    before = described("model.name_or_path=a") | {"weights": "1"}
    require_same_run(Path("x"), before, described("model.name_or_path=b") | {"weights": "1"})
    with pytest.raises(UserError, match=r"pretrained weights are not the same \(model\.name_or_path was a and is b\)"):
        require_same_run(Path("x"), before, described("model.name_or_path=b") | {"weights": "2"})
    with pytest.raises(UserError, match="pretrained weights are not the same"):
        require_same_run(Path("x"), before, before | {"weights": "2"})
    with pytest.raises(UserError, match=r"model\.name_or_path was a and is b"):
        require_same_run(Path("x"), before, described("model.name_or_path=b"))
    assert caplog.text == ""
    require_same_run(Path("x"), {key: value for key, value in before.items() if key != "weights"}, before)
    assert "does not say what was in the pretrained weights" in caplog.text


def test_precision_is_what_it_came_to(caplog: pytest.LogCaptureFixture) -> None:
    """`auto` may become something else on other hardware, and is told; to ask for something else is another run."""
    auto = described("trainer.precision=auto") | {"precision": "bf16-mixed"}
    require_same_run(Path("x"), auto, described("trainer.precision=bf16-mixed") | {"precision": "bf16-mixed"})
    assert caplog.text == ""
    require_same_run(Path("x"), auto, described("trainer.precision=auto"))
    assert "auto was bf16-mixed on the hardware that the run began on and is 32-true here" in caplog.text
    with pytest.raises(UserError, match=r"trainer\.precision was auto \(bf16-mixed\) and is 32-true"):
        require_same_run(Path("x"), auto, described("trainer.precision=32-true"))
    old = {key: value for key, value in auto.items() if key != "precision"}
    require_same_run(Path("x"), old, described("trainer.precision=32-true"))
    assert "does not say which precision auto was" in caplog.text


def test_a_key_that_did_not_exist_had_its_default() -> None:
    before = described()
    del before["config"]["trainer"]["clip_norm"], before["config"]["model"]["adapter"]
    require_same_run(Path("x"), before, described())
    with pytest.raises(UserError, match=r"clip_norm was 1\.0 and is 2\.0"):
        require_same_run(Path("x"), before, described("trainer.clip_norm=2"))


def test_a_run_moves_with_its_data_and_refuses_other_data(
    corpus: Path, run: Runner, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A whole run: the same files elsewhere continue it to the same weights; other content at the same place does not."""
    lines = corpus.read_text(encoding="utf-8").splitlines()
    for place in ("first", "second"):
        (tmp_path / place).mkdir()
        for split, part in (("train", lines[:300]), ("validation", lines[300:350]), ("test", lines[350:])):
            (tmp_path / place / f"{split}.txt").write_text("\n".join(part), encoding="utf-8")

    def named(place: str) -> list[str]:
        return [*RUN, *(f"data.{split}={tmp_path / place / split}.txt" for split in ("train", "validation", "test"))]

    moved = tmp_path / "moved"
    run(*named("first"), f"run_dir={moved}")
    shutil.copytree(moved, tmp_path / "whole")
    (moved / "summary.json").unlink()
    shutil.rmtree(moved / "hf")
    list_checkpoints(moved / "checkpoints")[-1].unlink()
    shutil.rmtree(tmp_path / "first")
    run(*named("second"), f"run_dir={moved}")
    assert "continuing from" in (moved / "train.log").read_text()
    assert same_weights(tmp_path / "whole", moved)
    assert losses(tmp_path / "whole") == losses(moved)

    (tmp_path / "second" / "test.txt").write_text("\n".join(lines[340:]), encoding="utf-8")
    given = [*named("second"), f"run_dir={moved}", "trainer.max_steps=8"]
    with pytest.raises(UserError, match=r"the test data is not the same"):
        run(*given)
    (tmp_path / "second" / "test.txt").write_text("\n".join(lines[350:]), encoding="utf-8")
    with pytest.raises(UserError, match=r"trainer\.precision was auto \(.*\) and is bf16-true"):
        run(*given, "trainer.precision=bf16-true")
    state = list_checkpoints(moved / "checkpoints")[-1]
    contents = torch.load(state, weights_only=True)
    contents["run"]["data"] = contents["run"]["data"]["train"]  # a state of a version that recorded less
    del contents["run"]["weights"], contents["run"]["precision"]
    torch.save(contents, state)
    assert run(*given)["steps"] == 8


def test_a_run_goes_on_with_another_way_of_bad_rows_where_there_are_none(corpus: Path, run: Runner, tmp_path: Path) -> None:
    given = [*RUN, f"data.train={corpus}", f"run_dir={tmp_path}"]
    run(*given)
    assert run(*given, "data.on_bad_row=skip", "trainer.max_steps=8")["steps"] == 8
    assert "continuing from" in (tmp_path / "train.log").read_text()


def test_a_run_goes_on_wherever_its_model_is_and_refuses_another(
    reviews: Path, run: Runner, killed: Callable[..., None], tmp_path: Path
) -> None:
    """The same folder renamed, behind a link, by a relative path or with new file times; then other content at the same place."""
    data = ["task=finetune", "data=files", f"data.train={reviews}", "data.columns.text=body", "data.columns.label=stars"]
    data += ["batch.sequences=16", "checkpoint.every_steps=2", "trainer.max_epochs=null", "trainer.validate_every_steps=4"]
    run(*data, *TINY_BERT, "trainer.max_steps=2", "run_dir=pretrained")
    shutil.copytree("pretrained/hf", "model")
    for key, value, moved in (("name_or_path", "model", "job/model"), ("init_from", "pretrained", "elsewhere/pretrained")):
        folder = Path(f"run-{key}").absolute()
        killed(*data, f"model.{key}={value}", f"run_dir={folder}", "trainer.max_steps=4", after=2)
        Path(moved).parent.mkdir()
        Path(value).rename(moved)
        os.utime(moved)
        arguments = [*data, f"run_dir={folder}", "trainer.max_steps=4"]
        first = run(*arguments, f"model.{key}={moved}")
        assert "continuing from" in (folder / "train.log").read_text()
        Path("link").symlink_to(Path(moved).absolute())
        written = (folder / "hf" / "model.safetensors").stat().st_mtime_ns
        for place in ("link", f"./{moved}", Path(moved).absolute()):
            assert run(*arguments, f"model.{key}={place}") == first
        assert (folder / "train.log").read_text().count("is finished already") == 3
        assert (folder / "hf" / "model.safetensors").stat().st_mtime_ns == written
        Path("link").unlink()

    longer = [*data, "run_dir=run-name_or_path", "trainer.max_steps=6", "model.name_or_path=job/model"]
    weights = load_file("job/model/model.safetensors")
    original = Path("job/model/model.safetensors").read_bytes()
    save_file({name: tensor + 1e-3 for name, tensor in weights.items()}, "job/model/model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="the pretrained weights are not the same"):
        run(*longer)
    Path("job/model/model.safetensors").write_bytes(original)
    tokenizer = json.loads(Path("job/model/tokenizer.json").read_text())
    tokenizer["normalizer"]["normalizers"][0]["lowercase"] = False
    Path("job/model/tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="the training and validation data is not the same"):
        run(*longer)


# ---- the others that read the table ----


def test_what_is_finished(tmp_path: Path) -> None:
    given = ["task=pretrain", "data=text", "data.train=a.txt"]
    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(plain(load_config(given))))
    assert (
        load_finished_by_name(
            tmp_path, load_config([*given, "trainer.devices=4", "logger=wandb", "checkpoint.keep=9", "generate.top_k=3"])
        )
        == {}
    )
    changes = ["trainer.max_steps=7", "seed=4", "data.test=b.txt", "optimizer.lr=0.7", "callbacks.patience=3"]
    changes += [
        "+trainer.flags.limit_val_batches=2",
        "+callbacks.custom.average._target_=lightning.pytorch.callbacks.WeightAveraging",
    ]
    for change in changes:
        assert load_finished_by_name(tmp_path, load_config([*given, change])) is None, change


def test_what_is_one_configuration() -> None:
    """Runs on the same data wherever it lies are, and their seeds; what costs or comes to something else is not."""
    given = ["task=pretrain", "data=text", "data.train=a.txt"]
    splits = {"train": "1", "validation": "2"}
    first = configuration_hash(plain(load_config(given)), splits)
    for change in ("data.train=b.txt", "seed=4", "checkpoint.keep=9", "trainer.log_every_steps=3", "run_dir=x", "cache_dir=y"):
        assert configuration_hash(plain(load_config([*given, change])), splits) == first, change
    for change in ("optimizer.lr=0.7", "trainer.compile=true", "trainer.precision=bf16-mixed", "trainer.max_steps=7"):
        assert configuration_hash(plain(load_config([*given, change])), splits) != first, change
    assert configuration_hash(plain(load_config(given)), splits | {"validation": "3"}) != first
    # of an earlier version's run, whose other splits are known by name only
    before = configuration_hash(plain(load_config(given)), "1")
    assert before != configuration_hash(plain(load_config([*given, "data.validation=b.txt"])), "1")


def test_what_a_report_lists() -> None:
    changed = ["optimizer=muon", "trainer.devices=2", "seed=3", "checkpoint.keep=9", "logger.project=x", "run_dir=y"]
    keys = [key for key, _, _ in differences(plain(load_config(["task=pretrain", *changed])))]
    assert keys[0] == "optimizer"
    assert {"optimizer._target_", "trainer.devices", "seed"} <= set(keys)
    assert not {"checkpoint.keep", "logger.project", "run_dir"} & set(keys)


# ---- pretrained weights ----


def test_weights_are_known_by_their_content(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    (first / "config.json").write_text(json.dumps({"hidden_size": 8, "transformers_version": "5.0"}))
    torch.manual_seed(0)
    content = bytearray(torch.randn(3_000_000).numpy().tobytes())
    (first / "model.safetensors").write_bytes(content)
    known = fingerprint_weights(str(first))
    shutil.copytree(first, second)
    (second / "config.json").write_text(json.dumps({"transformers_version": "5.1", "hidden_size": 8}))
    (second / "README.md").write_text("a card")
    assert known is not None
    assert fingerprint_weights(str(second)) == known
    (second / "config.json").write_text(json.dumps({"hidden_size": 9}))
    assert fingerprint_weights(str(second)) != known
    (second / "config.json").write_text((first / "config.json").read_text())
    assert fingerprint_weights(str(second)) == known
    for place in (0, -1):
        changed = bytearray(content)
        changed[place] ^= 1
        (second / "model.safetensors").write_bytes(changed)
        assert fingerprint_weights(str(second)) != known
    assert fingerprint_weights(None) is None
    assert fingerprint_weights(str(tmp_path)) is None
    assert fingerprint_weights("no/such-model") is None


@pytest.fixture(autouse=True)
def _place(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """A folder with the files that configs here name; and messages reach the test, also after a run has set up its own log."""
    monkeypatch.chdir(tmp_path)
    for name in "abc":
        Path(f"{name}.txt").write_text("some text\n")
    monkeypatch.setattr(logging.getLogger("llm_lightning"), "propagate", True)
    caplog.set_level(logging.WARNING, logger=identity.__name__)
