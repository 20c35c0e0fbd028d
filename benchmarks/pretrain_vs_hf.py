"""Pretraining beside Hugging Face's Trainer: `python benchmarks/pretrain_vs_hf.py [rounds, 5 by default]`.

A Llama of 17.7M parameters from scratch, on blocks of 512 tokens of the built-in corpus with a vocabulary of 16,384; 8 blocks a step.
hf_default has the Trainer's defaults (fp32), hf_best bf16 (where it is native) and fused AdamW, hf_best_compiled torch.compile too.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from settings import CORPUS, TINY, pick

if TYPE_CHECKING:
    from turns import Turn

PEERS = pick(["ours", "ours_compiled", "ours_muon", "hf_default", "hf_best", "hf_best_compiled"], ["ours", "hf_best"])
SIZE: dict[str, Any] = {
    "hidden_size": 320,
    "intermediate_size": 832,
    "num_hidden_layers": 6,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
if TINY:
    SIZE |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
STEPS = pick(4, 1)  # of a turn
MODEL = [
    "model=llama_tiny",
    f"model.tokenizer.vocab_size={pick(16384, 400)}",
    f"++model.config={{{', '.join(f'{k}: {v}' for k, v in SIZE.items())}}}",
]
ARGUMENTS = ["task=pretrain", *MODEL, "data.packing=concat", "data.block_size=512", "batch.sequences=8"]


def peer(name: str) -> None:
    from turns import Turn, train_ours

    if name.startswith("ours"):
        compiled = ["trainer.compile=true"] if name == "ours_compiled" else []
        muon = ["optimizer=muon"] if name == "ours_muon" else []
        train_ours([*ARGUMENTS, *CORPUS, *compiled, *muon], Turn(STEPS))
    else:
        hugging_face(name, [*ARGUMENTS, *CORPUS], Turn(STEPS))


def hugging_face(name: str, arguments: list[str], turn: Turn, **options: Any) -> None:
    """Train with Hugging Face's Trainer, as the peer's name says, on the data of our arguments; options are TrainingArguments'."""
    import torch
    import transformers
    from turns import train_hugging_face

    from llm_lightning.config.compose import load_config
    from llm_lightning.data.encode import TokenizedSplit
    from llm_lightning.machine import bf16_unit
    from llm_lightning.run import prepare

    dataset = prepare(load_config(arguments))[0]

    def blocks(split: TokenizedSplit) -> torch.Tensor:
        return torch.from_numpy(split.tokens[: len(split.tokens) // 512 * 512].astype("int64")).view(-1, 512)

    def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        ids = torch.stack([row["input_ids"] for row in rows])
        return {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}

    def validation_loss() -> float:
        held_out = blocks(dataset.splits["validation"]).split(8)
        network.eval()
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16 and name != "hf_default"):
            losses = [float(network(input_ids=ids, labels=ids).loss) * len(ids) for ids in held_out]
        network.train()
        return sum(losses) / sum(len(ids) for ids in held_out)

    bf16 = bf16_unit("cpu") is not None
    network = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=len(dataset.tokenizer), **SIZE))
    options = {"per_device_train_batch_size": 8, "learning_rate": 1e-3, **options}
    if name != "hf_default":
        options |= {"bf16": bf16, "optim": "adamw_torch_fused", "torch_compile": name == "hf_best_compiled"}
    turn.score = validation_loss
    train_hugging_face(
        network, [{"input_ids": ids, "labels": ids} for ids in blocks(dataset.splits["train"])], collate, turn, **options
    )


def main() -> None:
    from common import report
    from turns import compare, speeds

    turns = compare(PEERS, int(sys.argv[1]) if len(sys.argv) > 1 else pick(5, 1))
    report("pretrain_vs_hf", ["peer", "tokens/s", "ms a step", "ours is faster by"], speeds(turns, "ours"))


if __name__ == "__main__":
    peer(sys.argv[2]) if sys.argv[1:2] == ["peer"] else main()
