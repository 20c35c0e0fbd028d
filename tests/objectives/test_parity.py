"""A run against a plain PyTorch loop over Hugging Face's own loss: the same weights come out.

The loop sees each optimizer step as one batch; the run sees it in micro-batches of three, whose targets are unequal in number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from llm_lightning.config.compose import load_config
from llm_lightning.config.schema import Config
from llm_lightning.data.collate import MicroBatch
from llm_lightning.data.datamodule import DataModule
from llm_lightning.models import build
from llm_lightning.run import prepare

from ..conftest import QUIET, TINY_BERT, TINY_GPT, Runner, published

STEPS = 6
NO_DROPOUT = "++model.config={hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}"
TINY_LLAMA = [
    "model=llama_tiny",
    "++model.config={num_hidden_layers: 2, hidden_size: 32, intermediate_size: 48, num_attention_heads: 2, num_key_value_heads: 1}",
    "model.tokenizer.vocab_size=400",
]
CASES = {
    "causal stream": ["task=pretrain", *TINY_GPT, "data.packing=concat"],
    "causal llama": ["task=pretrain", *TINY_LLAMA, "data.packing=concat"],
    "causal unpacked": ["task=pretrain", *TINY_GPT, "data.packing=none"],
    "masked bert": ["task=pretrain", "objective=masked_lm", *TINY_BERT, NO_DROPOUT],
    "classification bert": ["task=finetune", *TINY_BERT, NO_DROPOUT],
    "classification gpt2": ["task=finetune", *TINY_GPT],
}


def arguments(case: str, corpus: Path, reviews: Path) -> list[str]:
    data = ["data=text", f"data.train={corpus}", "data.document=line", "data.block_size=48"]
    if "classification" in case:
        data = ["data=files", f"data.train={reviews}", "data.columns.text=body", "data.columns.label=stars"]
    training = [f"trainer.max_steps={STEPS}", "trainer.precision=32-true", "batch.sequences=8", "optimizer.weight_decay=0.1"]
    return [*CASES[case], *data, *training, "trainer.clip_norm=0.5", "optimizer.lr=3e-3", "scheduler.warmup=2"]


def labels_of(batch: MicroBatch, data: DataModule) -> dict[str, Tensor]:
    """What Hugging Face's forward is given for the loss that we compute."""
    sizes = batch.cu_seqlens.diff().tolist()
    parts = batch.input_ids.split(sizes)
    if data.dataset.encoding.next_token:  # Hugging Face shifts: it wants the n+1 tokens that the n targets come from
        parts = tuple(
            torch.cat([part, part.new_tensor([t[-1]])]) for part, t in zip(parts, batch.targets.split(sizes), strict=True)
        )
        labels = padded(parts, -100)
    elif batch.target_places is None:
        labels = batch.targets
    else:
        labels = padded(torch.full_like(batch.input_ids, -100).scatter(0, batch.target_places, batch.targets).split(sizes), -100)
    mask = padded([torch.ones_like(part) for part in parts], 0)
    return {"input_ids": padded(parts, data.dataset.tokenizer.pad_token_id), "attention_mask": mask, "labels": labels}


def padded(parts: Sequence[Tensor], filler: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True, padding_value=filler)


def plain_loop(config: Config) -> tuple[torch.nn.Module, float]:
    """(model after STEPS, mean validation loss over targets)"""
    dataset, objective, data = prepare(config)
    model = published(
        build.build_model(config.model, objective.auto_class, dataset.tokenizer, data.longest_input, objective.head())
    )
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], lr=3e-3)
    for step in range(STEPS):
        done = (step - 2) / (STEPS - 2)
        decay = 1 - done if config.task == "finetune" else 0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * ((step + 1) / 2 if step < 2 else decay)
        epoch, inside = data.plan.locate(step)
        batch = data.collator(dataset.splits["train"], data.plan.epoch_plan(epoch)[inside], epoch)
        model(**labels_of(batch, data)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for i in range(len(dataset.splits["validation"])):
            given = labels_of(data.collator(dataset.splits["validation"], [np.array([i])], -1), data)  # type: ignore[arg-type]
            shifted = given["labels"][:, 1:] if dataset.encoding.next_token else given["labels"]
            targets = int((shifted != -100).sum())
            total += float(model(**given).loss) * targets
            count += targets
    return model, total / count


@pytest.mark.parametrize("case", CASES)
def test_run_equals_plain_loop(case: str, corpus: Path, reviews: Path, run: Runner, cache: Path, tmp_path: Path) -> None:
    given = arguments(case, corpus, reviews)
    summary = run(*given, "batch.micro_sequences=3", f"run_dir={tmp_path}")
    expected, validation_loss = plain_loop(load_config([*QUIET, f"cache_dir={cache}", *given]))
    auto = getattr(transformers, type(expected).__name__)
    weights = auto.from_pretrained(tmp_path / "hf").state_dict()
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(weights[name], tensor, atol=2e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
    assert summary["metrics"]["validation/loss"] == pytest.approx(validation_loss, rel=1e-5)


def test_weights_move_enough_for_parity_to_mean_something(corpus: Path, reviews: Path, cache: Path) -> None:
    given = load_config([*QUIET, f"cache_dir={cache}", *arguments("causal stream", corpus, reviews)])
    trained, _ = plain_loop(given)
    dataset, objective, _ = prepare(given)
    fresh = build.build_model(given.model, objective.auto_class, dataset.tokenizer, 48, None)
    moved = max(float((a - b).detach().abs().max()) for a, b in zip(trained.parameters(), fresh.parameters(), strict=True))
    assert moved > 100 * 2e-5
