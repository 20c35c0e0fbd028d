"""Layers that run again in the backward pass: the same gradients to the last bit, for less memory."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from transformers import PreTrainedModel

from llm_lightning.config.schema import AdapterConfig
from llm_lightning.errors import UserError
from llm_lightning.models import adapter, last_layer
from llm_lightning.models.flat_check import use_flat_batches
from llm_lightning.models.forward import sequence_logits, token_loss
from llm_lightning.models.recompute import can_recompute, recompute_layers, recomputes
from llm_lightning.training import batch_size

from ..conftest import TINY_GPT, Runner
from ..data.test_buckets import drop, masked
from . import architectures
from .test_padding_free import COVERED, OTHERS, Sequences, collated, language_head, made


def dropping(model: PreTrainedModel) -> PreTrainedModel:
    """The model with dropout of everything, also by what its config says."""
    model.config.attention_dropout = 0.1
    return drop(model, 0.1).train()


def gradients(model: PreTrainedModel, loss_of: Any) -> tuple[float, dict[str, Tensor]]:
    torch.manual_seed(3)
    model.zero_grad()
    loss = loss_of(model)
    loss.backward()
    return float(loss.detach()), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("head", ["language", "SequenceClassification"])
@pytest.mark.parametrize("architecture", COVERED + OTHERS)
def test_gradients_are_the_same_to_the_last_bit(
    architecture: str, head: str, adapted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(last_layer, "PARTS", {})  # a layer at some places has other draws of dropout
    if architecture == "granite" and head != "language":
        pytest.skip("has no such head")
    model = dropping(made(architecture, language_head(architecture) if head == "language" else head))
    if not can_recompute(model):
        pytest.skip("transformers cannot run its layers again")
    if adapted:
        adapter.add(model, AdapterConfig(kind="lora", rank=2, alpha=4), [])
    decoder = language_head(architecture) == "CausalLM"

    def loss_of(model: PreTrainedModel) -> Tensor:
        if head != "language":
            return sequence_logits(model, collated("texts")).square().sum()
        return token_loss(model, collated("stream") if decoder else masked(collated("stream")))

    again = copy.deepcopy(model)
    recompute_layers(again)
    assert recomputes(again)
    expected, recomputed = gradients(model, loss_of), gradients(again, loss_of)
    assert expected[1].keys() == recomputed[1].keys() != set()
    assert expected[0] == recomputed[0]
    for name, gradient in expected[1].items():
        assert recomputed[1][name].equal(gradient), name


def kept_bytes(model: PreTrainedModel) -> int:
    """Bytes that autograd keeps of a forward pass, weights left out."""
    import numpy as np

    from llm_lightning.data.collate import Collator

    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = Collator(next_token=True)(Sequences(1, [64] * 8), [np.array([i]) for i in range(8)], 0)
    with saved_tensors_hooks(note, lambda tensor: tensor):
        loss = sequence_logits(model, batch).sum()
    del loss
    return sum(storages.values())


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_seven_tenths_of_what_is_kept_is_not(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = use_flat_batches(made(architecture, "SequenceClassification"))
    before = kept_bytes(model)
    recompute_layers(model)
    assert kept_bytes(model) < 0.3 * before


def test_a_model_whose_layers_cannot_run_again_is_refused() -> None:
    name = next(name for name in architectures.HEADS if not can_recompute(architectures.build_tiny(name)))
    with pytest.raises(UserError, match=r"cannot run layers of .* again; use none"):
        recompute_layers(architectures.build_tiny(name))


ARGUMENTS = ["task=pretrain", *TINY_GPT, "data=text", "data.document=line", "data.block_size=32", "trainer.max_steps=4"]


def test_a_run_comes_out_the_same(corpus: Path, run: Runner, tmp_path: Path) -> None:
    losses = []
    for setting in ("none", "layers"):
        summary = run(*ARGUMENTS, f"data.train={corpus}", f"trainer.recompute={setting}", f"run_dir={tmp_path}/{setting}")
        losses.append(summary["metrics"]["validation/loss"])
    assert losses[0] == losses[1]


def test_auto_begins_where_a_single_row_does_not_fit(
    corpus: Path, run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plan, asked = batch_size.plan, []

    def without_room(*arguments: Any) -> int:
        asked.append(recomputes(arguments[0].model))
        if not asked[-1]:
            raise batch_size.NoRoom("a row does not fit")
        return plan(*arguments)

    monkeypatch.setattr(batch_size, "plan", without_room)
    run(*ARGUMENTS, f"data.train={corpus}", "batch.micro_tokens=auto", f"run_dir={tmp_path}/run")
    assert asked == [False, True]
    assert "trainer.recompute=layers" in (tmp_path / "run" / "train.log").read_text()
