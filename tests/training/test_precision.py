"""bf16 with fp32 masters: what modules see, where gradients go, and that a plain bf16 model computes the same."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config

from llm_lightning import machine
from llm_lightning.config.schema import TrainerConfig
from llm_lightning.objectives.base import Objective
from llm_lightning.training import trainer
from llm_lightning.training.precision import MasterWeights, WorkingWeights, in_bf16
from llm_lightning.training.step import clip_gradients

from ..conftest import TINY_BERT, TINY_GPT, Runner

CONFIG = GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=2, n_positions=32, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)


def test_gradients_of_a_bf16_model_reach_fp32_masters() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG, attn_implementation="eager")
    plain = copy.deepcopy(model).to(torch.bfloat16)
    masters = {name: (p, p.detach().clone()) for name, p in model.named_parameters()}
    batches = [torch.randint(50, (3, 20)) for _ in range(2)]
    with in_bf16(model):
        assert model.lm_head.weight.dtype == torch.bfloat16
        assert model.transformer.wte.weight.dtype == torch.float32  # tied to it, and looked up in fp32
        for ids in batches:  # as micro-batches of a step: cast once, gradients added in fp32
            logits = model(input_ids=ids).logits
            assert logits.dtype == torch.bfloat16
            assert logits.equal(plain(input_ids=ids).logits)  # casting before a look-up or after it is the same
            logits.float().logsumexp(-1).sum().backward()
    for name, (parameter, value) in masters.items():
        assert dict(model.named_parameters())[name] is parameter
        assert parameter.equal(value)
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32

    expected = [torch.zeros_like(p, dtype=torch.float32) for p in plain.parameters()]
    for ids in batches:
        plain.zero_grad()
        plain(input_ids=ids).logits.float().logsumexp(-1).sum().backward()
        for total, p in zip(expected, plain.parameters(), strict=True):
            total += p.grad.float()
    for (name, (parameter, _)), total in zip(masters.items(), expected, strict=True):
        error = (parameter.grad - total).norm() / total.norm()
        # embeddings' gradients are added in fp32: better than plain bf16
        assert error < (0.01 if "wte" in name or "wpe" in name else 1e-6), name
    assert model(input_ids=batches[0]).logits.dtype == torch.float32


def test_frequent_tokens_keep_their_gradient() -> None:
    """A thousand places of one token: added in bf16, where 256 + 1 = 256, most of them would be lost."""
    model = AutoModelForCausalLM.from_config(CONFIG)
    embedding = model.get_input_embeddings()
    with in_bf16(model):
        embedding(torch.zeros(1000, dtype=torch.long)).sum().backward()
    assert embedding.weight.grad is not None
    assert embedding.weight.grad[0].eq(1000).all()


@pytest.mark.parametrize("buffered", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_working_copies_hide_masters_from_the_forward_pass_alone(tied: bool, buffered: bool) -> None:
    """Buffers, which a GPU has, hold what is cast anew on a CPU: losses and gradients are the same, in two steps of two micro-batches."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(GPT2Config(**CONFIG.to_dict() | {"tie_word_embeddings": tied}))
    reference = copy.deepcopy(model)
    weights, expected = WorkingWeights(model, buffered), WorkingWeights(reference, buffered=False)
    ids = torch.arange(24).view(2, 12)
    for _ in range(2):
        masters = dict(model.named_parameters())
        for _ in range(2):
            with weights.in_use(), weights.in_use(), expected.in_use():  # the inner one must not end the outer one
                assert model.lm_head.weight.dtype == torch.bfloat16
                assert all(parameter is masters[name] for name, parameter in model.named_parameters())
                assert all(value.dtype == torch.float32 for value in model.state_dict().values())
                losses = [m(input_ids=ids, labels=ids).loss for m in (model, reference)]
                assert losses[0].equal(losses[1])
                for loss in losses:
                    loss.backward()
        for (name, p), q in zip(model.named_parameters(), reference.parameters(), strict=True):
            if tied and name == "transformer.wte.weight":  # two gradients, added in another order
                torch.testing.assert_close(p.grad, q.grad)
            else:
                assert p.grad.equal(q.grad), name
        with weights.in_use(), torch.no_grad():
            model.zero_grad()  # as where a step is begun anew
            assert all(parameter.grad is None for parameter in masters.values())
            for m in (model, reference):
                m.zero_grad()
                for parameter in m.parameters():
                    parameter.mul_(1.01)  # an optimizer's step: the next copies are of the new weights
        with torch.inference_mode(), weights.in_use():
            model(input_ids=ids)
    assert model(input_ids=ids).logits.dtype == torch.float32


def test_frozen_weights_are_cast_once_and_stay_as_they_are() -> None:
    model = AutoModelForCausalLM.from_config(CONFIG)
    frozen = model.transformer.h[0].mlp.c_fc.weight.requires_grad_(False)
    before = frozen.clone()
    weights = WorkingWeights(model)
    copies = []
    for mode in (torch.inference_mode, torch.enable_grad):  # an evaluation first, whose copies a training step goes on with
        with weights.in_use(), mode():
            copies.append(model.transformer.h[0].mlp.c_fc.weight)
            loss = model(input_ids=torch.arange(12)[None], labels=torch.arange(12)[None]).loss
    loss.backward()
    assert copies[0] is copies[1]
    assert copies[0].dtype == torch.bfloat16
    assert frozen.equal(before)
    with torch.no_grad():
        frozen.add_(1.0)
    with weights.in_use():
        assert model.transformer.h[0].mlp.c_fc.weight.equal(frozen.to(torch.bfloat16))


def test_in_bf16_true_only_weights_are_bf16(corpus: Path, run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of targets is exact, where bf16 knows 256 and 258 and nothing between; sums are fp64, labels and class weights fp32."""
    exact: list[bool] = []
    counts: list[int] = []
    labels: list[Tensor] = []
    step, loss_sum = Objective.training_step, Objective.loss_sum

    def watch_step(self: Objective, batch: Any, index: int) -> Any:
        outputs = step(self, batch, index)
        counts.append(batch.rank_targets)
        exact.append(float(outputs["targets"]) == batch.rank_targets and outputs["loss_sum"].dtype == torch.float64)
        return outputs

    def watch_loss(self: Objective, batch: Any) -> Tensor:
        labels.append(batch.targets)
        return loss_sum(self, batch)

    monkeypatch.setattr(Objective, "training_step", watch_step)
    monkeypatch.setattr(Objective, "loss_sum", watch_loss)
    short = ["trainer.precision=bf16-true", "trainer.max_steps=2"]
    text = ["data=text", f"data.train={corpus}", "data.document=line", "data.block_size=32", "data.packing=concat"]
    run("task=pretrain", *TINY_GPT, *text, "batch.sequences=17", *short, f"run_dir={tmp_path}/text")
    assert exact == [True, True]
    assert any(count > 256 and count % 2 for count in counts), counts
    rows = [{"text": f"a house of {i} rooms", "label": 1 / (i + 3)} for i in range(60)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    table = ["data=files", f"data.train={tmp_path}/train.jsonl", "data.columns.label=label", *TINY_BERT, *short]
    labels.clear()
    run("task=finetune", "objective=regression", *table, f"run_dir={tmp_path}/numbers")
    known = torch.tensor([row["label"] for row in rows])
    assert all(bool((label == known).any()) for batch in labels for label in batch.flatten().float())
    classes = [row | {"label": f"class {i % 2}"} for i, row in enumerate(rows)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, classes)))
    run("task=finetune", *table, "objective.class_weights=[1.001,1]", f"run_dir={tmp_path}/classes")


def test_gradients_are_clipped_after_they_are_unscaled() -> None:
    """As under trainer.precision=16-mixed: their norm, and what they are clipped to, is that of the loss that was not scaled."""
    model = AutoModelForCausalLM.from_config(CONFIG)
    plain = copy.deepcopy(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.arange(24).view(2, 12)
    scaler.scale(model(input_ids=ids, labels=ids).loss).backward()
    norm = clip_gradients(model, optimizer, 0.01, scaler)
    plain(input_ids=ids, labels=ids).loss.backward()
    torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.01))
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.parametrize(("unit", "found"), [("the CPU's AMX", "bf16-mixed"), (None, "32-true")])
def test_auto_is_what_the_hardware_multiplies(
    unit: str | None, found: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "bf16_unit", lambda accelerator: unit)
    engine = trainer.build_trainer(TrainerConfig(accelerator="cpu", devices=1, precision="auto"), tmp_path, 1, 1, [], [])
    assert engine.precision == found
    assert isinstance(engine.precision_plugin, MasterWeights) == (unit is not None)


def test_a_model_that_takes_no_flat_batches_is_padded_and_the_log_says_why(reviews: Path, run: Runner, tmp_path: Path) -> None:
    sizes = "num_hidden_layers: 1, hidden_size: 32, intermediate_size: 64, num_attention_heads: 2"
    given = ["task=finetune", "data=files", f"data.train={reviews}", "data.columns.text=body", "data.columns.label=stars"]
    given += ["model=bert_tiny", "model.architecture=mpnet", f"++model.config={{{sizes}}}", "model.tokenizer.vocab_size=400"]
    summary = run(*given, "trainer.max_steps=3", f"run_dir={tmp_path}")
    said = (tmp_path / "train.log").read_text()
    assert said.count("batches padded to their longest sequence, as its attention is code of its own") == 1
    assert "without padding" not in said
    assert summary["throughput"]["padding_fraction"] > 0
