"""Seconds of training until a model is good, beside Hugging Face's Trainer with its best flags: `python benchmarks/time_to_quality.py
[accuracy|loss]`, both by default. Validation is not counted; compilation is.

accuracy: MiniLM on SST-2, three epochs at learning rate 1e-4, until 0.88 on the development set is reached, for three seeds.
loss: the Llama of pretrain_vs_hf.py on wikitext-2, until the validation loss that Hugging Face ends on is reached; each side
has the best of three learning rates, and the same schedule over the steps that it takes.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from settings import DATA, has_data, pick

SST2 = ["recipe=sst2_minilm", f"data.dir={DATA}/sst2"]
SEEDS = pick(("1", "2", "3"), ("1",))
EPOCH, EPOCHS, TURN = pick((217, 3, 31), (2, 1, 1))  # steps, epochs, steps of a turn: seven turns are an epoch
WIKITEXT = ["data=text", f"data.train={DATA}/wikitext2/test.txt"]
HELD_OUT = pick(150_000, 5_000)  # characters of wikitext-2's validation file that are scored
STEPS = pick({"hf": 120, "ours": 60}, {"hf": 2, "ours": 2})
SCORED = pick(10, 1)  # steps between two scores of the race for the loss
RATES: dict[str, tuple[float, ...]] = pick({"hf": (5e-4, 1e-3, 2e-3), "ours": (2e-3, 4e-3, 8e-3)}, {"hf": (1e-3,), "ours": (4e-3,)})


def accuracy_peer(name: str, seed: str) -> None:
    from finetune_vs_hf import hugging_face, minilm
    from turns import Turn, train_ours

    turn = Turn(TURN, scored=True)
    if name == "ours":
        train_ours([*SST2, f"model.name_or_path={minilm()}", f"seed={seed}", f"trainer.max_epochs={EPOCHS}"], turn)
    else:
        hugging_face(name, minilm(), turn, seed=int(seed), num_train_epochs=EPOCHS)


def loss_peer(name: str, held_out: str) -> None:
    import pretrain_vs_hf
    from turns import Turn, train_ours

    side, _, rate = name.partition("@")
    turn, steps = Turn(SCORED, scored=True), STEPS[side]
    arguments = [*pretrain_vs_hf.ARGUMENTS, *WIKITEXT, f"data.validation={held_out}"]
    if side == "ours":
        muon = ["optimizer=muon", f"optimizer.lr={rate}", f"trainer.max_steps={steps}"]
        train_ours([*arguments, *muon], turn)
    else:
        schedule = {"lr_scheduler_type": "cosine", "warmup_steps": steps // 10, "max_steps": steps, "learning_rate": float(rate)}
        pretrain_vs_hf.hugging_face(pick("hf_best_compiled", "hf_best"), arguments, turn, **schedule)


def until(course: list[tuple[float, float]], reached: Any) -> float:
    """Seconds until a score is reached; infinite where it never is."""
    return next((seconds for seconds, score in course if reached(score)), math.inf)


def accuracy() -> None:
    from common import report
    from turns import race

    rows: list[list[Any]] = []
    if not has_data("sst2"):
        return
    for seed in SEEDS:
        courses = race(dict.fromkeys(("ours", "hf_best"), EPOCH * EPOCHS // TURN), "accuracy", seed)
        for name, course in courses.items():
            rows.append([name, int(seed), until(course, lambda score: score >= 0.88), course[-1][0], max(s for _, s in course)])
    for name in ("ours", "hf_best"):
        mine = [row for row in rows if row[0] == name]
        rows.append([name, "median", *(statistics.median(row[i] for row in mine) for i in (2, 3, 4))])
    report("time_to_accuracy", ["peer", "seed", "seconds to 0.88", "seconds in all", "best accuracy"], rows)


def loss() -> None:
    from common import report
    from turns import race

    if not has_data("wikitext2"):
        return
    peers = {f"{side}@{rate:g}": STEPS[side] // SCORED for side in STEPS for rate in RATES[side]}
    with tempfile.TemporaryDirectory() as folder:
        held_out = Path(folder) / "validation.txt"
        held_out.write_text((DATA / "wikitext2" / "valid.txt").read_text(encoding="utf-8")[:HELD_OUT], encoding="utf-8")
        courses = race(peers, "loss", str(held_out))
    goal = min(course[-1][1] for name, course in courses.items() if name.startswith("hf"))
    rows = [[name, course[-1][0], course[-1][1], until(course, lambda score: score <= goal)] for name, course in courses.items()]
    report("time_to_loss", ["peer", "seconds in all", "last validation loss", f"seconds to {goal:.3f}"], rows)


def main() -> None:
    for work in sys.argv[1:] or ("accuracy", "loss"):
        {"accuracy": accuracy, "loss": loss}[work]()


if __name__ == "__main__":
    if sys.argv[1:2] == ["peer"]:
        accuracy_peer(sys.argv[2], sys.argv[4]) if sys.argv[3] == "accuracy" else loss_peer(sys.argv[2], sys.argv[4])
    else:
        main()
