"""Bytes that cannot be decoded, under data.on_bad_row=skip: the row is left out, counted and named, and the others are read."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_lightning.config.compose import load_config
from llm_lightning.data.prepare import TokenizedDataset, prepare_dataset
from llm_lightning.errors import UserError

ROWS = [(f"{'good' if i % 2 else 'dull'} café number {i}", str(i % 2)) for i in range(12)]
BYTE = b"caf\xe9"


def damage(content: bytes, place: int) -> bytes:
    """Write the é of one row as Latin-1 has it."""
    before, text, after = content.rpartition(f"café number {place}".encode())
    return before + BYTE + text.removeprefix("café".encode()) + after


def write_csv(rows: list[tuple[str, str]], **style: object) -> bytes:
    file = io.StringIO()
    csv.writer(file, **{"lineterminator": "\n"} | style).writerows([("text", "label"), *rows])  # type: ignore[arg-type]
    return file.getvalue().encode()


OBJECTS = [{"text": text, "label": label} for text, label in ROWS]
FILES = {  # name: content, line of row i that a message names
    "csv": ("t.csv", write_csv(ROWS), lambda i: i + 2),
    "csv of windows": ("t.csv", write_csv(ROWS, lineterminator="\r\n"), lambda i: i + 2),
    "csv in quotes": ("t.csv", write_csv([(f'{text}, "so"\nnext', label) for text, label in ROWS]), lambda i: 2 * i + 2),
    "csv with backslashes": (
        "t.csv",
        b"text,label\n" + b"".join(f'"\\"a\\", {text}",{label}\n'.encode() for text, label in ROWS),
        lambda i: i + 2,
    ),
    "tsv": ("t.tsv", write_csv(ROWS, delimiter="\t"), lambda i: i + 2),
    "jsonl": ("t.jsonl", b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in OBJECTS), lambda i: i + 1),
    "json of lines": ("t.json", b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in OBJECTS), lambda i: i + 1),
    "json": ("t.json", json.dumps(OBJECTS, ensure_ascii=False).encode(), lambda i: i + 1),
    "json over lines": ("t.json", json.dumps(OBJECTS, ensure_ascii=False, indent=2).encode(), lambda i: i + 1),
}


def prepare(folder: Path, file: Path, *arguments: str) -> TokenizedDataset:
    config = load_config(
        [
            *(
                "task=finetune",
                "data=files",
                f"data.train={file}",
                f"data.validation={file}",
                "data.columns.label=label",
                *arguments,
            ),
            *(f"cache_dir={folder / 'cache'}", "model.tokenizer.vocab_size=300", f"run_dir={folder / 'run'}"),
        ]
    )
    return prepare_dataset(config, "texts", None)


@pytest.mark.parametrize("place", [0, 5, 11])
@pytest.mark.parametrize("kind", FILES)
def test_the_row_is_left_out_and_named(kind: str, place: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name, content, line_of = FILES[kind]
    file, line = tmp_path / name, line_of(place)
    file.write_bytes(content)
    whole = [example.text for example in prepare(tmp_path, file).examples("train")]
    assert len(whole) == len(ROWS)
    file.write_bytes(damage(content, place))
    with pytest.raises(UserError, match=rf"{name}, line \d+: byte 0xe9 is not UTF-8"):
        prepare(tmp_path, file)
    for start in ("cold", "warm cache"):
        caplog.clear()
        dataset = prepare(tmp_path, file, "data.on_bad_row=skip")
        assert [example.text for example in dataset.examples("train")] == [*whole[:place], *whole[place + 1 :]], start
        assert dataset.splits["train"].facts.skipped == 1
        assert f"{name}, line {line}: byte 0xe9 cannot be decoded" in caplog.text
        assert f"{name}: 1 lines have bytes that are not UTF-8; rows with them are left out (data.on_bad_row=skip)" in caplog.text
        assert "mend these lines" in caplog.text or kind == "json"  # which is one line
    with pytest.raises(UserError, match="byte 0xe9"):
        prepare(tmp_path, file)


def test_a_byte_that_another_encoding_does_not_have(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes(write_csv(ROWS).decode().encode("cp1252") + b"broken \x81 and caf\xe9,1\n")
    dataset = prepare(tmp_path, file, "data.encoding=cp1252", "data.on_bad_row=skip")
    assert [example.text for example in dataset.examples("train")] == [text for text, _ in ROWS]
    assert "t.csv, line 14: byte 0x81 cannot be decoded" in caplog.text


def test_a_nul_byte_is_one_row_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes(write_csv(ROWS) + b"a \0 byte,1\n")
    dataset = prepare(tmp_path, file, "data.on_bad_row=skip")
    assert [example.text for example in dataset.examples("train")] == [text for text, _ in ROWS]
    assert "t.csv, line 14: a NUL byte" in caplog.text
    assert "t.csv: there are NUL bytes in it" in caplog.text


def test_names_of_columns_have_to_be_read(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes(write_csv(ROWS).replace(b"text,label\n", b"text,label,caf\xe9\n", 1))
    with pytest.raises(UserError, match=r"t\.csv, line 1: byte 0xe9 cannot be decoded, and this line names the columns"):
        prepare(tmp_path, file, "data.on_bad_row=skip")


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rows=st.lists(st.text(st.sampled_from('ab ,"\né日'), min_size=1, max_size=12).filter(str.strip), min_size=2, max_size=8),
    bad=st.sets(st.integers(0, 7), max_size=4),
    is_json=st.booleans(),
)
def test_other_rows_are_read_as_they_stand(
    rows: list[str], bad: set[int], is_json: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The mark § stands for a byte that no UTF-8 has."""
    texts = [f"{text}§" if i in bad else text for i, text in enumerate(rows)]
    if is_json:
        content = b"".join(
            json.dumps({"text": text, "label": i % 2}, ensure_ascii=False).encode() + b"\n" for i, text in enumerate(texts)
        )
    else:
        content = write_csv([(text, str(i % 2)) for i, text in enumerate(texts)], quoting=csv.QUOTE_ALL)
    folder = tmp_path_factory.mktemp("rows")
    file = folder / ("t.jsonl" if is_json else "t.csv")
    good = [("first", "0"), ("second", "1")]
    head = (
        write_csv(good, quoting=csv.QUOTE_ALL)
        if not is_json
        else b'{"text": "first", "label": 0}\n{"text": "second", "label": 1}\n'
    )
    body = content if is_json else content.partition(b"\n")[2]
    file.write_bytes(head + body.replace("§".encode(), b"\xff"))
    dataset = prepare(folder, file, "data.on_bad_row=skip")
    expected = [text for i, text in enumerate(rows) if i not in bad]
    assert [example.text for example in dataset.examples("train")] == ["first", "second", *expected]


def read(folder: Path, file: Path, *arguments: str) -> list[str]:
    """Return the beginnings of the training rows of another kind of data."""
    config = load_config(
        [
            *("task=finetune", *arguments, f"data.train={file}", f"data.validation={file}", "data.on_bad_row=skip"),
            *(f"cache_dir={folder / 'cache'}", "model.tokenizer.vocab_size=300", f"run_dir={folder / 'run'}"),
        ]
    )
    kind = {"tagging": "words", "question_answering": "spans", "instruction": "chat", "translation": "translation"}[
        config.choices["objective"]
    ]
    dataset = prepare_dataset(config, kind, None)
    assert dataset.splits["train"].facts.skipped == 1
    return [str(example.text) for example in dataset.examples("train")]


def test_a_sentence_of_words(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "t.conll"
    file.write_bytes("".join(f"café{i} B-X\nis O\n\n" for i in range(6)).encode().replace("café3".encode(), b"caf\xe93"))
    assert read(tmp_path, file, "objective=tagging", "data=conll") == [str([f"café{i}", "is"]) for i in (0, 1, 2, 4, 5)]
    assert "t.conll, line 10: line 10: byte 0xe9 cannot be decoded" in caplog.text
    assert "t.conll: 1 lines have bytes that are not UTF-8" in caplog.text


@pytest.mark.parametrize("name", ["t.jsonl", "t.json"])
def test_a_question(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        {
            "id": f"q{i}",
            "context": f"The café {i} is here.",
            "question": "Where?",
            "answers": {"text": ["here"], "answer_start": [14]},
        }
        for i in range(6)
    ]
    content = (
        json.dumps(rows, ensure_ascii=False)
        if name == "t.json"
        else "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    )
    (tmp_path / name).write_bytes(content.encode().replace("café 3".encode(), b"caf\xe9 3"))
    assert len(read(tmp_path, tmp_path / name, "objective=question_answering", "data=squad", "model.tokenizer.kind=wordpiece")) == 5
    assert "byte 0xe9 cannot be decoded" in caplog.text


def test_a_task_of_self_instruct(tmp_path: Path) -> None:
    rows = [{"instruction": f"Say café {i}", "instances": [{"input": "", "output": "yes"}]} for i in range(6)]
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    (tmp_path / "t.jsonl").write_bytes(content.replace("café 3".encode(), b"caf\xe9 3"))
    assert len(read(tmp_path, tmp_path / "t.jsonl", "objective=instruction", "data=self_instruct", "model=gpt_tiny")) == 5


def test_a_translation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "t.en").write_text("".join(f"the coffee {i}\n" for i in range(6)))
    (tmp_path / "t.fr").write_bytes("".join(f"le café {i}\n" for i in range(6)).encode().replace("café 3".encode(), b"caf\xe9 3"))
    columns = ["data.columns.text=en", "data.columns.label=fr"]
    found = read(tmp_path, tmp_path / "t", "objective=translation", "data=parallel", "model=seq2seq_tiny", *columns)
    assert found == [f"the coffee {i}" for i in (0, 1, 2, 4, 5)]
    assert "t.fr, line 4: byte 0xe9 cannot be decoded" in caplog.text
