"""Tiny models of the architectures that people use, and the table of docs/models.md about them.

`python -m tests.models.architectures` tries the ONNX export of each, which takes ten minutes, and writes the table; with names behind
it, the export of these alone.
"""

from __future__ import annotations

import copy
import re
import sys
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoConfig, PreTrainedModel

from llm_lightning.config.schema import AdapterConfig
from llm_lightning.data.collate import Collator, MicroBatch
from llm_lightning.errors import RunError
from llm_lightning.models import adapter, forward
from llm_lightning.models.batch_form import batch_form, is_unpadded
from llm_lightning.models.build import quiet_transformers
from llm_lightning.models.flat_check import use_flat_batches
from llm_lightning.models.small_copy import randomize

from .test_padding_free import PAD, VOCABULARY, Sequences

LENGTHS = [9, 5, 17, 3, 9, 12]
SPECIAL = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": 0, "eos_token_id": 2, "num_labels": 3}

Settings = dict[str, Any]
BERT: Settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
BERT |= {"max_position_embeddings": 64}
LLAMA: Settings = {**BERT, "num_key_value_heads": 2}
WINDOWED: Settings = {**LLAMA, "sliding_window": 5}
BY_LAYER: Settings = {**WINDOWED, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]}
MOE: Settings = {
    **LLAMA,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
}
DEBERTA: Settings = {**BERT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
XLM: Settings = {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64}
GPT2: Settings = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
GPTJ: Settings = {**GPT2, "rotary_dim": 4}
T5: Settings = {
    "d_model": 32,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "d_kv": 8,
    "d_ff": 48,
    "decoder_start_token_id": PAD,
}
BART: Settings = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 2,
}

MASKED: dict[str, Settings] = {
    "bert": BERT,
    "roberta": BERT,
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 64},
    "electra": {**BERT, "embedding_size": 16},
    "albert": {**BERT, "embedding_size": 16},
    "mpnet": BERT,
    "deberta": {**DEBERTA, "pooler_hidden_size": 32},
    "deberta-v2": {
        **DEBERTA,
        "pooler_hidden_size": 32,
        "position_buckets": 16,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
    },
    "camembert": BERT,
    "xlm-roberta": BERT,
    "xlm-roberta-xl": BERT,
    "modernbert": {**BERT, "local_attention": 10, "global_attn_every_n_layers": 2},
    "eurobert": LLAMA,
    "ernie": BERT,
    "rembert": {**BERT, "input_embedding_size": 16, "output_embedding_size": 24},
    "roformer": BERT,
    "squeezebert": {**BERT, "embedding_size": 32},
    "mobilebert": {**BERT, "embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16},
    "funnel": {"d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 48, "block_sizes": [1, 1]},
    "xlm": XLM,
    "flaubert": XLM,
    "big_bird": {**BERT, "attention_type": "original_full"},
    "longformer": {**BERT, "attention_window": 4},
    "convbert": {**BERT, "embedding_size": 32},
    "nystromformer": {**BERT, "num_landmarks": 64, "segment_means_seq_len": 64},
    "fnet": {key: value for key, value in BERT.items() if key != "num_attention_heads"},
    "megatron-bert": BERT,
    "data2vec-text": BERT,
    "ibert": BERT,
}
CAUSAL: dict[str, Settings] = {
    "gpt2": GPT2,
    "gpt_neo": {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 5}
    | {"max_position_embeddings": 64},
    "gpt_neox": BERT,
    "gptj": GPTJ,
    "gpt_bigcode": GPT2,
    "opt": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "codegen": GPTJ,
    "xglm": {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48},
    "biogpt": BERT,
    "llama": LLAMA,
    "mistral": WINDOWED,
    "mixtral": {**WINDOWED, "num_local_experts": 4},
    "qwen2": {**WINDOWED, "use_sliding_window": True, "max_window_layers": 1},
    "qwen2_moe": MOE,
    "qwen3": {**LLAMA, "head_dim": 8},
    "qwen3_moe": {**MOE, "head_dim": 8},
    "gemma": {**LLAMA, "head_dim": 8},
    "gemma2": {**BY_LAYER, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "gemma3_text": BY_LAYER,
    "phi": {**LLAMA, "partial_rotary_factor": 0.5},
    "phi3": WINDOWED,
    "olmo": LLAMA,
    "olmo2": LLAMA,
    "olmo3": WINDOWED,
    "granite": {**LLAMA, "logits_scaling": 4.0, "attention_multiplier": 0.2},
    "stablelm": {**LLAMA, "partial_rotary_factor": 0.5},
    "cohere": {**LLAMA, "logit_scale": 0.25},
    "cohere2": {**WINDOWED, "logit_scale": 0.25, "layer_types": ["sliding_attention", "full_attention"]},
    "starcoder2": WINDOWED,
    "smollm3": {**LLAMA, "no_rope_layers": [1, 0]},
    "gpt_oss": {**BY_LAYER, "num_local_experts": 4, "num_experts_per_tok": 2},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_hidden_size": 48},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64},
    "nemotron": {**LLAMA, "head_dim": 8},
    "glm": {**LLAMA, "head_dim": 8},
    "glm4": {**LLAMA, "head_dim": 8},
    "exaone4": {**BY_LAYER, "sliding_window_pattern": 2},
    "helium": {**LLAMA, "head_dim": 8},
    "persimmon": {**BERT, "partial_rotary_factor": 0.5},
    "ministral": {**BY_LAYER},
    "ministral3": {**LLAMA, "head_dim": 8},
    "ernie4_5": {**LLAMA, "head_dim": 8},
    "seed_oss": {**LLAMA, "head_dim": 8},
    "apertus": LLAMA,
    "deepseek_v3": {**LLAMA, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    | {"n_group": 1, "topk_group": 1, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8}
    | {"v_head_dim": 12, "first_k_dense_replace": 1},
    "modernbert-decoder": {**BERT, "local_attention": 10, "global_attn_every_n_layers": 2},
    "lfm2": {**LLAMA, "layer_types": ["conv", "full_attention"]},
    "dbrx": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}
    | {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "jamba": {**LLAMA, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
    | {"num_experts": 2, "mamba_d_state": 4, "use_mamba_kernels": False},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "rwkv": {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32, "context_length": 64},
}
CLASSIFIED: dict[str, Settings] = {"xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}}
WRITING: dict[str, Settings] = {
    "t5": T5,
    "mt5": T5,
    "umt5": T5,
    "bart": BART,
    "mbart": BART,
    "m2m_100": BART,
    "marian": {**BART, "decoder_vocab_size": VOCABULARY},
    "pegasus": BART,
    "led": {**BART, "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64, "attention_window": 4},
}
HEADS = {
    **dict.fromkeys(MASKED, "MaskedLM"),
    **dict.fromkeys(CAUSAL, "CausalLM"),
    **dict.fromkeys(CLASSIFIED, "SequenceClassification"),
    **dict.fromkeys(WRITING, "Seq2SeqLM"),
}
SETTINGS = MASKED | CAUSAL | CLASSIFIED | WRITING
ARCHITECTURES = tuple(SETTINGS)


def build_tiny(architecture: str, head: str | None = None) -> PreTrainedModel:
    """Return a model of two narrow layers with random weights and without dropout, as transformers builds it."""
    config = AutoConfig.for_model(architecture, **SPECIAL, **SETTINGS[architecture])
    for part in (config, *(getattr(config, name) for name in ("attn_config", "ffn_config") if hasattr(config, name))):
        for name, value in vars(part).items():
            if "drop" in name and isinstance(value, float):
                setattr(part, name, 0.0)
    torch.manual_seed(0)
    with quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = getattr(transformers, f"AutoModelFor{head or HEADS[architecture]}").from_config(config)
    randomize(model)
    return model.train()


def draw_batch(head: str) -> MicroBatch:
    """Return a batch as the collator builds it for a head: next tokens, masked tokens, classes, or texts to write."""
    rows = [np.array([i]) for i in range(len(LENGTHS))]
    if head == "SequenceClassification":
        return Collator()(Sequences(0, LENGTHS, classes=True), rows, 0)
    if head == "CausalLM":
        return Collator(next_token=True)(Sequences(1, LENGTHS), rows, 0)
    if head == "Seq2SeqLM":
        data = Sequences(6, LENGTHS)
        data.second = data.inputs  # type: ignore[assignment]
        return Collator(translates=True)(data, rows, 0)

    def mask(tokens: np.ndarray, epoch: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = np.arange(len(tokens)) % 3 == 1
        return np.where(chosen, 3, tokens), np.where(chosen, tokens, -100)

    return Collator(masking=mask)(Sequences(0, LENGTHS), rows, 0)  # type: ignore[arg-type]


@cache
def try_adapter(architecture: str) -> str:
    """Return 'yes', or why an adapter (LoRA) cannot be trained."""
    model, head = build_tiny(architecture), HEADS[architecture]
    try:
        adapter.add(model, AdapterConfig(kind="lora", rank=2), [])
        batch = draw_batch(head)
        run = {"SequenceClassification": forward.sequence_logits, "Seq2SeqLM": forward.written_logits}.get(
            head, forward.token_logits
        )
        run(use_flat_batches(model), batch).float().square().sum().backward()
    except Exception as error:
        return f"no: {short(error)}"
    trained = [p for p in model.parameters() if p.requires_grad]
    return "yes" if any(p.grad is not None and bool(p.grad.any()) for p in trained) else "no: without gradients"


class Tokenizer:
    """What the ONNX export asks of a tokenizer: each text becomes as many tokens as it has words."""

    model_input_names = ("input_ids", "attention_mask")
    model_max_length = 10**30

    def __call__(self, texts: list[str], **_: Any) -> dict[str, torch.Tensor]:
        counts = [len(text.split()) + 2 for text in texts]
        ids = torch.full((len(texts), max(counts)), PAD)
        for row, count in zip(ids, counts, strict=True):
            row[:count] = torch.arange(count) % (VOCABULARY - 5) + 5  # words may be more than the vocabulary has tokens
        return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


ONNX_REASONS = ("cannot be exported", "texts of other lengths", "logits are off")
"""What the message of an export that failed holds, by cause."""


def try_onnx(architecture: str) -> str:
    """Return 'yes', or why the model cannot be exported to ONNX with the same logits."""
    from llm_lightning.inference import onnx

    model = use_flat_batches(build_tiny(architecture))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            onnx.export(copy.deepcopy(model), Tokenizer(), Path(folder))
        except RunError as error:
            return f"no: {next(reason for reason in ONNX_REASONS if reason in str(error))}"
    return "yes"


def short(error: Exception) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
    return re.sub(r"/\S+/|[|`]", "", text)[:70]


@cache
def describe_batches(architecture: str) -> str:
    model = use_flat_batches(build_tiny(architecture))
    reason = re.sub(r" \(.*\)$", "", batch_form(model).padded_because or "")  # figures and messages in brackets differ by machine
    return "flat" if is_unpadded(model) else f"padded: {reason}"


def write_table(onnx: dict[str, str]) -> str:
    """Return the table of docs/models.md; `onnx` gives the outcome of the exports that were tried."""
    batches = {name: describe_batches(name) for name in ARCHITECTURES}
    rows = [
        f"| {name} | {HEADS[name]} | {batches[name]} | {try_adapter(name)} | {onnx.get(name, NOT_TRIED)} |"
        for name in ARCHITECTURES
    ]
    flat = list(batches.values()).count("flat")
    lines = [
        f"{flat} of {len(ARCHITECTURES)} take flat batches (transformers {transformers.__version__}).",
        "",
        "| architecture | head tried | batches | LoRA | ONNX |",
        "| --- | --- | --- | --- | --- |",
        *rows,
    ]
    return "\n".join(lines)


PAGE = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- architectures: written by python -m tests.models.architectures -->", "<!-- end of architectures -->"
NOT_TRIED = "not tried"


def read_table() -> str:
    """Return the table that docs/models.md holds."""
    return PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0].strip()


def read_rows() -> dict[str, list[str]]:
    """Return of each architecture in the table: head, batches, LoRA, ONNX."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in read_table().splitlines() if line.startswith("|")]
    return {name: cells for name, *cells in rows[2:]}


def main(names: list[str]) -> None:
    """Try the exports of these architectures, or of all, and write the table; the other outcomes stay as they are."""
    outcomes = {name: onnx for name, (*_, onnx) in read_rows().items()}
    for name in names or ARCHITECTURES:
        outcomes[name] = try_onnx(name)
        text = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(f"{text.split(BEGIN)[0]}{BEGIN}\n{write_table(outcomes)}\n{END}{text.split(END)[1]}", encoding="utf-8")
        print(name, outcomes[name], flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
