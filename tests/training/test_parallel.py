"""FSDP2 in this process and in two: what it computes, how gradients wait, and what is evaluated before it trains."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from llm_lightning.config.schema import TrainerConfig
from llm_lightning.data.collate import Collator, MicroBatch
from llm_lightning.errors import UserError
from llm_lightning.models.flat_check import use_flat_batches
from llm_lightning.models.forward import token_logits, token_loss, written_logits
from llm_lightning.objectives.causal_lm import CausalLM
from llm_lightning.training import parallel, trainer
from llm_lightning.training.precision import WorkingWeights, choose_bf16_mode, in_bf16
from llm_lightning.training.precision import plugin as plugin_of

from ..conftest import TINY_GPT, Runner
from ..models import architectures

LLAMA = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
CONFIGS: dict[str, Any] = {
    "tied": GPT2Config(
        vocab_size=60,
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=32,
        resid_pdrop=0.1,
        embd_pdrop=0,
        attn_pdrop=0,
        bos_token_id=0,
        eos_token_id=0,
    ),
    "untied": LlamaConfig(vocab_size=60, **LLAMA, tie_word_embeddings=False),
}


class Sequences:
    token_targets = labels = second = None

    def __init__(self, lengths: list[int], seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.inputs = np.array(lengths)
        self.sequences = [rng.integers(60, size=length + 1) for length in lengths]

    def __getitem__(self, index: int) -> np.ndarray:
        return self.sequences[index]


def batch_of(*lengths: int, seed: int = 0) -> MicroBatch:
    return Collator(next_token=True)(Sequences(list(lengths), seed), [np.array([i]) for i in range(len(lengths))], 0)


def model_of(kind: str) -> Any:
    torch.manual_seed(0)
    return use_flat_batches(AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[kind]))).eval()


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Any]:
    """The mesh of a process group of this process alone."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def whole(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_the_chunked_loss_of_a_sharded_model_is_that_of_a_plain_one(kind: str, mesh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit on one process, in chunks of three targets; and no logits of all targets are made."""
    monkeypatch.setattr("llm_lightning.models.loss.LOGITS_AT_ONCE", {"cpu": 3 * 60})
    plain, sharded, batch = model_of(kind), model_of(kind), batch_of(9, 7, 4)
    parallel.shard(sharded, mesh, "32-true")
    monkeypatch.setattr("llm_lightning.models.forward.token_logits", None)
    losses = [token_loss(model, batch) for model in (plain, sharded)]
    for loss in losses:
        loss.backward()
    assert losses[1].equal(losses[0])
    for (name, p), q in zip(plain.named_parameters(), sharded.parameters(), strict=True):
        assert whole(q.grad).equal(whole(p.grad)), name


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_bf16_under_fsdp_is_bf16_with_master_weights(kind: str, mesh: Any) -> None:
    plain, sharded, batches = model_of(kind), model_of(kind), [batch_of(9, 7, 4), batch_of(12, 3, seed=1)]
    parallel.shard(sharded, mesh, "bf16-mixed")
    with in_bf16(plain):
        losses = [token_loss(plain, batch) for batch in batches]
        torch.stack(losses).sum().backward()
    for i, batch in enumerate(batches):
        with parallel.gradient_sync(None, sharded, last=i == 1):
            loss = token_loss(sharded, batch)
            loss.backward()
        assert loss.equal(losses[i])
    for (name, p), q in zip(plain.named_parameters(), sharded.named_parameters(), strict=True):
        error = (whole(q[1].grad) - whole(p.grad)).norm() / whole(p.grad).norm()
        assert q[1].grad.dtype == q[1].dtype == torch.float32
        assert error < (0.02 if "wte" in name or "wpe" in name or "embed" in name else 0.005), name  # embeddings' are added in bf16


def test_gradients_wait_for_the_last_micro_batch(mesh: Any) -> None:
    """Reduced once, they are the sum of both; none has reached the shards before."""
    plain, sharded, batches = model_of("tied"), model_of("tied"), [batch_of(9, 7, 4), batch_of(12, 3, seed=1)]
    parallel.shard(sharded, mesh, "32-true")
    shards = list(sharded.parameters())
    with parallel.gradient_sync(None, sharded, last=False):
        token_loss(sharded, batches[0]).backward()
    assert all(shard.grad is None for shard in shards)
    with parallel.gradient_sync(None, sharded, last=True):
        token_loss(sharded, batches[1]).backward()
    for batch in batches:
        token_loss(plain, batch).backward()
    for (name, p), q in zip(plain.named_parameters(), shards, strict=True):
        torch.testing.assert_close(whole(q.grad), whole(p.grad), msg=name)
    assert all(isinstance(parameter, DTensor) for parameter in sharded.parameters())  # nothing stays gathered


def test_a_sharded_model_is_trained_after_it_was_evaluated(mesh: Any, tmp_path: Path) -> None:
    """Lightning leaves inference mode out over gloo by itself, so the Trainer's loops are asked for what they do over NCCL."""
    engine = trainer.build_trainer(TrainerConfig(accelerator="cpu", devices=1, strategy="fsdp"), tmp_path, 1, 1, [], [])
    assert not engine.validate_loop.inference_mode
    assert not engine.fit_loop.epoch_loop.val_loop.inference_mode

    def evaluate_and_train(mode: Callable[[Any], Any]) -> None:
        model = model_of("tied")
        parallel.shard(model, mesh, "32-true")
        with mode(model):
            token_loss(model, batch_of(9, 7))
        parallel.shard(model, mesh, "32-true")  # as before each split that is evaluated: it stays as it is
        token_loss(model.train(), batch_of(9, 7)).backward()
        for parameter in model.parameters():
            assert whole(parameter.grad).isfinite().all()

    with pytest.raises(RuntimeError, match=r"[Ii]nference"):
        evaluate_and_train(lambda model: torch.inference_mode())
    evaluate_and_train(parallel.without_gradients)


class WithLoss(nn.Module):
    """DDP wants one module from inputs to loss."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: MicroBatch) -> Tensor:
        return token_loss(self.model, batch)


def _train_in_ddp(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    batches = [[batch_of(9, 7, seed=2 * r), batch_of(12, 3, seed=2 * r + 1)] for r in range(2)]
    for kind in CONFIGS:
        reference, model = model_of(kind), model_of(kind)
        strategy = SimpleNamespace(model=nn.parallel.DistributedDataParallel(WithLoss(model)))
        strategy.block_backward_sync = strategy.model.no_sync
        weights = WorkingWeights(model, buffered=True)
        for _ in range(2):
            with weights.in_use(), in_bf16(reference):
                for i, batch in enumerate(batches[rank]):
                    with parallel.gradient_sync(strategy, model, last=i == 1):
                        strategy.model(batch).backward()
                for batch in batches[0] + batches[1]:
                    (token_loss(reference, batch) / 2).backward()
        for (name, p), q in zip(model.named_parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-3 * float(whole(q.grad).abs().max()), msg=name)


def test_ddp_reduces_the_gradients_of_buffered_copies(tmp_path: Path) -> None:
    """As on several GPUs: two steps of two micro-batches, of which the last one is reduced."""
    torch.multiprocessing.spawn(_train_in_ddp, (str(tmp_path),), nprocs=2)


@pytest.fixture
def no_traces() -> Iterator[None]:
    """Whatever a run in this process connects to is let go of, and its variables are too."""
    before = dict(os.environ)
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)


def test_a_model_that_is_to_be_sharded_is_tried_on_one_short_sequence(
    corpus: Path, run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_traces: None
) -> None:
    """Before training it is whole on the CPU of every rank. Then one device trains it in bf16, evaluates it and exports it."""
    sizes: dict[bool, list[int]] = {True: [], False: []}
    score = CausalLM.loss_and_outputs

    def watched(self: Any, batch: MicroBatch) -> Any:
        sizes[isinstance(self.model, FSDPModule)].append(len(batch.input_ids))
        return score(self, batch)

    monkeypatch.setattr(CausalLM, "loss_and_outputs", watched)
    data = ["data=text", f"data.train={corpus}", "data.document=line", "data.block_size=32"]
    settings = ["trainer.strategy=fsdp", "trainer.precision=bf16-mixed", "trainer.max_steps=3", "trainer.validate_every_steps=2"]
    summary = run("task=pretrain", *TINY_GPT, *data, *settings, "batch.micro_sequences=4", f"run_dir={tmp_path}/run")
    assert len(sizes[False]) == 1
    assert sizes[False][0] < 32 < max(sizes[True])
    assert summary["steps"] == 3
    weights = load_file(tmp_path / "run" / "hf" / "model.safetensors")
    assert all(weight.dtype == torch.float32 for weight in weights.values())


@pytest.mark.parametrize("architecture", ["deberta-v2", "m2m_100"])
@pytest.mark.parametrize("is_sharded", [True, False])
def test_a_model_that_mixes_types_trains_in_bf16(architecture: str, is_sharded: bool, mesh: Any) -> None:
    """By autocast: with bf16 weights alone, which the last lines try, its products are of two types."""
    head = architectures.HEADS[architecture]
    exact, batch = use_flat_batches(architectures.build_tiny(architecture)), architectures.draw_batch(head)
    model = copy.deepcopy(exact)
    plugin: Any = plugin_of("bf16-mixed", sharded=is_sharded)
    if is_sharded:
        parallel.shard(model, mesh, "bf16-mixed", bf16_weights=choose_bf16_mode(model) == "copies")
    plugin.convert_module(SimpleNamespace(model=model))
    run = written_logits if head == "Seq2SeqLM" else token_logits
    with plugin.forward_context():
        logits = run(model, batch)
    expected = run(exact, batch)
    assert float((logits.detach().float() - expected.detach()).norm() / expected.detach().norm()) < 0.05
    logits.float().square().sum().backward()
    expected.square().sum().backward()
    pairs = [
        (whole(q.grad), whole(p.grad)) for p, q in zip(exact.parameters(), model.parameters(), strict=True) if p.grad is not None
    ]
    ours, theirs = (torch.cat([pair[i].float().flatten() for pair in pairs]) for i in (0, 1))
    assert float(torch.cosine_similarity(ours, theirs, 0)) > 0.97
    if not is_sharded:
        with pytest.raises(RuntimeError, match=r"dtype|scalar type"), in_bf16(model):
            run(model, batch)


@pytest.mark.parametrize(("architecture", "works"), [("llama", True), ("deberta-v2", True), ("m2m_100", False)])
def test_bf16_true_refuses_a_model_that_mixes_types(architecture: str, works: bool) -> None:
    model = use_flat_batches(architectures.build_tiny(architecture))
    plugin: Any = plugin_of("bf16-true", sharded=False)
    with nullcontext() if works else pytest.raises(UserError, match="m2m_100 does not compute with bf16 weights; use bf16-mixed"):
        plugin.convert_module(SimpleNamespace(model=model))
        run = token_logits(model, architectures.draw_batch(architectures.HEADS[architecture]))
        assert run.dtype == torch.bfloat16
