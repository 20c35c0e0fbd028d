"""trainer.compile: all compiling is done in preflight, the run comes out the same, and where it cannot be done `auto` goes on without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM

from llm_lightning.errors import UserError
from llm_lightning.models.layers import layers
from llm_lightning.objectives.base import Objective
from llm_lightning.training import compilation

from ..conftest import TINY_GPT, Runner


@pytest.fixture
def arguments(corpus: Path) -> list[str]:
    data = ["task=pretrain", *TINY_GPT, "data=text", f"data.train={corpus}", "data.document=line", "data.block_size=32"]
    return [
        *data,
        "data.packing=none",
        "batch.sequences=16",
        "batch.micro_tokens=96",
        "trainer.max_steps=6",
        "trainer.precision=32-true",
    ]


def start_with(backend: Any) -> Any:
    def start(model: nn.Module) -> None:
        torch._dynamo.reset()
        for layer in layers(model):
            layer.compile(backend=backend)

    return start


def test_everything_is_compiled_before_training(
    arguments: list[str], run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run(*arguments, f"run_dir={tmp_path}/plain")
    assert plain["seconds"]["compile"] < 0.1  # auto, on a CPU
    compiled: list[int] = []
    begin = Objective.on_train_start
    monkeypatch.setattr(Objective, "on_train_start", lambda self: (compiled.append(counters["frames"]["ok"]), begin(self))[1])
    end = Objective.on_train_end
    monkeypatch.setattr(Objective, "on_train_end", lambda self: (compiled.append(counters["frames"]["ok"]), end(self))[1])
    monkeypatch.setattr(compilation, "start", start_with("aot_eager"))
    summary = run(*arguments, "trainer.compile=true", f"run_dir={tmp_path}/compiled")
    assert summary["seconds"]["compile"] > plain["seconds"]["compile"]
    assert compiled[0] > 0
    assert compiled[1] == compiled[0]
    weights = [AutoModelForCausalLM.from_pretrained(tmp_path / name / "hf").state_dict() for name in ("plain", "compiled")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=1e-5, rtol=1e-4)


def test_without_a_compiler_auto_goes_on(
    arguments: list[str], run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no compiler found")

    monkeypatch.setattr(compilation, "start", start_with(broken))
    with pytest.raises(UserError, match=r"trainer\.compile=true is not possible here: .*no compiler found"):
        run(*arguments, "trainer.compile=true", f"run_dir={tmp_path}/asked")
    monkeypatch.setattr(compilation, "PAYS", {"cpu": 0.0})
    run(*arguments, "trainer.compile=auto", f"run_dir={tmp_path}/auto")
    assert "no compiler found" in (tmp_path / "auto" / "train.log").read_text()
    assert (tmp_path / "auto" / "summary.json").is_file()
