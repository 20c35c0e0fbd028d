"""A step that runs out of memory and begins anew has the gradient of one that was cut so from the start, to the last bit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.overrides.distributed import prepare_for_backward
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from llm_lightning import distributed
from llm_lightning.data.collate import MicroBatch, build_step_batch
from llm_lightning.errors import RunError
from llm_lightning.models import dropout, embedding
from llm_lightning.models.forward import token_loss
from llm_lightning.models.layers import layers
from llm_lightning.training import parallel
from llm_lightning.training.precision import WorkingWeights
from llm_lightning.training.step import OptimizerStep

from .test_parallel import batch_of, model_of, whole


class Bare:
    """What a step needs of an objective, without Lightning. The optimizer keeps the gradients that it is given."""

    seed, clip_norm, device = 5, 1.0, torch.device("cpu")

    def __init__(self, kind: str, precision: str = "32-true", rank: int = 0, world: int = 1) -> None:
        self.model = model_of(kind)
        dropout.replace(self.model)
        embedding.replace(self.model)
        self.model.train()
        self.global_rank = rank
        self.precision = precision
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0) if precision == "16-mixed" else None
        self.scaler = scaler
        self.trainer: Any = SimpleNamespace(
            world_size=world,
            strategy=SimpleNamespace(reduce=self._reduce),
            precision_plugin=SimpleNamespace(scaler=scaler, forward_context=contextlib.nullcontext),
        )
        self.gradients: list[Tensor] = []
        self.fails: set[int] = set()
        """Calls of the loss in whose backward pass memory runs out, behind the last layer."""
        self.calls = 0

    def _reduce(self, tensor: Tensor, reduce_op: str) -> Tensor:
        torch.distributed.all_reduce(tensor)
        return tensor

    def optimizers(self) -> Any:
        inner = torch.optim.SGD(self.model.parameters(), lr=0.1)

        def step() -> None:
            self.gradients = [whole(parameter.grad).clone() for parameter in self.model.parameters()]

        return SimpleNamespace(optimizer=inner, param_groups=inner.param_groups, step=step, zero_grad=self.model.zero_grad)

    def lr_schedulers(self) -> Any:
        return SimpleNamespace(step=lambda: None)

    def loss_sum(self, batch: MicroBatch) -> Tensor:
        fails, self.calls = self.calls in self.fails, self.calls + 1
        hook = layers(self.model)[0].register_forward_hook(_break) if fails else contextlib.nullcontext()
        with hook:
            return token_loss(self.model, batch)

    def manual_backward(self, loss: Tensor) -> None:
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    @contextlib.contextmanager
    def in_precision(self) -> Iterator[None]:
        with contextlib.ExitStack() as contexts:
            if self.precision.startswith("bf16-mixed"):
                contexts.enter_context(WorkingWeights(self.model, buffered=self.precision.endswith("buffered")).in_use())
            elif self.precision == "16-mixed":
                contexts.enter_context(torch.autocast("cpu", torch.float16))
            yield

    def train(self, fails: set[int], cut: int, seed: int = 0) -> list[Tensor]:
        """The gradient of a step of two micro-batches, each cut into pieces from the start."""
        step = OptimizerStep(self)  # type: ignore[arg-type]
        step._retry.pieces = cut
        self.fails, self.calls = fails, 0
        batches = [batch_of(9, 7, 4, 6, seed=seed), batch_of(12, 3, 5, seed=seed + 1)]
        with self.in_precision():
            step(build_step_batch(batches, 3, 0.0))
        return self.gradients


def _break(module: nn.Module, args: Any, output: Any) -> None:
    def run_out(slope: Tensor) -> None:
        raise torch.OutOfMemoryError("out of memory")

    (output if isinstance(output, Tensor) else output[0]).register_hook(run_out)


def require_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    assert any(gradient.any() for gradient in expected)
    for a, b in zip(found, expected, strict=True):
        assert a.equal(b)


@pytest.mark.parametrize("kind", ["tied", "untied"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-mixed, buffered", "16-mixed"])
def test_a_retried_step_has_the_gradient_of_an_undisturbed_one(precision: str, kind: str) -> None:
    """It breaks off in the second micro-batch, then once more in its halves."""
    retried = Bare(kind, precision)
    require_equal(retried.train({1, 4}, cut=1), Bare(kind, precision).train(set(), cut=4))
    require_equal(retried.train(set(), cut=1), Bare(kind, precision).train(set(), cut=1))  # nothing is left for the next step


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def sharded(kind: str, precision: str, rank: int = 0, world: int = 1) -> Bare:
    bare = Bare(kind, "sharded", rank, world)
    parallel.shard(bare.model, init_device_mesh("cpu", (world,)), precision)
    return bare


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize(("kind", "precision"), [("tied", "32-true"), ("tied", "bf16-mixed"), ("untied", "bf16-mixed")])
def test_the_same_under_fsdp(kind: str, precision: str, by_hand: bool, group: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by what replaces `reset_iter_state` in versions of torch that do not have it."""
    if by_hand:
        monkeypatch.setattr(torch.distributed.fsdp.FSDPModule, "reset_iter_state", property(), raising=False)
        assert not hasattr(sharded(kind, precision).model, "reset_iter_state")
    retried = sharded(kind, precision)
    require_equal(retried.train({1, 4}, cut=1), sharded(kind, precision).train(set(), cut=4))
    require_equal(retried.train(set(), cut=1), sharded(kind, precision).train(set(), cut=1))


def replicated(rank: int) -> Bare:
    """Under DDP, whose backward passes are as Lightning does them in manual optimization."""
    bare = Bare("tied", rank=rank, world=2)
    copies = nn.parallel.DistributedDataParallel(bare.model)
    bare.trainer.strategy.model, bare.trainer.strategy.block_backward_sync = copies, copies.no_sync

    def manual_backward(loss: Tensor) -> None:
        prepare_for_backward(copies, loss)
        loss.backward()

    bare.manual_backward = manual_backward  # type: ignore[method-assign]
    return bare


def _all_run_out(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    distributed.all_arrive = lambda key, seconds: len(set(distributed.gather(key))) == 1  # type: ignore[assignment]
    for precision in ("32-true", "bf16-mixed"):
        retried = sharded("tied", precision, rank, 2)
        require_equal(
            retried.train({1, 4}, cut=1, seed=10 * rank), sharded("tied", precision, rank, 2).train(set(), cut=4, seed=10 * rank)
        )
    retried = replicated(rank)
    require_equal(retried.train({0}, cut=1, seed=10 * rank), replicated(rank).train(set(), cut=2, seed=10 * rank))
    with pytest.raises(RunError, match=f"^rank {rank} of 2 ran out of memory"):  # DDP has begun to reduce
        replicated(rank).train({1}, cut=1, seed=10 * rank)
    alone = sharded("tied", "bf16-mixed", rank, 2)
    distributed.all_arrive = lambda key, seconds: False  # type: ignore[assignment]
    if rank == 1:
        with pytest.raises(RunError, match=r"^rank 1 of 2 ran out of memory on a micro-batch of 26 tokens at step 3.*micro_tokens"):
            alone.train({1}, cut=1)
    else:
        with pytest.raises(RuntimeError):  # its neighbour is gone
            alone.train(set(), cut=1)


def test_ranks_that_run_out_together_begin_anew_together(tmp_path: Path) -> None:
    """And one that runs out alone says so at once, with its name and what to do."""
    torch.multiprocessing.spawn(_all_run_out, (str(tmp_path),), nprocs=2)
