"""What CUDA graphs need of a step, as far as a CPU can show it: filled batches, gradients that stay, shapes that come again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from llm_lightning.data.collate import MicroBatch
from llm_lightning.models import attention
from llm_lightning.models.flat_check import use_flat_batches
from llm_lightning.models.forward import sequence_logits, token_loss
from llm_lightning.objectives.base import Objective
from llm_lightning.training import graphs
from llm_lightning.training.graphs import Graphs

from ..conftest import TINY_GPT, Runner
from ..models.test_padding_free import COVERED, DECODERS, collated, language_head, made


class Replayed(graphs._Graph):
    """Stands for a captured pass: runs it again on the tensors that it was captured on."""

    def __call__(self, batch: MicroBatch, loss_scale: Tensor) -> Tensor:
        static_tensors = [*self._batch.tensors().values(), self._loss_scale]
        for into, value in zip(static_tensors, [*batch.tensors().values(), loss_scale], strict=True):
            into.copy_(value)
        return self.again(self._batch, self._loss_scale)  # type: ignore[attr-defined]


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Have passes be captured by remembering them. Gives the keys that were captured."""
    captured = []

    def capture(self: Graphs, key: tuple[Any, ...], batch: MicroBatch, loss_scale: Tensor, first: bool) -> graphs._Graph:
        own = batch.clone()
        graph = Replayed(None, own, loss_scale.clone(), torch.zeros(()))  # type: ignore[arg-type]
        graph.again = lambda batch, loss_scale: self._run(batch, loss_scale, first)  # type: ignore[attr-defined]
        captured.append(key)
        self._keep(key, graph)
        return graph

    monkeypatch.setattr(Graphs, "_capture", capture)
    return captured


def test_steps_that_keep_their_gradients_train_as_those_that_throw_them_away(
    corpus: Path, run: Runner, tmp_path: Path, without_gpu: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bf16 copies, clipping and gradients of several micro-batches included."""
    arguments = ["task=pretrain", *TINY_GPT, "data=text", f"data.train={corpus}", "data.document=line", "data.block_size=32"]
    arguments += ["data.packing=none", "batch.sequences=16", "batch.micro_tokens=96", "trainer.max_steps=12"]
    plain = run(*arguments, f"run_dir={tmp_path}/plain")
    start = Objective.on_train_start

    def with_graphs(self: Objective) -> None:
        self.take_step.use_graphs(self.trainer.precision_plugin.forward_context)
        start(self)

    monkeypatch.setattr(Objective, "on_train_start", with_graphs)
    replayed = run(*arguments, f"run_dir={tmp_path}/graphs")
    assert 0 < len(without_gpu) < 12
    assert replayed["metrics"]["validation/loss"] == pytest.approx(plain["metrics"]["validation/loss"], rel=2e-3)


def test_the_least_used_graph_goes(monkeypatch: pytest.MonkeyPatch, without_gpu: list[tuple[Any, ...]]) -> None:
    monkeypatch.setattr(graphs, "MAX_GRAPHS", 2)
    passes = Graphs(lambda batch, loss_scale: batch.input_ids.sum().float(), [], contextlib.nullcontext)
    batches = [collated("stream", *range(count)) for count in (1, 8, 3)]
    batches = [batch for batch in batches for _ in range(2)]  # the second time it is captured
    assert [float(passes(batch, torch.ones(()), first=True)) for batch in batches] == [float(b.input_ids.sum()) for b in batches]
    assert len(without_gpu) == 3
    passes(batches[0], torch.ones(()), first=True)
    assert len(without_gpu) == 4  # once more
    passes(batches[4], torch.ones(()), first=True)
    assert len(without_gpu) == 4


class Reads(TorchDispatchMode):
    """Operations whose result the program itself looks at: on a GPU each waits for all that was started before."""

    NAMES = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "unique", "masked_select")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in str(func) for name in self.NAMES):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Attention by rows, which any device can do, in place of the rectangles that a CPU reads lengths for."""
    with monkeypatch.context() as patch:
        patch.setattr(attention, "by_length", lambda q, k, v, cu, *rest: attention.in_rows(q, k, v, cu, max(LONGEST, 1), *rest))
        yield


LONGEST = 14


@pytest.mark.parametrize("head", ["language", "SequenceClassification"])
@pytest.mark.parametrize("architecture", COVERED)
def test_nothing_is_read_back_from_the_device(architecture: str, head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids of padding at both ends of the batch, at which transformers looks for a mask that is missing."""
    language = head == "language"
    model = use_flat_batches(made(architecture, language_head(architecture) if language else head))
    batch = collated("stream" if language else "texts")
    assert batch.longest == LONGEST
    with as_on_a_gpu(monkeypatch), Reads() as reads:
        loss = token_loss(model, batch) if language else sequence_logits(model, batch).sum()
        loss.backward()
    assert not reads.found, (architecture, architecture in DECODERS)
