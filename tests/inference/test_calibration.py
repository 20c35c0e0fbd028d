"""An export has softmax(logits / T) in every program, and the predictions of the trained weights; T is applied once, whatever is killed."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification

import llm_lightning
from llm_lightning import run as run_module
from llm_lightning.config.compose import load_config
from llm_lightning.errors import UserError
from llm_lightning.inference import export as exports
from llm_lightning.inference.export import divide_parameters
from llm_lightning.models import build
from llm_lightning.models.temperature import ENTRY, find_scale_parameters
from llm_lightning.run import evaluate
from llm_lightning.run import run as start

from ..conftest import QUIET, TINY_BERT, Runner
from ..models.test_build import CLASSIFIER, POSITIONS, words
from ..models.test_head import MODELS, TRAINED, closing_tokenizer, saved  # noqa: F401

TEXTS = ["a great film", "quite awful plot and was", "really", "fine"]
WORDS = {"bad": "awful", "good": "great", "mixed": "fine"}
TRAINING = ["trainer.max_epochs=3", "batch.sequences=8", "optimizer.lr=5e-3", "trainer.precision=32-true"]
SMOOTHED = "objective.label_smoothing=0.6"
"""Makes a model far less sure than it is right."""


def write_rows(folder: Path, several: bool = False) -> list[str]:
    """Reviews whose labels are drawn anew in a quarter of the rows."""
    rng = random.Random(0)
    for split, count in (("train", 240), ("validation", 150), ("test", 150)):
        lines = []
        for _ in range(count):
            labels = [name for name in WORDS if rng.random() < 0.5] if several else [rng.choice(list(WORDS))]
            filler = [rng.choice(["really", "film", "plot", "and", "was", "quite"]) for _ in range(rng.randint(1, 10))]
            text = " ".join([*filler, *(WORDS[name] for name in labels)])
            if rng.random() < 0.25:
                labels = [rng.choice(list(WORDS))]
            lines.append(json.dumps({"text": text, "label": labels if several else labels[0]}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    objective = ["objective=multi_label"] if several else ["objective=classification", SMOOTHED]
    return ["task=finetune", *objective, "data=files", f"data.dir={folder}", "data.columns.label=label", *TINY_BERT]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_rows(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def twins(data: list[str], tmp_path_factory: pytest.TempPathFactory, cache: Path) -> dict[bool, Path]:
    """The run folders of the same training, calibrated and not."""
    folder = tmp_path_factory.mktemp("twins")
    for calibrate in (True, False):
        arguments = [*data, *TRAINING, f"objective.calibrate={calibrate}", f"run_dir={folder}/{calibrate}"]
        start(load_config([*QUIET, f"cache_dir={cache}", *arguments]))
    return {calibrate: folder / str(calibrate) for calibrate in (True, False)}


def summary_of(folder: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


def logits_of(folder: Path, texts: list[str] = TEXTS) -> torch.Tensor:
    """The logits that plain transformers computes."""
    rows = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        logits: torch.Tensor = AutoModelForSequenceClassification.from_pretrained(folder).eval()(**rows).logits
    return logits


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "bert tags"])
def test_every_head_is_divided_for_plain_transformers(kind: str, saved: Callable[..., Any], tmp_path: Path) -> None:  # noqa: F811
    """BERT, RoBERTa, DistilBERT, GPT-2 (`score`, without a bias), T5 and others: nothing but the last layer and the config changes."""
    model, config = saved(kind, TRAINED)
    ids = torch.tensor([[*words(9, seed), 1] for seed in range(5)])
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def compute() -> torch.Tensor:
        logits: torch.Tensor = model(input_ids=ids).logits
        return logits

    parameters = find_scale_parameters(model, compute)
    assert parameters is not None
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert divide_parameters(tmp_path / "hf", parameters, 1.7, {ENTRY: {"temperature": 1.7, "rows": 9}})
    divided = AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf").eval()
    with torch.inference_mode():
        before, after = compute(), divided(input_ids=ids).logits
    torch.testing.assert_close(after, before / 1.7, rtol=1e-4, atol=1e-5)
    assert torch.equal(after.argmax(-1), before.argmax(-1))
    assert {name for name, tensor in divided.state_dict().items() if not torch.equal(tensor, state[name])} == set(parameters)
    assert divided.config.calibration == {"temperature": 1.7, "rows": 9}
    trained_on = build.build_model(config, CLASSIFIER, closing_tokenizer(), POSITIONS, build.classes(TRAINED))
    assert not hasattr(trained_on.config, ENTRY)  # its weights will be others


class Bounded(nn.Module):
    """A head with a function behind its last layer, which a division does not pass."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.last = nn.Linear(width, classes)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.last(hidden).tanh()


@pytest.mark.parametrize("head", [Bounded(16, 3), nn.Identity()])
def test_a_head_that_no_division_passes_is_left_as_it_is(head: nn.Module) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertForSequenceClassification(BertConfig(**sizes, vocab_size=60, num_labels=3)).eval()
    model.classifier = head
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert find_scale_parameters(model, lambda: model(input_ids=torch.tensor([words(9)])).logits) is None
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_of_several_files_only_that_of_the_head_is_written(saved: Callable[..., Any], tmp_path: Path) -> None:  # noqa: F811
    """A half-precision head becomes fp32: its quotient would round to others. A name that no file has changes nothing."""
    model, _ = saved("bert", TRAINED)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "sharded", max_shard_size="2KB")
    files = {file.name: file.stat().st_ino for file in (tmp_path / "sharded").glob("*.safetensors")}
    assert len(files) > 1
    assert not divide_parameters(tmp_path / "sharded", ["classifier.weight", "classifier.scale"], 3.0, {})
    assert divide_parameters(tmp_path / "sharded", ["classifier.weight", "classifier.bias"], 3.0, {})
    changed = {name for name, inode in files.items() if (tmp_path / "sharded" / name).stat().st_ino != inode}
    assert 0 < len(changed) <= 2 < len(files)
    tensors: dict[str, torch.Tensor] = {}
    for name in files:
        tensors |= load_file(tmp_path / "sharded" / name)
        with safe_open(tmp_path / "sharded" / name, "pt") as file:
            assert file.metadata() == {"format": "pt"}
    torch.testing.assert_close(tensors["classifier.weight"], model.classifier.weight.detach().float() / 3)
    assert tensors["bert.pooler.dense.weight"].dtype == torch.bfloat16


def test_a_calibrated_run_has_the_predictions_of_the_other(twins: dict[bool, Path], tmp_path: Path) -> None:
    calibrated, plain = (summary_of(twins[key]) for key in (True, False))
    entry = calibrated["calibration"]
    assert plain["calibration"] is None
    assert entry["temperature"] < 0.6
    assert (entry["rows"], entry["of"]) == (150, "validation")
    for split in ("validation", "test"):
        for name in ("accuracy", "macro_f1", "mcc"):
            assert calibrated["metrics"][f"{split}/{name}"] == plain["metrics"][f"{split}/{name}"]
        assert entry["ece_before"][split] == pytest.approx(plain["metrics"][f"{split}/ece"], abs=1e-5)
        assert entry["ece"][split] == calibrated["metrics"][f"{split}/ece"] < 0.5 * entry["ece_before"][split]
    torch.testing.assert_close(logits_of(twins[True] / "hf"), logits_of(twins[False] / "hf") / entry["temperature"])
    said = llm_lightning.load(twins[True]).predict(TEXTS)
    shares = logits_of(twins[True] / "hf").softmax(-1).numpy()
    assert [list(row["scores"].values()) for row in said] == [pytest.approx(row, abs=1e-5) for row in shares.tolist()]

    folder = tmp_path / "onnx"
    start(load_config(["task=export", f"run={twins[True]}", "export.format=onnx", f"out={folder}"]))
    rows = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="np")
    inputs = {name: rows[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
    (logits,) = onnxruntime.InferenceSession(str(folder / "model.onnx")).run(None, inputs)
    assert logits == pytest.approx(logits_of(twins[True] / "hf").numpy(), abs=1e-4)

    card = (twins[True] / "hf" / "README.md").read_text()
    assert f"logits divided by {entry['temperature']:.4f}, fitted on 150 rows of validation" in card
    report = (twins[True] / "report.html").read_text()
    assert "before the temperature" in report
    assert "Risk and coverage" in report
    assert evaluate(load_config(["task=evaluate", f"run={twins[True]}"]))["metrics"] == calibrated["metrics"]


def test_a_run_killed_around_the_division_divides_once(
    twins: dict[bool, Path], data: list[str], run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while the divided weights are written, and again between them and the evaluation."""
    arguments = [*data, *TRAINING, "objective.calibrate=True", f"run_dir={tmp_path}/run"]

    class Killed(BaseException):
        pass

    def die(*arguments: Any) -> None:
        raise Killed

    for module, name, is_divided in ((exports, "save_file", False), (run_module, "evaluate_splits", True)):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, die)
            with pytest.raises(Killed):
                run(*arguments)
        assert (ENTRY in json.loads((tmp_path / "run" / "hf" / "config.json").read_text())) == is_divided
        assert not (tmp_path / "run" / "summary.json").exists()
    summary, expected = run(*arguments), summary_of(twins[True])
    assert summary["metrics"] == expected["metrics"]
    assert summary["calibration"] == expected["calibration"]
    ours, others = (load_file(folder / "hf" / "model.safetensors") for folder in (tmp_path / "run", twins[True]))
    assert all(torch.equal(tensor, others[name]) for name, tensor in ours.items())


def test_a_longer_run_calibrates_its_new_weights(data: list[str], run: Runner, tmp_path: Path) -> None:
    arguments = [*data, *TRAINING, f"run_dir={tmp_path}/run"]
    short, long = run(*arguments, "trainer.max_epochs=1"), run(*arguments)
    assert long["best_step"] > short["best_step"]
    assert short["calibration"]["temperature"] != long["calibration"]["temperature"]
    state = json.loads((tmp_path / "run" / "hf" / "config.json").read_text())[ENTRY]
    assert state == {name: long["calibration"][name] for name in ("temperature", "rows")}


def test_an_adapter_and_the_model_that_it_is_merged_into_are_calibrated(
    twins: dict[bool, Path], data: list[str], run: Runner, tmp_path: Path
) -> None:
    lora = [f"model.name_or_path={twins[False]}/hf", "model/adapter=lora", "optimizer.lr=2e-2", "trainer.max_epochs=2"]
    given = [*(word for word in data if word not in TINY_BERT), "model=bert_base", *TRAINING, *lora]
    summaries = {
        calibrate: run(*given, f"objective.calibrate={calibrate}", f"run_dir={tmp_path}/{calibrate}") for calibrate in (True, False)
    }
    temperature = summaries[True]["calibration"]["temperature"]
    assert temperature != 1
    expected = logits_of(tmp_path / "False" / "hf") / temperature
    torch.testing.assert_close(logits_of(tmp_path / "True" / "hf"), expected)
    base = AutoModelForSequenceClassification.from_pretrained(twins[False] / "hf")
    adapter = PeftModel.from_pretrained(base, tmp_path / "True" / "adapter").eval()
    rows = AutoTokenizer.from_pretrained(tmp_path / "True" / "hf")(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        torch.testing.assert_close(adapter(**rows).logits, expected, rtol=1e-4, atol=1e-5)
    assert AutoConfig.from_pretrained(tmp_path / "True" / "adapter").calibration["temperature"] == temperature


def test_labels_that_apply_stay_the_same(run: Runner, tmp_path: Path) -> None:
    given = [*write_rows(tmp_path, several=True), *TRAINING]
    calibrated, plain = (run(*given, f"objective.calibrate={c}", f"run_dir={tmp_path}/{c}") for c in (True, False))
    entry = calibrated["calibration"]
    assert entry["temperature"] != 1
    for split in ("validation", "test"):
        assert calibrated["metrics"][f"{split}/micro_f1"] == plain["metrics"][f"{split}/micro_f1"]
        assert entry["ece"][split] != entry["ece_before"][split]
    texts = [json.loads(line)["text"] for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    said = {c: llm_lightning.load(tmp_path / str(c)).predict(texts) for c in (True, False)}
    assert [row["labels"] for row in said[True]] == [row["labels"] for row in said[False]]
    with pytest.raises(UserError, match=r"predict\.coverage=0\.9: .*several labels or none; leave it out"):
        llm_lightning.load(tmp_path / "True", "predict.coverage=0.9").predict(texts)


def predict(run: Path, out: Path, *overrides: str) -> list[dict[str, Any]]:
    start(load_config(["task=predict", f"run={run}", f"out={out}", "trainer.progress=none", *overrides]))
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.parametrize("conditional", [False, True])
def test_sets_are_those_of_the_validation_rows(conditional: bool, twins: dict[bool, Path], data: list[str], tmp_path: Path) -> None:
    """By the plain formula, from plain predictions of validation and of test, with two rows in between that have no prediction."""
    folder = Path(next(word for word in data if word.startswith("data.dir=")).removeprefix("data.dir="))
    rows = {
        split: [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]
        for split in ("validation", "test")
    }
    model = llm_lightning.load(twins[True])
    calibration = model.predict([row["text"] for row in rows["validation"]])
    true = [(row["label"], said["scores"][row["label"]]) for row, said in zip(rows["validation"], calibration, strict=True)]

    def threshold(name: str) -> float:
        values = sorted((p for label, p in true if not conditional or label == name), reverse=True)
        return float(values[int(np.ceil((len(values) + 1) * 0.8 - 1e-9)) - 1])

    (tmp_path / "rows.jsonl").write_text(
        "\n".join([*(folder / "test.jsonl").read_text().splitlines(), '{"text": " "}', '{"text": 3}'])
    )
    way = [f"data.predict={tmp_path}/rows.jsonl", "data.on_bad_row=skip", "predict.coverage=0.8"]
    *said, blank, wrong = predict(
        twins[True], tmp_path / "out.jsonl", *way, *(["predict.conditional=class"] if conditional else [])
    )
    assert blank.keys() == wrong.keys() == {"row", "error"}
    for row in said:
        names = [name for name, score in row["scores"].items() if score >= threshold(name) - 1e-6]
        assert (row["set"], row["abstain"]) == (names, len(names) != 1)
    assert {row["abstain"] for row in said} == {True, False}
    covered = np.mean([row["label"] in answer["set"] for row, answer in zip(rows["test"], said, strict=True)])
    assert covered == pytest.approx(0.8, abs=0.13)  # three standard deviations of 150 and 150 rows
    if not conditional:
        tables = json.loads((twins[True] / "evaluation" / "test.json").read_text())
        assert tables["sets"].keys() == {"aim", "coverage", "one_label", "accuracy_of_one_label"}
        assert tables["aurc"] == pytest.approx(np.mean(1 - np.array(tables["risk_coverage"]["accuracy"])), abs=0.02)


def test_sets_need_scores_and_a_run_of_an_earlier_version_gets_them(
    twins: dict[bool, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = Path(shutil.copytree(twins[False], tmp_path / "run"))
    (old / "hf" / "conformal.json").unlink()
    (old / "summary.json").write_text(json.dumps({k: v for k, v in summary_of(old).items() if k != "calibration"}))
    (tmp_path / "rows.txt").write_text("a great film\n")
    rows = f"data.predict={tmp_path}/rows.txt"
    (before,) = predict(old, tmp_path / "out.jsonl", rows)
    assert "set" not in before
    with pytest.raises(UserError, match=r"has no conformal.json, .*; task=evaluate run=.* writes it"):
        predict(old, tmp_path / "out.jsonl", rows, "predict.coverage=0.9")
    with pytest.raises(UserError, match=r"has no conformal.json, .*give run=<run folder>, or train with model.name_or_path="):
        predict(old / "hf", tmp_path / "out.jsonl", rows, "predict.coverage=0.9")
    with pytest.raises(UserError, match=r"predict.conditional=class: needs predict.coverage"):
        predict(old, tmp_path / "out.jsonl", rows, "predict.conditional=class")
    evaluate(load_config(["task=evaluate", f"run={old}"]))
    assert (old / "hf" / "conformal.json").read_bytes() == (twins[False] / "hf" / "conformal.json").read_bytes()
    (after,) = predict(old, tmp_path / "out.jsonl", rows, "predict.coverage=0.9")
    assert {name: after[name] for name in before} == before
    predict(old, tmp_path / "out.jsonl", rows, "predict.coverage=0.999")
    assert "needs 999 validation rows, and there are 150: every set has all labels" in caplog.text
    scores = json.loads((old / "hf" / "conformal.json").read_text())
    scores["probabilities_of_the_true_label"].pop("good")
    (old / "hf" / "conformal.json").write_text(json.dumps(scores))
    with pytest.raises(UserError, match="it belongs to another model"):
        predict(old, tmp_path / "out.jsonl", rows, "predict.coverage=0.9")
    (old / "hf" / "conformal.json").write_text("{")
    with pytest.raises(UserError, match=r"conformal.json: the scores of validation rows cannot be read"):
        predict(old, tmp_path / "out.jsonl", rows, "predict.coverage=0.9")


def test_an_export_takes_its_scores_along(twins: dict[bool, Path], tmp_path: Path) -> None:
    start(load_config(["task=export", f"run={twins[True]}", f"out={tmp_path}/hf"]))
    assert (tmp_path / "hf" / "conformal.json").read_bytes() == (twins[True] / "hf" / "conformal.json").read_bytes()
    said = llm_lightning.load(tmp_path / "hf", "predict.coverage=0.8", "trainer.precision=32-true").predict(TEXTS)
    assert said == llm_lightning.load(twins[True], "predict.coverage=0.8").predict(TEXTS)
