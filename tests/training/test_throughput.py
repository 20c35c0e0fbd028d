"""The meter: FLOPs against those that PyTorch counts in Hugging Face's own forward and backward, and whose time a second is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from llm_lightning.config.schema import AdapterConfig
from llm_lightning.models import adapter
from llm_lightning.training import meter as module
from llm_lightning.training.divergence import Diverged, DivergenceGuard
from llm_lightning.training.meter import Meter
from llm_lightning.training.progress_bar import ProgressBar
from llm_lightning.training.throughput import Flops

from ..models.test_padding_free import VOCABULARY, made

ROWS, LENGTH = 4, 24


def counted(model: PreTrainedModel, **given: torch.Tensor) -> float:
    """FLOPs of the logits and their gradients."""
    ids = torch.randint(3, VOCABULARY, (ROWS, LENGTH))
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, **given).logits.sum().backward()
    return float(counter.get_total_flops())


def assert_near(found: float, expected: float, tolerance: float = 0.01) -> None:
    assert found == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize(
    "architecture", ["bert", "roberta", "distilbert", "electra", "modernbert", "gpt2", "llama", "qwen3", "mistral"]
)
def test_flops_of_a_language_model(architecture: str) -> None:
    model = made(architecture, "CausalLM" if architecture in ("gpt2", "llama", "qwen3", "mistral") else "MaskedLM")
    lengths = np.full(ROWS, LENGTH)
    if getattr(model.config, "sliding_window", None) is not None:
        model.config.sliding_window = LENGTH  # the reference computes what its mask then throws away
    assert_near(Flops.of(model, lengths)(ROWS * LENGTH, ROWS * LENGTH), counted(model))


def test_a_head_counts_for_its_targets_alone() -> None:
    model = made("bert", "SequenceClassification")
    assert_near(Flops.of(model, np.full(ROWS, LENGTH))(ROWS * LENGTH, ROWS), counted(model))


def test_heads_wider_than_the_model() -> None:
    config = AutoConfig.for_model(
        "qwen3",
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=24,
    )
    model = AutoModelForCausalLM.from_config(config)
    assert_near(Flops.of(model, np.full(ROWS, LENGTH))(ROWS * LENGTH, ROWS * LENGTH), counted(model))


@pytest.mark.parametrize("kind", ["adapter", "head", "upper"])
def test_what_is_not_trained_has_no_gradient_to_compute(kind: str) -> None:
    model = made("gpt2" if kind == "adapter" else "bert", "SequenceClassification")
    if kind == "adapter":
        adapter.add(model, AdapterConfig(kind="lora", rank=2, targets=["c_attn"]), [])
    else:
        adapter.freeze(model, ["bert.*"] if kind == "head" else ["bert.embeddings.*", "bert.encoder.layer.[01].*"])
    # the first layer's keys and values are behind its queries
    assert_near(Flops.of(model, np.full(ROWS, LENGTH))(ROWS * LENGTH, ROWS), counted(model), 0.06)


MARIAN: dict[str, Any] = {
    **{"d_model": 32, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4},
    **{"encoder_ffn_dim": 64, "decoder_ffn_dim": 48},
}
T5: dict[str, Any] = {"d_model": 32, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4, "d_kv": 8, "d_ff": 64}


@pytest.mark.parametrize(("architecture", "sizes"), [("marian", MARIAN), ("t5", T5)])
def test_an_encoder_reads_what_a_decoder_does_not(architecture: str, sizes: dict[str, Any]) -> None:
    special = {"vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}
    config = AutoConfig.for_model(architecture, **special, **sizes)
    model = AutoModelForSeq2SeqLM.from_config(config).train()
    written = torch.randint(3, VOCABULARY, (ROWS, LENGTH))
    flops = Flops.of(model, np.full(ROWS, 2 * LENGTH))(2 * ROWS * LENGTH, ROWS * LENGTH)
    assert_near(flops, counted(model, decoder_input_ids=written), 0.1)  # without the decoder's attention to what is read


def test_what_is_no_linear_module_is_not_guessed() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "num_local_experts": 4}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", vocab_size=VOCABULARY, **sizes))
    assert Flops.of(model, np.full(ROWS, LENGTH)) == Flops(0.0, 0.0)


def test_a_window_bounds_what_a_token_is_held_against() -> None:
    whole, windowed = (made("mistral", "CausalLM") for _ in range(2))
    whole.config.sliding_window = None
    lengths = np.array([3, 24])  # the window is of five tokens
    width, count = 32, windowed.config.num_hidden_layers
    less = 12 * width * count * ((3 * 3 + 24 * 24) - (3 * 3 + 24 * 5)) / 27
    assert_near(Flops.of(whole, lengths).token - Flops.of(windowed, lengths).token, less)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_seconds_are_those_of_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a validation nor a state that is saved counts, as a step or as waiting for data."""
    clock = Clock()
    monkeypatch.setattr(module.time, "perf_counter", clock)
    meter = Meter(every=100, total_steps=100, cache=None)  # type: ignore[arg-type]

    def reduced(sums: torch.Tensor, reduce_op: str) -> torch.Tensor:
        clock.now += 0.5  # until the device, and the other rank, are as far
        return sums

    strategy = SimpleNamespace(reduce=reduced)
    trainer: Any = SimpleNamespace(
        world_size=2, strategy=strategy, global_step=0, loggers=[], state=SimpleNamespace(fn=TrainerFn.FITTING)
    )
    batch: Any = SimpleNamespace(tokens=10, positions=10, padded=10, sequences=1, epoch=0.0)
    outputs = {"loss_sum": torch.tensor(1.0), "targets": torch.tensor(1.0)}

    def step() -> None:
        clock.now += 1  # the batch is read
        meter.on_train_batch_start()
        clock.now += 2
        trainer.global_step += 1
        meter.on_train_batch_end(trainer, None, outputs, batch, 0)

    step()
    meter.pause(trainer)
    clock.now += 50  # a state is saved
    step()
    clock.now += 30  # the validation's loader is made
    meter.on_validation_start(trainer, None)  # type: ignore[arg-type]
    clock.now += 70
    step()
    step()
    meter.gather(trainer)
    assert meter.interval["seconds"] == 3.5 + 2.5 + 2 + 3.5  # the first batch after a pause is read in it
    assert meter.interval["waited"] == 2
    assert meter._percentile(1.0) == pytest.approx(3.5, rel=0.02)
    assert meter._percentile(0.25) == pytest.approx(2, rel=0.02)
    again = Meter(every=100, total_steps=100, cache=None)  # type: ignore[arg-type]
    again.load_state_dict(meter.state_dict())  # of a run that has nothing left to train
    assert again.throughput() == meter.throughput()
    assert again.throughput()["tokens_per_second"] == 40 / 11.5
    assert again.throughput()["peak_memory_gib"] > 0


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_not_logged_and_ends_the_run(loss: float) -> None:
    """At the end of an interval, before a validation, and before a state is saved."""
    rows: list[dict[str, float]] = []
    logger = SimpleNamespace(log_metrics=lambda values, step: rows.append(values))
    trainer: Any = SimpleNamespace(world_size=1, global_step=0, loggers=[logger], state=SimpleNamespace(fn=TrainerFn.FITTING))
    batch: Any = SimpleNamespace(tokens=10, positions=10, padded=10, sequences=1, epoch=0.0)
    meter = Meter(every=2, total_steps=100, cache=None)  # type: ignore[arg-type]
    guard = DivergenceGuard(meter)

    def step(value: float) -> None:
        trainer.global_step += 1
        outputs = {"loss_sum": torch.tensor(value), "targets": torch.tensor(1.0), "learning_rate": 0.1, "gradient_norm": 1.0}
        meter.on_train_batch_end(trainer, None, outputs, batch, 0)
        guard.on_train_batch_end(trainer)

    step(1.0)
    step(3.0)
    assert [row["train/loss"] for row in rows] == [2.0]
    step(loss)  # it is on the device still
    meter.pause(trainer)
    for check in (guard.on_validation_start, guard.on_save_checkpoint):
        with pytest.raises(Diverged, match=f"training loss is {loss} at step 3"):
            check(trainer)
    with pytest.raises(Diverged, match="at step 4"):
        step(1.0)
    assert len(rows) == 1


def test_the_bar_shows_the_values_of_the_last_interval(capsys: pytest.CaptureFixture[str]) -> None:
    meter = Meter(every=2, total_steps=4, cache=None)  # type: ignore[arg-type]
    trainer: Any = SimpleNamespace(is_global_zero=True, global_step=0)
    bar = ProgressBar(meter)
    bar.on_train_start(trainer, None)  # type: ignore[arg-type]
    meter.values = {"train/loss": 2.5, "train/learning_rate": 1e-3, "train/tokens_per_second": 1234.0, "train/mfu": 0.25}
    for trainer.global_step in (1, 2, 3):
        bar.on_train_batch_end(trainer)
    bar.on_train_end()
    shown = capsys.readouterr().err.rpartition("\r")[2]
    assert "2/4" in shown
    assert "loss 2.500 · lr 1.0e-03 · 1,234 tokens/s · MFU 25%" in shown
