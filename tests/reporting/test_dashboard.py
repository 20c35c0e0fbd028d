"""The W&B workspace: valid without a server, and of metrics that runs log."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from llm_lightning.tracking import dashboard

from ..conftest import TINY_GPT, Runner


def test_the_specification_is_printed_where_there_is_no_key(
    corpus: Path, run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wandb_workspaces")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr("sys.argv", ["dashboard", "--project", "mine"])
    dashboard.main()
    printed = capsys.readouterr().out
    view: dict[str, Any] = json.loads(printed)
    assert view["project"] == "mine"
    sections = [section["name"] for section in view["spec"]["section"]["panelBankConfig"]["sections"]]
    assert sections == ["Loss", "Quality", "Speed", "Energy", "Samples", "Sweeps"]

    given = ["task=pretrain", "data=text", "data.document=line", "data.block_size=32", "trainer.max_steps=2", *TINY_GPT]
    run(*given, f"data.train={corpus}", "trainer.log_every_steps=1", f"run_dir={tmp_path}")
    logged = (tmp_path / "metrics.csv").read_text().splitlines()[0].split(",")
    drawn = set(re.findall(r'"(train/\w+)"', printed))
    assert len(drawn) >= 7
    assert drawn - {"train/mfu"} <= set(logged)
