"""Two processes train what one would: the same losses and the same weights, copied (DDP) or cut up (FSDP2)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ..conftest import QUIET, ROOT, TINY_BERT, TINY_GPT
from .test_runs import losses

CAUSAL = ["task=pretrain", "data=text", "data.document=line", "data.block_size=32", *TINY_GPT, "batch.sequences=7"]
CLASSES = ["task=finetune", "data=files", "data.columns.text=body", "data.columns.label=stars", *TINY_BERT, "batch.sequences=7"]
NO_DROPOUT = "++model.config={hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}"


def train(arguments: list[str], folder: Path) -> None:
    """In processes of its own; all of them are stopped where they hang."""
    command = [sys.executable, str(ROOT / "train.py"), *QUIET, *arguments, f"run_dir={folder}"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            said = process.communicate(timeout=240)[1]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            said = process.communicate()[1]
    assert process.returncode == 0, said


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("task", ["causal", "classes"])
def test_two_processes_train_what_one_would(
    task: str, strategy: str, corpus: Path, reviews: Path, cache: Path, tmp_path: Path
) -> None:
    """Steps of seven sequences in micro-batches of two: unequal numbers of sequences, batches and targets on the two ranks."""
    data = [*CAUSAL, f"data.train={corpus}"] if task == "causal" else [*CLASSES, NO_DROPOUT, f"data.train={reviews}"]
    given = [*data, f"cache_dir={cache}", "batch.micro_sequences=2", "trainer.max_steps=6", "trainer.validate_every_steps=3"]
    given += ["trainer.precision=32-true", "trainer.log_every_steps=1", "optimizer.lr=1e-2"]
    train(given, tmp_path / "one")
    train([*given, f"trainer={strategy}", "trainer.accelerator=cpu", "trainer.devices=2"], tmp_path / "two")
    one, two = ([float(loss) for _, loss in losses(tmp_path / name)] for name in ("one", "two"))
    assert len(one) == 6
    assert two == pytest.approx(one, rel=1e-5)
    first, second = (load_file(tmp_path / name / "hf" / "model.safetensors") for name in ("one", "two"))
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(second[name], first[name], atol=1e-4, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")
