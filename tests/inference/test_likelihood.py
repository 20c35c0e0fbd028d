"""The likelihood of text is what a plain loop over Hugging Face's own forward finds."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_lightning.config.compose import load_config
from llm_lightning.data.sources import text
from llm_lightning.errors import UserError
from llm_lightning.inference.likelihood import windows
from llm_lightning.run import run as start

from .test_generate import writer  # noqa: F401

EXACT = ["trainer.accelerator=cpu", "trainer.precision=32-true"]


def weighed(run: Path, *more: str) -> dict[str, float]:
    found: dict[str, float] = start(load_config(["task=evaluate", f"run={run}", *EXACT, *more]))["metrics"]
    return found


def log_likelihood(model: AutoModelForCausalLM, tokens: list[int], first: int) -> float:
    """Σ log p of the tokens from `first` on, given all before."""
    with torch.inference_mode():
        found = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    return sum(float(found[i - 1, tokens[i]]) for i in range(first, len(tokens)))


@given(st.integers(1, 80), st.integers(1, 20), st.integers(1, 20))
def test_every_token_is_weighed_once_with_the_context_that_is_promised(size: int, window: int, stride: int) -> None:
    stride = min(stride, window)
    tokens, seen = list(range(size + 1)), []
    for part, first in windows(tokens, 1, window, stride):
        assert len(part) <= window + 1
        assert 1 <= first < len(part)
        seen += part[first:]
        assert all(token - part[0] >= min(token, window - stride + 1) for token in part[first:])
    assert seen == tokens[1:]


@pytest.mark.parametrize("stride", [8, 32])
def test_bits_per_byte_are_those_of_a_plain_loop(stride: int, writer: Path, corpus: Path, tmp_path: Path) -> None:  # noqa: F811
    words = "\n".join(corpus.read_text().splitlines()[:30]) + " — ünïcode\n"
    (tmp_path / "a.txt").write_text(words, encoding="utf-8")
    found = weighed(
        writer, f"evaluate.text={tmp_path}/a.txt", "data.document=file", "evaluate.window=32", f"evaluate.stride={stride}"
    )
    tokenizer, model = AutoTokenizer.from_pretrained(writer / "hf"), AutoModelForCausalLM.from_pretrained(writer / "hf")
    tokens = [tokenizer.bos_token_id or tokenizer.eos_token_id, *tokenizer(words, add_special_tokens=False)["input_ids"]]
    total, done, begin = 0.0, 1, 0
    while done < len(tokens):
        end = min(begin + 33, len(tokens))
        total += log_likelihood(model, tokens[begin:end], done - begin)
        done, begin = end, begin + stride
    assert found["text/bits_per_byte"] == pytest.approx(-total / math.log(2) / len(words.encode()), rel=1e-5)
    assert found["text/perplexity"] == pytest.approx(math.exp(-total / (len(tokens) - 1)), rel=1e-4)
    assert json.loads((writer / "likelihood.json").read_text())["metrics"] == found


def test_a_document_in_pieces_is_one(writer: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    given = [
        f"evaluate.text={corpus}",
        "data.document=file",
        "evaluate.window=8",
        "evaluate.stride=1",
    ]  # so that all have as much context
    whole = weighed(writer, *given)
    monkeypatch.setattr(text, "LARGE", 300)
    pieces = weighed(writer, *given)
    assert pieces["text/documents"] == whole["text/documents"] == 1
    assert pieces["text/tokens"] == whole["text/tokens"]
    assert pieces["text/loss"] == pytest.approx(whole["text/loss"], rel=1e-5)


def test_the_likeliest_choice_is_taken(writer: Path, tmp_path: Path) -> None:  # noqa: F811
    rows = [
        {"text": "the cat sees", "choices": ["rain on day 3.", "xq zz"], "label": 0},
        {"text": "a dog ", "choices": ["qqq", "likes music on day 9."], "label": "likes music on day 9."},
        {"text": "my friend", "choices": ["likes bread", "likes", "zzz"], "label": "2"},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = weighed(writer, f"evaluate.choices={tmp_path}/rows.jsonl")
    tokenizer, model = AutoTokenizer.from_pretrained(writer / "hf"), AutoModelForCausalLM.from_pretrained(writer / "hf")
    begin, right, by_byte = tokenizer.bos_token_id or tokenizer.eos_token_id, 0, 0
    for row, label in zip(rows, (0, 1, 2), strict=True):
        context = row["text"] if row["text"].endswith(" ") else row["text"] + " "  # type: ignore[attr-defined, operator]
        sums = []
        for choice in row["choices"]:  # type: ignore[attr-defined]
            ids = tokenizer(context + choice, add_special_tokens=False)["input_ids"]
            text = context + choice
            before = next(i for i in range(len(ids) + 1) if len(tokenizer.decode(ids[: i + 1])) > len(row["text"]))  # type: ignore[arg-type]
            assert tokenizer.decode(ids) == text
            sums.append(log_likelihood(model, [begin, *ids], before + 1))
        right += max(range(len(sums)), key=lambda i: sums[i]) == label
        by_byte += max(range(len(sums)), key=lambda i: sums[i] / len(row["choices"][i])) == label  # type: ignore[index]
    assert found["choices/accuracy"] == pytest.approx(right / 3)
    assert found["choices/accuracy_per_byte"] == pytest.approx(by_byte / 3)
    assert found["choices/guessing"] == pytest.approx((1 / 2 + 1 / 2 + 1 / 3) / 3)


BAD = [
    ('{"text": "a", "choices": ["b"], "label": 0}', "rows.jsonl, line 1: column 'choices' is no list of at least two texts"),
    ('{"text": "a", "choices": ["b", "c"], "label": 2}', "rows.jsonl, line 1: column 'label' holds '2', which is neither a choice"),
    ('{"text": "", "choices": ["b", "c"], "label": 1}', "rows.jsonl, line 1: column 'text' is empty"),
]


@pytest.mark.parametrize(("row", "message"), BAD)
def test_bad_choices_are_named(row: str, message: str, writer: Path, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "rows.jsonl").write_text(row)
    with pytest.raises(UserError, match=message):
        weighed(writer, f"evaluate.choices={tmp_path}/rows.jsonl")


def test_what_has_no_likelihood_is_said(writer: Path, minilm: Path, corpus: Path) -> None:  # noqa: F811
    with pytest.raises(UserError, match="is no causal language model"):
        weighed(minilm, f"evaluate.text={corpus}")
    with pytest.raises(UserError, match=r"evaluate\.text=nowhere: no such file"):
        weighed(writer, "evaluate.text=nowhere")
    with pytest.raises(UserError, match=r"evaluate\.window=99999: the model has"):
        weighed(writer, f"evaluate.text={corpus}", "evaluate.window=99999")
    with pytest.raises(UserError, match=r"evaluate\.stride=9: windows of evaluate\.window=8"):
        weighed(writer, f"evaluate.text={corpus}", "evaluate.window=8", "evaluate.stride=9")
