"""What only a GPU can show: the variable-length kernel agrees with the CPU, and a step never waits for the device."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_lightning.models.flat_check import use_flat_batches
from llm_lightning.models.forward import token_logits
from llm_lightning.objectives.base import Objective

from .conftest import TINY_GPT, Runner
from .models.test_padding_free import COVERED, OTHERS, collated, language_head, made

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


def to_gpu(batch: Any) -> Any:
    moved = copy.copy(batch)
    for name, value in vars(batch).items():
        if isinstance(value, torch.Tensor):
            setattr(moved, name, value.cuda())
    return moved


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", COVERED + OTHERS)
def test_flat_batches_give_on_a_gpu_what_they_give_on_a_cpu(architecture: str, dtype: torch.dtype) -> None:
    model = use_flat_batches(made(architecture, language_head(architecture)))
    there = copy.deepcopy(model).to("cuda", dtype)
    batch = collated("stream")
    expected, found = token_logits(model, batch), token_logits(there, to_gpu(batch))
    tolerance = 1e-4 if dtype == torch.float32 else 0.03 * float(expected.abs().max())
    torch.testing.assert_close(found.float().cpu(), expected, atol=tolerance, rtol=1e-3)
    expected.square().sum().backward()
    found.float().square().sum().backward()
    for (name, p), q in zip(model.named_parameters(), there.parameters(), strict=True):
        if p.grad is not None and q.grad is not None and float(p.grad.norm()) > 1e-4:
            similarity = torch.cosine_similarity(p.grad.flatten(), q.grad.float().cpu().flatten(), 0)
            assert similarity > (0.9999 if dtype == torch.float32 else 0.98), name


def test_a_step_does_not_wait_for_the_device(corpus: Path, run: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    step = Objective.training_step

    def watched(self: Objective, batch: Any, index: int) -> Any:
        torch.cuda.set_sync_debug_mode("error" if index > 2 else "default")  # the first steps may set things up
        try:
            return step(self, batch, index)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Objective, "training_step", watched)
    data = ["task=pretrain", *TINY_GPT, "data=text", f"data.train={corpus}", "data.document=line", "data.block_size=32"]
    summary = run(
        *data,
        "trainer.accelerator=gpu",
        "trainer.devices=1",
        "trainer.max_steps=8",
        "batch.sequences=16",
        "batch.micro_tokens=128",
        f"run_dir={tmp_path}/run",
    )
    assert summary["steps"] == 8
