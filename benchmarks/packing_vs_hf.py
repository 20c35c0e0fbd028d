"""Short texts of uneven lengths, as instructions have them, beside Hugging Face's Trainer: `python benchmarks/packing_vs_hf.py [rounds]`.

The Llama of pretrain_vs_hf.py on the texts of SST-2 and AG News mixed, 64 texts a step; 3 rounds by default. Hugging Face pads them to the
longest of a batch of like lengths (hf_best) or of any (hf_shuffled), in bf16 where it is native, with fused AdamW; ours packs them,
each to itself.
"""

from __future__ import annotations

import csv
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from settings import DATA, has_data, pick

PEERS = pick({"ours": 50, "hf_best": 50, "hf_shuffled": 12}, {"ours": 1, "hf_best": 1})
"""Steps in a turn: Hugging Face sorts 50 batches by length at a time, so that a turn of 50 has texts of every length."""
TEXTS, ROWS = pick((64, 5), (8, 1))  # a step; five rows hold about as many texts


def mixed(folder: Path) -> Path:
    """A file of both sets' training texts, in a random order."""
    texts = [line.rsplit("\t", 1)[0] for line in (DATA / "sst2" / "train.tsv").read_text(encoding="utf-8").splitlines()]
    with (DATA / "ag_news" / "train.csv").open(encoding="utf-8", newline="") as file:
        texts += [row["description"] for row in csv.DictReader(file)]
    random.Random(0).shuffle(texts)
    texts = texts[: pick(None, 300)]
    path = folder / "mixed.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def peer(name: str, file: str) -> None:
    from pretrain_vs_hf import MODEL
    from turns import Turn, train_ours

    arguments = ["task=pretrain", "data=files", f"data.train={file}", "data.block_size=512", f"batch.sequences={ROWS}", *MODEL]
    if name == "ours":
        train_ours([*arguments, "data.packing=best_fit"], Turn(PEERS[name]))
    else:
        hugging_face(name, [*arguments, "data.packing=none"])


def hugging_face(name: str, arguments: list[str]) -> None:
    import transformers
    from pretrain_vs_hf import SIZE
    from turns import Turn, train_hugging_face

    from llm_lightning.config.compose import load_config
    from llm_lightning.machine import bf16_unit
    from llm_lightning.run import prepare

    dataset = prepare(load_config(arguments))[0]
    data = dataset.splits["train"]
    rows = [{"input_ids": data[i].tolist(), "length": len(data[i])} for i in range(len(data))]
    collate = transformers.DataCollatorForLanguageModeling(dataset.tokenizer, mlm=False)
    network = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=len(dataset.tokenizer), **SIZE))
    options: dict[str, Any] = {
        "per_device_train_batch_size": TEXTS,
        "learning_rate": 1e-3,
        "bf16": bf16_unit("cpu") is not None,
        "optim": "adamw_torch_fused",
    }
    if name == "hf_best":
        options["train_sampling_strategy"] = "group_by_length"

    def padded(rows: list[Any]) -> Any:
        return collate([{"input_ids": row["input_ids"]} for row in rows])

    train_hugging_face(network, rows, padded, Turn(PEERS[name]), remove_unused_columns=False, **options)


def main() -> None:
    from common import report
    from turns import compare, speeds

    if not has_data("sst2", "ag_news"):
        return
    with tempfile.TemporaryDirectory() as folder:
        turns = compare(list(PEERS), int(sys.argv[1]) if len(sys.argv) > 1 else pick(3, 1), str(mixed(Path(folder))))
    report("packing_vs_hf", ["peer", "tokens/s", "ms a step", "ours is faster by"], speeds(turns, "ours"))


if __name__ == "__main__":
    peer(*sys.argv[2:4]) if sys.argv[1:2] == ["peer"] else main()
