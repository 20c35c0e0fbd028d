"""Random small files with random damage: what is learnt equals what the file says, or the run is refused with the file's name.

An independent reader (`csv`, `json`, `str.split`) says what a file holds. Where it can read the file, every row must be learnt as it
stands, or be a bad row; where it cannot, the run must be refused, or say in a note how it read the file. Nothing else may happen:
no traceback, no other number of rows. `pytest -m nightly` tries ten times as many files.
"""

from __future__ import annotations

import csv
import io
import json
import tempfile
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llm_lightning.config.compose import load_config
from llm_lightning.config.schema import Config
from llm_lightning.data.masking import IGNORED
from llm_lightning.data.prepare import TokenizedDataset, prepare_dataset
from llm_lightning.errors import UserError

FILES = [pytest.param(40, id="40"), pytest.param(400, id="400", marks=pytest.mark.nightly)]
"""Random files a kind: five kinds make 200 in all, and 2,000 at night."""
BAD = object()
"""A row that the independent reader cannot take."""
DAMAGE = [b'"', b"'", b",", b";", b"\n", b"\r", b"\t", b"{", b"}", b"[", b"]", b"\\", b"\x00", b"\xff", b"\xe9", b" ", b"#", b"a"]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with a token for each byte: what it decodes is what it was given."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate([*alphabet, "<|end|>", "<|pad|>"])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", bos_token="<|end|>", pad_token="<|pad|>")


TOKENIZER = build_tokenizer()


@dataclass(frozen=True, eq=False)
class Kind:
    """A kind of file: how its rows are drawn and written, and how an independent reader and a learner see them."""

    name: str
    ending: str
    arguments: list[str]
    encoding: str
    rows: st.SearchStrategy[Any]
    write: Callable[[Any], bytes]
    read: Callable[[bytes], list[Any] | None]
    """The rows of a file, BAD for one that is none; None for a file that cannot be read."""
    learnt: Callable[[TokenizedDataset], list[Any]]
    """The rows as the encoded arrays have them."""


# ---- texts ----

CHARACTERS = st.characters(codec="utf-8", exclude_characters="\x00\x0e\x0f\x1b\ufeff", exclude_categories=("Cs",))
SHORT = st.text(CHARACTERS, min_size=1, max_size=20).filter(lambda text: bool(text.strip()))
LINE = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1, max_size=20).filter(
    lambda text: bool(text.strip()) and not text.startswith("\ufeff")
)
LABEL = st.sampled_from(["neg", "pos", "ä b", "neutral"])
LABELLED = st.lists(st.tuples(SHORT, LABEL), min_size=2, max_size=8).filter(lambda rows: len({label for _, label in rows}) > 1)


def decode(tokens: Sequence[int]) -> str:
    return TOKENIZER.decode(list(map(int, tokens)), skip_special_tokens=False)


def learnt_texts(dataset: TokenizedDataset) -> list[tuple[str, str]]:
    train = dataset.splits["train"]
    assert train.labels is not None
    assert dataset.labels is not None
    return [(decode(train[i]), dataset.labels.names[train.labels[i]]) for i in range(len(train))]


def labelled(value: Any, label: Any) -> Any:
    usable = isinstance(value, str) and value.strip() and isinstance(label, str) and label.strip()
    return (value, label.strip()) if usable else BAD


QUOTE = '"'


def write_csv(rows: list[tuple[str, str]]) -> bytes:
    """Unlike `csv.writer`, whose line end is here a newline, put a carriage return in quotes."""
    fields = [[f'"{field.replace(QUOTE, QUOTE * 2)}"' if set(field) & set(',"\r\n') else field for field in row] for row in rows]
    return "".join(f"{','.join(row)}\n" for row in [["text", "label"], *fields]).encode()


def read_csv(content: bytes) -> list[Any] | None:
    """A carriage return that neither quotes nor a newline stand beside spoils its row alone: it is no end of a line."""
    text = content.decode("utf-8-sig", "surrogateescape")
    rows: list[Any] = []
    reader = csv.reader(io.StringIO(text, newline="\n"), strict=True)
    while True:
        try:
            rows.append(next(reader))
        except StopIteration:
            break
        except csv.Error as error:
            if "new-line" not in str(error):
                return None
            rows.append(BAD)
    rows = [row for row in rows if row]
    if "\x00" in text or not rows or rows[0] is BAD or any(map(has_bytes, rows[0])) or sorted(rows[0]) != ["label", "text"]:
        return None
    order = rows[0].index("text"), rows[0].index("label")
    return [
        BAD if row is BAD or len(row) != 2 or any(map(has_bytes, row)) else labelled(row[order[0]], row[order[1]])
        for row in rows[1:]
    ]


def write_jsonl(rows: list[tuple[str, str]]) -> bytes:
    return b"".join(json.dumps({"text": text, "label": label}, ensure_ascii=False).encode() + b"\n" for text, label in rows)


def read_jsonl(content: bytes) -> list[Any] | None:
    lines = content.decode("utf-8-sig", "surrogateescape").split("\n")
    return [BAD if has_bytes(line) else read_object(line) for line in cut_marks(lines) if line.strip()]


def has_bytes(text: str) -> bool:
    """Return whether a part of a file, decoded with surrogateescape, has bytes that are not UTF-8."""
    return any("\udc80" <= character <= "\udcff" for character in text)


def cut_marks(lines: list[str]) -> list[str]:
    """Return lines without the byte order marks of files that were put behind one another."""
    return [line.lstrip("\ufeff") for line in lines]


def read_object(line: str) -> Any:
    try:
        value = json.loads(line)
    except json.JSONDecodeError:
        return BAD
    return labelled(value.get("text"), value.get("label")) if isinstance(value, dict) else BAD


# ---- conversations ----

TURNS = st.lists(st.tuples(LINE, LINE), min_size=1, max_size=3)
CONVERSATIONS = st.lists(st.tuples(st.none() | LINE, TURNS), min_size=2, max_size=4)


def write_conversations(rows: list[tuple[str | None, list[tuple[str, str]]]]) -> bytes:
    lines = []
    for system, turns in rows:
        messages = [{"role": "system", "content": system}] if system is not None else []
        for question, answer in turns:
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": messages}))
    return "".join(f"{line}\n" for line in lines).encode()


def read_conversations(content: bytes) -> list[Any] | None:
    try:
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError:
        return None
    return [read_conversation(line) for line in cut_marks(lines) if line.strip()]


def read_conversation(line: str) -> Any:
    try:
        messages = json.loads(line)["messages"]
        pairs = [(message["role"], message["content"]) for message in messages]
    except (json.JSONDecodeError, KeyError, TypeError):
        return BAD
    if any(role not in ("system", "user", "assistant") or not isinstance(content, str) for role, content in pairs):
        return BAD
    answers = [content for role, content in pairs if role == "assistant"]
    return answers if answers and all(answer.strip() for answer in answers) else BAD


def learnt_answers(dataset: TokenizedDataset) -> list[list[str]]:
    train = dataset.splits["train"]
    assert train.token_targets is not None
    rows = []
    for i in range(len(train)):
        targets = train.token_targets[train.starts[i] : train.starts[i] + train.lengths[i]]
        rows.append(decode([token for token in targets if token != IGNORED]).split("<|end|>")[:-1])
    return rows


# ---- sentences of words with tags ----

WORD = LINE.map(lambda text: "".join(text.split())).filter(lambda word: bool(word) and word[0] not in "#-" and word.isprintable())
TAGS = st.sampled_from(["O", "O", "B-PER", "B-LOC", "I-PER"])
SENTENCE = st.lists(st.tuples(WORD, TAGS), min_size=1, max_size=5)
SENTENCES = st.lists(SENTENCE, min_size=2, max_size=5).map(
    lambda rows: [*rows, [("Anna", "B-PER"), ("Bonn", "B-LOC"), ("is", "O")]]
)


def write_conll(rows: list[list[tuple[str, str]]]) -> bytes:
    return "\n".join("".join(f"{word}\t{tag}\n" for word, tag in row) for row in rows).encode()


def read_conll(content: bytes) -> list[Any] | None:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    rows: list[Any] = []
    sentence: list[list[str]] = []
    for line in [*text.split("\n"), ""]:
        if line.strip():
            sentence.append(line.rstrip("\r").split("\t"))
        elif sentence:
            whole = all(len(fields) == 2 and fields[0].strip() and fields[1].strip() for fields in sentence)
            words, tags = ([fields[i].strip() for fields in sentence] for i in (0, -1))
            rows.append((" ".join(words), tags) if whole else BAD)
            sentence = []
    return rows


def learnt_tags(dataset: TokenizedDataset) -> list[tuple[str, list[str]]]:
    train = dataset.splits["train"]
    assert train.token_targets is not None
    assert dataset.labels is not None
    rows = []
    for i in range(len(train)):
        targets = train.token_targets[train.starts[i] : train.starts[i] + train.lengths[i]]
        tags = [dataset.labels.names[target] for target in targets if target != IGNORED]
        rows.append((decode(train[i]).removeprefix("<|end|>").removesuffix("<|end|>"), tags))
    return rows


# ---- questions with answers in a text ----


def visible(text: str) -> str:
    """Return an answer without what nobody sees at its edges: blanks, and characters of control and of format."""
    hidden = "".join({c for c in text if c.isspace() or unicodedata.category(c) in ("Cc", "Cf", "Zs", "Zl", "Zp")})
    return text.strip(hidden) if hidden else text


@st.composite
def asked(draw: st.DrawFn) -> tuple[str, str, tuple[int, str] | None]:
    context, question = draw(st.text(CHARACTERS, min_size=5, max_size=40).filter(lambda text: bool(text.strip()))), draw(LINE)
    start = draw(st.integers(0, len(context) - 1))
    answer = context[start : draw(st.integers(start + 1, len(context)))]
    return context, question, (start, answer) if visible(answer) and draw(st.booleans()) else None


QUESTIONS = st.lists(asked(), min_size=2, max_size=5)


def write_squad(rows: list[tuple[str, str, tuple[int, str] | None]]) -> bytes:
    paragraphs = [
        {
            "context": context,
            "qas": [
                {
                    "id": str(i),
                    "question": question,
                    "is_impossible": answer is None,
                    "answers": [] if answer is None else [{"text": answer[1], "answer_start": answer[0]}],
                }
            ],
        }
        for i, (context, question, answer) in enumerate(rows)
    ]
    return json.dumps({"data": [{"title": "t", "paragraphs": paragraphs}]}, indent=1, ensure_ascii=False).encode()


def read_squad(content: bytes) -> list[Any] | None:
    try:
        paragraphs = json.loads(content.decode("utf-8-sig"))["data"][0]["paragraphs"]
        return [
            read_answer(paragraph.get("context"), asked.get("question"), asked.get("answers"))
            for paragraph in paragraphs
            for asked in paragraph["qas"]
        ]
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, IndexError):
        return None


def read_answer(context: Any, question: Any, answers: list[dict[str, Any]] | None) -> Any:
    if not (isinstance(context, str) and context.strip() and isinstance(question, str) and question.strip()) or answers is None:
        return BAD
    if not answers:
        return (question, "")
    text, start = answers[0]["text"], answers[0].get("answer_start")
    if start is None and context.count(text) == 1:  # there is but one place for it
        start = context.index(text)
    placed = isinstance(start, int) and start >= 0 and context[start : start + len(text)] == text
    return (question, visible(text)) if placed and visible(text) else BAD


def learnt_spans(dataset: TokenizedDataset) -> list[tuple[str, str]]:
    train = dataset.splits["train"]
    assert train.labels is not None
    assert train.second is not None
    rows = []
    for i in range(len(train)):
        first, last = map(int, train.labels[i])
        answer = decode(train[i][first : last + 1]).strip() if (first, last) != (0, 0) else ""
        rows.append((decode(train[i][: train.second[i]]), answer))
    return rows


TABLE = ["data=files", "objective=classification", "data.columns.label=label"]
KINDS = [
    Kind("csv", ".csv", TABLE, "texts", LABELLED, write_csv, read_csv, learnt_texts),
    Kind("jsonl", ".jsonl", TABLE, "texts", LABELLED, write_jsonl, read_jsonl, learnt_texts),
    Kind(
        "chat",
        ".jsonl",
        ["data=chat", "objective=instruction"],
        "chat",
        CONVERSATIONS,
        write_conversations,
        read_conversations,
        learnt_answers,
    ),
    Kind("conll", ".conll", ["data=conll", "objective=tagging"], "words", SENTENCES, write_conll, read_conll, learnt_tags),
    Kind(
        "squad", ".json", ["data=squad", "objective=question_answering"], "spans", QUESTIONS, write_squad, read_squad, learnt_spans
    ),
]


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Return the file after one or two accidents: bytes lost, added or changed, lines lost or doubled, other line ends, a BOM."""
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        lines = content.split(b"\n")
        match draw(st.sampled_from(["lose", "add", "change", "cut", "lose line", "double line", "crlf", "bom"])):
            case "lose":
                content = content[:at] + content[at + 1 :]
            case "add":
                content = content[:at] + draw(st.sampled_from(DAMAGE)) + content[at:]
            case "change":
                content = content[:at] + draw(st.sampled_from(DAMAGE)) + content[at + 1 :]
            case "cut":
                content = content[:at]
            case "lose line":
                line = draw(st.integers(0, len(lines) - 1))
                content = b"\n".join(lines[:line] + lines[line + 1 :])
            case "double line":
                line = draw(st.integers(0, len(lines) - 1))
                content = b"\n".join(lines[: line + 1] + lines[line:])
            case "crlf":
                content = content.replace(b"\n", b"\r\n")
            case _:
                content = b"\xef\xbb\xbf" + content.removeprefix(b"\xef\xbb\xbf")
    return content


@cache
def configure(kind: Kind) -> Config:
    """Return the checked config of a kind of file, without the file: composing it anew takes longer than reading the file."""
    with tempfile.NamedTemporaryFile(suffix=kind.ending) as file:
        return load_config(["task=finetune", *kind.arguments, f"data.train={file.name}"])


def outcome(kind: Kind, content: bytes, skip: bool) -> tuple[TokenizedDataset | None, str]:
    """Return (the data as a run would train on it, "") or (None, the message of the refusal)."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"random{kind.ending}")
        file.write_bytes(content)
        config = configure(kind)
        files = {"train": str(file), "validation": str(file), "block_size": 2048}  # no row is cut
        data = replace(config.data, on_bad_row="skip" if skip else "error", **files)
        try:
            return prepare_dataset(replace(config, data=data, cache_dir=folder), kind.encoding, TOKENIZER), ""
        except UserError as error:
            return None, str(error)


def require_right(kind: Kind, content: bytes, skip: bool, whole: bool) -> None:
    """Assert that the outcome of a file is one of those that may happen; a `whole` file has to be learnt as it stands."""
    rows = kind.read(content)
    dataset, message = outcome(kind, content, skip)
    if dataset is None:
        assert "random" in message or "train" in message, message
        assert not whole, message
        return
    notes = dataset.rows["train"].notes
    if rows is None:
        assert notes, "a file that cannot be read was read without a word"
        return
    good = [row for row in rows if row is not BAD]
    if not whole and not all("bytes that are not UTF-8" in note for note in notes):
        return
    assert kind.learnt(dataset) == good
    assert dataset.splits["train"].facts.skipped == (len(rows) - len(good) if skip else 0)
    assert skip or len(good) == len(rows)


QUICK: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "phases": [Phase.explicit, Phase.reuse, Phase.generate],  # files are small: shrinking them takes minutes and tells little more
}


@pytest.mark.parametrize("count", FILES)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_random_file_is_learnt_as_it_stands_or_refused(kind: Kind, count: int) -> None:
    @settings(max_examples=count // 4, derandomize=count < 100, **QUICK)
    @given(kind.rows)
    def whole(rows: Any) -> None:
        require_right(kind, kind.write(rows), False, True)

    @settings(max_examples=count - count // 4, derandomize=count < 100, **QUICK)
    @given(kind.rows.flatmap(lambda rows: damaged(kind.write(rows))), st.booleans())
    def broken(content: bytes, skip: bool) -> None:
        require_right(kind, content, skip, False)

    whole()
    broken()
