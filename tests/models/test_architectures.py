"""Architectures that people use train in both precisions, with the loss and the gradients of Hugging Face's own forward pass."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from llm_lightning.data.collate import MicroBatch
from llm_lightning.models import build, forward
from llm_lightning.training.precision import MasterWeights
from llm_lightning.training.step import clip_gradients

from .architectures import (
    ARCHITECTURES,
    HEADS,
    ONNX_REASONS,
    build_tiny,
    describe_batches,
    draw_batch,
    read_rows,
    read_table,
    try_adapter,
    try_onnx,
)

STEPS = 3


def loss_sum(model: PreTrainedModel, head: str, batch: MicroBatch) -> Tensor:
    """Return the loss as the objectives compute it."""
    if head == "SequenceClassification":
        return F.cross_entropy(forward.sequence_logits(model, batch).float(), batch.targets, reduction="sum")
    if head == "Seq2SeqLM":
        return F.cross_entropy(forward.written_logits(model, batch).float(), batch.targets, reduction="sum")
    return forward.token_loss(model, batch)


def published_loss(model: PreTrainedModel, head: str, batch: MicroBatch) -> Tensor:
    """Return the mean loss that a Hugging Face model gives for padded rows and their labels."""
    if head == "SequenceClassification":  # each text alone: what stands beside it in a batch must not matter
        texts = batch.input_ids.split(batch.cu_seqlens.diff().tolist())
        return F.cross_entropy(torch.cat([model(input_ids=text[None]).logits for text in texts]), batch.targets)
    rows = forward.padded(model, batch)
    if head == "Seq2SeqLM":
        parts = batch.targets.split(batch.cu_targets.diff().tolist())  # type: ignore[union-attr]
        labels = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=-100)
        start = labels.new_full((len(labels), 1), model.config.decoder_start_token_id)
        shifted = torch.cat([start, labels[:, :-1].clamp(min=0)], 1)
        return model(**rows, labels=labels, decoder_input_ids=shifted).loss
    place = (forward.sequence_of(batch), batch.position_ids)
    labels = torch.full_like(rows["input_ids"], -100)
    if head == "MaskedLM":
        labels[tuple(index[batch.target_places] for index in place)] = batch.targets
        return model(**rows, labels=labels).loss
    # a causal model's labels are its inputs, so the last target of each row is one input more
    ids, mask = (F.pad(rows[name], (0, 1)) for name in ("input_ids", "attention_mask"))
    sequence, position = place
    ids[sequence, position + 1], mask[sequence, position + 1] = batch.targets, 1
    labels = F.pad(labels, (0, 1), value=-100)
    labels[sequence, position + 1] = batch.targets
    return model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss


def gradient(model: PreTrainedModel) -> Tensor:
    return torch.cat([p.grad.flatten() if p.grad is not None else p.new_zeros(p.numel()) for p in model.parameters()]).float()


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_is_that_of_hugging_faces_own_forward(architecture: str, precision: str) -> None:
    head = HEADS[architecture]
    published = build_tiny(architecture)
    model = build._quick(copy.deepcopy(published))
    batch = draw_batch(head)
    plugin: Any = SimpleNamespace(forward_context=torch.enable_grad)
    if precision == "bf16-mixed":
        plugin = MasterWeights()
        plugin.convert_module(SimpleNamespace(model=model))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(STEPS):
        published.load_state_dict(model.state_dict())
        published.zero_grad()
        expected = published_loss(published, head, batch)
        expected.backward()
        with plugin.forward_context():
            loss = loss_sum(model, head, batch) / len(batch.targets)
        loss.backward()
        ours, theirs = gradient(model), gradient(published)
        assert bool(loss.isfinite())
        if precision == "32-true":
            assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
            assert float((ours - theirs).norm() / theirs.norm()) < 1e-3
        else:
            assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=0.02)
            assert float(torch.cosine_similarity(ours, theirs, 0)) > 0.97
        losses.append(float(loss.detach()))
        clip_gradients(model, optimizer, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_documentation_says_how_batches_are_given(architecture: str) -> None:
    """`python -m tests.models.architectures` writes the table anew."""
    assert read_rows()[architecture][:2] == [HEADS[architecture], describe_batches(architecture)]


def test_the_documentation_counts_flat_architectures() -> None:
    flat = sum(batches == "flat" for _, batches, *_ in read_rows().values())
    assert read_table().startswith(f"{flat} of {len(ARCHITECTURES)} take flat batches")


def test_the_documentation_tells_the_export_of_every_architecture() -> None:
    rows = read_rows()
    assert list(rows) == list(ARCHITECTURES)
    assert {onnx for *_, onnx in rows.values()} <= {"yes", *(f"no: {reason}" for reason in ONNX_REASONS)}


@pytest.mark.nightly
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_documentation_says_which_adapters_work(architecture: str) -> None:
    assert read_rows()[architecture][2] == try_adapter(architecture)


@pytest.mark.nightly
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_documentation_says_which_exports_work(architecture: str) -> None:
    assert read_rows()[architecture][3] == try_onnx(architecture)
