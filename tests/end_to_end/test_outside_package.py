"""A package outside of the repository brings an objective, a data source, a callback and options, by entry point and `_target_`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import ROOT

FILES = {
    "my_package/__init__.py": "",
    "my_package/objectives.py": """
from __future__ import annotations
from typing import Annotated
from torch import Tensor
from llm_lightning.config.signatures import Range
from llm_lightning.data.collate import MicroBatch
from llm_lightning.data.prepare import TokenizedDataset
from llm_lightning.objectives.classification import Classification


class Scaled(Classification):
    encoding = "my_package.encoding.Choosy"

    def __init__(self, dataset: TokenizedDataset, *, factor: Annotated[float, Range(0)] = 2.0) -> None:
        super().__init__(dataset)
        self.factor = factor

    def loss_and_outputs(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        loss, logits = super().loss_and_outputs(batch)
        return self.factor * loss, logits
""",
    "my_package/encoding.py": """
from llm_lightning.data.encodings.texts import Encoder
from llm_lightning.data.examples import BadRow


class Choosy(Encoder):
    def read(self, text, pair, value, extra):
        if text.endswith("number 7"):
            raise BadRow("seven brings luck")
        return super().read(text, pair, value, extra)
""",
    "my_package/model.py": """
from transformers import BertConfig, BertForSequenceClassification


def build(config, auto_class, tokenizer, longest_input, head, *, width: int = 32):
    assert auto_class == "AutoModelForSequenceClassification"
    shape = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": width, "intermediate_size": 64}
    return BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), **shape, **head))
""",
    "my_package/logger.py": """
import json
from lightning.pytorch.loggers.logger import Logger


class Lines(Logger):
    name, version = "lines", 0

    def __init__(self, save_dir: str) -> None:
        self.file = open(f"{save_dir}/lines.jsonl", "a", buffering=1)

    def log_hyperparams(self, *args, **kwargs): ...

    def log_metrics(self, metrics, step=None):
        print(json.dumps({"step": step, **metrics}), file=self.file)
""",
    "my_package/source.py": """
import datasets
from llm_lightning.data.rows import Rows


def load(data, cache_dir, extra_columns=(), *, rows: int = 60):
    numbers = range(rows)
    texts = [f"{'good' if i % 2 else 'bad'} film number {i}" for i in numbers]
    table = datasets.Dataset.from_dict({"text": texts, "label": [str(i % 2) for i in numbers]})
    return {"train": Rows(table, "reviews-1", lambda i: f"review {i}")}
""",
    "my_package/callbacks.py": """
from lightning.pytorch.callbacks import Callback


class Steps(Callback):
    def __init__(self, file: str) -> None:
        self.file = file

    def on_validation_end(self, trainer, module):
        with open(self.file, "a") as file:
            file.write(f"{trainer.global_step} {'validation/accuracy' in trainer.callback_metrics}\\n")
""",
    "my_package/conf/__init__.py": "",
    "my_package/conf/objective/scaled.yaml": """
# @package _global_
# Cross-entropy times a factor.
defaults:
  - override /data: docs_topics
  - override /model: bert_tiny
objective:
  _target_: my_package.objectives.Scaled
""",
    "my_package-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n",
    "my_package-1.0.dist-info/entry_points.txt": "[llm_lightning.conf]\nmy_package = my_package.conf\n",
}
ARGUMENTS = [
    *(
        "task=finetune",
        "objective=scaled",
        "data._target_=my_package.source.load",
        "data.columns.text=text",
        "data.columns.label=label",
    ),
    *("model.tokenizer.vocab_size=300", "trainer.max_steps=4", "trainer.max_epochs=null", "trainer.validate_every_steps=2"),
    *("logger=csv", "callbacks.energy=false", "trainer.progress=none", "trainer=cpu", "data.on_bad_row=skip"),
]
SMALL = "++model.config={num_hidden_layers: 2, hidden_size: 32, intermediate_size: 64, num_attention_heads: 2}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages with the package in it."""
    folder = tmp_path_factory.mktemp("site")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def start(site: Path, cache: Path, *arguments: str, training: bool = True) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(site)])}
    given = [*ARGUMENTS, SMALL] if training else []
    command = [sys.executable, str(ROOT / "train.py"), *given, f"cache_dir={cache}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=site)


def test_a_package_brings_everything_that_a_run_is_made_of(site: Path, cache: Path, tmp_path: Path) -> None:
    """Objective, encoding, data source, model builder, optimizer, schedule, callbacks and logger, each by its `_target_`."""
    callbacks = ["callbacks.steps._target_=my_package.callbacks.Steps", f"callbacks.steps.file={tmp_path}/steps.txt"]
    callbacks += [
        "callbacks.rate._target_=lightning.pytorch.callbacks.LearningRateMonitor",
        "logger.lines._target_=my_package.logger.Lines",
    ]
    parts = [
        "data.rows=40",
        "model._target_=my_package.model.build",
        "model.width=16",
        "optimizer._target_=torch.optim.SGD",
    ]
    parts += ["optimizer.momentum=0.5", "scheduler._target_=torch.optim.lr_scheduler.ConstantLR", "scheduler.factor=0.5"]
    outcome = start(site, cache, *callbacks, *parts, "objective.factor=3", "trainer.limit_val_batches=1", f"run_dir={tmp_path}/run")
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    assert (tmp_path / "steps.txt").read_text().splitlines()[:2] == ["2 True", "4 True"]
    assert "lr-SGD" in (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
    loss = next(line for line in outcome.stderr.splitlines() if line.strip().startswith("validation/loss "))
    assert float(loss.split()[1]) == pytest.approx(3 * 0.69, abs=0.3)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["data"]["rows"]["train"] + summary["data"]["rows"]["validation"] == 39
    assert "seven brings luck" in outcome.stderr
    assert json.loads((tmp_path / "run" / "hf" / "config.json").read_text())["hidden_size"] == 16
    lines = [json.loads(line) for line in (tmp_path / "run" / "lines.jsonl").read_text().splitlines()]
    assert [line["train/learning_rate"] for line in lines if "train/learning_rate" in line][-1] == pytest.approx(0.5e-3)
    assert any("validation/accuracy" in line for line in lines)

    stored = ["task=evaluate", f"run={tmp_path}/run"]
    refused = start(site, cache, *stored, training=False)
    assert (refused.returncode, "Traceback" in refused.stderr) == (2, False), refused.stderr[-3000:]
    assert "objective._target_=my_package.objectives.Scaled" in refused.stderr
    again = start(site, cache, *stored, "trust=[my_package]", "trainer.limit_val_batches=1", training=False)
    assert again.returncode == 0, again.stderr[-3000:]
    assert json.loads((tmp_path / "run" / "evaluate.json").read_text())["metrics"] == summary["metrics"]


REFUSED = {
    "objective._target_=my_package.objectives.Nope": "my_package.objectives.Nope: cannot be imported",
    "objective._target_=no_package.objectives.Scaled": "no such function or class in llm_lightning or an installed package",
    "objective.factor=-1": "objective.factor=-1: expected a number at least 0",
    "objective.facter=1": "objective.facter: Scaled has no such setting; it has factor",
    "data._target_=my_package.nosource.load": "my_package.nosource.load: cannot be imported",
    "data.rows=many": "data.rows=many: expected a whole number",
    "data.rowz=4": "data.rowz: load has no such setting; it has rows. Did you mean 'rows'?",
    "model._target_=my_package.source.load": "load() takes from 2 to 3 positional arguments but 5 were given",
    "callbacks.x._target_=my_package.callbacks.Nope": "callbacks.x: my_package.callbacks.Nope cannot be built",
    "callbacks.x._target_=collections.Counter": "callbacks.x: collections.Counter is no lightning.pytorch.callbacks.callback.Callback",
    "callbacks.x._target_=my_package.callbacks.Steps": "callbacks.x.file is not set, and has no default",
    "callbacks.x.file=1": "callbacks.x: there is no such key",
    "logger.x._target_=my_package.callbacks.Steps": "logger.x.file is not set, and has no default",
    "optimizer._target_=collections.OrderedDict": "optimizer: collections.OrderedDict cannot be built",
    "scheduler._target_=torch.optim.lr_scheduler.ReduceLROnPlateau": "has no rate for step 1 of 4",
    "trainer.accumulate_grad_batches=2": "batch.micro_sequences",
    "trainer.flags.gradient_clip_val=1": "trainer.clip_norm",
    "trainer.use_distributed_sampler=true": "the plan of batches",
    "trainer.flags.profilerr=simple": "no such argument. Did you mean 'profiler'?",
    "trainer.profilerr=simple": "there is no such key",
}


@pytest.mark.parametrize("argument", REFUSED)
def test_what_cannot_work_is_refused(argument: str, site: Path, cache: Path, tmp_path: Path) -> None:
    outcome = start(site, cache, argument, f"run_dir={tmp_path}/run")
    assert (outcome.returncode, "Traceback" in outcome.stderr) == (2, False), outcome.stderr[-3000:]
    assert REFUSED[argument] in outcome.stderr
