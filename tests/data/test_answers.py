"""Answers of questions in every shape that files have them in: which tokens are learnt, what is refused, what is said."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_lightning.config.compose import load_config
from llm_lightning.config.schema import DataConfig
from llm_lightning.data.answers import read_answers
from llm_lightning.data.encodings import spans
from llm_lightning.data.examples import BadRow
from llm_lightning.data.labels import Labels
from llm_lightning.data.prepare import TokenizedDataset, prepare_dataset
from llm_lightning.errors import UserError
from llm_lightning.inference.predict import rows_of

from ..conftest import TINY_BERT, TINY_GPT
from .test_encodings import ASKED
from .test_tokenizers import bpe

BRIDGE = "The bridge was built in 1932 by Ada Lint in Ghent."
ADA = {"text": "Ada Lint", "answer_start": BRIDGE.index("Ada")}
NONE = {"text": "", "answer_start": -1}
Prepare = Callable[..., TokenizedDataset]


@pytest.fixture
def prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Prepare:
    """Writes files by split (text as it stands, else as JSON), and encodes them for question answering."""
    monkeypatch.setattr(logging.getLogger("llm_lightning"), "propagate", True)
    caplog.set_level(logging.INFO)

    def start(*overrides: str, ending: str = "json", tiny: list[str] = TINY_BERT, **splits: Any) -> TokenizedDataset:
        for split, content in ({"validation": articles([asked()])} | splits).items():
            text = content if isinstance(content, str) else json.dumps(content, ensure_ascii="\\ud83d" in str(content))
            (tmp_path / f"{split}.{ending if split in splits else 'json'}").write_text(text, encoding="utf-8")
        files = [f"data.{split}={tmp_path}/{split}.{ending if split in splits else 'json'}" for split in {"validation", *splits}]
        given = ["task=finetune", "objective=question_answering", "data=squad", *tiny, *files, f"cache_dir={tmp_path}/cache"]
        return prepare_dataset(load_config([*given, "data.block_size=64", *overrides]), "spans", None)

    return start


def asked(answers: Any = (ADA,), question: str = "Who built it?", **more: Any) -> dict[str, Any]:
    return {"question": question, "answers": answers, **more}


def articles(questions: list[dict[str, Any]], context: str = BRIDGE, count: int = 10) -> dict[str, Any]:
    """A SQuAD file of articles alike, whose questions have ids of their own."""
    qas = [[{"id": f"{k}-{i}", **question} for i, question in enumerate(questions)] for k in range(count)]
    return {"version": "x", "data": [{"title": f"t{k}", "paragraphs": [{"context": context, "qas": qas[k]}]} for k in range(count)]}


def learnt(dataset: TokenizedDataset, split: str = "train") -> list[str]:
    """What each sequence of a split learns, decoded from its tokens; empty where there is no answer."""
    encoded = dataset.splits[split]
    assert encoded.labels is not None
    pairs = zip(range(len(encoded)), encoded.labels.tolist(), strict=True)
    return [dataset.tokenizer.decode(encoded[i][first : last + 1]).strip() if last else "" for i, (first, last) in pairs]


EDGES = [
    "{} ",
    " {}",
    "  {}\n",
    "{}\r",
    "{}\r\n",
    "\t{}",
    "{}\u200b",
    "\ufeff{}",
    "{}\u061c",
    "\u200f{}\u200e",
    "{}\u00a0",
    "{}\u3000",
]


@pytest.mark.parametrize("tiny", [TINY_BERT, TINY_GPT], ids=["wordpiece", "bpe"])
@pytest.mark.parametrize("in_context", [True, False])
def test_invisible_edges_of_an_answer_are_not_learnt(in_context: bool, tiny: list[str], prepare: Prepare) -> None:
    """Whether the context has them, with the offset of the first of them, or the answer alone, with the offset of its first letter."""
    pages = []
    for edge in EDGES:
        marked = edge.format("Ada Lint")
        context = BRIDGE.replace("Ada Lint", marked) if in_context else BRIDGE
        pages += articles([asked([{"text": marked, "answer_start": BRIDGE.index("Ada")}])], context, 1)["data"]
    dataset = prepare(train={"data": pages}, tiny=tiny)
    plain = learnt(dataset, "validation")[0]
    assert plain.lower() == "ada lint"
    shown = [
        answer.strip("\u200b\ufeff\u061c\u200e\u200f \u3000\u00a0") for answer in learnt(dataset)
    ]  # a piece of BPE may hold one
    assert shown == [plain] * len(EDGES)
    assert all(example.label[0][1] == "Ada Lint" for example in dataset.examples("train"))


@pytest.mark.parametrize("word", ["café", "ضوءٌ", "नमस्ते", "巴黎", "👍🏽"])
def test_an_answer_whose_last_mark_the_tokenizer_drops_is_learnt(word: str, prepare: Prepare) -> None:
    context = f"Here it says {word} for all."
    answer = {"text": word, "answer_start": context.index(word)}
    for tiny in (TINY_BERT, TINY_GPT):
        assert all(learnt(prepare(train=articles([asked([answer])], context), tiny=tiny)))


ROW = {"context": BRIDGE, "question": "Who built it?"}
ANSWERED = [
    [ADA],
    ADA,
    {"text": ["Ada Lint"], "answer_start": [ADA["answer_start"]]},
    {"text": "Ada Lint", "answer_start": float(ADA["answer_start"])},
    [{"text": "Ada Lint", "answer_start": str(ADA["answer_start"])}],
    [{"text": "Ada Lint", "answer_start": [ADA["answer_start"]]}],
    {"text": ["Ada Lint"], "answer_starts": [ADA["answer_start"]]},
    "Ada Lint",
    ["Ada Lint"],
    [{"text": "Ada Lint"}],
    [{"text": "Ada Lint", "answer_start": -1}],
    str({"text": ["Ada Lint"], "answer_start": [ADA["answer_start"]]}),
    json.dumps({"text": ["Ada Lint"], "answer_start": [ADA["answer_start"]]}),
    f"{{'text': array(['Ada Lint'], dtype=object), 'answer_start': array([{ADA['answer_start']}])}}",
]
"""One answer in the spellings of SQuAD, of the `datasets` library, of tables and of Pandas' csv."""
UNANSWERED = [[], {"text": [], "answer_start": []}, [NONE], NONE, {"text": [""], "answer_start": [-1]}, "[]"]


@pytest.mark.parametrize("value", ANSWERED, ids=str)
def test_spellings_of_an_answer(value: Any) -> None:
    assert read_answers(value, BRIDGE, "answers") == [(ADA["answer_start"], "Ada Lint")]


@pytest.mark.parametrize("value", UNANSWERED, ids=str)
@pytest.mark.parametrize("flag", [True, "True", 1, None])
def test_spellings_of_no_answer(value: Any, flag: Any) -> None:
    assert read_answers(value, BRIDGE, "answers", is_impossible=flag) == []


def test_answers_of_columns_beside_each_other() -> None:
    encoder = spans.Encoder(bpe(), DataConfig(block_size=64, columns=ASKED), Labels((), ()))
    twice = "Ann met Ann."
    for extra in ({"answer_start": 8}, {"answer_start": [8]}, {"answer_starts": [8]}, {"answer_start": "8"}):
        assert encoder.read("Whom?", twice, "Ann", extra)[2] == [(8, "Ann")]
        assert encoder.read("Whom?", twice, ["Ann"], extra)[2] == [(8, "Ann")]
    assert encoder.read("Whom?", twice, "", {"answer_start": -1, "is_impossible": "true"})[2] == []
    assert encoder.read("Whom?", "See [1] there.", "[1]")[2] == [(4, "[1]")]
    assert encoder.read("When?", BRIDGE, {"text": [1932], "answer_start": [24]})[2] == [(24, "1932")]


EMOJI = "👍🏽 and 🎉: it was Ada Lint."
BAD = [
    (EMOJI, {"text": "Ada Lint", "answer_start": 20}, None, "of UTF-16"),
    (EMOJI, {"text": "Ada Lint", "answer_start": 26}, None, "bytes of UTF-8"),
    ("a\r\nb\r\nAda Lint", {"text": "Ada Lint", "answer_start": 4}, None, r"while these end in \r\n"),
    ("a\nb\nAda Lint", {"text": "Ada Lint", "answer_start": 6}, None, r"while these end in \n"),
    (BRIDGE, {"text": "ada lint", "answer_start": 32}, None, "upper and lower case"),
    (BRIDGE, {"text": "Ada\nLint", "answer_start": 32}, None, "other blanks"),
    ("le café", {"text": "cafe\u0301", "answer_start": 3}, None, "another Unicode form"),
    (BRIDGE, [ADA], True, "is_impossible is true, and there is the answer 'Ada Lint'"),
    (BRIDGE, [], False, "is_impossible is false, and there is no answer"),
    (BRIDGE, [{"text": ""}], None, "an answer is empty"),
    (BRIDGE, None, None, "has no answers; a question without an answer has an empty list"),
    (BRIDGE, [ADA], "maybe", "is_impossible is 'maybe'"),
    (BRIDGE, {"text": "Ada Lint", "answer_start": 3.5}, None, "answer_start is 3.5"),
    (BRIDGE, {"text": "Ada Lint", "answer_start": True}, None, "answer_start is True"),
]


@pytest.mark.parametrize(("context", "value", "flag", "expected"), BAD)
def test_a_contradiction_is_a_bad_row_with_advice(context: str, value: Any, flag: Any, expected: str) -> None:
    with pytest.raises(BadRow) as error:
        read_answers(value, context, "answers", is_impossible=flag)
    assert expected in str(error.value)


SHAPES = {
    "a list of articles": articles([asked()])["data"],
    "a list of paragraphs": [page for article in articles([asked()])["data"] for page in article["paragraphs"]],
    "rows under data": {"data": [{**ROW, "id": i, "answers": {"text": ["Ada Lint"], "answer_start": [32]}} for i in range(10)]},
    "rows, alone": [{**ROW, "answers": ["Ada Lint"], "answer_starts": [32]}] * 10,
    "answer in the singular": [{**ROW, "answer": "Ada Lint"}] * 10,
    "one paragraph": {"context": BRIDGE, "qas": [asked(id=i, is_impossible=False) for i in range(10)]},
    "questions without ids": {"data": [{"paragraphs": [{"context": BRIDGE, "qas": [asked()] * 10}]}]},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_of_files(shape: str, prepare: Prepare, caplog: pytest.LogCaptureFixture) -> None:
    assert learnt(prepare(train=SHAPES[shape])) == ["ada lint"] * 10
    items = SHAPES[shape] if isinstance(SHAPES[shape], list) else [SHAPES[shape]]
    for ending in ("jsonl", "ndjson", "json"):  # an item a line
        assert learnt(prepare(train="\n\n".join(map(json.dumps, items)), ending=ending)) == ["ada lint"] * 10
    assert "share their id" not in caplog.text
    assert "not read" not in caplog.text


def test_questions_to_predict_are_named_by_their_line_and_id(tmp_path: Path) -> None:
    rows = [{"context": BRIDGE, "question": "Who?", "id": "a7"}, {"context": BRIDGE, "question": "When?"}]
    (tmp_path / "x.jsonl").write_text("\n".join(["", *map(json.dumps, rows)]))
    (tmp_path / "x.json").write_text(json.dumps(rows))
    data = DataConfig(source="squad")
    assert [row["where"].partition("x.")[2] for name in ("x.jsonl", "x.json") for row in rows_of(tmp_path / name, data)] == [
        "jsonl, line 2, question a7",
        "jsonl, line 3, question number 2",
        "json, question a7",
        "json, question number 2",
    ]


REFUSED = [
    ({"train": []}, "json", ["train.json", "an object with train", "paragraphs"]),
    ([1, 2], "json", ["train.json, entry 1", "there is int"]),
    ({"data": []}, "json", ["there is no question in the file"]),
    ("[" * 100_000, "json", ["train.json: JSON that cannot be read"]),
    (
        '[{"question": "a", "context": "b", "id": %s, "answers": []}]' % ("9" * 5000),
        "json",
        ["train.json: JSON that cannot be read"],
    ),
    ('{"question": "a", "context": "b", "answers": []}\n{"question', "jsonl", ["train.jsonl, line 2", "not valid JSON"]),
    ("[" * 100_000 + "\n", "jsonl", ["train.jsonl, line 1", "JSON that cannot be read"]),
    ([asked(context="a\ud83db")], "json", ["question number 1", "half a character"]),
    ([asked(context=BRIDGE, id="\ud83d")], "json", ["question ?", "half a character"]),
    ([asked(context=BRIDGE, note="\ud83d")], "json", ["question number 1", "half a character"]),
    (
        [asked([{"text": "Ada Lint", "answer_start": 10**400}], context=BRIDGE)],
        "json",
        ["question number 1", "expected a whole number"],
    ),
    ('{"data": [', "json", ["train.json, line 1", "not valid JSON"]),
    ('{"a": 1}\n{"a": 2}', "json", ["train.json, line 1", "this is no question"]),
    (
        "context,question\n",
        "csv",
        ["train.csv: data=squad reads .json, .jsonl; read a table", "data=files data.columns.text=question"],
    ),
    ("PAR1", "parquet", ["train.parquet: data=squad reads .json", "data=files"]),
    ('{"header": {"dataset": "x"}}\n{"context": "a", "qas": []}', "jsonl", ["train.jsonl, line 1", "MRQA"]),
    ([{"question_text": "a", "document_text": "b", "annotations": []}], "json", ["question_text, document_text, annotations"]),
    ([{"question": {"text": "a"}, "context": "b", "answers": []}], "json", ["question number 1", "its question is dict, not text"]),
    ('\n{"question": "a", "answers": []}', "jsonl", ["train.jsonl, line 2, question number 1", "its context is missing"]),
    (articles([asked(), {"question": "When?"}]), "json", ["question 0-1", "has no answers"]),
    (articles([{"question": "When?"}]), "json", ["train has no labels", "question 0-0"]),
]


@pytest.mark.parametrize(("content", "ending", "expected"), REFUSED)
def test_what_is_no_squad_file_is_refused(content: Any, ending: str, expected: list[str], prepare: Prepare) -> None:
    with pytest.raises(UserError) as error:
        prepare(train=content, ending=ending)
    for part in expected:
        assert part in str(error.value)


def test_what_is_not_read_is_counted(prepare: Prepare, caplog: pytest.LogCaptureFixture) -> None:
    plausible = asked([], "When?", is_impossible=True, plausible_answers=[{"text": "Ghent", "answer_start": 44}])
    dataset = prepare(train=articles([asked(), plausible, asked([ADA, {"text": "Ada", "answer_start": 32}])]))
    assert learnt(dataset) == ["ada lint", "", "ada lint"] * 10
    for start in ("cold", "warm"):
        assert "train.json: keys of questions that are not read, with their number: plausible_answers (10)." in caplog.text, start
        assert (
            "train: in 10 of 30 rows there are several different answers; the first that is whole in a window is learnt"
            in caplog.text
        )
        caplog.clear()
        prepare(train=articles([asked(), plausible, asked([ADA, {"text": "Ada", "answer_start": 32}])]))
    prepare(train={"data": [{"title": "t", "paragraphs": [{"context": BRIDGE, "qas": [asked(id=7)] * 4}]}]})
    assert "4 questions share their id with another (7)" in caplog.text


def test_skipped_answers_are_counted_and_no_question_becomes_unanswerable(
    prepare: Prepare, caplog: pytest.LogCaptureFixture
) -> None:
    off = {"text": "Ada Lint", "answer_start": 30}
    dataset = prepare("data.on_bad_row=skip", train=articles([asked(), asked([off])]))
    assert learnt(dataset) == ["ada lint"] * 10
    assert "train: skipped 10 of 20 rows" in caplog.text
    assert "which is at 32" in caplog.text


def test_an_answer_longer_than_a_window_is_refused(prepare: Prepare) -> None:
    words = " ".join(f"w{i}" for i in range(100))
    with pytest.raises(UserError, match=r"question 0-0: the answer, of 389 characters, is whole in no window: raise data\.overlap"):
        prepare(train=articles([asked([{"text": words, "answer_start": 0}])], words))
    longer = [{"text": words, "answer_start": 0}, {"text": "w5 w6", "answer_start": 15}]
    assert set(learnt(prepare(train=articles([asked(longer)], words)))) == {"", "w5 w6"}


UNLABELLED = [
    {"question": "Who?"},
    asked([], "Who?"),
    asked(None, "Who?"),
    asked({"text": [], "answer_start": []}, "Who?"),
    asked([NONE], "Who?"),
]


@pytest.mark.parametrize("question", UNLABELLED, ids=str)
def test_a_split_without_answers_is_not_scored(question: Any, prepare: Prepare, caplog: pytest.LogCaptureFixture) -> None:
    train = articles([asked(), asked([], "When?")])
    with pytest.raises(UserError, match=r"data\.validation: .*validation\.json, question 0-0: column 'answers' is empty"):
        prepare(train=train, validation=articles([question]))
    dataset = prepare(train=train, validation=train, test=articles([question]))
    assert list(dataset.splits) == ["train", "validation"]
    assert "test has no labels (column 'answers' is empty)" in caplog.text
    dataset = prepare(train=train, validation=articles([question | {"answers": [], "is_impossible": True}]))
    assert learnt(dataset, "validation") == [""] * 10  # which is what the file says


def test_a_compressed_file_is_no_other_file(tmp_path: Path) -> None:
    """Its endings are those of a file of its kind; where lines of compressed files are read, so are these."""
    from llm_lightning.data.sources import squad

    path = tmp_path / "train.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps({**ROW, "answers": ["Ada Lint"]}).encode()))
    try:
        rows = list(squad.rows(path, DataConfig(source="squad")))
    except UserError as error:
        assert "train.jsonl.gz" in str(error)  # noqa: PT017
    else:
        assert [row["question"] for row in rows] == ["Who built it?"]
