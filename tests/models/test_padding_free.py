"""A flat batch gives what Hugging Face's own forward gives for its sequences padded, or alone: logits, losses and every gradient."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from llm_lightning.data.collate import Collator, MicroBatch
from llm_lightning.data.masking import IGNORED
from llm_lightning.models import attention
from llm_lightning.models.batch_form import batch_form, is_unpadded
from llm_lightning.models.flat_check import use_flat_batches
from llm_lightning.models.forward import sequence_logits, token_logits, token_loss
from llm_lightning.models.last_layer import PARTS
from llm_lightning.models.layers import layers

VOCABULARY = 97
PAD = 1  # RoBERTa's, whose positions begin behind it
ENCODER: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
DECODER = {**ENCODER, "num_key_value_heads": 2, "max_position_embeddings": 64}
WINDOW = 5  # tokens, so that sliding windows matter
SETTINGS: dict[str, dict[str, Any]] = {
    "distilbert": {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48},
    "electra": {**ENCODER, "embedding_size": 16},
    "modernbert": {**ENCODER, "local_attention": 2 * WINDOW, "global_attn_every_n_layers": 2, "classifier_pooling": "mean"},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64},
    "llama": DECODER,
    "qwen2": {**DECODER, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen3": {**DECODER, "head_dim": 8},
    "mistral": {**DECODER, "sliding_window": WINDOW},
    "albert": {**ENCODER, "embedding_size": 16, "hidden_act": "gelu", "type_vocab_size": 2},
    "eurobert": {**DECODER, "num_key_value_heads": 4, "classifier_pooling": "late"},
    "gemma2": {**DECODER, "head_dim": 8, "sliding_window": WINDOW, "attn_logit_softcapping": 0.5, "final_logit_softcapping": 0.5},
    "gemma3_text": {
        **DECODER,
        "head_dim": 8,
        "sliding_window": WINDOW,
        "layer_types": 2 * ["sliding_attention"] + ["full_attention"],
    },
    "gpt_oss": {**DECODER, "head_dim": 8, "sliding_window": WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2},
    "opt": {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "biogpt": {**ENCODER, "scale_embedding": False},
    "stablelm": {**DECODER, "partial_rotary_factor": 0.5},
    "granite": {**DECODER, "logits_scaling": 4.0},
}
ROBERTA = ("roberta", "xlm-roberta", "camembert")
DECODERS = ("gpt2", "llama", "mistral", "qwen2", "qwen3")
COVERED = ("bert", "distilbert", "electra", "modernbert", *ROBERTA, *DECODERS)
"""Those that training is mostly done with: every test below is for each of them."""
OTHER_DECODERS = ("gemma2", "gemma3_text", "gpt_oss", "opt", "biogpt", "stablelm", "granite")
OTHERS = ("albert", "eurobert", *OTHER_DECODERS)
"""Those with something that no architecture above has: capped logits, sinks, positions and masks of their own, scaled logits."""
LENGTHS = [9, 5, 14, 3, 9, 11, 9, 1]
CU_SEQLENS = torch.tensor([0, *np.cumsum(LENGTHS)], dtype=torch.int32)


def made(architecture: str, head: str, classes: int = 3) -> PreTrainedModel:
    torch.manual_seed(0)
    special = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": 0, "eos_token_id": 2, "num_labels": classes}
    config = AutoConfig.for_model(architecture, **special, **SETTINGS.get(architecture, ENCODER))
    for name in vars(config):
        if ("dropout" in name or "pdrop" in name) and isinstance(getattr(config, name), float):
            setattr(config, name, 0.0)
    return getattr(transformers, f"AutoModelFor{head}").from_config(config).train()


def language_head(architecture: str) -> str:
    return "CausalLM" if architecture in DECODERS + OTHER_DECODERS else "MaskedLM"


class Sequences:
    """What a collator reads; ids from 3 on, so that none is special."""

    second = token_targets = None

    def __init__(self, extra: int = 0, lengths: list[int] = LENGTHS, classes: bool = False) -> None:
        rng = np.random.default_rng(0)
        self.sequences = [rng.integers(3, VOCABULARY, length + extra) for length in lengths]
        self.labels = rng.integers(0, 3, len(lengths)) if classes else None
        self.inputs = np.array(lengths)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.sequences[index]


def collated(encoding: str, *indices: int) -> MicroBatch:
    rows = [np.array([i]) for i in indices or range(len(LENGTHS))]
    data = Sequences(extra=encoding == "stream", classes=encoding == "texts")
    return Collator(next_token=encoding == "stream")(data, rows, 0)


def rows_of(batch: MicroBatch) -> dict[str, Tensor]:
    """The batch as Hugging Face has it: a row for each sequence, padded on the right."""
    parts = batch.input_ids.split(batch.cu_seqlens.diff().tolist())
    ids = nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=PAD)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(part) for part in parts], batch_first=True)
    return {"input_ids": ids, "attention_mask": mask}


def assert_same(found: Tensor, expected: Tensor, model: nn.Module, reference: nn.Module) -> None:
    """Outputs, and the gradients of a loss that weighs each of them differently."""
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    (found * direction).sum().backward()
    (expected * direction).sum().backward()
    for (name, p), q in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None and q.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, atol=1e-4, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")


def pair(architecture: str, head: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    reference = made(architecture, head)
    model = use_flat_batches(copy.deepcopy(reference))
    assert is_unpadded(model), batch_form(model).padded_because
    assert not is_unpadded(reference)
    return model, reference


@pytest.mark.parametrize("architecture", COVERED + OTHERS)
def test_sequence_classification(architecture: str) -> None:
    if architecture == "granite":
        pytest.skip("has no such head")
    model, reference = pair(architecture, "SequenceClassification")
    batch = collated("texts")
    assert_same(sequence_logits(model, batch), reference(**rows_of(batch)).logits, model, reference)


@pytest.mark.parametrize("architecture", COVERED)
def test_token_logits_at_some_places(architecture: str) -> None:
    model, reference = pair(architecture, language_head(architecture))
    batch = collated("stream")
    batch.target_places = torch.arange(0, len(batch.input_ids), 3)
    given = rows_of(batch)
    expected = reference(**given).logits[given["attention_mask"].bool()][batch.target_places]
    assert_same(token_logits(model, batch), expected, model, reference)


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("architecture", COVERED + OTHERS)
def test_loss_at_some_places(architecture: str, chunked: bool) -> None:
    """By way of the hidden states alone, as decoders have it, or of all logits."""
    model, reference = pair(architecture, language_head(architecture))
    batch = collated("stream")
    batch.target_places = torch.arange(0, len(batch.input_ids), 3)
    batch.targets = batch.targets[batch.target_places]
    given = rows_of(batch)
    logits = reference(**given).logits[given["attention_mask"].bool()][batch.target_places]
    assert_same(token_loss(model, batch, chunked), F.cross_entropy(logits, batch.targets, reduction="sum"), model, reference)


@pytest.mark.parametrize("architecture", PARTS)
def test_behind_its_attention_the_last_layer_works_at_the_targets_alone(architecture: str) -> None:
    """The same holds of no other layer, and of no pass without chosen places."""
    model = use_flat_batches(made(architecture, language_head(architecture)))
    rows: list[int] = []
    for layer in layers(model.base_model):
        layer.register_forward_hook(
            lambda module, args, output: rows.append((output[0] if isinstance(output, tuple) else output).shape[1])
        )
    lengths = [40, 30, 20]
    batch = Collator(next_token=True)(Sequences(1, lengths), [np.arange(3)], 0)  # type: ignore[arg-type]
    token_logits(model, batch)
    batch.target_places = torch.tensor([3, 50, 88])
    token_logits(model, batch)
    assert rows == [96, 96, 96, 96, 96, 32]


@pytest.mark.parametrize("architecture", COVERED)
def test_a_sequence_is_alone_in_its_batch(architecture: str) -> None:
    model = use_flat_batches(made(architecture, language_head(architecture)))
    together = token_logits(model, collated("stream")).split(sorted(LENGTHS, reverse=True))
    for logits, index in zip(together, collated("stream").indices.tolist(), strict=True):
        torch.testing.assert_close(logits, token_logits(model, collated("stream", index)), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", COVERED + OTHERS)
def test_a_batch_without_its_lengths_is_refused(architecture: str) -> None:
    """For it would leak, and so would a padded one, whose mask is dropped."""
    model, batch = use_flat_batches(made(architecture, language_head(architecture))), collated("stream")
    with pytest.raises(ValueError, match="flat batches"):
        model(input_ids=batch.input_ids[None], position_ids=batch.position_ids[None])
    with pytest.raises(ValueError, match="flat batches"):
        model(**rows_of(batch))


@pytest.mark.parametrize("head", ["SequenceClassification", "MaskedLM"])
def test_other_architectures_are_padded(head: str) -> None:
    reference = made("mpnet", head)
    model = use_flat_batches(copy.deepcopy(reference))
    assert not is_unpadded(model)
    if head == "MaskedLM":
        batch = collated("stream")
        batch.target_places = torch.arange(0, len(batch.input_ids), 3)
        given = rows_of(batch)
        expected = reference(**given).logits[given["attention_mask"].bool()][batch.target_places]
        assert_same(token_logits(model, batch), expected, model, reference)
    else:
        batch = collated("texts")
        assert_same(sequence_logits(model, batch), reference(**rows_of(batch)).logits, model, reference)


# ---- the two ways of attention ----


def drawn(kinds: int = 3, groups: int = 1) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(sum(LENGTHS), 4 if i == 0 else 4 // groups, 8, requires_grad=True) for i in range(kinds)]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [-1, 4])
@pytest.mark.parametrize("groups", [1, 2])
def test_both_ways_of_attention_agree(causal: bool, window: int, groups: int) -> None:
    results = []
    for way in ("lengths", "rows"):
        q, k, v = drawn(groups=groups)
        if way == "rows":
            out = attention.in_rows(q, k, v, CU_SEQLENS, max(LENGTHS), 0.0, causal, window, 0.3)
        else:
            out = attention.by_length(q, k, v, CU_SEQLENS, 0.0, causal, window, 0.3)
        F.gelu(out).sum().backward()
        results.append([out, q.grad, k.grad, v.grad])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("short", "long"), [(5, 8), (0, 100), (100, 100)])
@pytest.mark.parametrize("window", [-1, 4])
def test_every_kernel_of_a_cpu_agrees(
    short: int, long: int, window: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SDPA for long sequences, plain products for others, in fp32 for short ones of half precision."""
    monkeypatch.setattr(attention, "SHORT", short)
    monkeypatch.setattr(attention, "LONG", {dtype: long})
    results = []
    for way in (attention.by_length, lambda *args: attention.in_rows(*args[:4], max(LENGTHS), *args[4:])):
        reference = way is not attention.by_length
        q, k, v = (x.detach().to(dtype).to(torch.float32 if reference else dtype).requires_grad_() for x in drawn(groups=2))
        out = way(q, k, v, CU_SEQLENS, 0.0, True, window, 0.3)
        F.gelu(out.float()).sum().backward()
        results.append([out.float(), *(x.grad.float() for x in (q, k, v))])  # type: ignore[union-attr]
    tolerance = 1e-5 if dtype == torch.float32 else 0.04
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


def dense_attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, scale: float) -> Tensor:
    """(length, heads, dim) attention of one sequence, by its formula."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    logits = torch.einsum("qhd,khd->hqk", q, k) * scale
    return torch.einsum("hqk,khd->qhd", logits.masked_fill(~allowed, -torch.inf).softmax(-1), v)


@pytest.mark.parametrize("way", ["by_length", "in_rows"])
@pytest.mark.parametrize(
    ("causal", "window"), [(True, -1), (True, 4), (True, 30), (True, 500), (False, 4), (False, 30), (False, 500)]
)
def test_long_sequences_take_no_square_mask(way: str, causal: bool, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 128k tokens a mask of (length, length) takes 17 GB, and what it is computed from eight times as much."""
    lengths = [70, 70, 41]
    monkeypatch.setattr(attention, "CHUNK", 16)
    monkeypatch.setattr(attention, "LONG", {torch.float32: 20})
    masks: list[int] = []
    sdpa = F.scaled_dot_product_attention

    def watched(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
        masks.append(0 if attn_mask is None else attn_mask[0].numel() if attn_mask.dim() == 4 else attn_mask.numel())
        return sdpa(q, k, v, attn_mask, **options)

    def refused(length: int, *_: Any) -> None:
        raise AssertionError(f"a mask of {length} times {length}")

    torch.manual_seed(0)
    q, k, v = (torch.randn(sum(lengths), heads, 8, requires_grad=True) for heads in (4, 2, 2))
    cu_seqlens = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", watched)
        if causal or window < max(lengths):
            patch.setattr(attention, "visible", refused)
        longest = (max(lengths),) if way == "in_rows" else ()
        out = getattr(attention, way)(q, k, v, cu_seqlens, *longest, 0.0, causal, window, 0.3)
    found = [out, *torch.autograd.grad(out.square().sum(), (q, k, v))]
    behind = torch.arange(max(lengths))[:, None] - torch.arange(max(lengths))
    allowed = (behind.abs() <= (window if window >= 0 else 1000)) & ((behind >= 0) | (not causal))
    parts = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
    out = torch.cat([dense_attention(*part, allowed[: len(part[0]), : len(part[0])], 0.3) for part in parts])
    for mine, reference in zip(found, [out, *torch.autograd.grad(out.square().sum(), (q, k, v))], strict=True):
        torch.testing.assert_close(mine, reference, atol=1e-5, rtol=1e-4)
    assert max(masks) <= 16 * (16 + 2 * min(window, max(lengths)))


def test_queries_that_autocast_left_in_fp32_are_of_their_values_type() -> None:
    """As under FSDP, where rotary embeddings are multiplied in fp32."""
    q, k, v = [x.detach().transpose(0, 1)[None] for x in drawn()]
    module: Any = nn.Module()
    given = {"cu_seq_lens_q": CU_SEQLENS, "max_length_q": max(LENGTHS)}
    found, _ = attention.attention(module, q, k, v.bfloat16(), None, **given)
    expected, _ = attention.attention(module, q.bfloat16(), k.bfloat16(), v.bfloat16(), None, **given)
    assert found.dtype == torch.bfloat16
    assert found.equal(expected)


@pytest.mark.parametrize("causal", [True, False])
def test_dropout_drops_probabilities(causal: bool) -> None:
    """With the identity for values, attention gives the probabilities: each is 0, or what it is without dropout times 1 / (1 - p)."""
    length, p = 32, 0.25
    torch.manual_seed(0)
    q, k = torch.randn(2 * length, 2, length), torch.randn(2 * length, 2, length)
    v = torch.eye(length).repeat(2, 1)[:, None].expand(-1, 2, -1)
    cu_seqlens = torch.tensor([0, length, 2 * length], dtype=torch.int32)
    whole = attention.by_length(q, k, v, cu_seqlens, 0.0, causal, -1, 0.1)
    dropped = attention.by_length(q, k, v, cu_seqlens, p, causal, -1, 0.1)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], whole[kept] / (1 - p))
    assert float(kept[whole != 0].float().mean()) == pytest.approx(1 - p, abs=0.03)


def test_gradients_under_dropout_are_those_of_small_differences() -> None:
    q, k, v = (x.detach().double().requires_grad_() for x in drawn(groups=2))

    def out(*given: Tensor) -> Tensor:
        torch.manual_seed(3)  # the same are dropped each time
        return attention.by_length(*given, CU_SEQLENS, 0.3, True, 4, 0.3)  # type: ignore[arg-type]

    assert torch.autograd.gradcheck(out, (q, k, v), fast_mode=True)


def test_a_batch_names_its_targets() -> None:
    def every_second(tokens: np.ndarray, epoch: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        return tokens * 0, np.where(np.arange(len(tokens)) % 2, tokens, IGNORED)

    batch = Collator(masking=every_second)(Sequences(), [np.array([0, 3]), np.array([1])], 0)  # type: ignore[arg-type]
    assert batch.indices.tolist() == [0, 1, 3]
    assert batch.cu_seqlens.tolist() == [0, 9, 14, 17]
    assert batch.position_ids.tolist() == [*range(9), *range(5), *range(3)]
    whole = np.concatenate([Sequences()[i] for i in (0, 1, 3)])
    assert batch.target_places is not None
    assert batch.target_places.tolist() == [1, 3, 5, 7, 10, 12, 15]
    assert batch.targets.tolist() == whole[batch.target_places].tolist()
