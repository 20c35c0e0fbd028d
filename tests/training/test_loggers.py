"""Weights & Biases offline: one run a run folder, which a resumed run goes on in, closed between runs of one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_lightning.errors import RunError

from ..conftest import TINY_GPT, Runner

RUN = ["task=pretrain", "data=text", "data.document=line", "data.block_size=32", "batch.sequences=4", *TINY_GPT, "logger=wandb"]


def ids(folder: Path) -> list[str]:
    return [found.name.rsplit("-", 1)[1] for found in sorted((folder / "wandb").glob("offline-run-*"))]


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


def test_a_failed_run_is_closed_and_leaves_none_open(corpus: Path, run: Runner, tmp_path: Path) -> None:
    import wandb

    with pytest.raises(RunError, match="has diverged"):
        run(*RUN, f"data.train={corpus}", "trainer.max_steps=30", "optimizer.lr=1e20", f"run_dir={tmp_path}")
    assert wandb.run is None
