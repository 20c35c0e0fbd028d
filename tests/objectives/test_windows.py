"""Texts in windows: logits and gradients of a plain loop over the windows, one target a row, nothing cut, and no row parted."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

import llm_lightning
from llm_lightning.config.compose import load_config
from llm_lightning.config.schema import BatchConfig, ColumnsConfig, DataConfig
from llm_lightning.data.buckets import fill
from llm_lightning.data.collate import MicroBatch, split_micro_batch
from llm_lightning.data.encodings.texts import Encoder
from llm_lightning.data.examples import BadRow, Example
from llm_lightning.data.plan import Plan
from llm_lightning.data.windows import overlap_of
from llm_lightning.errors import UserError
from llm_lightning.models.batch_form import BatchForm, set_batch_form
from llm_lightning.run import evaluate, prepare
from llm_lightning.run import run as start
from llm_lightning.training.checkpoints import list_checkpoints

from ..conftest import QUIET, TINY_BERT, TINY_GPT, Runner, published
from ..data.test_encodings import wordpiece  # noqa: F401
from ..data.test_tokenizers import bpe
from .test_supervised import WORDS, made

NO_DROPOUT = "++model.config={hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}"
MODELS = {
    "bert": [*TINY_BERT, NO_DROPOUT],
    "gpt2": [*TINY_GPT, "++model.config={resid_pdrop: 0.0, embd_pdrop: 0.0, attn_pdrop: 0.0}"],
}
WINDOWS = ["data.long=windows", "data.block_size=24", "data.overlap=6"]
EXACT = ["trainer.precision=32-true", "trainer.log_every_steps=1"]


def write(
    folder: Path, objective: str = "classification", words: tuple[int, ...] = (2, 9, 40, 70), pairs: bool = False
) -> list[str]:
    """Write rows of these numbers of words; return the command line that reads them."""
    folder.mkdir(exist_ok=True)
    labels: dict[str, Callable[[list[str]], Any]] = {
        "classification": lambda text: text[-1][0],
        "multi_label": lambda text: [word for word in ("Ann", "Bob") if word in text[-3:]],
        "regression": lambda text: len(text) / 10,
    }
    for split, count in (("train", 30), ("validation", 12)):
        rng, rows = random.Random(split), []
        for i in range(count):
            text = rng.choices(WORDS[:4], k=words[i % len(words)])
            rows.append({"text": " ".join(text), "label": labels[objective](text)} | ({"about": "who met Bob"} if pairs else {}))
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    columns = ["data.columns.text=about", "data.columns.text_pair=text"] if pairs else []
    return ["task=finetune", f"objective={objective}", "data=files", f"data.dir={folder}", "data.columns.label=label", *columns]


def pool(windows: list[Tensor], objective: str) -> Tensor:
    """Return the logits of a row from those of its windows, each weighed by its part in a softmax."""
    if objective == "regression":
        weights: Any = [1 / len(windows)] * len(windows)
    elif objective == "classification":
        weights = torch.stack([logits.sum() / len(logits) ** 0.5 for logits in windows]).softmax(0)
    else:
        weights = torch.stack(windows).softmax(0)
    total = torch.zeros_like(windows[0])
    for weight, logits in zip(weights, windows, strict=True):
        total = total + weight * logits
    return total


def by_hand(model: Any, tokenizer: Any, row: dict[str, Any], data: DataConfig, objective: str) -> Tensor:
    """Return the logits of a row by transformers alone, a window at a time."""
    texts = (row[data.columns.text],) if data.columns.text_pair is None else (row[data.columns.text], row[data.columns.text_pair])
    cut: Any = True if len(texts) == 1 else "only_second"
    options = {"max_length": data.block_size, "stride": overlap_of(data), "return_overflowing_tokens": True}
    windows = tokenizer(*texts, truncation=cut, **options)
    types = windows.get("token_type_ids")
    logits = [
        model(
            input_ids=torch.tensor([ids]),
            **({} if types is None or len(texts) == 1 else {"token_type_ids": torch.tensor([types[i]])}),
        ).logits[0]
        for i, ids in enumerate(windows["input_ids"])
    ]
    return pool(logits, objective)


def whole_split(data: Any, split: str = "train") -> MicroBatch:
    part = data.dataset.splits[split]
    return data.collator(part, list(np.arange(len(part))[:, None]), 0)


def gradients(model: Any) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


CASES = [
    ("classification", "bert", "flat", "text"),
    ("classification", "bert", "padded", "text"),
    ("classification", "bert", "flat", "pair"),
    ("classification", "bert", "padded", "pair"),
    ("classification", "gpt2", "flat", "text"),
    ("classification", "gpt2", "padded", "text"),
    ("multi_label", "bert", "flat", "text"),
    ("regression", "gpt2", "flat", "text"),
]


@pytest.mark.parametrize(("objective", "model", "form", "unit"), CASES)
def test_logits_and_gradients_are_those_of_a_loop_over_the_windows(
    objective: str, model: str, form: str, unit: str, cache: Path, tmp_path: Path
) -> None:
    pairs = unit == "pair"
    learner, data = made(cache, *write(tmp_path, objective, pairs=pairs), *MODELS[model], *WINDOWS)
    learner.model.double()
    if form == "padded":
        set_batch_form(learner.model, BatchForm("the test says so"))
    twin = published(learner.model).double()
    batch = whole_split(data)
    assert batch.window_rows is not None
    assert len(batch.targets) == len(batch.indices) == 30 < len(batch.window_rows)
    loss, _ = learner.loss_and_outputs(batch)
    loss.backward()

    rows = [data.dataset.rows["train"].table[int(i)] for i in batch.indices]
    expected = torch.stack([by_hand(twin, data.dataset.tokenizer, row, data.config.data, objective) for row in rows])
    if objective == "regression":
        reference = (expected[:, 0] - batch.targets).square().sum()
    elif objective == "multi_label":
        reference = F.binary_cross_entropy_with_logits(expected, batch.targets.double(), reduction="sum")
    else:
        reference = F.cross_entropy(expected, batch.targets, reduction="sum")
    reference.backward()
    torch.testing.assert_close(loss, reference, rtol=1e-10, atol=1e-10)
    found, wanted = gradients(learner.model), gradients(twin)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-7, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
@given(lengths=st.lists(st.integers(1, 90), min_size=1, max_size=6), block=st.integers(12, 40), share=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_the_windows_cover_every_token_once_and_what_they_share_twice(
    kind: str,
    wordpiece: Any,  # noqa: F811
    lengths: list[int],
    block: int,
    share: float,
) -> None:
    tokenizer = bpe() if kind == "bpe" else wordpiece
    special = tokenizer.num_special_tokens_to_add()
    around, front = ([], 0) if kind == "bpe" else ([wordpiece.cls_token_id, wordpiece.sep_token_id], 1)
    overlap = round(share * (block - special - 1))
    encoder = Encoder(tokenizer, DataConfig(block_size=block, overlap=overlap, long="windows"))
    texts = [" ".join(f"w{i}" for i in range(length)) for length in lengths]
    found = encoder([Example(i, text) for i, text in enumerate(texts)], None)
    assert [len(tokens) for tokens in found.tokens] == [sum(sizes) for sizes in found.windows]
    assert encoder.truncated == 0
    for text, tokens, sizes in zip(texts, found.tokens, found.windows, strict=True):
        whole, covered, start = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], [], 0
        for number, size in enumerate(sizes):
            window = tokens[start : start + size]
            inside = window[front : len(window) - special + front]
            assert size <= block
            assert window == [*around[:front], *inside, *around[front:]]
            assert number == 0 or covered[len(covered) - overlap :] == inside[:overlap]
            covered += inside if number == 0 else inside[overlap:]
            start += size
        assert covered == whole


def test_the_first_text_of_a_pair_is_whole_in_each_window() -> None:
    columns = ColumnsConfig(text="a", text_pair="b")
    encoder = Encoder(bpe(), DataConfig(block_size=24, overlap=4, long="windows", columns=columns))
    first, second = "who met whom", " ".join(f"w{i}" for i in range(60))
    read = encoder.read(first, second, None)
    found = encoder([Example(0, *read)], None)
    (tokens,), (sizes,), (start,) = found.tokens, found.windows, found.second
    assert len(sizes) > 3
    ends = np.cumsum(sizes)
    assert all(tokens[end - size : end - size + start] == tokens[:start] for end, size in zip(ends, sizes, strict=True))
    with pytest.raises(BadRow, match=r"make the long text the second"):
        encoder.read(second, first, None)
    encoder.read(first, first, None)  # a pair that fits into a sequence, whatever its first text


def test_texts_of_one_window_train_as_without_windows_to_the_last_bit(run: Runner, tmp_path: Path) -> None:
    given = [*write(tmp_path / "data", words=(2, 5, 8)), *TINY_BERT, *EXACT, "data.block_size=24", "trainer.max_steps=4"]
    summaries = [run(*given, *more, f"run_dir={tmp_path}/{i}") for i, more in enumerate([[], ["data.long=windows"]])]
    assert summaries[0]["metrics"] == summaries[1]["metrics"]
    first, second = (load_file(tmp_path / name / "hf" / "model.safetensors") for name in ("0", "1"))
    for name, weight in first.items():
        assert weight.equal(second[name]), name


@pytest.mark.parametrize("model", ["bert", "gpt2"])
def test_parts_of_a_batch_hold_whole_rows_and_the_gradient_of_the_batch(model: str, cache: Path, tmp_path: Path) -> None:
    """Parts for a device without memory, micro-batches of two rows or of few tokens, the parts of two ranks, and padding of shapes."""
    learner, data = made(cache, *write(tmp_path), *MODELS[model], *WINDOWS, "batch.sequences=30", "batch.length_window=1")
    learner.model.double()
    batch = whole_split(data)
    sizes = np.bincount(batch.window_rows.numpy(), minlength=30)  # type: ignore[union-attr]
    windows = dict(zip(batch.indices.tolist(), sizes.tolist(), strict=True))

    def step(batches: list[MicroBatch]) -> dict[str, Tensor]:
        assert sorted(index for part in batches for index in part.indices.tolist()) == list(range(30))
        for part in batches:
            count = np.bincount(part.window_rows.numpy()) if part.window_rows is not None else np.ones(len(part.indices), int)
            assert count.tolist() == [windows[index] for index in part.indices.tolist()]
            learner.loss_sum(part).backward()
        return gradients(learner.model)

    expected = step([batch])
    ways = {f"in {count}": split_micro_batch(batch, count) for count in (2, 8, 64)}
    for name, spec in (("rows", {"micro_sequences": 2}), ("tokens", {"micro_tokens": 60})):
        data.spec = replace(BatchConfig(sequences=30, length_window=1), **spec)
        ways[name] = data.training_steps(0, 1)[0].micro_batches
        ways[f"{name}, two ranks"] = [
            part for rank in (0, 1) for part in data.training_steps(rank, 2)[0].micro_batches if not part.blank
        ]
    assert max(len(part.input_ids) for part in ways["tokens"]) > 60  # a row of more tokens is alone
    assert all(len(part.indices) == 1 or part.texts * part.longest <= 60 for part in ways["tokens"])
    for name, batches in ways.items():
        assert len(batches) > 1
        for weight, gradient in step(batches).items():
            torch.testing.assert_close(gradient, expected[weight], rtol=1e-8, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")
    filled = fill(batch)
    assert filled.segments > batch.segments
    learner.loss_sum(filled).backward()
    for weight, gradient in gradients(learner.model).items():
        torch.testing.assert_close(gradient, expected[weight], rtol=1e-8, atol=1e-10)


def test_a_step_counts_rows(cache: Path, tmp_path: Path) -> None:
    _, data = made(cache, *write(tmp_path), *MODELS["bert"], *WINDOWS, "batch.sequences=7")
    steps = data.training_steps(0, 1)
    assert [steps[i].sequences for i in range(5)] == [steps[i].rank_targets for i in range(5)]
    assert sum(steps[i].sequences for i in range(5)) == 30
    split = data.dataset.splits["train"]
    assert sum(steps[i].tokens for i in range(5)) == int(split.lengths.sum())
    assert data.longest_input == 24 < int(split.lengths.max())
    assert data.longest(1).targets.shape == (7,)
    with pytest.raises(UserError, match=r"batch.tokens=60: the longest row, with all its windows"):
        Plan(split.positions, BatchConfig(tokens=60), 0, window=24)


@pytest.mark.parametrize("objective", ["classification", "multi_label", "regression"])
def test_predictions_and_scores_are_those_of_the_lines_in_the_model_card(objective: str, run: Runner, tmp_path: Path) -> None:
    pairs = objective == "classification"
    folder = tmp_path / "run"
    given = [
        *write(tmp_path / "data", objective, pairs=pairs),
        *TINY_BERT,
        *EXACT,
        *WINDOWS,
        "trainer.max_steps=6",
        "optimizer.lr=3e-3",
    ]
    summary = run(*given, f"run_dir={folder}")
    rows = [json.loads(line) for line in (tmp_path / "data" / "validation.jsonl").read_text().splitlines()]
    found = llm_lightning.load(folder).predict([{name: row[name] for name in row if name != "label"} for row in rows])
    card = (folder / "hf" / "README.md").read_text()
    lines = card.split("```python\n")[1].split("```")[0].replace("<this folder>", str(folder / "hf"))
    shown, columns = ('"a text", "a long second text"', ("about", "text")) if pairs else ('"a long text"', ("text",))
    expected = []
    for row in rows:
        names: dict[str, Any] = {}
        exec(lines.replace(shown, ", ".join(repr(row[column]) for column in columns)), names)
        expected.append(names["logits"].detach())
    logits = torch.stack(expected)
    if objective == "regression":
        torch.testing.assert_close(torch.tensor([row["score"] for row in found]), logits[:, 0], atol=1e-4, rtol=1e-4)
        return
    probabilities = logits.softmax(-1) if objective == "classification" else logits.sigmoid()
    torch.testing.assert_close(torch.tensor([[*row["scores"].values()] for row in found]), probabilities, atol=1e-4, rtol=1e-4)
    if objective == "multi_label":
        check_onnx(folder, rows, logits)
    if objective == "classification":
        right = sum(row["label"] == truth["label"] for row, truth in zip(found, rows, strict=True))
        assert summary["metrics"]["validation/accuracy"] == pytest.approx(right / len(rows))
        again = evaluate(load_config(["task=evaluate", f"run={folder}", "trainer.progress=none"]))
        assert again["metrics"]["validation/accuracy"] == pytest.approx(right / len(rows))
        facts = json.loads((folder / "data.json").read_text())["validation"]
        assert facts["rows"] == facts["sequences"] == 12
        assert facts["windows"]["most"] > 2
        assert facts["truncated"] == 0
        assert len(json.loads((folder / "evaluation" / "validation.json").read_text())["examples"]["correct"]) == 12


def check_onnx(folder: Path, rows: list[dict[str, Any]], logits: Tensor) -> None:
    """Hold the exported ONNX model, a classifier of windows, to the same logits by the same rule."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    start(load_config(["task=export", f"run={folder}", "export.format=onnx", "trainer.progress=none"]))
    session = onnxruntime.InferenceSession(str(folder / "export-onnx" / "model.onnx"), providers=["CPUExecutionProvider"])
    tokenizer = AutoTokenizer.from_pretrained(folder / "export-onnx")
    for row, expected in zip(rows, logits, strict=True):
        cut: dict[str, Any] = {"truncation": True, "max_length": 24, "stride": 6, "return_overflowing_tokens": True}
        windows = tokenizer(row["text"], padding=True, return_tensors="np", **cut)
        outputs = session.run(None, {name: windows[name] for name in ("input_ids", "attention_mask")})[0]
        torch.testing.assert_close(pool([*torch.from_numpy(outputs)], "multi_label"), expected, atol=1e-4, rtol=1e-4)


def test_a_run_in_windows_goes_on_where_it_was_killed(run: Runner, killed: Callable[..., None], tmp_path: Path) -> None:
    given = [*write(tmp_path / "data"), *TINY_BERT, *EXACT, *WINDOWS, "batch.sequences=7", "batch.micro_sequences=2"]
    given += ["trainer.max_steps=6", "checkpoint.every_steps=3", "trainer.validate_every_steps=3"]
    run(*given, f"run_dir={tmp_path}/whole")
    killed(*given, f"run_dir={tmp_path}/parts", after=3)
    run(*given, f"run_dir={tmp_path}/parts")
    whole, parts = (
        torch.load(list_checkpoints(tmp_path / name / "checkpoints")[-1], weights_only=True) for name in ("whole", "parts")
    )
    assert whole["global_step"] == parts["global_step"] == 6
    for name, weight in whole["state_dict"].items():
        assert weight.equal(parts["state_dict"][name]), name
    state = list_checkpoints(tmp_path / "parts" / "checkpoints")[-1]
    with pytest.raises(UserError, match=r"data.long was windows and is cut"):
        run(*given, "data.long=cut", f"run_dir={tmp_path}/parts", f"resume={state}")


def test_what_cutting_loses_is_said(run: Runner, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    given = [*QUIET, *write(tmp_path), *TINY_BERT, "data.block_size=24", f"cache_dir={tmp_path}/cache"]
    tokenizer = prepare(load_config(given))[0].tokenizer
    rows = [json.loads(line)["text"] for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    over = [size - 24 for size in map(len, tokenizer(rows)["input_ids"]) if size > 24]
    assert (
        f"train: {len(over)} of 30 texts are longer than data.block_size=24 tokens and were cut; they lost {sum(over):,}"
        in caplog.text
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["objective=tagging", "data=conll", "data.long=windows"], "only classification, multi_label and regression pool"),
        (["data.long=windows", "data.overlap=600"], "windows of data.block_size=128 tokens share fewer"),
        (["data.long=window"], "expected one of cut, windows"),
    ],
)
def test_windows_that_cannot_be_are_refused(changes: list[str], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        load_config([*QUIET, "task=finetune", *changes])


def test_windows_need_room_for_a_token_of_their_own() -> None:
    with pytest.raises(UserError, match="the next one would begin where it does"):
        Encoder(bpe(), DataConfig(block_size=24, overlap=24, long="windows"))
