"""Weights & Biases without W&B: what an offline run keeps, what a stand-in for the server is sent, and that neither can stop a training."""

from __future__ import annotations

import json
import subprocess
import unittest.mock
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from llm_lightning.config.schema import LoggerConfig
from llm_lightning.errors import Pruned, RunError, Stopped
from llm_lightning.runs.identity import configuration_hash
from llm_lightning.tracking import wandb_logger
from llm_lightning.tracking.wandb_logger import WandbLogger

from ..conftest import TINY_BERT, TINY_GPT, Runner
from .wandb_file import read
from .wandb_server import serving

RUN = ["task=pretrain", "data=text", "data.document=line", "data.block_size=32", "batch.sequences=4", *TINY_GPT, "logger=wandb"]
FINETUNE = ["task=finetune", "data=files", "data.columns.text=body", "data.columns.label=stars", "batch.sequences=16", *TINY_BERT]
Configure = Callable[[str], None]
DIVERGING = ["trainer.max_steps=30", "optimizer.lr=1e20"]


def ids(folder: Path) -> list[str]:
    return [found.name.rsplit("-", 1)[1] for found in sorted((folder / "wandb").glob("offline-run-*"))]


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> Iterator[Configure]:
    """Configures W&B as for a user with an account at the server."""
    import wandb

    yield lambda server: configure(monkeypatch, server)
    wandb.teardown()


def configure(monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    import wandb

    wandb.teardown()  # it reads the environment once in a process
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", server)
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "1")
    monkeypatch.setattr(wandb_logger, "INIT_SECONDS", 2.0)
    monkeypatch.setattr(wandb_logger, "FINISH_SECONDS", 2.0)


def test_a_resumed_run_goes_on_in_its_wandb_run_and_others_have_their_own(corpus: Path, run: Runner, tmp_path: Path) -> None:
    import wandb

    given = [*RUN, f"data.train={corpus}", "trainer.max_steps=2"]
    run(*given, f"run_dir={tmp_path / 'first'}")
    assert wandb.run is None
    run(*given, f"run_dir={tmp_path / 'second'}")
    run(*given, "trainer.max_steps=3", f"run_dir={tmp_path / 'first'}")
    first, second = ids(tmp_path / "first"), ids(tmp_path / "second")
    assert len(first) == 2
    assert len(set(first)) == len(second) == 1
    assert set(first) != set(second)


def test_a_failed_run_is_closed_as_failed_and_leaves_none_open(corpus: Path, run: Runner, tmp_path: Path) -> None:
    import wandb

    with pytest.raises(RunError, match="has diverged"):
        run(*RUN, f"data.train={corpus}", *DIVERGING, f"run_dir={tmp_path}")
    assert wandb.run is None
    assert read(tmp_path).exit_code == 1


# ---- what a run carries ----


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory, reviews: Path, cache: Path) -> Path:
    """A fine-tuned classifier's run folder."""
    from llm_lightning.config.compose import load_config
    from llm_lightning.run import run

    folder = tmp_path_factory.mktemp("offline")
    given = [
        "trainer.progress=none",
        "trainer=cpu",
        "trainer.max_steps=12",
        "trainer.validate_every_steps=4",
        "trainer.log_every_steps=2",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        run(
            load_config(
                [*FINETUNE, *given, f"data.train={reviews}", f"cache_dir={cache}", "logger.artifacts=all", f"run_dir={folder}"]
            )
        )
    return folder


def test_the_config_is_the_run_s_own_with_the_key_of_its_seeds(offline: Path) -> None:
    found, stored = read(offline), yaml.safe_load((offline / "config.yaml").read_text())
    assert {name: found.config[name] for name in stored} == stored
    summary = json.loads((offline / "summary.json").read_text())
    assert found.config["configuration"] == configuration_hash(stored, summary["data"]["fingerprints"])
    assert found.config["configuration"] == configuration_hash(stored | {"seed": 7}, summary["data"]["fingerprints"])
    assert found.config["configuration"] != configuration_hash(stored | {"optimizer": {"lr": 7.0}}, summary["data"]["fingerprints"])
    assert found.config["facts"]["tokenizer"] == summary["tokenizer"]
    assert set(found.run.tags) == {"finetune", "classification", "files", "bert_tiny"}
    assert found.exit_code == 0


def test_history_has_its_axes_and_the_summary_says_best(offline: Path) -> None:
    found, summary = read(offline), json.loads((offline / "summary.json").read_text())
    trained = [row for row in found.history if "train/loss" in row]
    assert [row["step"] for row in trained] == [2, 4, 6, 8, 10, 12]
    assert trained[-1]["tokens_seen"] == summary["tokens_seen"]
    assert {"train/tokens_per_second", "train/gradient_norm"} <= trained[0].keys()
    validated = [row for row in found.history if "validation/accuracy" in row]
    assert [row["step"] for row in validated] == [4, 8, 12]
    assert all(row["train/weight_norm"] > 0 for row in validated)
    assert found.metrics["*"].step_metric == "step"
    assert found.metrics["validation/accuracy"].summary.max
    assert found.summary["validation/accuracy"] == {"max": pytest.approx(max(row["validation/accuracy"] for row in validated))}
    assert found.summary["validation/loss"] == pytest.approx(summary["metrics"]["validation/loss"])
    assert found.summary["energy/kwh"] == pytest.approx(summary["energy"]["kwh"])
    assert found.summary["throughput/tokens_per_second"] > 0


def test_artifacts_name_files_and_copy_none(offline: Path) -> None:
    artifacts = read(offline).artifacts
    assert artifacts["dataset"].use_after_commit
    model, states = artifacts["model"], artifacts["checkpoint"]
    assert {Path(entry.ref).name for entry in model.manifest.contents} == {file.name for file in (offline / "hf").iterdir()}
    assert {Path(entry.ref).name for entry in states.manifest.contents} == {f.name for f in (offline / "checkpoints").iterdir()}
    assert all(
        entry.ref.startswith("file:///") and not entry.local_path for entry in (*model.manifest.contents, *states.manifest.contents)
    )


def test_charts_and_tables_of_an_evaluation_and_of_samples(tmp_path: Path) -> None:
    details = {
        "labels": ["bad", "good"],
        "confusion_matrix": [[5, 1], [2, 6]],
        "calibration": [{"confidence": 0.6, "accuracy": 0.5, "count": 4}, {"confidence": 0.0, "accuracy": 0.0, "count": 0}],
        "precision_recall": {"good": {"precision": [0.5, 1.0], "recall": [1.0, 0.1]}},
        "mistakes": [{"text": "so <b>bad</b>", "true": "good", "said": "bad", "probability": 0.99}],
        "examples": {"correct": [1, 0]},
    }
    summary = {"metrics": {"test/accuracy": 0.5}, "steps": 3, "tokens_seen": 30, "best_step": 3}
    logger = logged_to(tmp_path, artifacts="none")
    (tmp_path / "samples.jsonl").write_text(json.dumps({"step": 2, "tokens": 20, "prompt": "Once", "text": " <i>upon"}) + "\n")
    logger.log_metrics({"tokens": 20, "train/loss": 1.0}, step=2)
    logger.succeed(summary, {"test": details})
    tables = {file.name.split("_table")[0].split("_3")[0]: file for file in tmp_path.glob("wandb/*/files/media/table/**/*.json")}

    def rows(name: str) -> list[list[object]]:
        return next(json.loads(file.read_text())["data"] for found, file in tables.items() if found.startswith(name))

    assert rows("confusion_matrix") == [["bad", "bad", 5], ["bad", "good", 1], ["good", "bad", 2], ["good", "good", 6]]
    assert rows("precision_recall") == [["good", 1.0, 0.5], ["good", 0.1, 1.0]]
    assert rows("calibration")[0] == [0.6, "model", 0.5]
    assert rows("mistakes") == [["so <b>bad</b>", "good", "bad", 0.99]]
    assert rows("all") == [[2, 20, "Once", " <i>upon"]]
    page = next(tmp_path.glob("wandb/*/files/media/html/**/*.html")).read_text()
    assert "<b>Once</b> &lt;i&gt;upon" in page
    assert "samples/last.path" in read(tmp_path).history[0]


@pytest.mark.parametrize(("error", "code"), [(ValueError("x"), 1), (Stopped("x"), 3), (Pruned("x"), 0)])
def test_a_run_s_end_is_told_by_its_exit_code(error: Exception, code: int, tmp_path: Path) -> None:
    logger = logged_to(tmp_path)
    logger.begin()
    logger.fail(error)
    assert read(tmp_path).exit_code == code


def logged_to(folder: Path, **options: str) -> WandbLogger:
    settings = {"task": "finetune", "model": {"init_from": None}}
    return WandbLogger(LoggerConfig(**options), folder, settings, ["t" * 99], "g" * 200, "validation/accuracy", True)  # type: ignore[arg-type]


@pytest.mark.parametrize("group", [None, "sweep"])
def test_variables_that_name_a_run(group: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import wandb

    started: dict[str, object] = {}
    monkeypatch.setattr(wandb, "init", lambda **arguments: started.update(arguments) or unittest.mock.MagicMock())
    for variable, value in {"WANDB_MODE": "offline", "WANDB_PROJECT": "theirs", "WANDB_NAME": "mine", "WANDB_TAGS": "a,b"}.items():
        monkeypatch.setenv(variable, value)
    for config, project in ((LoggerConfig(), "theirs"), (LoggerConfig(project="ours"), "ours")):
        logger = WandbLogger(config, tmp_path / "run", {}, ["finetune"], group, "validation/loss", False)
        logger.begin()
        assert (started["project"], logger.name) == (project, project)
        assert started["name"] == ("mine" if group is None else "sweep/run")
        assert started["tags"] == ["finetune", *([] if group is None else ["sweep"]), "a", "b"]


def test_each_job_of_a_sweep_is_a_run_in_its_group(
    corpus: Path, cache: Path, command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    sweep = tmp_path / "lr-sweep"
    given = [*RUN, f"data.train={corpus}", f"cache_dir={cache}", "trainer=cpu", "trainer.max_steps=30", "optimizer.lr=1e-3,1e20"]
    result = command("-m", *given, "callbacks.energy=false", "trainer.progress=none", f"run_dir={sweep}", WANDB_MODE="offline")
    assert result.returncode == 1
    good, failed = (read(file.parents[2]) for file in sorted(sweep.glob("*/wandb/offline-run-*/*.wandb")) for file in [file])
    assert good.run.run_group == failed.run.run_group == "lr-sweep"
    assert good.run.run_id != failed.run.run_id
    assert (good.exit_code, failed.exit_code) == (0, 1)
    assert good.config["configuration"] != failed.config["configuration"]


# ---- the server ----


def test_what_the_server_is_sent(
    corpus: Path, run: Runner, tmp_path: Path, key: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as server:
        key(server.url)
        monkeypatch.setattr(wandb_logger, "INIT_SECONDS", 60.0)
        monkeypatch.setattr(wandb_logger, "FINISH_SECONDS", 60.0)
        run(*RUN, f"data.train={corpus}", "trainer.max_steps=4", "trainer.log_every_steps=2", f"run_dir={tmp_path}")
    made = server.runs[0]
    assert made["name"] == (tmp_path / "wandb" / "run-id.txt").read_text()
    assert json.loads(made["config"])["seed"]["value"] == 0
    assert [row["step"] for row in server.history if "train/loss" in row] == [2, 4]
    assert server.exit_code == 0
    assert {"dataset", "model"} <= {artifact["artifactTypeName"] for artifact in server.artifacts}
    assert len(server.used) == 1  # the data


def test_the_server_hears_of_a_failure(
    corpus: Path, run: Runner, tmp_path: Path, key: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as server:
        key(server.url)
        monkeypatch.setattr(wandb_logger, "FINISH_SECONDS", 60.0)
        with pytest.raises(RunError, match="has diverged"):
            run(*RUN, f"data.train={corpus}", *DIVERGING, f"run_dir={tmp_path}")
    assert server.exit_code == 1


@pytest.mark.parametrize("server", ["closed", "broken"])
def test_a_server_that_does_not_answer_leaves_the_run_offline_and_whole(
    server: str, corpus: Path, run: Runner, tmp_path: Path, key: Configure
) -> None:
    with serving(broken=True) as broken:
        key(broken.url if server == "broken" else "http://127.0.0.1:9")
        summary = run(*RUN, f"data.train={corpus}", "trainer.max_steps=4", "trainer.log_every_steps=2", f"run_dir={tmp_path}")
    assert summary["steps"] == 4
    assert [row["step"] for row in read(tmp_path).history if "train/loss" in row] == [2, 4]
    assert len(ids(tmp_path)) == 1
    assert f"wandb sync {tmp_path}/wandb/offline-run-*" in (tmp_path / "train.log").read_text()


def test_a_server_that_is_lost_costs_no_training(
    corpus: Path, run: Runner, tmp_path: Path, key: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as server:
        key(server.url)
        monkeypatch.setattr(wandb_logger, "INIT_SECONDS", 60.0)
        begin = WandbLogger.begin

        def begin_and_break(logger: WandbLogger) -> None:
            begin(logger)
            server.broken = True

        monkeypatch.setattr(WandbLogger, "begin", begin_and_break)
        summary = run(*RUN, f"data.train={corpus}", "trainer.max_steps=4", "trainer.log_every_steps=2", f"run_dir={tmp_path}")
    assert summary["steps"] == 4
    assert [row["step"] for row in read(tmp_path).history if "train/loss" in row] == [2, 4]
    assert f"wandb sync {tmp_path}/wandb/run-" in (tmp_path / "train.log").read_text()


def test_without_a_key_nothing_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from llm_lightning.tracking.wandb_mode import read_mode

    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    assert read_mode().name == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password 0123456789\n")
    assert read_mode().name == "online"
    (tmp_path / "settings").write_text("[default]\nbase_url = https://wandb.example.org\n")  # as `wandb login --host` does
    assert read_mode().name == "offline"
    (tmp_path / "netrc").write_text("machine wandb.example.org login user password 0123456789\n")
    assert read_mode().name == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://api.wandb.ai")
    assert read_mode().name == "offline"


@pytest.mark.parametrize(
    ("environment", "name", "reason"),
    [
        ({"WANDB_MODE": "disabled"}, "disabled", "WANDB_MODE=disabled"),
        ({"WANDB_MODE": "off"}, "disabled", "WANDB_MODE=off"),
        ({"WANDB_MODE": "none"}, "disabled", "WANDB_MODE=none"),
        ({"WANDB_MODE": "False"}, "disabled", "WANDB_MODE=False"),
        ({"WANDB_DISABLED": "true"}, "disabled", "WANDB_DISABLED=true"),
        ({"WANDB_DISABLED": "1", "WANDB_MODE": "online"}, "disabled", "WANDB_DISABLED=1"),
        ({"WANDB_DISABLED": "YES"}, "disabled", "WANDB_DISABLED=YES"),
        ({"WANDB_DISABLED": "false", "WANDB_MODE": "dryrun"}, "offline", "WANDB_MODE=dryrun"),
        ({"WANDB_DISABLED": "", "WANDB_MODE": ""}, "online", ""),
        ({"WANDB_MODE": "onlin"}, "offline", "WANDB_MODE=onlin is no mode"),
        ({"WANDB_MODE": "run"}, "online", "WANDB_MODE=run"),
    ],
)
def test_variables_that_switch_wandb_off(
    environment: dict[str, str],
    name: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from llm_lightning.tracking import loggers
    from llm_lightning.tracking.wandb_mode import read_mode

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_DISABLED", raising=False)
    for variable, value in ({"WANDB_API_KEY": "0" * 40, "WANDB_CONFIG_DIR": str(tmp_path)} | environment).items():
        monkeypatch.setenv(variable, value)
    mode = read_mode()
    assert mode.name == name
    assert mode.reason.startswith(reason)
    with caplog.at_level("INFO", logger="llm_lightning"):
        built = loggers.build_loggers(LoggerConfig(name="wandb"), tmp_path, {}, [], None, "validation/loss", False)
    assert any(isinstance(logger, WandbLogger) for logger in built) == (name != "disabled")
    assert len(caplog.messages) == (name != "online")
    assert all(reason in message for message in caplog.messages)


def test_wandb_disabled_on_the_command_line_of_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from llm_lightning.tracking.wandb_mode import read_mode

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    (tmp_path / "settings").write_text("[default]\nmode = disabled\n")  # as `wandb disabled` does
    assert read_mode().name == "disabled"


@pytest.mark.parametrize("variable", ["WANDB_DISABLED=true", "WANDB_MODE=disabled", "WANDB_MODE=dryrun", "WANDB_MODE=wrong"])
def test_a_run_with_wandb_switched_off(
    variable: str, corpus: Path, run: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name, _, value = variable.partition("=")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv(name, value)
    folder = tmp_path / variable  # whose name holds an equals sign
    run(*RUN, f"data.train={corpus}", "trainer.max_steps=2", f"run_dir={folder}")
    log = (folder / "train.log").read_text()
    assert log.count(f"({variable}") == 1
    is_off = value in ("true", "disabled")
    assert (folder / "wandb").exists() != is_off
    assert ("wandb sync" in log) != is_off
    assert "Traceback" not in log
