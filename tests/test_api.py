"""From Python, the same answers as from the command line, and the same refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas
import pytest

import llm_lightning
from llm_lightning.config.compose import load_config
from llm_lightning.errors import UserError
from llm_lightning.run import run as start

from .conftest import QUIET, TINY_BERT, TINY_GPT


@pytest.fixture(scope="module")
def classifier(reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    data = [
        "data=files",
        f"data.train={reviews}",
        "data.columns.text=body",
        "data.columns.label=stars",
        f"cache_dir={folder}/cache",
    ]
    summary = llm_lightning.train(
        *QUIET,
        "task=finetune",
        *TINY_BERT,
        "trainer.precision=32-true",  # scores are held to those of others
        *data,
        "trainer.max_epochs=8",
        "batch.sequences=8",
        "optimizer.lr=5e-3",
        f"run_dir={folder}/run",
    )
    assert summary["metrics"]["validation/accuracy"] > 0.9
    return folder / "run"


def test_predictions_are_those_of_the_command_line(classifier: Path, tmp_path: Path) -> None:
    texts = ["a great film", "quite awful plot"]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"body": text}) for text in texts))
    start(load_config(["task=predict", f"run={classifier}", f"data.predict={tmp_path}/rows.jsonl", f"out={tmp_path}/out.jsonl"]))
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    model = llm_lightning.load(classifier)
    said = model.predict(texts)
    assert [{"row": i, **row} for i, row in enumerate(said)] == written
    assert [row["label"] for row in said] == ["good", "bad"]
    assert model.predict([{"body": text} for text in texts]) == said
    table = pandas.DataFrame({"stars": ["", ""], "body": texts})
    for same in (table, table["body"], table["body"].to_numpy(), tuple(texts), (text for text in texts)):
        assert model.predict(same) == said
    assert model.predict(["a great film", " ", "", "quite awful plot"]) == [said[0], *[{"error": "the row is empty"}] * 2, said[1]]
    with pytest.raises(UserError, match="row 1: column 'body' is empty"):
        model.predict([{"body": "a film"}, {"body": " "}])
    with pytest.raises(UserError, match="row 0: it holds half of a surrogate pair"):
        model.predict(["a \ud83d"])

    for rows, message in (
        ("a film", "a list of texts"),
        ({"body": "a film"}, "a list of texts"),
        (["a", None], "row 1: .*NoneType"),
        ({"a film"}, "a list of texts"),
        ([{"body": "a film"}, {"text": "a film"}], "row 1: there is no column 'body'; the row has text"),
        (b"a film", "a list of texts"),
        (tmp_path / "rows.jsonl", "a list of texts"),
    ):
        with pytest.raises(UserError, match=message):
            model.predict(rows)  # type: ignore[arg-type]


BAD_SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"temperature": -1}, r"generate\.temperature=-1.*: expected"),
    ({"max_new_tokens": 0}, r"generate\.max_new_tokens=0: expected"),
    ({"max_new_tokens": "many"}, r"generate\.max_new_tokens='many': .*Integer"),
    ({"top_p": 2}, r"generate\.top_p=2.*: expected"),
    ({"stop": ""}, r"generate\.stop: an empty text"),
]


def test_text_is_that_of_the_command_line(corpus: Path, tmp_path: Path) -> None:
    data = ["data=text", f"data.train={corpus}", "data.document=line", "data.block_size=32", f"cache_dir={tmp_path}/cache"]
    llm_lightning.train(
        *QUIET, "task=pretrain", *TINY_GPT, *data, "trainer.max_steps=30", "optimizer.lr=1e-2", f"run_dir={tmp_path}/run"
    )
    model = llm_lightning.load(tmp_path / "run")
    greedy = model.generate("the cat", temperature=0, max_new_tokens=8)
    given = [f"run={tmp_path}/run", "prompt='the cat'", "generate.temperature=0", "generate.max_new_tokens=8"]
    assert greedy == start(load_config(["task=generate", *given]))["text"]
    likely, unlikely = model.likelihood(["the cat", "the cat"], ["sees rain", "zzz qqq"])
    assert likely > unlikely
    with pytest.raises(UserError, match=r"generate\.heat: there is no such setting; there are max_new_tokens"):
        model.generate("a", heat=1)
    assert model.generate("the cat", temperature=0, max_new_tokens=8, stop="e") == greedy.partition("e")[0]
    for setting, message in BAD_SETTINGS:
        with pytest.raises(UserError, match=message):
            model.generate("a", **setting)
    with pytest.raises(UserError, match="a list of messages, and found NoneType"):
        model.generate(None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"expected words of a command line.*found \['task=finetune'\]"):
        llm_lightning.train(["task=finetune"])  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"makes no predictions of rows; text is written by task=generate data\.predict=<file>"):
        model.predict(["the cat"])
    with pytest.raises(UserError, match="objective=causal_lm makes no predictions of rows"):
        start(load_config(["task=predict", f"run={tmp_path}/run", f"data.predict={corpus}", f"out={tmp_path}/out.jsonl"]))
    with pytest.raises(UserError, match="not a run folder"):
        llm_lightning.load(tmp_path / "nowhere").predict(["a"])
