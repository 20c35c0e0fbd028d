"""The checks at the start: they pass what is right, and notice each way in which a flat batch or bf16 can go wrong."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from llm_lightning import distributed
from llm_lightning.models import attention, bf16_check, flat_check, small_copy
from llm_lightning.models.batch_form import batch_form, is_unpadded
from llm_lightning.models.flat_check import use_flat_batches
from llm_lightning.training.precision import MasterWeights, in_bf16

from .architectures import build_tiny


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nothing remembered from other tests, nor by them."""
    monkeypatch.setattr(flat_check, "_decided", {})
    monkeypatch.setattr(bf16_check, "_decided", {})


def build_large(architecture: str, head: str = "CausalLM", **settings: Any) -> PreTrainedModel:
    """Return a model of the architecture's published size, without memory for its weights."""
    with torch.device("meta"):
        return getattr(transformers, f"AutoModelFor{head}").from_config(AutoConfig.for_model(architecture, **settings))


# ---- what is right passes, at any size ----


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "phi3", "cohere2"])
def test_a_large_model_is_checked_by_a_small_copy(architecture: str) -> None:
    model = build_large(architecture)
    assert model.num_parameters() > 1e9
    form = flat_check._decide(model)
    assert form.padded_because is None
    small = next(iter(small_copy.build_small_copies(model)))
    assert small.num_parameters() < 5e6


@pytest.mark.parametrize(
    ("architecture", "settings", "expected"),
    [
        ("gemma3_text", {}, 7),  # five layers with a window, then one without
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 20}, 21),
        ("llama", {}, 4),
    ],
)
def test_a_small_copy_has_a_layer_of_each_kind(architecture: str, settings: dict[str, Any], expected: int) -> None:
    config = AutoConfig.for_model(architecture, **settings)
    small = small_copy.shrink(config)
    assert small.num_hidden_layers == expected
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        assert set(small.layer_types) == set(kinds)
        assert small.layer_types == kinds[:expected]


def test_a_small_copy_is_the_same_each_time_and_leaves_the_generator_alone() -> None:
    model = build_tiny("llama")
    state = torch.get_rng_state()
    first = next(iter(small_copy.build_small_copies(model)))
    assert torch.get_rng_state().equal(state)
    torch.manual_seed(7)
    second = next(iter(small_copy.build_small_copies(model)))
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        assert p.equal(q)


def test_a_kind_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(flat_check, "build_small_copies", lambda model: calls.append(1) or small_copy.build_small_copies(model))
    use_flat_batches(build_tiny("llama"))
    use_flat_batches(build_tiny("llama"))
    assert len(calls) == 1
    assert not is_unpadded(use_flat_batches(build_tiny("mobilebert")))
    assert len(calls) == 2


def test_rank_0_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks whose processors round otherwise could come to another verdict; a model that is reloaded later has the same form."""
    verdict = flat_check._decide(build_tiny("mobilebert"))
    monkeypatch.setattr(distributed, "broadcast", lambda value: verdict)
    model = build_tiny("llama")
    flat_check.agree_on_batch_form(model)
    assert batch_form(model) == batch_form(use_flat_batches(build_tiny("llama"))) == verdict


# ---- what is wrong does not ----


def leak(function: Callable[..., Any]) -> Callable[..., Any]:
    """All tokens of a batch are one document."""

    def leaking(*args: Any, cu_seq_lens_q: Tensor, max_length_q: int, **options: Any) -> Any:
        tokens = int(cu_seq_lens_q[-1])
        return function(*args, cu_seq_lens_q=cu_seq_lens_q.new_tensor([0, tokens]), max_length_q=tokens, **options)

    return leaking


def without(*names: str) -> Callable[..., Any]:
    """An attention function that overlooks arguments."""

    def overlook(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **options: function(*args, **{name: v for name, v in options.items() if name not in names})

    return overlook


def look_ahead(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **options: function(*args, **options | {"is_causal": False})


def detach_keys(function: Callable[..., Any]) -> Callable[..., Any]:
    """Logits are right, and gradients are not."""
    return lambda module, q, k, v, *args, **options: function(module, q, k.detach(), v, *args, **options)


@pytest.mark.parametrize(
    ("architecture", "fault"),
    [
        ("bert", leak),
        ("llama", leak),
        ("llama", look_ahead),
        ("granite", without("scaling")),
        ("llama", detach_keys),
        ("mistral", without("sliding_window")),
        ("gemma3_text", without("sliding_window")),
        ("gemma2", without("softcap")),
        ("gpt_oss", without("s_aux")),
    ],
)
def test_a_wrong_attention_is_noticed(architecture: str, fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_tiny(architecture)
    wrong = fault(attention.attention)
    transformers.AttentionInterface.register("wrong", wrong)
    monkeypatch.setitem(transformers.AttentionInterface._global_mapping, attention.NAME, wrong)
    reason = flat_check._decide(model).padded_because
    assert reason is not None
    assert "other numbers" in reason or "gradient" in reason


@pytest.mark.parametrize("change", ["positions", "neighbours", "length"])
def test_a_model_that_reads_the_batch_otherwise_is_noticed(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions counted from the shape, tokens that look at the one before them, a scale that depends on the number of tokens."""
    from transformers.models.gpt2 import modeling_gpt2 as gpt2

    forward: Any = gpt2.GPT2Model.forward if change == "positions" else gpt2.GPT2MLP.forward

    def positions(self: nn.Module, input_ids: Tensor, position_ids: Tensor | None = None, **options: Any) -> Any:
        return forward(self, input_ids, **options)

    def neighbours(self: nn.Module, x: Tensor) -> Tensor:
        return forward(self, x) + x.roll(1, 1)

    def length(self: nn.Module, x: Tensor) -> Tensor:
        return forward(self, x) * (1 + x.shape[1] / 1000)

    patched = {"positions": positions, "neighbours": neighbours, "length": length}[change]
    monkeypatch.setattr(gpt2.GPT2Model if change == "positions" else gpt2.GPT2MLP, "forward", patched)
    reason = flat_check._decide(build_tiny("gpt2")).padded_because
    assert reason is not None
    assert "other numbers" in reason or "index out of range" in reason  # the table of positions is shorter than the batch


@pytest.mark.parametrize(
    ("architecture", "settings", "reason"),
    [
        ("lfm2", {"layer_types": ["conv", "full_attention"] * 16}, "other numbers"),
        ("llama4_text", {"num_hidden_layers": 4}, "other numbers"),  # attention in chunks
        ("mamba", {}, "state"),
        ("jamba", {}, "state"),
        ("falcon", {}, "code of its own"),
    ],
)
def test_convolutions_chunks_and_states_are_padded(architecture: str, settings: dict[str, Any], reason: str) -> None:
    form = flat_check._decide(build_large(architecture, **settings))
    assert form.padded_because is not None
    assert reason in form.padded_because


@pytest.mark.parametrize(
    ("architecture", "head", "name", "value"),
    [
        ("roberta", "MaskedLM", "behind_padding", True),
        ("opt", "CausalLM", "transformer", "decoder"),
        ("stablelm", "CausalLM", "lengths_at_hand", True),
        ("llama", "SequenceClassification", "pooling", "last"),
        ("bert", "SequenceClassification", "pooling", "first"),
        ("llama", "CausalLM", "plain_head", True),
        ("phi", "CausalLM", "plain_head", False),  # its head has a bias
        ("granite", "CausalLM", "plain_head", False),  # logits are divided
        ("gemma2", "CausalLM", "plain_head", False),  # logits are capped
    ],
)
def test_details_of_flat_batches(architecture: str, head: str, name: str, value: Any) -> None:
    form = batch_form(use_flat_batches(build_tiny(architecture, head)))
    assert form.padded_because is None
    assert getattr(form, name) == value


# ---- bf16 ----


@pytest.mark.parametrize(
    ("architecture", "mode"),
    [("bert", "copies"), ("llama", "copies"), ("deberta-v2", "autocast"), ("m2m_100", "autocast"), ("xlnet", "autocast")],
)
def test_bf16_is_by_copies_or_by_autocast(architecture: str, mode: str) -> None:
    assert bf16_check.find_bf16_mode(use_flat_batches(build_tiny(architecture)), in_bf16) == mode


def test_inexact_copies_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits that are far off speak against copies as an error does."""

    @contextlib.contextmanager
    def inexact(model: nn.Module) -> Any:
        weights = copy.deepcopy(model.state_dict())
        for p in model.parameters():
            p.data.mul_(1.2)
        yield
        model.load_state_dict(weights)

    assert bf16_check.find_bf16_mode(use_flat_batches(build_tiny("bert")), inexact) == "autocast"


def test_under_autocast_flat_batches_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradients of a decoder whose bf16 copies are ruled out are nearly those of fp32."""
    from types import SimpleNamespace

    from llm_lightning.models import forward

    from .architectures import draw_batch
    from .test_architectures import gradient

    monkeypatch.setattr(bf16_check, "_first_mode", lambda *_: ("autocast", ""))
    model = use_flat_batches(build_tiny("llama"))
    exact, batch = copy.deepcopy(model), draw_batch("CausalLM")
    plugin = MasterWeights()
    plugin.convert_module(SimpleNamespace(model=model))  # type: ignore[arg-type]
    with plugin.forward_context():
        assert torch.is_autocast_enabled("cpu")
        loss = forward.token_loss(model, batch)
        loss.backward()  # in the context, as a training step has it
    expected = forward.token_loss(exact, batch)
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=0.01)
    assert float(torch.cosine_similarity(gradient(model), gradient(exact), 0)) > 0.99


def test_an_exported_model_is_of_the_same_kind(tmp_path: Any) -> None:
    model = build_tiny("bert", "SequenceClassification")
    model.config.id2label = {0: "bad", 1: "fair", 2: "good"}
    model.save_pretrained(tmp_path)
    reloaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert flat_check.kind_of(reloaded) == flat_check.kind_of(build_tiny("bert", "SequenceClassification"))
    assert flat_check.kind_of(reloaded) != flat_check.kind_of(build_tiny("bert"))
