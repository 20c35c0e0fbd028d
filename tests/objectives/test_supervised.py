"""Every supervised objective: loss and gradients of Hugging Face's own forward, scores by their formulas, bad rows by their place."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration, XLNetConfig

from llm_lightning.config.compose import load_config
from llm_lightning.data.collate import MicroBatch
from llm_lightning.data.datamodule import DataModule
from llm_lightning.data.tag_schemes import TagScheme
from llm_lightning.errors import UserError
from llm_lightning.metrics.ranking import best_threshold
from llm_lightning.models.generate import fit
from llm_lightning.objectives.base import Objective
from llm_lightning.objectives.classification import Classification
from llm_lightning.objectives.instruction import Instruction
from llm_lightning.run import build_and_connect, evaluate, prepare

from ..conftest import QUIET, TINY_BERT, TINY_GPT, Runner, published
from ..data.chat_templates import CHATML

WORDS = ["Ann", "met", "Bob", "in", "Rome", "on", "a", "sunny", "Monday", "unbelievably"]
KINDS = {"Ann": "B-person", "Bob": "B-person", "Rome": "B-place"}


def sentences(count: int) -> list[tuple[list[str], list[str]]]:
    rng = random.Random(count)
    drawn = [[rng.choice(WORDS) for _ in range(rng.randint(1, 12))] for _ in range(count)]
    return [(words, [KINDS.get(word, "O") for word in words]) for words in drawn]


def article(words: list[str]) -> dict[str, Any]:
    """Where did they meet? In Rome; where they did not, there is no answer."""
    text = " ".join(words)
    asked = [{"id": text, "question": "Where was it?", "answers": [{"text": "Rome", "answer_start": text.index("Rome")}]}]
    asked.append({"id": f"{text} 2", "question": "Who was Napoleon?", "answers": []})
    return {"title": text, "paragraphs": [{"context": text, "qas": asked}]}


def write(folder: Path, objective: str) -> list[str]:
    """Data for an objective; returns the command line that reads it."""
    made = {split: sentences(count) for split, count in (("train", 60), ("validation", 20), ("test", 10))}
    for split, rows in made.items():
        if objective == "question_answering":
            (folder / f"{split}.json").write_text(json.dumps({"data": [article(words) for words, _ in rows if "Rome" in words]}))
            continue
        if objective == "translation":
            rows = [(words[:5], tags) for words, tags in sentences(4 * len(rows))]
            (folder / f"{split}.en").write_text("\n".join(" ".join(words) for words, _ in rows))
            (folder / f"{split}.de").write_text("\n".join(" ".join(word[::-1] for word in words) for words, _ in rows))
            continue
        if objective == "tagging":
            text = "\n\n".join("\n".join(f"{w}\t{t}" for w, t in zip(*row, strict=True)) for row in rows)
            (folder / f"{split}.conll").write_text(text + "\n")
            continue
        label: dict[str, Callable[[list[str], int], Any]] = {
            "classification": lambda words, i: str(i % 3),
            "multi_label": lambda words, i: [kind for kind in ("Ann", "Bob", "Rome") if kind in words],
            "regression": lambda words, i: len(words) / 4,
        }
        lines = [{"text": " ".join(words), "label": label[objective](words, i)} for i, (words, _) in enumerate(rows)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    own = objective in ("tagging", "question_answering", "translation")
    data = [f"data.dir={folder}"] if own else ["data=files", f"data.dir={folder}", "data.columns.label=label"]
    return ["task=finetune", f"objective={objective}", *data]


TINY_MARIAN = [
    "++model.config={d_model: 64, encoder_layers: 2, decoder_layers: 2, encoder_ffn_dim: 128, decoder_ffn_dim: 128}",
    "model.tokenizer.vocab_size=400",
    "data.test=null",
]


def made(cache: Path, *arguments: str) -> tuple[Objective, DataModule]:
    config = load_config([*QUIET, f"cache_dir={cache}", *arguments, "trainer.precision=32-true"])
    dataset, objective, data = prepare(config)
    build_and_connect(config, dataset, objective, data)
    return objective, data


def padded(parts: Any, filler: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True, padding_value=filler)


def hugging_face_loss(model: Any, objective: str, batch: MicroBatch) -> Tensor:
    """The loss sum of Hugging Face's own forward, which has the mean."""
    parts = batch.input_ids.split(batch.cu_seqlens.diff().tolist())
    given = {
        "input_ids": padded(parts, model.config.pad_token_id),
        "attention_mask": padded([torch.ones_like(part) for part in parts], 0),
    }
    labels = batch.targets
    if objective == "tagging":
        assert batch.target_places is not None
        flat = torch.full_like(batch.input_ids, -100).scatter(0, batch.target_places, batch.targets)
        labels = padded(flat.split(batch.cu_seqlens.diff().tolist()), -100)
    if objective == "question_answering":  # row by row, as its softmax would go over the padding too
        return sum(  # type: ignore[return-value]
            model(input_ids=part[None], start_positions=start[None], end_positions=end[None]).loss
            for part, (start, end) in zip(parts, batch.targets, strict=True)
        )
    if objective in ("multi_label", "regression"):
        labels = batch.targets.float()
    return model(**given, labels=labels).loss * batch.targets.numel()


@pytest.mark.parametrize("model", ["bert", "gpt2"])
@pytest.mark.parametrize("objective", ["classification", "multi_label", "regression", "tagging", "question_answering"])
def test_loss_and_gradients_are_those_of_hugging_face(objective: str, model: str, cache: Path, tmp_path: Path) -> None:
    tiny = TINY_BERT if model == "bert" else TINY_GPT
    ours, data = made(cache, *write(tmp_path, objective), *tiny)
    batch = data.collator(data.dataset.splits["train"], [np.array([i]) for i in range(16)], 0)
    twin = published(ours.model.eval())
    loss, expected = ours.loss_sum(batch), hugging_face_loss(twin, objective, batch)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    loss.backward()
    expected.backward()
    theirs = dict(twin.named_parameters())
    moved = 0
    for name, parameter in ours.model.named_parameters():
        if theirs[name].grad is not None:
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-4, atol=1e-5)
            moved += bool(parameter.grad.abs().max() > 1e-4)
    assert moved > 5


@pytest.mark.parametrize(
    ("objective", "score"),
    [("multi_label", "micro_f1"), ("regression", "pearson"), ("tagging", "f1"), ("question_answering", "exact_match")],
)
def test_a_run_learns_and_its_evaluation_is_repeated(objective: str, score: str, run: Runner, tmp_path: Path) -> None:
    data = write(tmp_path, objective)
    training = ["trainer.max_epochs=25", "batch.sequences=8", "optimizer.lr=5e-3", "trainer.precision=32-true"]
    summary = run(*data, *TINY_BERT, *training, f"run_dir={tmp_path}/run")
    assert summary["metrics"][f"test/{score}"] > 0.85
    again = evaluate(load_config(["task=evaluate", f"run={tmp_path}/run"]))["metrics"]
    assert again == summary["metrics"]


def test_binary_cross_entropy_is_its_formula_in_fp64(cache: Path, tmp_path: Path) -> None:
    objective, data = made(cache, *write(tmp_path, "multi_label"), *TINY_BERT)
    objective.model.double().eval()
    batch = data.collator(data.dataset.splits["train"], [np.array([i]) for i in range(20)], 0)
    loss, logits = objective.loss_and_outputs(batch)
    p, y = 1 / (1 + np.exp(-logits.detach().numpy())), batch.targets.numpy()
    assert float(loss.detach()) == pytest.approx(-(y * np.log(p) + (1 - y) * np.log(1 - p)).sum(), rel=1e-12)


def test_focal_loss_is_its_formula(cache: Path, tmp_path: Path) -> None:
    given = [*write(tmp_path, "classification"), *TINY_BERT, "objective.focal_gamma=2"]
    objective, data = made(cache, *given)
    assert isinstance(objective, Classification)
    objective.model.eval()
    batch = data.collator(data.dataset.splits["train"], [np.array([i]) for i in range(20)], 0)
    loss, logits = objective.loss_and_outputs(batch)
    p = torch.softmax(logits.detach().double(), -1)[range(20), batch.targets]
    assert float(loss.detach()) == pytest.approx(float(-((1 - p) ** 2 * p.log()).sum()), rel=1e-5)


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=30))
def test_the_threshold_is_the_best_of_all(pairs: list[tuple[int, bool]]) -> None:
    probabilities, applies = np.array([p / 6 for p, _ in pairs]), np.array([a for _, a in pairs])

    def f1(threshold: float) -> float:
        said = probabilities >= threshold
        return 2 * (said & applies).sum() / max(said.sum() + applies.sum(), 1)

    found = best_threshold(probabilities[:, None], applies[:, None])
    assert f1(found) == max(f1(t) for t in [*probabilities])  # where nothing applies every threshold scores 0


def test_spans_are_those_of_conll() -> None:
    assert TagScheme("iob2").spans(["B-a", "I-a", "O", "B-b", "B-b", "I-a", "I-a"]) == {
        ("a", 0, 2),
        ("b", 3, 4),
        ("b", 4, 5),
        ("a", 5, 7),
    }
    assert TagScheme("iob2").spans(["I-a", "I-b", "I-b", "O"]) == {("a", 0, 1), ("b", 1, 3)}
    assert TagScheme("iob2").spans(["O", "O"]) == set()


BAD = [
    ("tagging", "train.conll", "Ann\tB-person\nmet\n\nBob\tB-person\n", ["train.conll, line 1", "line 2 has no word and tag"]),
    ("tagging", "validation.conll", "Ann\tB-planet\n", ["validation.conll, line 1", "'B-planet', which train does not have"]),
    ("multi_label", "test.jsonl", '{"text": "a", "label": ["Bill"]}', ["test.jsonl, line 1", "'Bill', which train does not have"]),
    ("regression", "train.jsonl", '{"text": "a", "label": "many"}', ["train.jsonl, line 1", "holds 'many', which is no number"]),
    ("regression", "train.jsonl", '{"text": "a", "label": null}', ["train.jsonl, line 1", "column 'label' is empty"]),
]


@pytest.mark.parametrize(("objective", "file", "content", "expected"), BAD)
def test_bad_rows_are_named(objective: str, file: str, content: str, expected: list[str], cache: Path, tmp_path: Path) -> None:
    arguments = write(tmp_path, objective)
    (tmp_path / file).write_text(content)
    with pytest.raises(UserError) as error:
        made(cache, *arguments, *TINY_BERT)
    for part in expected:
        assert part in str(error.value)


@pytest.mark.parametrize("architecture", ["marian", "bart", "t5"])
def test_translation_has_the_loss_and_the_gradients_of_hugging_face(architecture: str, cache: Path, tmp_path: Path) -> None:
    arguments = [*write(tmp_path, "translation"), *TINY_MARIAN]
    if architecture == "bart":
        arguments.append("model.architecture=bart")
    if architecture == "t5":  # as a checkpoint, with the tokenizer that another model would get
        tokenizer = made(cache, *arguments)[1].dataset.tokenizer
        special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
        size = {"d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 2, "d_kv": 16, "vocab_size": len(tokenizer)}
        start = {"decoder_start_token_id": tokenizer.pad_token_id}
        T5ForConditionalGeneration(T5Config(**size, **special, **start)).save_pretrained(tmp_path / "t5")
        tokenizer.save_pretrained(tmp_path / "t5")
        arguments.append(f"model.name_or_path={tmp_path}/t5")
    ours, data = made(cache, *arguments)
    model: Any = ours.model.eval()
    ours.eval()  # without smoothing, as Hugging Face has none
    batch = data.collator(data.dataset.splits["train"], [np.array([i]) for i in range(20)], 0)
    parts = batch.input_ids.split(batch.cu_seqlens.diff().tolist())
    assert batch.cu_targets is not None
    labels = padded(batch.targets.split(batch.cu_targets.diff().tolist()), -100)
    given = {
        "input_ids": padded(parts, model.config.pad_token_id),
        "attention_mask": padded([torch.ones_like(p) for p in parts], 0),
    }
    loss, expected = ours.loss_sum(batch), model(**given, labels=labels).loss * len(batch.targets)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = [torch.autograd.grad(each, trained, allow_unused=True) for each in (loss, expected)]
    for mine, theirs in zip(*gradients, strict=True):
        if theirs is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_a_translator_learns_to_spell_backwards(run: Runner, tmp_path: Path) -> None:
    data = [*write(tmp_path, "translation"), *TINY_MARIAN, "data.test=test"]
    training = ["trainer.max_epochs=40", "batch.sequences=16", "optimizer.lr=3e-3", "scheduler.warmup=0.1"]
    summary = run(*data, *training, "trainer.validate_every_steps=300", "objective.beams=2", f"run_dir={tmp_path}/run")
    assert summary["metrics"]["test/bleu"] > 90
    assert summary["metrics"]["test/chrf"] > 90
    again = evaluate(load_config(["task=evaluate", f"run={tmp_path}/run"]))["metrics"]
    assert again == summary["metrics"]
    shown = json.loads((tmp_path / "run" / "evaluation" / "test.json").read_text())["samples"][0]
    assert shown["source"].split()[0][::-1] == shown["reference"].split()[0]


def test_files_of_unequal_length_are_no_translation(cache: Path, tmp_path: Path) -> None:
    arguments = write(tmp_path, "translation")
    with (tmp_path / "train.de").open("a") as file:
        file.write("\nmore\nlines")
    with pytest.raises(UserError, match=r"train.en has 240 lines and .*train.de 242: they are no translation"):
        made(cache, *arguments, *TINY_MARIAN)


def tasks(folder: Path) -> list[str]:
    """Conversations of two turns whose answers have no rule: they have to be learnt by heart."""
    rng = random.Random(1)
    lines = []
    for i in range(12):
        turns = [{"role": "system", "content": "be brief"}] if i % 2 else []
        for turn in range(2):
            answer = " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 6)))
            turns += [{"role": "user", "content": f"task {i} {turn}"}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": turns}))
    (folder / "tasks.jsonl").write_text("\n".join(lines))
    files = [f"data.train={folder}/tasks.jsonl", f"data.validation={folder}/tasks.jsonl"]
    return ["task=finetune", "objective=instruction", *files, "data.block_size=128", *TINY_GPT]


def test_instruction_has_the_loss_of_hugging_face_on_the_assistants_tokens(cache: Path, tmp_path: Path) -> None:
    ours, data = made(cache, *tasks(tmp_path))
    train = data.dataset.splits["train"]
    batch = data.collator(train, data.plan.epoch_plan(0)[0], 0)
    assert train.token_targets is not None
    assert len(batch.indices) > 1
    expected = torch.zeros(())
    twin = published(ours.model.eval())
    for i in batch.indices.tolist():
        start, size = train.starts[i], train.lengths[i]
        labels = torch.from_numpy(train.token_targets[start : start + size].astype(np.int64))
        expected = expected + twin(input_ids=torch.from_numpy(train[i].astype(np.int64))[None], labels=labels[None]).loss * int(
            (labels[1:] != -100).sum()
        )
    loss = ours.loss_sum(batch)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    loss.backward()
    expected.backward()
    for mine, theirs in zip(ours.model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_answers_that_were_learnt_by_heart_are_given(run: Runner, tmp_path: Path) -> None:
    training = ["trainer.max_epochs=null", "trainer.max_steps=400", "batch.sequences=4", "optimizer.lr=1e-2"]
    bigger = "++model.config={n_layer: 2, n_embd: 64, n_head: 4}"
    summary = run(*tasks(tmp_path), bigger, *training, "trainer.validate_every_steps=400", f"run_dir={tmp_path}/run")
    assert summary["metrics"]["validation/exact_match"] > 0.9
    assert summary["metrics"]["validation/rouge_l"] > 90
    assert "of the tokens are learnt, those in «»" in (tmp_path / "run" / "train.log").read_text()
    again = evaluate(load_config(["task=evaluate", f"run={tmp_path}/run"]))["metrics"]
    assert again == summary["metrics"]


def test_a_row_with_nothing_to_learn_is_an_error_or_counted(cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    arguments = tasks(tmp_path)
    with (tmp_path / "tasks.jsonl").open("a") as file:
        file.write('\n{"messages": [{"role": "user", "content": "hello"}]}')
    with pytest.raises(UserError, match=r"tasks.jsonl, line 13: the assistant says nothing"):
        made(cache, *arguments)
    _, data = made(cache, *arguments, "data.on_bad_row=skip")
    assert data.dataset.splits["train"].facts.skipped == 1


def long_tasks(folder: Path, sizes: list[int]) -> list[str]:
    """Conversations whose prompts have so many words."""
    turns = [[{"role": "user", "content": " ".join(["word"] * size)}, {"role": "assistant", "content": "yes no"}] for size in sizes]
    (folder / "long.jsonl").write_text("\n".join(json.dumps({"messages": messages}) for messages in turns))
    files = [f"data.train={folder}/long.jsonl", f"data.validation={folder}/long.jsonl"]
    model = [
        "model=gpt_tiny",
        "++model.config={n_layer: 2, n_embd: 32, n_head: 2, n_positions: 64}",
        "model.tokenizer.vocab_size=400",
    ]
    return ["task=finetune", "objective=instruction", *files, *model, "data.block_size=64"]


def test_answers_are_as_long_as_the_models_positions_allow_and_it_is_said(
    cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours, _ = made(cache, *long_tasks(tmp_path, [1, 5, 20, 45, 50]))
    assert isinstance(ours, Instruction)
    found = ours.describe_writing()
    expected = "behind 5 of 5 prompts the model's 64 positions leave no room for 256 tokens, and what is written there is shorter"
    assert found == f"5 conversations of validation: {expected}"
    assert f"answers to validation: {expected} (objective.max_answer=256)" in caplog.text
    prompts, examples = ours._prompts("validation", 50)
    assert [len(example.text.messages) for example in examples] == [2] * 5
    twin = published(ours.model.eval())
    tokenizer, answers = ours.dataset.tokenizer, ours.answer(prompts)
    longest = max(map(len, prompts.values()))
    for number, prompt in prompts.items():
        settings = {"do_sample": False, "pad_token_id": tokenizer.pad_token_id, "max_new_tokens": 64 - longest}
        ids = torch.tensor([prompt])
        whole = twin.generate(ids, attention_mask=torch.ones_like(ids), eos_token_id=tokenizer.eos_token_id, **settings)[0]
        assert answers[number] == tokenizer.decode(whole[len(prompt) :], skip_special_tokens=True)


def test_prompts_that_leave_no_room_lose_their_beginning() -> None:
    config = GPT2Config(n_positions=64)
    prompts = [list(range(size)) for size in (10, 56, 57, 90)]
    fitted = fit(config, prompts, 256)
    assert fitted.prompts == [prompts[0], prompts[1], prompts[2][1:], prompts[3][34:]]
    assert (fitted.cut, fitted.short) == (2, 4)
    assert fit(config, prompts, 4).prompts == [prompts[0], prompts[1], prompts[2], prompts[3][30:]]
    assert fit(config, prompts, 4, longest=20).prompts == [prompts[0], *(prompt[-20:] for prompt in prompts[1:])]
    unlimited = XLNetConfig()
    assert fit(unlimited, prompts, 256).describe(unlimited, 256) == ""


def test_a_run_with_long_prompts_and_the_default_length_of_answers_ends(run: Runner, tmp_path: Path) -> None:
    training = ["trainer.max_epochs=null", "trainer.max_steps=2", "batch.sequences=4", "trainer.validate_every_steps=2"]
    summary = run(*long_tasks(tmp_path, [5, 45, 50, 50]), *training, f"run_dir={tmp_path}/run")
    assert "validation/rouge_l" in summary["metrics"]
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 4
    assert {sample["reference"] for sample in samples} == {"yes no"}


def test_translations_are_as_long_as_the_models_positions_allow(cache: Path, tmp_path: Path) -> None:
    for side in ("en", "de"):
        (tmp_path / f"train.{side}").write_text("\n".join(["word " * 30] * 20))
    task = ["task=finetune", "objective=translation", "data=parallel", f"data.train={tmp_path}/train"]
    task += ["data.columns.text=en", "data.columns.label=de", *TINY_MARIAN]
    small, data = made(cache, *task, "++model.config.max_position_embeddings=40", "data.block_size=40")
    small.model.save_pretrained(tmp_path / "small")
    data.dataset.tokenizer.save_pretrained(tmp_path / "small")
    ours, data = made(cache, *task, f"model.name_or_path={tmp_path}/small", "data.block_size=128")
    batch = data.longest_rows(2)
    assert 2 * batch.longest + 10 > 40  # tokens that would be written, were there positions for them
    assert len(ours.predict(batch)) == 2


def test_an_exported_model_ends_its_answers_where_the_template_does(cache: Path, tmp_path: Path) -> None:
    _, data = made(cache, *long_tasks(tmp_path, [1, 5, 20]))
    tokenizer = data.dataset.tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(tmp_path / "model")
    size = {"vocab_size": len(tokenizer), "n_layer": 1, "n_embd": 32, "n_head": 2, "n_positions": 64}
    GPT2LMHeadModel(GPT2Config(**size)).save_pretrained(tmp_path / "model")
    ours, _ = made(cache, *long_tasks(tmp_path, [1, 5, 20])[:-3], "data.block_size=64", f"model.name_or_path={tmp_path}/model")
    ours.model.save_pretrained(tmp_path / "hf")
    ends = json.loads((tmp_path / "hf" / "generation_config.json").read_text())["eos_token_id"]
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in (ends if isinstance(ends, list) else [ends])
