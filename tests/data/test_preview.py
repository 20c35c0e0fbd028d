"""The rows that a run shows at its start: what they say is what the encoded arrays hold, for every objective."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_lightning.config.compose import load_config
from llm_lightning.data.datamodule import DataModule
from llm_lightning.data.masking import IGNORED
from llm_lightning.data.preview import decode_rows, show_rows
from llm_lightning.run import prepare

from ..conftest import TINY_BERT, TINY_GPT

CONTEXT = "the bridge was built by ada lint in ghent"
FAR = f"{' '.join(f'w{i}' for i in range(60))} {CONTEXT}"
TALK = [{"role": "user", "content": "who"}, {"role": "assistant", "content": "ada\nlint"}]
ROWS: dict[str, list[Any]] = {
    "classification": [{"text": "a fine day", "label": "good"}, {"text": "a dull day", "label": "bad"}] * 5,
    "regression": [{"text": "a fine day", "label": 3.5}, {"text": "a dull day", "label": -1}] * 5,
    "multi_label": [{"text": "a fine day", "label": ["x", "y"]}, {"text": "a dull day", "label": []}] * 5,
    "tagging": [{"text": ["ann", "unmet", "rome"], "label": ["B-PER", "O", "B-LOC"]}] * 10,
    "question_answering": [
        {"question": "who", "context": FAR, "answers": ["ada lint"]},
        {"question": "when", "context": CONTEXT, "answers": []},
    ]
    * 5,
    "translation": [{"text": "a fine day", "label": "ein schöner tag"}] * 10,
    "instruction": [{"messages": TALK}] * 10,
    "causal_lm": [{"text": "a fine day"}] * 10,
    "masked_lm": [{"text": "a fine day"}] * 10,
}
SHOWN = {
    "classification": ["[CLS] a fine day [SEP] → good", "[CLS] a dull day [SEP] → bad"],
    "regression": ["[CLS] a fine day [SEP] → 3.5", "[CLS] a dull day [SEP] → -1"],
    "multi_label": ["[CLS] a fine day [SEP] → x, y", "[CLS] a dull day [SEP] → no label"],
    "tagging": ["[CLS] ann/B-PER unmet/O rome/B-LOC [SEP]"],
    "translation": ["a fine day → ein schöner tag<|endoftext|>"],
    "instruction": ["<|user|>⏎who⏎<|assistant|>⏎«ada⏎lint<|endoftext|>»⏎"],
    "causal_lm": ["<|endoftext|>a fine day<|endoftext|>"],
}


def prepare_files(objective: str, tmp_path: Path, *overrides: str) -> DataModule:
    file = tmp_path / ("train.json" if objective == "question_answering" else "train.jsonl")
    lines = [json.dumps(row) for row in ROWS[objective]]
    file.write_text(f"[{','.join(lines)}]" if objective == "question_answering" else "\n".join(lines))
    source = {"question_answering": "squad", "instruction": "chat"}.get(objective, "files")
    task = "pretrain" if objective.endswith("_lm") else "finetune"
    tiny = {"instruction": TINY_GPT, "causal_lm": TINY_GPT, "translation": ["model.tokenizer.vocab_size=400"]}.get(
        objective, TINY_BERT
    )
    label = ["data.columns.label=label"] if source == "files" and task == "finetune" else []
    given = [
        f"task={task}",
        f"objective={objective}",
        f"data={source}",
        f"data.train={file}",
        f"data.validation={file}",
        *tiny,
        *label,
    ]
    return prepare(load_config([*given, "data.block_size=64", f"cache_dir={tmp_path}/cache", *overrides]))[2]


@pytest.mark.parametrize("objective", SHOWN)
def test_rows_are_shown_as_they_are_learnt(objective: str, tmp_path: Path) -> None:
    shown = decode_rows(prepare_files(objective, tmp_path), "train")
    assert shown[: len(SHOWN[objective])] == SHOWN[objective]
    assert len(shown) == 2


def test_the_window_with_the_answer_is_shown(tmp_path: Path) -> None:
    data = prepare_files("question_answering", tmp_path)
    first, second = decode_rows(data, "train")
    assert first.startswith("[CLS] who [SEP] ‖ ")
    assert "built by «ada lint» in ghent" in first
    assert second == f"[CLS] when [SEP] ‖ {CONTEXT} [SEP] → no answer here"


def test_masked_tokens_are_shown_with_their_targets(tmp_path: Path) -> None:
    data = prepare_files("masked_lm", tmp_path, "objective.mask_probability=0.5")
    for index, row in enumerate(decode_rows(data, "train")):
        assert data.collator.masking is not None
        encoded = data.dataset.splits["train"][index].astype(np.int64)
        _, targets = data.collator.masking(encoded, 0, index)
        learnt = [data.dataset.tokenizer.decode([token]) for token in targets if token != IGNORED]
        marked = [word for part in row.split("«")[1:] for word in part.split("»")[0].split()]
        assert marked == learnt != []


def test_what_is_shown_is_what_the_arrays_hold(tmp_path: Path) -> None:
    """Wrong targets would show: none of the text comes from the rows."""
    data = prepare_files("classification", tmp_path)
    train = data.dataset.splits["train"]
    assert train.labels is not None
    data.dataset.splits["train"] = replace(train, labels=1 - train.labels)
    assert decode_rows(data, "train")[0] == "[CLS] a fine day [SEP] → bad"


def test_long_rows_are_cut_and_marks_stay_in_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = [{"role": role, "content": f"{role} " * 200} for _ in range(6) for role in ("user", "assistant")]
    monkeypatch.setitem(ROWS, "instruction", [{"messages": talk}] * 10)
    row = decode_rows(prepare_files("instruction", tmp_path, "data.block_size=20000", "++model.config.n_positions=20000"), "train")[
        0
    ]
    assert len(row) < 2000
    assert row.count("«") == row.count("»") > 1
    assert " … " in row


def test_train_is_shown_and_the_other_splits_go_to_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("llm_lightning"), "propagate", True)
    caplog.set_level(logging.INFO)
    data = prepare_files("instruction", tmp_path)
    start = time.perf_counter()
    show_rows(data)
    print(f"{time.perf_counter() - start:.4f} s")  # a figure to read, not one to hold
    train, validation = (record for record in dict.fromkeys(caplog.records) if "as the model learns it" in record.getMessage())
    assert "«ada⏎lint" in train.getMessage()
    assert "% of the tokens are learnt" in train.getMessage()
    assert (train.file_only, validation.file_only) == (False, True)  # type: ignore[attr-defined]
