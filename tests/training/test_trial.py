"""Preflight takes the fastest way to go forward and backward that agrees with the first; the GPU's part is stood in for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llm_lightning.models.layers import layers
from llm_lightning.objectives.base import Objective
from llm_lightning.training import compilation, trial
from llm_lightning.training.graphs import Graphs
from llm_lightning.training.preflight import Preflight

from ..conftest import TINY_GPT, Runner
from .test_compilation import start_with
from .test_graphs import without_gpu  # noqa: F401

SECONDS = {"kernel by kernel": 4.0, "CUDA graphs": 3.0, "compiled layers": 2.0, "compiled layers in CUDA graphs": 2.5}


@pytest.fixture
def arguments(corpus: Path, monkeypatch: pytest.MonkeyPatch, without_gpu: list[Any]) -> list[str]:  # noqa: F811
    """A command line whose preflight tries the variants as on a GPU, each of which takes `SECONDS`."""
    monkeypatch.setattr(Preflight, "alone_on_gpu", lambda self: True)
    for name in ("synchronize", "empty_cache", "get_rng_state", "set_rng_state"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(trial, "_time", lambda objective, batches, variant, context: SECONDS[variant.name])
    monkeypatch.setattr(compilation, "start", start_with("aot_eager"))
    monkeypatch.setattr(compilation, "keep_compiled_kernels", lambda folder: None)
    data = ["task=pretrain", *TINY_GPT, "data=text", f"data.train={corpus}", "data.document=line", "data.block_size=32"]
    return [*data, "data.packing=none", "batch.sequences=16", "batch.micro_tokens=96", "trainer.max_steps=4"]


def watch(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Return how the run trains, from its start on."""
    state: dict[str, bool] = {}
    start = Objective.on_train_start

    def look(self: Objective) -> None:
        state["compiled"] = layers(self.model)[0]._compiled_call_impl is not None
        state["graphs"] = self.take_step._graphs is not None
        start(self)

    monkeypatch.setattr(Objective, "on_train_start", look)
    return state


@pytest.mark.parametrize(("pays", "chosen"), [(False, "CUDA graphs"), (True, "compiled layers")])
def test_the_fastest_variant_is_taken(
    pays: bool, chosen: str, arguments: list[str], run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "pays", lambda *_: pays)
    state = watch(monkeypatch)
    plain = run(*arguments, "trainer.compile=false", f"run_dir={tmp_path}/plain")
    assert state == {"compiled": False, "graphs": False}
    summary = run(*arguments, f"run_dir={tmp_path}/run")
    assert state == {"compiled": chosen == "compiled layers", "graphs": chosen == "CUDA graphs"}
    assert (
        f"step: {chosen} (a micro-batch: kernel by kernel 4000.0 ms, CUDA graphs 3000.0 ms"
        in (tmp_path / "run/train.log").read_text()
    )
    assert summary["metrics"]["validation/loss"] == pytest.approx(plain["metrics"]["validation/loss"], rel=5e-3)


def test_a_variant_that_differs_is_named_and_left_out(
    arguments: list[str], run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "pays", lambda *_: False)
    call = Graphs.__call__

    def doubled(self: Graphs, batch: Any, factor: Any, first: bool) -> Any:
        return call(self, batch, 2 * factor, first)

    monkeypatch.setattr(Graphs, "__call__", doubled)
    state = watch(monkeypatch)
    run(*arguments, f"run_dir={tmp_path}/run")
    assert state == {"compiled": False, "graphs": False}
    assert "left out: CUDA graphs: gradients are off by 100.0%" in (tmp_path / "run/train.log").read_text()
