"""Models that read padding are found by trial, and named with what to do."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from llm_lightning.config.schema import BatchConfig
from llm_lightning.data.plan import plan_evaluation
from llm_lightning.models import flat_check, padding_check
from llm_lightning.models.flat_check import use_flat_batches
from llm_lightning.models.padding_check import warn_of_padding

from .architectures import SPECIAL, build_tiny
from .test_padding_free import PAD

LENGTHS = [21, 9, 14]
READS = ["mobilebert", "convbert", "nystromformer", "fnet", "funnel"]
MASKS = ["bert", "mpnet", "deberta-v2", "gpt_neo", "longformer", "bloom", "mamba", "t5", "bart"]


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nothing remembered from other tests, nor by them."""
    monkeypatch.setattr(flat_check, "_decided", {})
    monkeypatch.setattr(padding_check, "_errors", {})


@torch.no_grad()
def logits(model: PreTrainedModel, rows: list[Tensor]) -> list[Tensor]:
    """Return what transformers' own forward pass gives for rows of one padded batch, without the logits of padding."""
    ids = torch.full((len(rows), max(map(len, rows))), PAD)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    inputs = {"input_ids": ids} | ({} if model.config.model_type == "fnet" else {"attention_mask": mask})
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids[:, :4]
    found = model(**inputs).logits
    return [part if model.config.is_encoder_decoder else part[: len(row)] for part, row in zip(found, rows, strict=True)]


def reads_padding(model: PreTrainedModel) -> bool:
    rows = [torch.arange(length) % 20 + 5 for length in LENGTHS]
    together = logits(model, rows)
    return any(not torch.allclose(part, logits(model, [row])[0], atol=1e-3) for part, row in zip(together, rows, strict=True))


@pytest.mark.parametrize("architecture", [*READS, *MASKS])
def test_a_model_that_reads_padding_is_named(architecture: str, caplog: pytest.LogCaptureFixture) -> None:
    model = build_tiny(architecture).eval()
    assert reads_padding(model) is (architecture in READS)
    use_flat_batches(model)
    with caplog.at_level(logging.WARNING):
        warn_of_padding(model)
    assert (f"model: {architecture} reads padding" in caplog.text) is (architecture in READS)
    assert ("batch.micro_sequences=1" in caplog.text) is (architecture in READS)
    assert caplog.text.count("reads padding") <= 1


@pytest.mark.parametrize("head", ["SequenceClassification", "TokenClassification", "QuestionAnswering"])
def test_every_head_is_tried(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for architecture, reads in (("convbert", True), ("mpnet", False)):
        monkeypatch.setitem(SPECIAL, "num_labels", 2 if head == "QuestionAnswering" else 3)
        error = padding_check.measure_padding_error(use_flat_batches(build_tiny(architecture, head)))
        assert error is not None
        assert (error > flat_check.TOLERANCE) is reads


def test_the_advice_pads_nothing() -> None:
    lengths = np.array(LENGTHS * 5, np.int32)
    assert any(len(rows) > 1 for rows in plan_evaluation(lengths, BatchConfig()))
    assert all(len(rows) == 1 for rows in plan_evaluation(lengths, BatchConfig(micro_sequences=1)))


def test_a_large_model_is_tried_by_a_small_copy() -> None:
    from transformers import AutoModelForMaskedLM, ConvBertConfig

    with torch.device("meta"):
        model = AutoModelForMaskedLM.from_config(ConvBertConfig())
    assert model.num_parameters() > 9e7
    error = padding_check.measure_padding_error(model)
    assert error is not None
    assert error > 0.01
