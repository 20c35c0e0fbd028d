"""Long texts whose end decides, cut and in windows: `python benchmarks/windows.py [glued texts] [articles]`.

Articles of AG News are glued to texts of about 2,000 tokens. The label is that of the last article, which begins with `MARK`; the others
are drawn from all classes. MiniLM learns marked articles alone first (`unglued`). From there it learns glued texts: `cut` reads their
first 512 tokens, `windows` all of them, 256 at a time. The scores are of the same test articles. The arguments are the numbers of training
texts, 600 glued and 6,000 alone by default.
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

MARK = "Story of the day: "
TOKENS = pick(2000, 60)
"""Tokens of a glued text, at least; the article that exceeds them is the last but one."""
BLOCK, WINDOW, OVERLAP = pick((512, 256, 64), (24, 24, 6))
ROWS: dict[str, int | None] = pick({"train": 600, "validation": 100, "test": 800}, {"train": 12, "validation": 6, "test": 6})
"""Glued texts of each split."""
SHORT: dict[str, int | None] = pick({"train": None, "validation": None, "test": 800}, {"train": 40, "validation": 6, "test": 6})
"""Articles of each split that are learnt alone; None is all."""
ARGUMENTS = [
    *("task=finetune", "data=files", "data.columns.label=label", "model=minilm", "optimizer.lr=1e-4"),
    *("logger=csv", "callbacks.energy=false", "trainer=cpu", "trainer.progress=none", "trainer.log_every_steps=5"),
]
GLUED = ["batch.sequences=4", "batch.micro_tokens=6144", *pick(["trainer.max_epochs=3"], ["trainer.max_steps=1"])]


def read(split: str) -> list[tuple[str, str]]:
    """Return (text, label) of the articles of a split."""
    with (DATA / "ag_news" / f"{split}.csv").open(encoding="utf-8", newline="") as file:
        return [(row["description"].strip(), row["label"]) for row in csv.DictReader(file)]


def glue(articles: list[tuple[str, str]], count: int | None, tokenizer: Any, seed: int) -> list[dict[str, str]]:
    """Return texts of at least `TOKENS` tokens, each with the label of its last article. Article i is the last of text i."""
    rng, sizes = random.Random(seed), [len(ids) for ids in tokenizer([text for text, _ in articles], verbose=False)["input_ids"]]
    rows = []
    for last, label in articles[:count]:
        parts, size = [], 0
        while size < TOKENS:
            i = rng.randrange(len(articles))
            parts.append(articles[i][0])
            size += sizes[i] - 2  # special tokens
        rows.append({"text": " ".join([*parts, MARK + last]), "label": label})
    return rows


def write_data(folder: Path, model: str) -> None:
    """Write the articles alone, and glued, to `unglued/` and `glued/`."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    for seed, split in enumerate(ROWS):
        articles = read(split)
        alone = [{"text": MARK + text, "label": label} for text, label in articles[: SHORT[split]]]
        for name, rows in (("unglued", alone), ("glued", glue(articles, ROWS[split], tokenizer, seed))):
            (folder / name).mkdir(exist_ok=True)
            (folder / name / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def train(folder: Path, name: str, *arguments: str) -> list[Any]:
    """Train a model; return its row of the table."""
    from llm_lightning.config.compose import load_config
    from llm_lightning.run import run

    data = [f"data.dir={folder}/{'unglued' if name == 'unglued' else 'glued'}", f"run_dir={folder}/{name}"]
    summary = run(load_config([*ARGUMENTS, *data, *arguments]))
    throughput, metrics = summary["throughput"], summary["metrics"]
    return [
        name,
        100 * metrics["test/accuracy"],
        metrics["test/loss"],
        metrics["test/ece"],
        float(summary["data"]["tokens"]["train"]) / summary["data"]["rows"]["train"],
        throughput["tokens_per_second"],
        summary["seconds"]["train"],
    ]


def main() -> None:
    if not has_data("ag_news"):
        return
    from common import report
    from finetune_vs_hf import minilm

    for counts, count in zip((ROWS, SHORT), sys.argv[1:], strict=False):
        counts["train"] = int(count)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_data(folder, minilm())
        short = [f"data.block_size={BLOCK}", "batch.sequences=32", *pick(["trainer.max_epochs=2"], ["trainer.max_steps=1"])]
        rows = [train(folder, "unglued", f"model.name_or_path={minilm()}", *short)]
        glued = ["model.name_or_path=null", f"model.init_from={folder}/unglued", *GLUED]
        rows.append(train(folder, "cut", *glued, f"data.block_size={BLOCK}"))
        windows = ["data.long=windows", f"data.block_size={WINDOW}", f"data.overlap={OVERLAP}"]
        rows.append(train(folder, "windows", *glued, *windows))
    columns = ["texts", "test accuracy %", "test loss", "ECE", "tokens a text", "tokens/s", "s of training"]
    report("windows", columns, rows, {"glued": ROWS, "alone": SHORT, "tokens": TOKENS})


if __name__ == "__main__":
    main()
