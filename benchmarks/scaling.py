"""How the time and the memory of a step grow with its tokens, with their length and with the model: `python benchmarks/scaling.py`.

A Llama of width 320 with 6 layers on steps of 8 blocks of 512 tokens, and one thing changed at a time. Each row's growth is against the
row before it: 1 where time grows as that thing does.
"""

from __future__ import annotations

import math
import statistics
import sys
from typing import Any

from settings import CORPUS, TINY, pick

BASE = {"tokens": 4096, "length": 512, "width": 320, "layers": 6}
CHANGES: dict[str, tuple[int, ...]] = {
    "tokens": (1024, 2048, 4096, 8192, 16384),
    "length": (128, 256, 512, 1024, 2048),
    "width": (160, 320, 640),
    "layers": (3, 6, 12),
}
if TINY:
    BASE, CHANGES = {"tokens": 64, "length": 32, "width": 32, "layers": 1}, {"tokens": (64, 128)}
STEPS, ROUNDS = pick(3, 1), pick(3, 1)


def peer(thing: str, value: str) -> None:
    from turns import Turn, train_ours

    size = BASE | {thing: int(value)}
    model = {
        "hidden_size": size["width"],
        "intermediate_size": size["width"] * 13 // 5,
        "num_hidden_layers": size["layers"],
        "num_attention_heads": size["width"] // 32,
        "num_key_value_heads": size["width"] // 32,
        "max_position_embeddings": size["length"],
        "tie_word_embeddings": False,
    }
    arguments = ["task=pretrain", "model=llama_tiny", "data.packing=concat", f"data.block_size={size['length']}"]
    arguments += [f"batch.sequences={size['tokens'] // size['length']}", f"model.tokenizer.vocab_size={pick(16384, 400)}"]
    train_ours([*arguments, *CORPUS, f"++model.config={{{', '.join(f'{k}: {v}' for k, v in model.items())}}}"], Turn(STEPS))


def main() -> None:
    from common import report
    from turns import compare

    rows: list[list[Any]] = []
    for thing, values in CHANGES.items():
        before: tuple[int, float] | None = None
        for value in values:
            (turns,) = compare([thing], ROUNDS, str(value)).values()
            seconds = statistics.median(turn["seconds"] / turn["steps"] for turn in turns)
            growth = math.log(seconds / before[1]) / math.log(value / before[0]) if before else math.nan
            before = value, seconds
            rows.append([thing, value, 1000 * seconds, turns[-1]["tokens"] / turns[-1]["seconds"], turns[-1]["gib"], growth])
    report("scaling", ["what changes", "to", "ms a step", "tokens/s", "peak GiB", "time grows with its power of"], rows)


if __name__ == "__main__":
    peer(*sys.argv[2:4]) if sys.argv[1:2] == ["peer"] else main()
