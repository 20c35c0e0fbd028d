"""Share of positions that are real tokens, with the plan and without: `python benchmarks/padding.py [folder of data sets]`.

Without is what a plain shuffled loader computes: each micro-batch padded to its longest sequence. The folder holds sst2/, ag_news/ and
wikitext2/ (files as docs/data.md names them); what is not there is left out.
"""

from __future__ import annotations

import sys
from pathlib import Path

from common import report
from settings import CORPUS, DATA, TINY

from llm_lightning.config.compose import load_config
from llm_lightning.data.datamodule import DataModule
from llm_lightning.run import prepare

FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else DATA
SST2 = ["task=finetune", "data=sst2", f"data.dir={FOLDER}/sst2"]
AG_NEWS = [
    *("task=finetune", "data=files", f"data.train={FOLDER}/ag_news/train.csv", f"data.validation={FOLDER}/ag_news/validation.csv"),
    *("data.columns.text=description", "data.columns.label=label"),
]
WIKITEXT = [
    "data=text",
    f"data.train={FOLDER}/wikitext2/test.txt",
    f"data.validation={FOLDER}/wikitext2/valid.txt",
    "data.document=line",
]
CASES: dict[str, tuple[list[str], Path | None]] = {
    "sst2, classification": (SST2, FOLDER / "sst2"),
    "ag_news, classification": (AG_NEWS, FOLDER / "ag_news"),
    "docs, masked_lm": (["objective=masked_lm", *CORPUS], None),
    "docs, causal_lm": (CORPUS, None),
    "wikitext2, causal_lm": (WIKITEXT, FOLDER / "wikitext2"),
}


def real_share(data: DataModule) -> float:
    epoch = data.plan.epoch_plan(0)
    computed = 0
    for step in range(len(epoch)):
        rows = epoch[step]
        computed += len(rows) * max(int(data.plan.lengths[row].sum()) for row in rows)
    return float(data.plan.lengths.sum() / computed)


rows = []
for name, (arguments, needed) in CASES.items():
    if TINY and needed is not None:
        continue
    if needed is not None and not needed.is_dir():
        print(f"{name}: left out, {needed} is not there")
        continue
    shares = []
    for changes in (["batch.length_window=1", *(["data.packing=none"] if "causal" in name else [])], []):
        data = prepare(load_config([*arguments, *changes]))[2]
        shares.append(real_share(data))
    rows.append([name, len(data.plan.lengths), 100 * shares[0], 100 * shares[1], shares[1] / shares[0]])
report("padding", ["data", "sequences", "real %, shuffled", "real %, planned", "ratio"], rows)
