"""States survive what happens to disks and processes, and a run that continues from one is the run that was not interrupted."""

from __future__ import annotations

import csv
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from llm_lightning.errors import RunError, Stopped, UserError
from llm_lightning.objectives.causal_lm import CausalLM
from llm_lightning.training.best_model import BestModel
from llm_lightning.training.checkpoint_io import AtomicCheckpointIO, damage
from llm_lightning.training.checkpoints import Checkpoints, list_checkpoints, newest
from llm_lightning.training.divergence import Diverged

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
    # put aside, so that it is neither found again nor counted as one of those to keep
    assert list_checkpoints(tmp_path) == paths[:1]
    spoil(paths[0])
    with pytest.raises(UserError, match="no whole checkpoint is left"):
        newest(tmp_path)


def test_a_run_goes_on_from_the_state_before_a_damaged_one(corpus: Path, run: Runner, tmp_path: Path) -> None:
    given = [*RUN, f"data.train={corpus}"]
    run(*given, f"run_dir={tmp_path / 'whole'}")
    run(*given, f"run_dir={tmp_path / 'spoilt'}")
    (tmp_path / "spoilt" / "summary.json").unlink()  # as if it had not come to its end
    flip_a_bit(list_checkpoints(tmp_path / "spoilt" / "checkpoints")[-1])
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
    assert [damage(path) for path in list_checkpoints(states)] == [None]
    assert not blocked.is_symlink()
    run(*given, f"run_dir={tmp_path / 'full'}")
    assert same_weights(tmp_path / "whole", tmp_path / "full")


class InterruptedFile:
    """A file whose n-th write is interrupted by the user."""

    def __init__(self, file: Any, number: int) -> None:
        self.file, self.number = file, number

    def write(self, content: Any) -> int:
        self.number -= 1
        if self.number == 0:
            raise KeyboardInterrupt
        return int(self.file.write(content))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def interrupt(monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """Have the user interrupt the next save: at a write, while the file is flushed, or while it gets its name."""

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    if moment.startswith("write"):
        save, number = torch.save, int(moment.split()[1])
        monkeypatch.setattr(torch, "save", lambda content, file: save(content, InterruptedFile(file, number)))
    elif moment == "flush":
        monkeypatch.setattr(os, "fsync", interrupted)
    else:
        monkeypatch.setattr(Path, "replace", interrupted)


MOMENTS = ["write 1", "write 2", "write 5", "write 9", "flush", "rename"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_interrupted_save_leaves_the_file_before(moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, content = tmp_path / "step-00000003.ckpt", {"weights": torch.randn(10_000), "step": 3}
    writer = AtomicCheckpointIO()
    writer.save_checkpoint(content, path)
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        interrupt(patch, moment)
        with pytest.raises(KeyboardInterrupt):
            writer.save_checkpoint({"weights": torch.randn(10_000), "step": 6}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    writer.save_checkpoint(content, path)
    assert damage(path) is None


@pytest.mark.parametrize("moment", ["write 5", "flush"])
def test_an_interrupt_in_the_middle_of_a_save_is_an_interrupt(
    moment: str, corpus: Path, run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning makes SystemExit of it, without a word, and torch a RuntimeError, as of a full disk."""
    given = [*RUN, f"data.train={corpus}"]
    run(*given, f"run_dir={tmp_path / 'whole'}")
    save, handler = Checkpoints.save, signal.getsignal(signal.SIGINT)

    def interrupted(self: Checkpoints, trainer: Any) -> Path:
        with monkeypatch.context() as patch:
            if trainer.global_step == 6:
                interrupt(patch, moment)
            return save(self, trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(*given, f"run_dir={tmp_path / 'stopped'}")
    assert signal.getsignal(signal.SIGINT) == handler
    states = tmp_path / "stopped" / "checkpoints"
    assert [path.name for path in states.iterdir()] == ["step-00000003.ckpt"]
    run(*given, f"run_dir={tmp_path / 'stopped'}")
    assert same_weights(tmp_path / "whole", tmp_path / "stopped")


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
    state = list_checkpoints(tmp_path / "whole" / "checkpoints")[0]
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
    for state in list_checkpoints(tmp_path / "checkpoints"):
        assert torch.load(state, weights_only=True)["global_step"] < 3


# ---- which weights are kept ----


class Scripted:
    """Drives `BestModel.decide` with the scores of validations, one a step."""

    def __init__(self, folder: Path, validations: int, maximize: bool = True, patience: int | None = None) -> None:
        self.written: list[int] = []
        self.trainer: Any = SimpleNamespace(global_step=0, should_stop=False, is_global_zero=True)
        self.module: Any = SimpleNamespace(monitor="validation/score", maximize=maximize, latest={})
        self.best = BestModel(folder, self.write, validations, patience)

    def write(self) -> None:
        self.written.append(self.trainer.global_step)

    def decide(self, score: float, loss: float) -> None:
        self.trainer.global_step += 1
        self.module.latest = {"validation/score": score, "validation/loss": loss}
        self.best.decide(self.trainer, self.module)


NAN = float("nan")
SEQUENCES = [  # (score, loss) of each validation, and the step whose weights are kept
    ([(0.5, 1.0), (0.9, 2.0), (0.7, 0.1)], 2),
    ([(1.0, 0.64), (1.0, 0.13), (1.0, 0.2)], 2),
    ([(0.0, 0.9), (0.0, 0.5), (0.0, 0.5)], 3),
    ([(NAN, 0.9), (-0.4, 1.5), (NAN, 0.1)], 2),
    ([(NAN, 0.9), (NAN, 0.3), (NAN, 0.4)], 2),
    ([(0.8, 0.5), (NAN, 0.1), (0.8, 0.6)], 1),
]


@pytest.mark.parametrize("maximize", [True, False])
@pytest.mark.parametrize(("sequence", "kept"), SEQUENCES)
def test_the_best_score_is_kept_and_of_equal_ones_the_lower_loss(
    sequence: list[tuple[float, float]], kept: int, maximize: bool, tmp_path: Path
) -> None:
    scripted = Scripted(tmp_path, len(sequence), maximize)
    for score, loss in sequence:
        scripted.decide(score if maximize else -score, loss)
    assert scripted.written[-1] == scripted.best.best_step == kept


@pytest.mark.parametrize("cut", [1, 2])
@pytest.mark.parametrize(("sequence", "kept"), SEQUENCES)
def test_a_resumed_run_keeps_the_same_weights(sequence: list[tuple[float, float]], kept: int, cut: int, tmp_path: Path) -> None:
    first, second = Scripted(tmp_path, len(sequence)), Scripted(tmp_path, len(sequence))
    for pair in sequence[:cut]:
        first.decide(*pair)
    torch.save(first.best.state_dict(), tmp_path / "state")
    second.best.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    second.trainer.global_step = cut
    for pair in sequence[cut:]:
        second.decide(*pair)
    assert second.best.best_step == kept
    assert [*first.written, *second.written][-1] == kept


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        ([(0.0, 0.9), (0.0, 0.5), (0.0, 0.7)], "validation/score was 0 in all 3 validations"),
        ([(NAN, 0.9), (NAN, 0.5)], "validation/score was undefined in all 2 validations"),
        ([(0.0, 0.9), (0.1, 0.5), (0.1, 0.5)], ""),
        ([(0.1, 0.9), (0.0, 0.5)], ""),
        ([(0.1, 0.9), (NAN, 0.5)], ""),
        ([(0.1, 0.9)], ""),
    ],
)
def test_a_score_that_tells_nothing_is_named(
    sequence: list[tuple[float, float]], message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scripted = Scripted(tmp_path, len(sequence))
    for pair in sequence:
        scripted.decide(*pair)
    assert message in caplog.text
    assert bool(message) == bool(caplog.text)


def test_a_lower_loss_at_an_equal_score_is_an_improvement(tmp_path: Path) -> None:
    scripted = Scripted(tmp_path, 9, patience=2)
    for pair, stops in [((1.0, 0.9), False), ((1.0, 0.8), False), ((0.9, 0.1), False), ((1.0, 0.8), True)]:
        scripted.decide(*pair)
        assert scripted.trainer.should_stop is stops
    assert scripted.written == [1, 2, 4]


@pytest.mark.parametrize(("score", "loss"), [(0.5, NAN), (0.5, float("inf")), (float("inf"), 0.5)])
def test_no_number_is_divergence(score: float, loss: float, tmp_path: Path) -> None:
    with pytest.raises(Diverged):
        Scripted(tmp_path, 3).decide(score, loss)


def test_a_regression_with_one_row_to_validate_keeps_the_lowest_loss(run: Runner, tmp_path: Path) -> None:
    """Pearson's correlation is undefined there."""
    (tmp_path / "train.jsonl").write_text("".join(f'{{"text": "{"good " * (i % 5)}day", "label": {i % 5}}}\n' for i in range(40)))
    (tmp_path / "validation.jsonl").write_text('{"text": "good good good day", "label": 3}\n')
    given = ["task=finetune", "objective=regression", "data=files", f"data.dir={tmp_path}", "data.columns.label=label", *TINY_BERT]
    given += ["trainer.max_steps=6", "trainer.validate_every_steps=1", "batch.sequences=8", "trainer.log_every_steps=1"]
    summary = run(*given, "optimizer.lr=3e-2", f"run_dir={tmp_path}/run")
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    by_step = {int(row["step"]): float(row["validation/loss"]) for row in rows if row.get("validation/loss")}
    assert len(by_step) == 6
    assert summary["best_step"] == min(by_step, key=by_step.__getitem__)
    assert summary["metrics"]["validation/loss"] == pytest.approx(min(by_step.values()), rel=1e-4)
    assert "validation/pearson was undefined in all 6 validations" in (tmp_path / "run" / "train.log").read_text()
