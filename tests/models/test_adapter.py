"""Adapters are what their papers say, train nothing else, and end as a model that needs neither peft nor us."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.pytorch_utils import Conv1D

from llm_lightning.config.compose import load_config
from llm_lightning.config.schema import AdapterConfig
from llm_lightning.errors import UserError
from llm_lightning.models import adapter, build
from llm_lightning.models.flat_check import use_flat_batches
from llm_lightning.models.forward import token_loss
from llm_lightning.models.low_rank import LoraLinear, replace
from llm_lightning.objectives.instruction import Instruction
from llm_lightning.run import evaluate
from llm_lightning.training.checkpoints import list_checkpoints

from ..conftest import TINY_BERT, TINY_GPT, Runner
from ..objectives.test_supervised import TINY_MARIAN, made, tasks, write
from . import test_padding_free as padding_free

LORA = ["model/adapter=lora", "model.adapter.rank=4", "optimizer.lr=2e-2"]
OBJECTIVES = {"classification": TINY_BERT, "tagging": TINY_GPT, "translation": TINY_MARIAN, "instruction": TINY_GPT}


@pytest.fixture
def pretrained(cache: Path, tmp_path: Path) -> Callable[[str], list[str]]:
    """The command line of an objective with the checkpoint `base`, whose weights are random; it has no head, and no pooler."""

    def save(objective: str) -> list[str]:
        data = tasks(tmp_path) if objective == "instruction" else [*write(tmp_path, objective), *OBJECTIVES[objective]]
        source, module = made(cache, *data)
        whole = source.model if objective in ("translation", "instruction") else source.model.base_model
        weights = {name: value for name, value in whole.state_dict().items() if "pooler" not in name}
        whole.save_pretrained(tmp_path / "base", state_dict=weights)
        module.dataset.tokenizer.save_pretrained(tmp_path / "base")
        return [*data, f"model.name_or_path={tmp_path}/base"]

    return save


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_only_the_adapter_and_what_is_new_is_trained(
    objective: str, kind: str, pretrained: Callable[[str], list[str]], run: Runner, tmp_path: Path
) -> None:
    given = [*pretrained(objective), *LORA, f"model/adapter={kind}", "trainer.max_epochs=null", "trainer.max_steps=6"]
    summary = run(*given, "trainer.validate_every_steps=3", "trainer.precision=32-true", f"run_dir={tmp_path}/run")
    assert 0 < summary["model"]["trained"] < 0.6 * summary["model"]["parameters"]
    state = torch.load(list_checkpoints(tmp_path / "run" / "checkpoints")[-1], weights_only=True)["state_dict"]
    assert sum(value.numel() for value in state.values()) < 1.1 * summary["model"]["trained"]
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("base", "run/hf"))
    own = {name.partition(".")[2] if name not in before else name: value for name, value in after.items()}
    moved = {name for name, value in before.items() if not torch.equal(value, own[name])}
    assert moved
    for name in moved:  # a matrix of a layer, and its change is of low rank
        assert "layer" in name or "h." in name
        assert before[name].ndim == 2
        if kind == "lora":
            assert int(torch.linalg.matrix_rank((own[name] - before[name]).double(), rtol=1e-4)) <= 4
    assert evaluate(load_config(["task=evaluate", f"run={tmp_path}/run"]))["metrics"] == summary["metrics"]


def test_the_adapter_by_itself_and_the_whole_model_say_the_same(
    pretrained: Callable[[str], list[str]], run: Runner, tmp_path: Path
) -> None:
    """W' = W + alpha / rank · B A (Hu et al. 2022, equation 3), by peft and by hand."""
    run(*pretrained("classification"), *LORA, "model.adapter.alpha=12", "trainer.max_epochs=2", f"run_dir={tmp_path}/run")
    labels = json.loads((tmp_path / "run" / "hf" / "config.json").read_text())["id2label"]
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=len(labels))
    other = PeftModel.from_pretrained(plain, tmp_path / "run" / "adapter").eval()
    whole = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "hf").eval()
    text = AutoTokenizer.from_pretrained(tmp_path / "run" / "hf")("Ann met Bob in Rome", return_tensors="pt")
    torch.testing.assert_close(whole(**text).logits, other(**text).logits, atol=1e-5, rtol=1e-5)
    small = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    name = "encoder.layer.1.attention.self.query"
    a, b = (small[f"base_model.model.bert.{name}.lora_{part}.weight"] for part in "AB")
    before, after = load_file(tmp_path / "base" / "model.safetensors"), whole.state_dict()
    torch.testing.assert_close(after[f"bert.{name}.weight"], before[f"{name}.weight"] + 12 / 4 * b @ a)


def test_a_run_with_an_adapter_goes_on_where_it_was_killed(
    pretrained: Callable[[str], list[str]], run: Runner, killed: Callable[..., None], tmp_path: Path
) -> None:
    given = [*pretrained("classification"), *LORA, "trainer.max_epochs=2", "trainer.validate_every_steps=2"]
    whole = run(*given, f"run_dir={tmp_path}/whole")
    killed(*given, f"run_dir={tmp_path}/run", after=2)
    assert run(*given, f"run_dir={tmp_path}/run")["metrics"] == whole["metrics"]
    first, second = (load_file(tmp_path / name / "hf" / "model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_patterns_freeze_parameters(precision: str, pretrained: Callable[[str], list[str]], run: Runner, tmp_path: Path) -> None:
    """What is exported of them is what the checkpoint has, bit for bit, whatever training computes in; and what is scored is that."""
    freeze = "model.freeze=['*.embeddings.*','*.layer.0.*']"
    given = ["optimizer.lr=1e-2", "trainer.max_epochs=1", f"trainer.precision={precision}", f"run_dir={tmp_path}/run"]
    summary = run(*pretrained("classification"), freeze, *given)
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("base", "run/hf"))
    for name, value in before.items():
        assert torch.equal(value, after[f"bert.{name}"]) == ("embeddings" in name or "layer.0." in name), name
        assert after[f"bert.{name}"].dtype == torch.float32
    assert evaluate(load_config(["task=evaluate", f"run={tmp_path}/run"]))["metrics"] == summary["metrics"]


@pytest.mark.parametrize("objective", ["instruction", "translation"])
def test_an_adapter_in_bf16_writes_samples(
    objective: str, pretrained: Callable[[str], list[str]], run: Runner, tmp_path: Path
) -> None:
    """At each validation, though the weights under the adapter are bf16 and its own are fp32."""
    given = [*pretrained(objective), *LORA, "trainer.precision=bf16-mixed", "trainer.max_epochs=null", "trainer.max_steps=4"]
    run(*given, "trainer.validate_every_steps=2", f"run_dir={tmp_path}/run")
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert {sample["step"] for sample in samples} == {2, 4}
    assert "samples:" not in (tmp_path / "run" / "train.log").read_text()


def test_samples_that_fail_are_said_to_once(
    pretrained: Callable[[str], list[str]], run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the place in the code, and training goes on."""

    def fail(self: Instruction) -> list[dict[str, str]]:
        raise KeyError("a mistake of ours")

    monkeypatch.setattr(Instruction, "samples", fail)
    given = ["trainer.max_epochs=null", "trainer.max_steps=2", "trainer.validate_every_steps=1", f"run_dir={tmp_path}/run"]
    assert run(*pretrained("instruction"), *given)["steps"] == 2
    log = (tmp_path / "run" / "train.log").read_text()
    assert log.count("samples: the run goes on without, as writing them failed (KeyError: 'a mistake of ours')") == 1
    assert log.count('raise KeyError("a mistake of ours")') == 1


WRONG = [
    (["model.freeze=['*.layers.*']"], r"model.freeze: no parameter matches '\*\.layers\.\*'; there are bert\.embeddings"),
    (["model.freeze=['*']"], r"model.freeze=\['\*'\]: nothing is left to train"),
    (
        [*LORA, "model.adapter.targets=[query,volume]"],
        "no linear layer's name ends in 'volume'; there are query, key, value, dense",
    ),
    ([*LORA, "trainer.precision=fp8"], "fp8: not together with an adapter"),
    (["model/adapter=qlora"], "needs bitsandbytes; pip install"),
    (["model.adapter.rank=4"], "model.adapter.rank: there is no adapter; choose model/adapter=lora"),
    ([*LORA, "model.name_or_path=null"], "weights from scratch have to be trained themselves"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_what_cannot_be_trained_is_said(
    wrong: list[str], message: str, pretrained: Callable[[str], list[str]], run: Runner, tmp_path: Path
) -> None:
    given = pretrained("classification")
    with pytest.raises(UserError, match=message):
        run(*given, *wrong, f"run_dir={tmp_path}/run")


def test_an_adapter_of_the_head_is_part_of_the_loss() -> None:
    model = padding_free.made("llama", "CausalLM")
    adapter.add(model, AdapterConfig(kind="lora", rank=2, targets=["lm_head"]), [])
    torch.nn.init.normal_(model.get_output_embeddings().lora_B["default"].weight)
    reference = copy.deepcopy(model)
    batch = padding_free.collated("stream")
    given = padding_free.rows_of(batch)
    logits = reference(**given).logits[given["attention_mask"].bool()]
    expected = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="sum")
    padding_free.assert_same(token_loss(use_flat_batches(model), batch), expected, model, reference)


@pytest.mark.parametrize(
    "base", [nn.Linear(24, 40), nn.Linear(24, 40, bias=False), Conv1D(40, 24)], ids=["linear", "no bias", "conv1d"]
)
def test_the_product_of_an_adapted_matrix_is_that_of_peft(base: nn.Module) -> None:
    """Result and gradients in fp64; of the tensors that are as large as input or result, the input alone is kept."""
    transposed = isinstance(base, Conv1D)
    settings = LoraConfig(r=3, lora_alpha=7, target_modules=["0"], init_lora_weights=False, fan_in_fan_out=transposed)
    theirs = get_peft_model(nn.Sequential(base), settings).double()
    ours = copy.deepcopy(theirs)
    replace(ours)
    assert any(isinstance(module, LoraLinear) for module in ours.modules())
    x = torch.randn(2, 50, 24, dtype=torch.float64)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    slopes = torch.randn(2, 50, 40, dtype=torch.float64)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        found = ours(inputs[0])
    expected = theirs(inputs[1])
    torch.testing.assert_close(found, expected)
    for result in (found, expected):
        (result * slopes).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    gradients = [{name: p.grad for name, p in model.named_parameters() if p.requires_grad} for model in (ours, theirs)]
    torch.testing.assert_close(*gradients)
    assert len(gradients[0]) == 2
    assert [tensor.numel() for tensor in kept if tensor.numel() >= 2 * 50 * 24] == [2 * 50 * 24]


def test_a_bf16_checkpoint_under_an_adapter_is_never_fp32(
    pretrained: Callable[[str], list[str]], run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It trains as if it were read in fp32; peft rounds the first draw of the adapter to the type of the base."""
    given = [*pretrained("instruction"), *LORA, "trainer.precision=bf16-mixed", "trainer.max_epochs=null", "trainer.max_steps=4"]
    AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.bfloat16).save_pretrained(tmp_path / "base")
    read: list[set[torch.dtype]] = []
    add = adapter.add

    def watch(model: nn.Module, *others: object) -> None:
        read.append({parameter.dtype for parameter in model.parameters()})
        add(model, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(adapter, "add", watch)
    found = run(*given, f"run_dir={tmp_path}/bf16")
    monkeypatch.setattr(build, "_choose_dtype", lambda *_: torch.float32)
    expected = run(*given, f"run_dir={tmp_path}/fp32")
    assert read == [{torch.bfloat16}, {torch.float32}]
    assert found["metrics"]["validation/loss"] == pytest.approx(expected["metrics"]["validation/loss"], rel=1e-3)
