"""An Apple GPU's allocator gives memory back, as lengths of sequences vary without end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llm_lightning.training import memory

from ..conftest import TINY_GPT, Runner


@pytest.mark.parametrize(("device", "times"), [("mps", 3), ("cpu", 0), ("cuda", 0)])
def test_only_an_apple_gpu_returns_memory(device: str, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    returns: list[None] = []
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: returns.append(None))
    for step in range(3 * memory.INTERVAL):
        memory.return_unused(torch.device(device), step)
    assert len(returns) == times


@pytest.mark.skipif(not torch.backends.mps.is_available(), reason="no Apple GPU here")
def test_an_apple_gpu_trains(corpus: Path, run: Runner, tmp_path: Path) -> None:
    """No fp64 on the way, and the driver holds little more than the tensors need."""
    data = ["task=pretrain", *TINY_GPT, "data=text", f"data.train={corpus}", "data.document=line", "data.block_size=32"]
    steps = 2 * memory.INTERVAL + 1  # the last one returns memory
    summary = run(
        *data, "trainer.accelerator=mps", f"trainer.max_steps={steps}", "trainer.max_epochs=null", f"run_dir={tmp_path}/run"
    )
    assert summary["steps"] == steps
    assert torch.mps.driver_allocated_memory() < 2**30
