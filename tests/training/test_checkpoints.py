"""States survive what happens to disks and processes, and a run that continues from one is the run that was not interrupted."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from llm_lightning.errors import RunError, Stopped, UserError
from llm_lightning.objectives.causal_lm import CausalLM
from llm_lightning.training.checkpoint_io import damage
from llm_lightning.training.checkpoints import newest, saved
from llm_lightning.training.monitor import Diverged

from ..conftest import TINY_BERT, TINY_GPT, Runner
from ..end_to_end.test_runs import losses, same_weights

RUN = ["task=pretrain", "data=text", "data.document=line", "data.block_size=32", "batch.sequences=4", *TINY_GPT]
RUN += ["trainer.max_steps=12", "trainer.log_every_steps=4", "checkpoint.every_steps=3", "trainer.validate_every_steps=6"]


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("spoil", [cut_short, flip_a_bit, empty])
def test_a_damaged_state_is_told_and_the_one_before_is_used(
    spoil: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [tmp_path / f"step-{step:08d}.ckpt" for step in (3, 6)]
    for path in paths:
        torch.save({"weights": torch.randn(10_000)}, path)
    assert [damage(path) for path in paths] == [None, None]
    spoil(paths[1])
    assert damage(paths[1])
    assert newest(tmp_path) == paths[0]
    assert "step-00000006.ckpt is damaged" in caplog.text
    assert saved(tmp_path) == paths[:1]  # put aside, so that it is neither found again nor counted as one of those to keep
    spoil(paths[0])
    with pytest.raises(UserError, match="no whole checkpoint is left"):
        newest(tmp_path)


def test_a_run_goes_on_from_the_state_before_a_damaged_one(corpus: Path, run: Runner, tmp_path: Path) -> None:
    given = [*RUN, f"data.train={corpus}"]
    run(*given, f"run_dir={tmp_path / 'whole'}")
    run(*given, f"run_dir={tmp_path / 'spoilt'}")
    (tmp_path / "spoilt" / "summary.json").unlink()  # as if it had not come to its end
    flip_a_bit(saved(tmp_path / "spoilt" / "checkpoints")[-1])
    run(*given, f"run_dir={tmp_path / 'spoilt'}")
    assert "step-00000012.ckpt is damaged" in (tmp_path / "spoilt" / "train.log").read_text()
    assert same_weights(tmp_path / "whole", tmp_path / "spoilt")
    assert losses(tmp_path / "whole") == losses(tmp_path / "spoilt")


def test_a_full_disk_ends_the_run_with_the_state_before_it_untouched(corpus: Path, run: Runner, tmp_path: Path) -> None:
    given = [*RUN, f"data.train={corpus}"]
    run(*given, f"run_dir={tmp_path / 'whole'}")
    states = tmp_path / "full" / "checkpoints"
    states.mkdir(parents=True)
    blocked = states / ".step-00000006.ckpt.partial"
    blocked.symlink_to("/dev/full")  # every write fails as on a full disk
    with pytest.raises(RunError, match=r"step-00000006\.ckpt: the checkpoint cannot be written: No space left.*make room") as error:
        run(*given, f"run_dir={tmp_path / 'full'}")
    assert error.value.exit_code == 1
    assert [damage(path) for path in saved(states)] == [None]
    assert not blocked.is_symlink()
    run(*given, f"run_dir={tmp_path / 'full'}")
    assert same_weights(tmp_path / "whole", tmp_path / "full")


def test_a_signal_in_the_middle_of_a_validation(corpus: Path, run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state says that the validation is still to come: it is run whole before the next step, and decides on the same weights."""
    given = [*RUN, f"data.train={corpus}", "batch.micro_sequences=1", "checkpoint.every_steps=1000"]
    whole = run(*given, f"run_dir={tmp_path / 'whole'}")
    step = CausalLM.validation_step

    def interrupted(self: CausalLM, batch: Any, batch_index: int) -> None:
        step(self, batch, batch_index)
        if self.trainer.global_step == 6 and batch_index == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(CausalLM, "validation_step", interrupted)
        with pytest.raises(Stopped, match="stopped by SIGTERM after step 6"):
            run(*given, f"run_dir={tmp_path / 'stopped'}")
    assert not (tmp_path / "stopped" / "hf").exists()
    again = run(*given, f"run_dir={tmp_path / 'stopped'}")
    assert (tmp_path / "whole" / "metrics.csv").read_text().count("\n") == (tmp_path / "stopped" / "metrics.csv").read_text().count(
        "\n"
    )
    assert again["metrics"] == whole["metrics"]
    assert losses(tmp_path / "whole") == losses(tmp_path / "stopped")
    assert same_weights(tmp_path / "whole", tmp_path / "stopped")


def test_a_refused_resume_leaves_the_record_as_it_was(corpus: Path, run: Runner, tmp_path: Path) -> None:
    given = [*RUN, f"data.train={corpus}", f"run_dir={tmp_path}"]
    run(*given)
    with pytest.raises(UserError, match=r"optimizer\.lr was 0\.001 and is 0\.5"):
        run(*given, "optimizer.lr=0.5")
    assert OmegaConf.load(tmp_path / "config.yaml").optimizer.lr == 1e-3
    run(*given, "task=check")
    assert OmegaConf.load(tmp_path / "config.yaml").task == "pretrain"


def test_a_finished_run_is_not_run_again_but_may_be_made_longer(corpus: Path, run: Runner, tmp_path: Path) -> None:
    given = [*RUN, f"data.train={corpus}", f"run_dir={tmp_path}"]
    first = run(*given)
    before = (tmp_path / "summary.json").stat().st_mtime_ns
    assert run(*given) == first
    assert (tmp_path / "summary.json").stat().st_mtime_ns == before
    (tmp_path / "report.html").unlink()  # as if the run had been killed while it wrote it
    run(*given)
    assert (tmp_path / "report.html").is_file()
    longer = run(*given, "trainer.max_steps=18")
    assert longer["steps"] == 18
    assert longer["tokens_seen"] > first["tokens_seen"]
    assert "was to have 12 steps and now has 18" in (tmp_path / "train.log").read_text()
    assert {step for step, _ in losses(tmp_path)} == {"4", "8", "12", "16", "18"}


def test_a_state_may_start_a_run_in_another_folder(corpus: Path, run: Runner, tmp_path: Path) -> None:
    given = [*RUN, f"data.train={corpus}"]
    whole = run(*given, f"run_dir={tmp_path / 'whole'}")
    state = saved(tmp_path / "whole" / "checkpoints")[0]
    assert state.name == "step-00000009.ckpt"
    branch = run(*given, f"resume={state}", f"run_dir={tmp_path / 'branch'}")
    assert branch["metrics"]["validation/loss"] == whole["metrics"]["validation/loss"]
    assert json.loads((tmp_path / "branch" / "summary.json").read_text())["steps"] == 12


def test_early_stopping_is_the_same_after_a_resume(reviews: Path, run: Runner, killed: Callable[..., None], tmp_path: Path) -> None:
    """With a rate of next to nothing nothing improves; the run is killed after its second validation of three."""
    given = [
        "task=finetune",
        "data=files",
        f"data.train={reviews}",
        "data.columns.text=body",
        "data.columns.label=stars",
        *TINY_BERT,
    ]
    given += ["callbacks.patience=3", "trainer.max_epochs=20", "optimizer.lr=1e-12", "trainer.validate_every_steps=2"]
    whole = run(*given, f"run_dir={tmp_path / 'whole'}")
    assert whole["steps"] == 8
    killed(*given, f"run_dir={tmp_path / 'killed'}", after=4)
    assert run(*given, f"run_dir={tmp_path / 'killed'}")["steps"] == 8


def test_weights_that_diverged_are_neither_saved_nor_exported(corpus: Path, run: Runner, tmp_path: Path) -> None:
    given = [*RUN, f"data.train={corpus}", "trainer.log_every_steps=1000", "checkpoint.every_steps=1"]
    with pytest.raises(Diverged, match="has diverged"):
        run(*given, "optimizer.lr=1e20", f"run_dir={tmp_path}")
    for state in saved(tmp_path / "checkpoints"):
        assert torch.load(state, weights_only=True)["global_step"] < 3
