"""What Lightning, the meter and csv logging cost a step: `python benchmarks/overhead.py [rounds, 31 by default]`.

The run as `train.py` has it, but for what comes between steps (energy, states, samples), and a plain PyTorch loop over the same objective,
loader and optimizer, in turns: a small causal model, some 50 ms a step on quick cores, and one so small that the milliseconds between
the two can be told from noise.
"""

from __future__ import annotations

import statistics
import sys

from settings import CORPUS, pick

SIZES = {  # of a step: steps in a turn, arguments
    "50 ms": (pick(20, 2), ["data.block_size=128", "batch.sequences=7", "++model.config={n_layer: 4, n_embd: 128, n_head: 4}"]),
    "5 ms": (pick(200, 2), ["data.block_size=32", "batch.sequences=2", "++model.config={n_layer: 1, n_embd: 16, n_head: 1}"]),
}


def peer(name: str, size: str) -> None:
    from turns import Turn, train_ours

    length, own = SIZES[size]
    arguments, turn = ["task=pretrain", "model=gpt_tiny", "data.packing=concat", *CORPUS, *own], Turn(length)
    if name == "run":
        train_ours(arguments, turn)
        return
    import torch

    from llm_lightning.config.compose import load_config
    from llm_lightning.data.collate import TrainingSteps
    from llm_lightning.machine import bf16_unit
    from llm_lightning.run import build_and_connect, prepare
    from llm_lightning.training.memory import keep_freed_pages, keep_kernels
    from llm_lightning.training.precision import in_bf16

    config = load_config([*arguments, "trainer=cpu"])
    dataset, objective, data = prepare(config)
    model = build_and_connect(config, dataset, objective, data)
    (optimizer,), (scheduler,) = objective.configure_optimizers()
    keep_freed_pages()
    keep_kernels()
    bf16 = bf16_unit("cpu") is not None
    steps = TrainingSteps(dataset.splits["train"], data.plan, config.batch, data.collator, 10**6, 0, 1)
    turn.begin()
    for i in range(10**6):
        step = steps[i]
        (batch,) = step.micro_batches
        if bf16:
            with in_bf16(model):
                loss = objective.loss_sum(batch)
        else:
            loss = objective.loss_sum(batch)
        (loss / step.rank_targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        turn.step(step.tokens)


def main() -> None:
    from common import report
    from turns import compare, speeds

    rows = []
    for size in pick(list(SIZES), ["5 ms"]):
        turns = compare(["loop", "run"], int(sys.argv[1]) if len(sys.argv) > 1 else pick(31, 1), size)
        taken = [[1000 * turn["seconds"] / turn["steps"] for turn in turns[name]] for name in ("loop", "run")]
        more = statistics.median(run - loop for loop, run in zip(*taken, strict=True))
        rows += [[size, *row, more if row[0] == "run" else 0.0] for row in speeds(turns, "loop")]
    report("overhead", ["a step of some", "peer", "tokens/s", "ms a step", "the loop is faster by", "ms more"], rows)


if __name__ == "__main__":
    peer(*sys.argv[2:]) if sys.argv[1:2] == ["peer"] else main()
