"""The same run on one process and on several: `python benchmarks/parity.py`.

Final training losses in fp32, without dropout, of four kinds of training: on one process, under DDP and FSDP2 on two, and on two hosts
(network namespaces with nothing shared) under torchrun. Each is held against that of one process.
"""

from __future__ import annotations

import csv
import json
import random
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common import report
from hosts import ADDRESSES, hosts
from settings import TINY

ROOT = Path(__file__).parents[1]
COMMON = ["logger=csv", "trainer.progress=none", "callbacks.energy=false", "trainer.precision=32-true", "trainer.max_steps=20"]
COMMON += [
    "trainer.log_every_steps=1",
    "trainer.accelerator=cpu",
    "batch.sequences=7",
    "batch.micro_sequences=2",
    "optimizer.lr=3e-3",
]
GPT = ["model=gpt_tiny", "++model.config={n_layer: 2, n_embd: 64, n_head: 4}", "model.tokenizer.vocab_size=400"]
BERT_SIZE = "num_hidden_layers: 2, hidden_size: 64, intermediate_size: 128, num_attention_heads: 4"
BERT = ["model=bert_tiny", f"++model.config={{{BERT_SIZE}, hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}}"]
MARIAN_SIZE = "d_model: 64, encoder_layers: 2, decoder_layers: 2, encoder_ffn_dim: 128, decoder_ffn_dim: 128, dropout: 0.0"
MARIAN = [f"++model.config={{{MARIAN_SIZE}}}", "model.tokenizer.vocab_size=400", "data.test=null"]
WAYS = {"1 process": ["trainer.devices=1"], "DDP x 2": ["trainer=ddp"], "FSDP2 x 2": ["trainer=fsdp"]}
ON_TWO = ["trainer.accelerator=cpu", "trainer.devices=2"]


def write_data(folder: Path) -> dict[str, list[str]]:
    """Write small made-up data; return the arguments of each kind of training."""
    rng = random.Random(0)
    words = ["red", "green", "small", "large", "house", "river", "stone", "walks", "sings", "slowly"]
    texts = [" ".join(rng.choices(words, k=rng.randint(3, 20))) for _ in range(300)]
    (folder / "corpus.txt").write_text("\n".join(texts), encoding="utf-8")
    rows = [json.dumps({"text": text, "label": "long" if len(text.split()) > 10 else "short"}) for text in texts]
    (folder / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    for split in ("train", "validation"):
        (folder / f"{split}.en").write_text("\n".join(texts[:120]), encoding="utf-8")
        (folder / f"{split}.de").write_text("\n".join(text[::-1] for text in texts[:120]), encoding="utf-8")
    table = ["task=finetune", "data=files", f"data.train={folder}/rows.jsonl", "data.columns.label=label"]
    return {
        "causal_lm_packed": [
            "task=pretrain",
            "data=text",
            f"data.train={folder}/corpus.txt",
            "data.document=line",
            "data.block_size=64",
            *GPT,
        ],
        "classification": [*table, *BERT, "model.tokenizer.vocab_size=400"],
        "translation": ["task=finetune", "objective=translation", f"data.dir={folder}", *MARIAN],
        "lora": [*table, f"model.init_from={folder}/runs/classification-0", "model/adapter=lora"],
    }


def train(arguments: list[str], folder: Path) -> float:
    """Run to the end; return the mean training loss of the last step."""
    command = [sys.executable, "train.py", *arguments, f"run_dir={folder}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(result.stderr)
    return last_loss(folder)


def train_on_hosts(names: list[str], arguments: list[str], folder: Path) -> float:
    """The same under torchrun on two hosts, each with a folder and a cache of its own."""
    options = ["--nnodes=2", "--nproc_per_node=1", f"--master_addr={ADDRESSES[0]}", "--master_port=29533"]
    agents = []
    for number, name in enumerate(names):
        start = ["ip", "netns", "exec", name, str(Path(sys.executable).with_name("torchrun")), *options, f"--node_rank={number}"]
        own = [f"run_dir={folder}-{name}", f"cache_dir={folder}-{name}-cache"]
        agents.append(subprocess.Popen([*start, "train.py", *arguments, *own], cwd=ROOT, stderr=subprocess.PIPE, text=True))
    with ThreadPoolExecutor() as pool:  # both at once: a full pipe would stop one
        outputs = list(pool.map(lambda agent: agent.communicate()[1], agents))
    if any(agent.returncode for agent in agents):
        raise RuntimeError("\n".join(outputs))
    return last_loss(Path(f"{folder}-{names[0]}"))


def last_loss(folder: Path) -> float:
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]][-1]


def main() -> None:
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for kind, arguments in list(write_data(folder).items())[: 1 if TINY else None]:
            expected = 0.0
            for number, (way, options) in enumerate(list(WAYS.items())[: 2 if TINY else None]):
                run = folder / "runs" / f"{kind}-{number}"
                loss = train([*arguments, *COMMON, f"cache_dir={folder}/cache", *options, *(ON_TWO if number else [])], run)
                expected = expected or loss
                rows.append([kind, way, loss, abs(loss / expected - 1)])
            if TINY:
                continue
            try:
                with hosts() as names:
                    loss = train_on_hosts(
                        names, [*arguments, *COMMON, "trainer=ddp", "trainer.accelerator=cpu"], folder / "runs" / f"{kind}-hosts"
                    )
                rows.append([kind, "DDP, 2 hosts", loss, abs(loss / expected - 1)])
            except OSError as error:
                print(f"left out: two hosts ({error})", file=sys.stderr)
    report("parity", ["training", "processes", "loss after 20 steps", "relative difference"], rows)
    assert all(isinstance(row[3], float) and row[3] < 1e-5 for row in rows), "losses differ by more than 1e-5"


if __name__ == "__main__":
    main()
