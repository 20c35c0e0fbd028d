"""Generated text is that of transformers' own generate; settings mean what they say; a conversation keeps its history."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_lightning.config.compose import load_config
from llm_lightning.config.schema import DataConfig
from llm_lightning.data.encodings import stream
from llm_lightning.data.examples import Example
from llm_lightning.errors import UserError
from llm_lightning.inference import generate, use
from llm_lightning.run import run as start

from ..conftest import QUIET, TINY_GPT
from ..objectives.test_supervised import tasks


@pytest.fixture(scope="module")
def writer(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learnt some text."""
    folder = tmp_path_factory.mktemp("writer")
    data = ["data=text", f"data.train={corpus}", "data.document=line", "data.block_size=32", f"cache_dir={folder}/cache"]
    start(
        load_config(
            [*QUIET, "task=pretrain", *TINY_GPT, *data, "trainer.max_steps=60", "optimizer.lr=1e-2", f"run_dir={folder}/run"]
        )
    )
    return folder / "run"


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learnt answers by heart."""
    folder = tmp_path_factory.mktemp("talker")
    given = [*QUIET, f"cache_dir={folder}/cache", *tasks(folder), "++model.config={n_layer: 2, n_embd: 64, n_head: 4}"]
    training = ["trainer.max_epochs=null", "trainer.max_steps=300", "batch.sequences=4", "optimizer.lr=1e-2"]
    start(load_config([*given, *training, "trainer.validate_every_steps=300", f"run_dir={folder}/run"]))
    return folder / "run"


def said(run: Path, *more: str) -> str:
    text: str = start(load_config(["task=generate", f"run={run}", "generate.max_new_tokens=12", *more]))["text"]
    return text


def expected(run: Path, prompt: str, seed: int = 0, **settings: Any) -> str:
    tokenizer, model = AutoTokenizer.from_pretrained(run / "hf"), AutoModelForCausalLM.from_pretrained(run / "hf")
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    torch.manual_seed(seed)
    found = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, pad_token_id=tokenizer.pad_token_id, **settings
    )
    return tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)


def test_text_is_that_of_transformers(writer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    greedy = said(writer, "prompt='the cat'", "generate.temperature=0")
    assert greedy == expected(writer, "the cat", do_sample=False)
    assert greedy.split() == capsys.readouterr().out.split()  # it was shown as it came
    for seed in (1, 2):
        drawn = said(writer, "prompt='the cat'", f"seed={seed}", "generate.temperature=1.5", "generate.top_k=5")
        assert drawn == expected(writer, "the cat", seed, do_sample=True, temperature=1.5, top_k=5)


def test_a_prompt_begins_as_documents_do_in_training(writer: Path) -> None:
    """So that each token of a short text is at a place that was trained, also in transformers' own pipelines."""
    tokenizer = AutoTokenizer.from_pretrained(writer / "hf")
    encoding = stream.Encoder(tokenizer, DataConfig(source="text"))
    document = encoding([Example(0, "the cat sees rain", None, None)], None).tokens[0]
    assert tokenizer("the cat sees rain")["input_ids"] == document[:-1]  # all but the end of the text
    assert use.generator(load_config(["task=generate", f"run={writer}", "prompt=a"])).tokens("the cat sees rain") == document[:-1]


def test_a_misspelt_run_is_not_looked_for_on_the_hub(writer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(writer.parent.parent)
    folder = writer.parent.name
    with pytest.raises(UserError, match=rf"run={folder}/rum: there is no such folder\. Did you mean '{folder}/run'\?"):
        load_config(["task=generate", f"run={folder}/rum", "prompt=a"])


def test_a_stop_text_ends_it_and_is_not_shown(writer: Path) -> None:
    greedy = said(writer, "prompt='the cat'", "generate.temperature=0")
    stop = greedy.split()[1]
    assert said(writer, "prompt='the cat'", "generate.temperature=0", f"generate.stop=[{stop}]") == greedy.partition(stop)[0]


def test_prompts_of_a_file_are_gone_on_with_as_alone(writer: Path, tmp_path: Path) -> None:
    prompts = ["the cat sees", "a dog", "my friend likes the sea on", "the"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    out = tmp_path / "out.jsonl"
    given = [f"data.predict={tmp_path}/prompts.txt", f"out={out}", "generate.temperature=0", "trainer.progress=none"]
    start(load_config(["task=generate", f"run={writer}", "generate.max_new_tokens=12", *given]))
    found = [json.loads(line)["text"] for line in out.read_text().splitlines()]
    assert found == [expected(writer, prompt, do_sample=False) for prompt in prompts]


def test_a_conversation_has_the_answers_that_were_learnt_and_keeps_its_history(
    talker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt = [json.loads(line)["messages"] for line in (talker.parent / "tasks.jsonl").read_text().splitlines()]
    turns = learnt[0]  # without a system message
    lines = iter([turns[0]["content"], turns[2]["content"], "/reset", turns[0]["content"], "/quit", "never"])
    chat = generate.Generator.chat
    monkeypatch.setattr(use.Generator, "chat", lambda self: chat(self, lambda prompt: next(lines)))
    found = start(load_config(["task=chat", f"run={talker}", "generate.temperature=0", "generate.max_new_tokens=40"]))["messages"]
    assert found == turns[:2]
    lines = iter([turns[0]["content"], turns[2]["content"]])
    monkeypatch.setattr(use.Generator, "chat", lambda self: chat(self, lambda prompt: next(lines, "/quit")))
    found = start(load_config(["task=chat", f"run={talker}", "generate.temperature=0", "generate.max_new_tokens=40"]))["messages"]
    assert found == turns


def test_what_cannot_be_asked_for_is_said(writer: Path) -> None:
    with pytest.raises(UserError, match="prompt is not set"):
        load_config(["task=generate", f"run={writer}"])
    with pytest.raises(UserError, match="the model has no chat template"):
        start(load_config(["task=chat", f"run={writer}"]))
    with pytest.raises(UserError, match=r"generate\.max_new_tokens=9999: the model has"):
        start(load_config(["task=generate", f"run={writer}", "prompt=a", "generate.max_new_tokens=9999"]))
    with pytest.raises(UserError, match=r"generate\.temperature=-1.0: expected a number at least 0"):
        load_config(["task=generate", f"run={writer}", "prompt=a", "generate.temperature=-1"])


def test_rows_of_conversations_are_answered_in_the_shapes_of_training(
    talker: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    turns = json.loads((talker.parent / "tasks.jsonl").read_text().splitlines()[0])["messages"]
    shapes = [
        turns[:3],
        [{"from": "human" if m["role"] == "user" else "gpt", "value": m["content"]} for m in turns[:3]],
        json.dumps(turns[:3]),
        {"conversation": turns[:3]},
        turns,  # answered already
        [m | {"content": [{"type": "text", "text": m["content"]}]} for m in turns[:3]],
        turns[0]["content"],
    ]
    (tmp_path / "ask.jsonl").write_text("\n".join(json.dumps({"messages": shape}) for shape in shapes))
    given = [f"data.predict={tmp_path}/ask.jsonl", f"out={tmp_path}/out.jsonl", "generate.temperature=0", "trainer.progress=none"]
    start(load_config(["task=generate", f"run={talker}", "generate.max_new_tokens=40", *given]))
    answers = [json.loads(line)["text"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert answers == [turns[3]["content"]] * 6 + [turns[1]["content"]]
    assert "in 1 of 7 rows the answer at the end is left out, as the model writes its own" in caplog.text
    (tmp_path / "ask.jsonl").write_text(json.dumps({"messages": [{"role": "usr", "content": "a"}]}))
    with pytest.raises(UserError, match=r"ask.jsonl, line 1: column 'messages', message 1: unknown role 'usr'"):
        start(load_config(["task=generate", f"run={talker}", *given]))
