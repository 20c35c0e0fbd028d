"""Pretraining beside Hugging Face's Trainer: `python benchmarks/pretrain_vs_hf.py [rounds, 5 by default]`.

A Llama of 17.7M parameters from scratch, on blocks of 512 tokens of the built-in corpus with a vocabulary of 16,384; 8 blocks a step.
hf_default has the Trainer's defaults (fp32), hf_best bf16 and fused AdamW, hf_best_compiled torch.compile too.
"""

from __future__ import annotations

import sys
from typing import Any

PEERS = ["ours", "ours_compiled", "ours_muon", "hf_default", "hf_best", "hf_best_compiled"]
SIZE: dict[str, Any] = {
    "hidden_size": 320,
    "intermediate_size": 832,
    "num_hidden_layers": 6,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
ARGUMENTS = [
    *("task=pretrain", "model=llama_tiny", "data.packing=concat", "data.block_size=512", "batch.sequences=8"),
    *("model.tokenizer.vocab_size=16384", f"++model.config={{{', '.join(f'{k}: {v}' for k, v in SIZE.items())}}}"),
]


def peer(name: str) -> None:
    from turns import Turn, train_hugging_face, train_ours

    if name.startswith("ours"):
        compiled = ["trainer.compile=true"] if name == "ours_compiled" else []
        muon = ["optimizer=muon"] if name == "ours_muon" else []
        train_ours([*ARGUMENTS, *compiled, *muon], Turn(4))
        return
    import torch
    import transformers

    from llm_lightning.cli import load
    from llm_lightning.run import prepared

    text = prepared(load(ARGUMENTS))[0]
    tokens = torch.from_numpy(text.splits["train"].tokens[: len(text.splits["train"].tokens) // 512 * 512].astype("int64"))
    blocks = [{"input_ids": block, "labels": block} for block in tokens.view(-1, 512)]

    def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        ids = torch.stack([row["input_ids"] for row in rows])
        return {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}

    config = transformers.LlamaConfig(vocab_size=len(text.tokenizer), **SIZE)
    options: dict[str, Any] = {"per_device_train_batch_size": 8, "learning_rate": 1e-3}
    if name != "hf_default":
        options |= {"bf16": True, "optim": "adamw_torch_fused", "torch_compile": name == "hf_best_compiled"}
    train_hugging_face(transformers.LlamaForCausalLM(config), blocks, collate, Turn(4), **options)


def main() -> None:
    from common import report
    from turns import compare, speeds

    turns = compare(PEERS, int(sys.argv[1]) if len(sys.argv) > 1 else 5)
    report("pretrain_vs_hf", ["peer", "tokens/s", "ms a step", "ours is faster by"], speeds(turns, "ours"))


if __name__ == "__main__":
    peer(sys.argv[2]) if sys.argv[1:2] == ["peer"] else main()
