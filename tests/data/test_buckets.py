"""Filling a batch up to a common size changes nothing: losses, gradients and the dropout of real tokens stay what they are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llm_lightning.data.buckets import SHARE, SHORTEST, bucket, fill, longest_bucket
from llm_lightning.data.collate import ROUND, MicroBatch, rounded
from llm_lightning.data.masking import IGNORED
from llm_lightning.models import dropout
from llm_lightning.models.flat_check import use_flat_batches
from llm_lightning.models.forward import sequence_logits, token_logits, token_loss
from llm_lightning.objectives.question_answering import QuestionAnswering

from ..models.test_padding_free import collated, language_head, made


@given(st.integers(1, 10**6))
def test_a_bucket_adds_at_most_five_percent_or_a_few_positions(count: int) -> None:
    size = bucket(count)
    assert count <= size <= max(count * (1 + SHARE), count + ROUND - 1)
    assert size == rounded(size)


@given(st.integers(1, 10**5))
def test_the_bound_of_the_longest_is_one_of_few(length: int) -> None:
    bound = longest_bucket(length)
    assert length <= bound < max(2 * length, SHORTEST + 1)
    assert bound & (bound - 1) == 0


def drop(model: Any, p: float) -> Any:
    """The model with this dropout everywhere, as a run builds it."""
    for module in model.modules():
        for name in ("p", "dropout_prob", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, p)
    dropout.replace(model)
    return use_flat_batches(model)


def masked(batch: MicroBatch) -> MicroBatch:
    places = torch.arange(0, len(batch.input_ids), 3)
    batch.targets, batch.target_places = batch.input_ids[places].clone(), places
    return batch


def asked(batch: MicroBatch) -> MicroBatch:
    """Where an answer begins and ends in each sequence."""
    lengths = batch.cu_seqlens.diff().long()
    batch.targets = torch.stack([lengths // 3, lengths - 1], 1)
    return batch


def classes(model: Any, batch: MicroBatch) -> Tensor:
    return F.cross_entropy(sequence_logits(model, batch), batch.targets, reduction="sum")


def tags(model: Any, batch: MicroBatch) -> Tensor:
    return F.cross_entropy(
        token_logits(model, batch), torch.where(batch.targets == IGNORED, IGNORED, batch.targets % 3), reduction="sum"
    )


def spans(model: Any, batch: MicroBatch) -> Tensor:
    return QuestionAnswering.loss_and_outputs(SimpleNamespace(model=model), batch)[0]  # type: ignore[arg-type]


CASES = {
    "classification": ("SequenceClassification", lambda: collated("texts"), classes),
    "causal": (None, lambda: collated("stream"), token_loss),
    "masked": (None, lambda: masked(collated("stream")), token_loss),
    "tagging": ("TokenClassification", lambda: masked(collated("stream")), tags),
    "questions": ("QuestionAnswering", lambda: asked(collated("texts")), spans),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("architecture", ["bert", "roberta", "modernbert", "gpt2", "llama"])
def test_a_filled_batch_has_the_same_loss_and_gradients(architecture: str, case: str) -> None:
    head, collate, loss_of = CASES[case]
    model = drop(made(architecture, head or language_head(architecture), classes=2 if case == "questions" else 3), 0.2)
    batch = collate()
    full = fill(batch)
    assert len(full.input_ids) == bucket(len(full.input_ids)) > len(batch.input_ids)
    assert int(full.cu_seqlens[-1]) == len(full.input_ids)
    assert full.longest >= int(full.cu_seqlens.diff().max())
    losses, gradients = [], []
    for given_batch in (batch, full):
        torch.manual_seed(3)
        model.zero_grad()
        loss = loss_of(model, given_batch)
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-4, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")


def test_long_equal_sequences_are_left_as_they_are() -> None:
    lengths = np.array([256] * 4)
    batch = MicroBatch(
        input_ids=torch.zeros(1024, dtype=torch.long),
        position_ids=torch.arange(256).repeat(4),
        cu_seqlens=torch.tensor(np.concatenate([[0], lengths.cumsum()]), dtype=torch.int32),
        longest=256,
        targets=torch.zeros(1024, dtype=torch.long),
        indices=torch.arange(4),
    )
    assert fill(batch) is batch
