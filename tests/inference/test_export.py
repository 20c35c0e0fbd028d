"""An export is the model: plain transformers, peft and ONNX Runtime say of a text what we say of it, and training goes on from it."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, ByT5Tokenizer, T5Config, T5ForSequenceClassification, pipeline

import llm_lightning
from llm_lightning.config.compose import load_config
from llm_lightning.errors import RunError, UserError
from llm_lightning.inference import onnx
from llm_lightning.inference.export import export as write_folder
from llm_lightning.reporting.card import write_card
from llm_lightning.run import run as start

from ..conftest import Runner
from ..models.architectures import Tokenizer, build_tiny
from ..objectives.test_supervised import TINY_MARIAN, write
from ..test_api import classifier  # noqa: F401
from .test_generate import writer  # noqa: F401

TEXTS = ["a great film", "quite awful plot and was", "really"]


def export(run: Path, kind: str, out: Path) -> Path:
    start(load_config(["task=export", f"run={run}", f"export.format={kind}", f"out={out}"]))
    return out


def test_a_pipeline_of_the_export_predicts_the_same_and_it_trains_on(
    classifier: Path,  # noqa: F811
    reviews: Path,
    run: Runner,
    tmp_path: Path,
) -> None:
    folder = export(classifier, "hf", tmp_path / "export")
    ours = llm_lightning.load(classifier).predict(TEXTS)
    theirs = pipeline("text-classification", model=str(folder), top_k=None)(TEXTS)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["scores"] == pytest.approx({each["label"]: each["score"] for each in other}, abs=1e-5)
    assert llm_lightning.load(folder, "trainer.precision=32-true").predict([{"text": text} for text in TEXTS]) == ours
    assert len({file.stat().st_mode for file in folder.iterdir()}) == 1  # whoever may read one may read all
    card = (folder / "README.md").read_text()
    assert all(part in card for part in ("pipeline_tag: text-classification", "**Limits.**", "validation/accuracy"))
    data = ["data=files", f"data.train={reviews}", "data.columns.text=body", "data.columns.label=stars"]
    again = run("task=finetune", *data, f"model.name_or_path={folder}", "trainer.max_steps=1", f"run_dir={tmp_path}/again")
    assert again["metrics"]["validation/accuracy"] > 0.9


def test_an_objective_of_the_users_own_has_a_card(classifier: Path, tmp_path: Path) -> None:  # noqa: F811
    folder = Path(shutil.copytree(classifier, tmp_path / "run"))
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"objective": "ordinal"}))
    write_card(folder)
    card = (folder / "hf" / "README.md").read_text()
    assert "# ordinal on reviews" in card
    assert "pipeline" not in card


def test_onnx_says_what_torch_says(classifier: Path, tmp_path: Path) -> None:  # noqa: F811
    folder = export(classifier, "onnx", tmp_path / "onnx")
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    rows = dict(AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="np"))
    (logits,) = session.run(None, {name: rows[name].astype(np.int64) for name in ("input_ids", "attention_mask")})
    names = json.loads((folder / "config.json").read_text())["id2label"]
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    for row, mine in zip(shares, llm_lightning.load(classifier).predict(TEXTS), strict=True):
        assert {names[str(i)]: float(p) for i, p in enumerate(row)} == pytest.approx(mine["scores"], abs=1e-4)


def test_onnx_of_a_decoder_and_of_a_translator(writer: Path, run: Runner, tmp_path: Path) -> None:  # noqa: F811
    assert (export(writer, "onnx", tmp_path / "decoder") / "model.onnx").is_file()
    run(*write(tmp_path, "translation"), *TINY_MARIAN, "trainer.max_epochs=1", f"run_dir={tmp_path}/run")
    assert (export(tmp_path / "run", "onnx", tmp_path / "translator") / "model.onnx").is_file()


def test_a_file_whose_logits_are_others_is_not_kept(
    classifier: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(onnx, "TOLERANCE", -1.0)
    with pytest.raises(RunError, match="logits are off by"):
        export(classifier, "onnx", tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


@pytest.mark.parametrize("step", ["_trace", "_check"])
def test_a_model_that_cannot_be_exported_leaves_nothing(
    step: str,
    classifier: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*arguments: object) -> None:
        try:
            raise TypeError("an operator is missing\nand three pages more")
        except TypeError as error:
            raise ValueError("a report of several pages") from error

    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "mine.txt").write_text("kept")
    monkeypatch.setattr(onnx, step, fail)
    with pytest.raises(
        RunError, match=r"BertForSequenceClassification.*\(TypeError: an operator is missing\); nothing was exported"
    ):
        export(classifier, "onnx", tmp_path / "onnx")
    assert [file.name for file in (tmp_path / "onnx").iterdir()] == ["mine.txt"]


def test_onnx_of_an_encoder_decoder_that_classifies(tmp_path: Path) -> None:
    """T5 reads the class at the end of the text that its decoder repeats: no input of the file is the decoder's."""
    sizes = {"d_model": 16, "d_ff": 16, "num_layers": 1, "num_heads": 2, "d_kv": 8, "vocab_size": 384, "decoder_start_token_id": 0}
    model, tokenizer = T5ForSequenceClassification(T5Config(**sizes)).eval(), ByT5Tokenizer()
    onnx.export(model, tokenizer, tmp_path)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    assert [each.name for each in session.get_inputs()] == ["input_ids", "attention_mask"]
    for texts in (TEXTS, TEXTS[:1]):
        rows = tokenizer(texts, padding=True, return_tensors="pt")
        (logits,) = session.run(None, {name: rows[name].numpy() for name in ("input_ids", "attention_mask")})
        with torch.inference_mode():
            assert logits == pytest.approx(model(**rows).logits.numpy(), abs=1e-4)


@pytest.mark.parametrize("architecture", ["modernbert", "gpt_oss", "xlnet"])
def test_onnx_of_windows_of_experts_and_of_xlnet(architecture: str, tmp_path: Path) -> None:
    """Texts are longer than the window of 5 tokens, and so is their padding, some of which sees no token: its logits are not compared."""
    model = build_tiny(architecture).eval()
    onnx.export(model, Tokenizer(), tmp_path)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    rows = Tokenizer()(["a " * 40, "a " * 10])
    (logits,) = session.run(None, {name: value.numpy() for name, value in rows.items()})
    real = torch.full((2,), True) if architecture == "xlnet" else rows["attention_mask"].bool()
    with torch.inference_mode():
        assert logits[real.numpy()] == pytest.approx(model(**rows).logits[real].numpy(), abs=1e-4)


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("longformer", r"LongformerForMaskedLM cannot be exported \(its code branches on the values of a tensor, .*\)"),
        ("funnel", r"FunnelForMaskedLM on texts of other lengths .* \(a trace of its code holds for one number of tokens only\)"),
    ],
)
def test_the_reason_of_a_failure_is_in_plain_words_and_alone(
    architecture: str,
    reason: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = build_tiny(architecture)
    capsys.readouterr()
    caplog.clear()
    with pytest.raises(RunError, match=rf"^export\.format=onnx: .*{reason}; nothing was exported\. export\.format=hf") as failure:
        onnx.export(model, Tokenizer(), tmp_path)
    assert "\n" not in str(failure.value)
    assert capsys.readouterr() == ("", "")
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_what_cannot_be_exported_is_said(classifier: Path, minilm: Path, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(UserError, match=r"has no adapter; it was trained without"):
        export(classifier, "adapter", tmp_path / "adapter")
    with pytest.raises(UserError, match="out is not set"):
        load_config(["task=export", f"run={minilm}"])


def test_a_headless_model_stays_one(minilm: Path, tmp_path: Path) -> None:
    folder = export(minilm, "hf", tmp_path / "export")
    text = AutoTokenizer.from_pretrained(folder)("a text", return_tensors="pt")
    ours, theirs = (AutoModel.from_pretrained(each)(**text).last_hidden_state for each in (folder, minilm))
    assert torch.equal(ours, theirs)


def test_an_adapter_goes_with_its_tokenizer(classifier: Path, run: Runner, reviews: Path, tmp_path: Path) -> None:  # noqa: F811
    data = ["data=files", f"data.train={reviews}", "data.columns.text=body", "data.columns.label=stars"]
    run(
        "task=finetune",
        *data,
        f"model.init_from={classifier}",
        "model/adapter=lora",
        "trainer.max_steps=2",
        f"run_dir={tmp_path}/run",
    )
    folder = export(tmp_path / "run", "adapter", tmp_path / "adapter")
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "README.md"} <= {p.name for p in folder.iterdir()}
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(classifier / "hf")


def test_an_export_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[Path] = []
    moves: list[Path] = []
    flush, rename = os.fsync, Path.rename

    def watch_flush(handle: int) -> None:
        flushed.append(Path(os.readlink(f"/proc/self/fd/{handle}")))
        flush(handle)

    def watch_rename(path: Path, target: Path) -> Path:
        if target == tmp_path / "hf":
            assert {path, *path.rglob("*")} <= set(flushed)
        moves.append(target)
        return rename(path, target)

    for _ in range(2):
        write_folder(build_tiny("bert"), ByT5Tokenizer(), tmp_path / "hf")
        monkeypatch.setattr(os, "fsync", watch_flush)
        monkeypatch.setattr(Path, "rename", watch_rename)
    assert moves == [tmp_path / ".hf.old", tmp_path / "hf"]
    assert flushed[-1] == tmp_path
