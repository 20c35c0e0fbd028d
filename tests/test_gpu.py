"""What only a GPU can show: its kernels agree with the CPU's, graphs with kernels one by one, and a step never waits for the device."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from llm_lightning.models import flash_attention
from llm_lightning.models.flat_check import use_flat_batches
from llm_lightning.models.forward import token_logits
from llm_lightning.models.loss import cross_entropy, linear_cross_entropy
from llm_lightning.objectives.base import Objective
from llm_lightning.training.graphs import Graphs

from .conftest import TINY_BERT, TINY_GPT, Runner
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


@pytest.mark.parametrize(("causal", "window"), [(False, -1), (True, -1), (True, 5), (False, 5)])
def test_backward_drops_the_attention_weights_that_forward_dropped(causal: bool, window: int) -> None:
    """Attention is linear in its values: <output, g> = <gradient of the values, values>, whatever was dropped."""
    lengths = torch.tensor([29, 17, 17, 8, 2])
    bounds = F.pad(lengths.cumsum(0), (1, 0)).to("cuda", torch.int32)
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(int(lengths.sum()), heads, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for heads in (8, 4, 4)
    )

    def attend(dropout: float) -> torch.Tensor:
        return flash_attention.by_flash_attention(q, k, v, bounds, 29, dropout, causal, window, 0.125)

    output = attend(0.3)
    direction = torch.randn_like(output)
    (gradient,) = torch.autograd.grad(output, v, direction)
    assert not output.equal(attend(0.3))
    forward, backward = (float((a.float() * b.float()).sum().detach()) for a, b in ((output, direction), (gradient, v)))
    assert forward == pytest.approx(backward, rel=0.02, abs=1.0)
    exact, mean = attend(0.0).float(), sum(attend(0.3).detach().float() for _ in range(200)) / 200
    assert float((mean - exact).abs().mean() / exact.abs().mean()) < 0.08  # by chance 0.04


def test_dense_blocks_give_the_same_by_either_kernel() -> None:
    q, k, v = (torch.randn(4 * 512, heads, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for heads in (8, 4, 4))
    bounds = torch.arange(0, 4 * 512 + 1, 512, dtype=torch.int32, device="cuda")
    arguments = (q, k, v, bounds, 512, 0.0, True, -1, 0.125)
    flash_attention._cudnn_is_faster.clear()
    first = flash_attention.by_flash_attention(*arguments)
    ((kind, faster),) = flash_attention._cudnn_is_faster.items()
    flash_attention._cudnn_is_faster[kind] = not faster
    second = flash_attention.by_flash_attention(*arguments)
    flash_attention._cudnn_is_faster.clear()
    torch.testing.assert_close(first, second, atol=0.02, rtol=0.02)
    gradients = [torch.autograd.grad(output.float().sum(), v)[0].float() for output in (first, second)]
    torch.testing.assert_close(*gradients, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("vocabulary", [512, 1001])
def test_the_loss_and_its_gradients_are_those_of_fp32(vocabulary: int) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(300, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(vocabulary, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    targets = torch.randint(vocabulary, (300,), device="cuda")
    targets[::7] = -100
    logits = hidden @ weight.T
    expected = F.cross_entropy(logits.float(), targets, reduction="sum")
    exact = torch.autograd.grad(expected, (hidden, weight))
    for loss in (linear_cross_entropy(hidden, weight, targets), cross_entropy(hidden @ weight.T, targets)):
        assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-3)
        for found, gradient in zip(torch.autograd.grad(loss, (hidden, weight)), exact, strict=True):
            assert float((found - gradient).float().norm() / gradient.float().norm()) < 5e-3


def arguments_of(kind: str, corpus: Path, reviews: Path) -> list[str]:
    gpu = ["trainer.accelerator=gpu", "trainer.devices=1", "trainer.max_steps=16", "trainer.max_epochs=100"]
    if kind == "causal":
        data = ["task=pretrain", *TINY_GPT, "data=text", f"data.train={corpus}", "data.document=line", "data.block_size=32"]
        return [*data, *gpu, "batch.sequences=16", "batch.micro_tokens=128"]
    if kind == "masked":
        data = ["task=pretrain", "objective=masked_lm", *TINY_BERT, "data=text", f"data.train={corpus}", "data.document=line"]
        return [*data, *gpu, "batch.sequences=16"]
    return [
        "task=finetune",
        *TINY_BERT,
        "data=files",
        f"data.train={reviews}",
        "data.columns.text=body",
        "data.columns.label=stars",
        *gpu,
        "batch.sequences=16",
    ]


@pytest.mark.parametrize("kind", ["causal", "masked", "classes"])
def test_graphs_train_as_kernels_one_by_one(
    kind: str, corpus: Path, reviews: Path, run: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Dropout included: a graph is given the seed of each step."""
    start, capture, captured = Objective.on_train_start, Graphs._capture, [0]

    def with_graphs(self: Objective) -> None:
        self.take_step.use_graphs(self.trainer.precision_plugin.forward_context)
        start(self)

    def counted(self: Graphs, *arguments: Any) -> Any:
        captured[0] += 1
        return capture(self, *arguments)

    monkeypatch.setattr(Objective, "on_train_start", with_graphs)
    results = []
    for name in ("graphs", "one by one"):
        monkeypatch.setattr(Graphs, "_capture", counted if name == "graphs" else lambda *arguments: None)
        folder = tmp_path / name.replace(" ", "-")
        summary = run(*arguments_of(kind, corpus, reviews), "trainer.compile=false", f"run_dir={folder}")
        results.append(summary["metrics"]["validation/loss"])
    assert captured[0] > 0
    assert "left out" not in (tmp_path / "graphs" / "train.log").read_text()
    assert results[0] == pytest.approx(results[1], rel=2e-3)


def test_preflight_times_the_ways_and_takes_one(corpus: Path, reviews: Path, run: Runner, tmp_path: Path) -> None:
    run(*arguments_of("classes", corpus, reviews), f"run_dir={tmp_path}/run")
    log = (tmp_path / "run" / "train.log").read_text()
    assert "kernel by kernel" in log
    assert "CUDA graphs" in log
    assert "left out" not in log
