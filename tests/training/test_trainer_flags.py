"""Arguments of Lightning's Trainer and Lightning's own callbacks do in a run what Lightning's documentation says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.profilers import SimpleProfiler
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

import llm_lightning
from llm_lightning.errors import UserError
from llm_lightning.objectives.classification import Classification

from ..conftest import TINY_BERT, Runner

BASE = [
    *("task=finetune", "data=files", "data.columns.text=body", "data.columns.label=stars", *TINY_BERT, "batch.sequences=8"),
    *("trainer.max_steps=4", "trainer.max_epochs=null", "trainer.validate_every_steps=2", "data.block_size=32"),
]
SEEN: dict[str, Any] = {}


class Look(lightning.Callback):
    """Keeps what the Trainer is like during training, and how many batches each validation reads."""

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        SEEN.clear()
        SEEN.update(
            profiler=trainer.profiler,
            deterministic=torch.are_deterministic_algorithms_enabled(),
            benchmark=torch.backends.cudnn.benchmark,
            validated=[],
            train_rows=len(module.dataset.splits["train"]),
            validation_rows=len(module.dataset.splits["validation"]),
            module=module,
            folder=trainer.default_root_dir,
        )

    def on_validation_start(self, trainer: lightning.Trainer, module: Any) -> None:
        SEEN.setdefault("validated", []).append(sum(trainer.num_val_batches))
        SEEN.setdefault("metrics", set()).update(trainer.callback_metrics)


@pytest.fixture
def train(run: Runner, reviews: Path, tmp_path: Path) -> Runner:
    look = f"callbacks.look._target_={__name__}.Look"
    return lambda *overrides: run(*BASE, f"data.train={reviews}", look, f"run_dir={tmp_path}/run", *overrides)


def test_arguments_of_the_trainer_reach_it(train: Runner, tmp_path: Path) -> None:
    """Directly, or under `trainer.flags`."""
    flags = ["trainer.limit_val_batches=1", "trainer.profiler=simple", "trainer.flags.deterministic=true", "trainer.benchmark=true"]
    flags += ["trainer.log_every_steps=1"]
    summary = train(*flags, "trainer.sync_batchnorm=true", "trainer.enable_autolog_hparams=false")
    assert isinstance(SEEN["profiler"], SimpleProfiler)
    assert SEEN["profiler"].recorded_durations["run_training_batch"]
    assert SEEN["deterministic"]
    assert SEEN["validated"][:2] == [1, 1]
    assert SEEN["validated"][2] > 1, "the last evaluation reads the whole split"
    assert summary["steps"] == 4
    assert {"train/loss", "train/gradient_norm", "validation/accuracy"} <= SEEN["metrics"]
    torch.use_deterministic_algorithms(False)


def test_limit_test_batches_limits_the_last_evaluation(train: Runner) -> None:
    train("trainer.limit_test_batches=2")
    assert SEEN["validated"][0] > 2
    assert SEEN["validated"][2] == 2


def test_fast_dev_run_tries_everything_and_leaves_nothing(train: Runner, tmp_path: Path) -> None:
    summary = train("trainer.fast_dev_run=2")
    assert (summary["steps"], SEEN["validated"]) == (2, [2, 2, 2])  # in training, for the temperature, and at the end
    assert not (tmp_path / "run").exists()
    assert not Path(SEEN["folder"]).exists()
    assert list(tmp_path.glob(".check-*")) == []


def test_overfit_batches_learns_a_few_rows_by_heart(train: Runner) -> None:
    summary = train("trainer.overfit_batches=1", "trainer.max_steps=60", "trainer.validate_every_steps=60", "optimizer.lr=1e-2")
    assert SEEN["train_rows"] == SEEN["validation_rows"] == 8
    assert summary["metrics"]["validation/accuracy"] == 1.0


def test_callbacks_of_lightning_see_metrics_and_change_training(train: Runner, tmp_path: Path) -> None:
    """Four of Lightning's own: they read metrics, stop, save what `load_from_checkpoint` loads, and log."""
    where = "lightning.pytorch.callbacks"
    summary = train(
        *(f"callbacks.best._target_={where}.ModelCheckpoint", f"callbacks.best.dirpath={tmp_path}/best"),
        *("callbacks.best.monitor=validation/accuracy", "callbacks.best.mode=max", "callbacks.best.filename=best"),
        *(f"callbacks.stop._target_={where}.EarlyStopping", "callbacks.stop.monitor=validation/loss", "callbacks.stop.patience=1"),
        *("callbacks.stop.min_delta=100", "objective.label_smoothing=0.2", f"callbacks.rate._target_={where}.LearningRateMonitor"),
        *(f"callbacks.timer._target_={where}.Timer", "trainer.max_steps=20"),
    )
    assert summary["steps"] == 4, "EarlyStopping ends training after the second validation"
    loaded = Classification.load_from_checkpoint(tmp_path / "best" / "best.ckpt", dataset=SEEN["module"].dataset)
    assert loaded.label_smoothing == 0.2
    exported = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "hf").state_dict()
    for name, weight in loaded.model.state_dict().items():
        torch.testing.assert_close(weight, exported[name], rtol=0, atol=0)
    rows = (tmp_path / "run" / "metrics.csv").read_text()
    assert "lr-AdamW" in rows.splitlines()[0]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 4


def test_averaged_weights_are_validated_and_exported(run: Runner, reviews: Path, tmp_path: Path) -> None:
    """An average that never leaves its first value is the weights after the first step, whatever training does later."""
    constant = ["scheduler._target_=torch.optim.lr_scheduler.ConstantLR", "scheduler.factor=1.0", f"data.train={reviews}"]
    average = ["callbacks.ema._target_=lightning.pytorch.callbacks.EMAWeightAveraging", "callbacks.ema.decay=1.0"]
    first = run(*BASE, *constant, "trainer.max_steps=1", "trainer.validate_every_steps=1", f"run_dir={tmp_path}/first")
    averaged = run(*BASE, *constant, *average, f"run_dir={tmp_path}/averaged")
    plain = run(*BASE, *constant, f"run_dir={tmp_path}/plain")
    weights = [load_file(tmp_path / name / "hf" / "model.safetensors") for name in ("first", "averaged", "plain")]
    for name in weights[0]:
        torch.testing.assert_close(weights[1][name], weights[0][name], rtol=0, atol=0)
    assert any(not torch.equal(weights[2][name], weights[0][name]) for name in weights[0])
    assert averaged["metrics"]["validation/loss"] == first["metrics"]["validation/loss"] != plain["metrics"]["validation/loss"]


def test_a_killed_run_with_averaged_and_frozen_weights_resumes(
    run: Runner, killed: Callable[..., None], reviews: Path, tmp_path: Path
) -> None:
    """Its weights are those of a run that was never killed, to the last bit."""
    average = ["callbacks.ema._target_=lightning.pytorch.callbacks.EMAWeightAveraging", "callbacks.ema.decay=0.5"]
    words = [*BASE, *average, f"data.train={reviews}", "model.freeze=[*.embeddings.*]"]
    run(*words, f"run_dir={tmp_path}/whole")
    killed(*words, f"run_dir={tmp_path}/killed", after=2)
    run(*words, f"run_dir={tmp_path}/killed")
    whole, resumed = (load_file(tmp_path / name / "hf" / "model.safetensors") for name in ("whole", "killed"))
    for name, weight in whole.items():
        torch.testing.assert_close(resumed[name], weight, rtol=0, atol=0)


def test_the_last_evaluation_scores_the_exported_average_and_not_the_last(run: Runner, reviews: Path, tmp_path: Path) -> None:
    """The best validation is an early one here, as the rate grows until it ruins the weights."""
    average = ["callbacks.ema._target_=lightning.pytorch.callbacks.EMAWeightAveraging", "callbacks.ema.decay=0.5"]
    ruin = ["optimizer.lr=1e-3", "scheduler._target_=torch.optim.lr_scheduler.ExponentialLR", "scheduler.gamma=30"]
    summary = run(*BASE, *average, *ruin, "trainer.validate_every_steps=1", f"data.train={reviews}", f"run_dir={tmp_path}/run")
    plain = llm_lightning.train("task=evaluate", f"run={tmp_path}/run")
    assert summary["best_step"] < summary["steps"]
    assert plain["metrics"]["validation/loss"] == pytest.approx(summary["metrics"]["validation/loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.limit_val_batches=0"], "a run keeps the weights of its best validation"),
        (["trainer.limit_test_batches=0"], "ends with an evaluation"),
        (["trainer.fast_dev_run=-1"], "expected true, or a number of steps"),
        (["optimizer._target_=torch.optim.LBFGS"], "evaluates the loss several times a step"),
        (["trainer=fsdp", "callbacks.ema._target_=lightning.pytorch.callbacks.EMAWeightAveraging"], "trainer=fsdp cuts up"),
    ],
)
def test_what_would_lose_work_is_refused(overrides: list[str], message: str, train: Runner) -> None:
    with pytest.raises(UserError, match=message):
        train(*overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["scheduler._target_=torch.optim.lr_scheduler.OneCycleLR", "scheduler.max_lr=0.01", "scheduler.total_steps=4"],
        ["optimizer._target_=torch.optim.Rprop", "trainer.fast_dev_run=3", "scheduler.warmup=100"],
        ["trainer.profiler={_target_: lightning.pytorch.profilers.AdvancedProfiler}"],
        ["scheduler._target_=torch.optim.lr_scheduler.LambdaLR", "scheduler.lr_lambda={_target_: math.exp2, _partial_: true}"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_what_torch_and_lightning_have_is_used(overrides: list[str], train: Runner) -> None:
    assert train(*overrides)["steps"] in (3, 4)
