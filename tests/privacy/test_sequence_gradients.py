"""Norms and sums of per-sequence gradients equal those of one backward pass for each sequence, in fp64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from llm_lightning.data.collate import MicroBatch
from llm_lightning.errors import UserError
from llm_lightning.models import low_rank
from llm_lightning.models.batch_form import is_unpadded
from llm_lightning.models.flat_check import use_flat_batches
from llm_lightning.models.forward import sequence_logits, token_loss
from llm_lightning.privacy import records
from llm_lightning.privacy.sequence_gradients import SequenceGradients

from ..conftest import TINY_BERT
from ..models.test_padding_free import COVERED, LENGTHS, collated, language_head, made
from ..objectives import test_supervised as supervised

Loss = Callable[[PreTrainedModel, MicroBatch], Tensor]


def sequence_loss(model: PreTrainedModel, batch: MicroBatch) -> Tensor:
    return F.cross_entropy(sequence_logits(model, batch), batch.targets, reduction="sum")


def gradients(model: PreTrainedModel, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def norm(found: dict[str, Tensor]) -> float:
    return float(torch.stack([value.square().sum() for value in found.values()]).sum().sqrt())


def assert_exact(model: PreTrainedModel, loss: Loss, whole: MicroBatch, alone: list[MicroBatch], tolerance: float = 1e-9) -> None:
    """`alone`: the batches of a sequence each, in the order of the whole batch."""
    expected = [gradients(model, loss(model, batch)) for batch in alone]
    model.zero_grad()
    recorded = SequenceGradients(model)
    with recorded.record(whole):
        loss(model, whole).backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    torch.testing.assert_close(recorded.norms().tolist(), [norm(found) for found in expected], rtol=tolerance, atol=0.0)
    factors = torch.linspace(0.1, 2.0, len(alone), dtype=torch.float64)
    recorded.add_sum(factors.to(next(model.parameters()).dtype))
    sums = {
        name: torch.stack([factor * found[name].double() for factor, found in zip(factors, expected, strict=True)]).sum(0)
        for name in expected[0]
    }
    sizes = norm(sums)
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == sums.keys()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert float((parameter.grad - sums[name]).detach().abs().max()) <= tolerance * sizes, name


@pytest.mark.parametrize("head", ["language", "classes"])
@pytest.mark.parametrize("architecture", [*COVERED, "albert", "gemma3_text", "opt", "eurobert"])
def test_flat_batches(architecture: str, head: str) -> None:
    """Tied embeddings, shared layers, norms of heads, scaled embeddings, positions behind padding, pooled tokens."""
    kind, encoding = (language_head(architecture), "stream") if head == "language" else ("SequenceClassification", "texts")
    model = use_flat_batches(made(architecture, kind)).double()
    assert is_unpadded(model)
    whole = collated(encoding)
    alone = [collated(encoding, int(index)) for index in whole.indices]
    assert_exact(
        model, token_loss if head == "language" else sequence_loss, whole, alone, 1e-9 if architecture != "gemma3_text" else 1e-6
    )


def test_single_precision() -> None:
    model = use_flat_batches(made("bert", "SequenceClassification"))
    whole = collated("texts")
    assert_exact(model, sequence_loss, whole, [collated("texts", int(index)) for index in whole.indices], 1e-5)


def test_padded_rows() -> None:
    """A row a sequence, whose padding has no gradient; what is computed once for all rows is refused."""
    model = made("bert", "SequenceClassification").double()
    model.base_model.embeddings.position_embeddings.requires_grad_(False)
    assert not is_unpadded(model)
    whole = collated("texts")
    assert_exact(model, sequence_loss, whole, [collated("texts", int(index)) for index in whole.indices])
    model.base_model.embeddings.position_embeddings.requires_grad_(True)
    recorded = SequenceGradients(model)
    with pytest.raises(UserError, match="one value for several sequences"), recorded.record(whole):
        sequence_loss(model, whole).backward()


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
def test_adapters(architecture: str) -> None:
    model = use_flat_batches(made(architecture, "SequenceClassification")).double()
    settings = LoraConfig(
        r=3, lora_alpha=6, target_modules="all-linear", modules_to_save=["classifier", "score"], init_lora_weights=False
    )
    get_peft_model(model, settings)
    low_rank.replace(model)
    model.double()
    whole = collated("texts")
    assert_exact(model, sequence_loss, whole, [collated("texts", int(index)) for index in whole.indices])


@pytest.mark.parametrize("objective", ["classification", "multi_label", "regression", "tagging", "question_answering"])
def test_objectives(objective: str, cache: Path, tmp_path: Path) -> None:
    ours, data = supervised.made(cache, *supervised.write(tmp_path, objective), *TINY_BERT, "++model.config.hidden_dropout_prob=0")
    ours.model.double().eval()
    train = data.dataset.splits["train"]
    whole = data.collator(train, [data.plan.epoch_plan(0)[0][i] for i in range(6)], 0)
    alone = [data.collator(train, [index[None].numpy()], 0) for index in whole.indices]
    assert_exact(ours.model, lambda _, batch: ours.loss_sum(batch), whole, alone)


def test_long_sequences_take_the_direct_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """In groups of few numbers, so that every branch runs."""
    monkeypatch.setattr(records, "AT_ONCE", 600)
    config = AutoConfig.for_model(
        "gpt2", n_embd=4, n_layer=1, n_head=2, n_positions=64, vocab_size=97, resid_pdrop=0.0, embd_pdrop=0.0
    )
    config.attn_pdrop = 0.0
    model = use_flat_batches(AutoModelForCausalLM.from_config(config)).double()
    whole = collated("stream")
    assert_exact(model, token_loss, whole, [collated("stream", int(index)) for index in whole.indices])


def test_a_unit_of_several_sequences_is_one() -> None:
    model = use_flat_batches(made("gpt2", "CausalLM")).double()
    whole = collated("stream")
    units = torch.arange(len(LENGTHS)) % 3
    recorded = SequenceGradients(model)
    with recorded.record(whole, units):
        token_loss(model, whole).backward()
    for unit in range(3):
        together = collated("stream", *(int(i) for i in whole.indices[units == unit]))
        assert float(recorded.norms()[unit]) == pytest.approx(norm(gradients(model, token_loss(model, together))), rel=1e-9)


def test_weights_that_no_sequence_owns_are_refused() -> None:
    model = use_flat_batches(made("gpt_oss", "CausalLM"))
    with pytest.raises(UserError, match=r"model\.layers\.0\.self_attn\.sinks cannot be told apart by sequence"):
        SequenceGradients(model)
