"""Lines of text, standard input and pipes: which of them are rows, and what is said of those that are none."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest

from llm_lightning.config.schema import ColumnsConfig, DataConfig
from llm_lightning.data.rows import LINE, PROBLEM
from llm_lightning.errors import UserError
from llm_lightning.inference.predict import paths_of, rows_of, usable
from llm_lightning.inference.text_rows import EMPTY, read_plain_text, read_stream

DATA = DataConfig(source="files")


def stream(content: bytes, data: DataConfig = DATA) -> list[dict[str, Any]]:
    return list(read_stream(io.BytesIO(content), data, "standard input"))


def texts(rows: list[dict[str, Any]]) -> list[Any]:
    return [row[PROBLEM] if row[PROBLEM] is not None else row["text"] for row in rows]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a\nb\n", ["a", "b"]),
        (b"a\n\n \nb", ["a", "", " ", "b"]),
        (b"a\n\n", ["a", ""]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"a\rb\n", ["a\rb"]),
        ("a\u2028b\x85c\x0cd\n".encode(), ["a\u2028b\x85c\x0cd"]),
        (b"\xef\xbb\xbfa\nb\n", ["a", "b"]),
        (b'{NAME} said hello\n{"text": "fine"}\n', ["{NAME} said hello", "fine"]),
        (b'{"quoted"} said\n', ['{"quoted"} said']),
        (b"{\n}\n{}\n", ["{", "}", "{}"]),
        (b'a\n{"other": 1}\n{"text": broken\n', ["a", '{"other": 1}', '{"text": broken']),
        (b'{"text": "a"}\n\n{"text": "b"}\n', ["a", "b"]),
        (b'\n{"text": "a"}\n', ["a"]),
        (b'{"text": "a"}\n{"text": "b\n', ["a", "not valid JSON (Unterminated string starting at, column 10)"]),
        (b'{"text": "a\n{"text": "b"}\n', ["not valid JSON (Unterminated string starting at, column 10)", "b"]),
        (b'{"text": "a"}\nplain\n', ["a", "not valid JSON (Expecting value, column 1)"]),
        (b'{"text": "a", "label": 3}\n', ["a"]),
        (b'a\n{"text": ' + b"[" * 100_000, ["a", '{"text": ' + "[" * 100_000]),
        ("你好\n".encode(), ["你好"]),
    ],
)
def test_lines_of_a_stream(content: bytes, expected: list[str]) -> None:
    rows = stream(content)
    assert texts(rows) == expected
    for row in rows:
        assert bool(row.get(EMPTY)) == (row[PROBLEM] is None and not str(row["text"]).strip())
    assert [row[LINE] for row in rows] == sorted(row[LINE] for row in rows)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"body": "a"}\n', "no column 'text'.*the columns are body"),
        (b'\n{"body": "a"}\n', "no column 'text'.*the columns are body"),
        (b"text,label\na,b\n", "header of a table.*data.predict=<file>"),
        (b"id\ttext\n1\ta\n", "header of a table"),
        ("a\n".encode("utf-16"), "this is UTF-16"),
        (b"PK\x03\x04\0\0\n", "no text .there is a NUL byte"),
    ],
)
def test_streams_that_are_no_rows(content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        stream(content)


def test_a_line_of_a_stream_that_is_not_utf_8_is_in_the_configured_encoding() -> None:
    content = b"caf\xe9\n" + "café\n".encode() + b"\x81\n"
    bad, good, _ = texts(stream(content))
    assert bad.startswith("byte 0xe9 is not UTF-8; set the encoding in which the text is right")
    assert "data.encoding=cp1252 reads 'café'" in bad
    assert good == "café"
    rows = texts(stream(content, DataConfig(source="files", encoding="cp1252")))
    assert rows[:2] == ["café", "café"]
    assert rows[2].startswith("byte 0x81 is not UTF-8 or CP1252; ")


LINES = ["Grüße aus Köln", "", "naïve café"]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.de", "a"])
@pytest.mark.parametrize(
    ("written", "configured"),
    [
        ("utf-8", None),
        ("utf-8-sig", "cp1252"),
        ("utf-16", None),
        ("utf-16-le", "utf-16-le"),
        ("cp1252", "cp1252"),
        ("utf-32", None),
    ],
)
def test_a_file_to_predict_is_decoded_as_one_to_train_on(name: str, written: str, configured: str | None, tmp_path: Path) -> None:
    content = "\r\n".join(LINES).encode(written)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    rows = list(rows_of(tmp_path / name, DataConfig(source="files", encoding=configured)))
    assert texts(rows) == LINES
    assert [bool(row[EMPTY]) for row in rows] == [False, True, False]


def test_a_damaged_line_of_a_file_is_a_row(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("fine\ncaf\u00e9\n".encode() * 3 + b"caf\xe9\nend")
    rows = list(rows_of(tmp_path / "a.txt", DATA))
    assert texts(rows)[:6] == ["fine", "café"] * 3
    assert [row[PROBLEM] for row in rows[6:]] == [
        "byte 0xe9 is not UTF-8; 3 lines are UTF-8 and 1 are not: the file is put together from several encodings, or damaged; mend "
        "these lines (iconv -c -f utf-8 -t utf-8 drops the bytes)",
        None,
    ]
    (tmp_path / "c.txt").write_bytes(b"fine\nx\0y\nend")
    assert texts(list(rows_of(tmp_path / "c.txt", DATA))) == ["fine", "a NUL byte; the file is damaged, or no text", "end"]
    (tmp_path / "b.txt").write_bytes(b"caf\xe9\n" * 3)
    with pytest.raises(
        UserError, match=r"b.txt, line 1: byte 0xe9 is not UTF-8; set the encoding .*data.encoding=cp1252 reads 'café'"
    ):
        usable(list(rows_of(tmp_path / "b.txt", DATA)), lambda number, row: row, DATA)


@pytest.mark.parametrize("column", ["text", "body"])
def test_a_text_file_holds_lines_and_no_json(column: str, tmp_path: Path) -> None:
    data = DataConfig(source="files", columns=ColumnsConfig(text=column))
    (tmp_path / "a.txt").write_bytes(b'a\n{"text": "b"}\n\n')
    assert [row[column] for row in read_plain_text(tmp_path / "a.txt", data)] == ["a", '{"text": "b"}', ""]
    (tmp_path / "b.txt").write_text(json.dumps({column: "a"}))
    with pytest.raises(UserError, match=r"b.txt: the lines are JSON objects with the column .*\.jsonl"):
        list(read_plain_text(tmp_path / "b.txt", data))


def test_files_of_every_ending(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("test.en", "test.de", "test", "test.txt", "x [1].en"):
        (tmp_path / name).write_bytes(b"a small dog\n\na dog\r\n   \nlast")
        data = DataConfig(source="parallel", columns=ColumnsConfig(text="en", label="de"))
        (path,) = paths_of("data.predict", str(tmp_path / name))
        rows = list(rows_of(path, data))
        assert [row["en"] for row in rows] == ["a small dog", "", "a dog", "   ", "last"]
        assert rows[4]["where"] == f"{path}, line 5"
    assert capsys.readouterr().err.count("read as plain text") == 1  # of test.de, which is the other language
    (tmp_path / "x.xlsx").write_bytes(b"PK\x03\x04\x14\0\x06\0")
    with pytest.raises(UserError, match=r"x.xlsx: this is a zip archive or a spreadsheet .*save the sheet as csv"):
        list(rows_of(tmp_path / "x.xlsx", DATA))


def test_a_pattern_a_folder_and_a_literal_name(tmp_path: Path) -> None:
    for name in ("d1.txt", "d[1].txt", "e.bin"):
        (tmp_path / name).write_text(name)
    assert paths_of("data.predict", f"{tmp_path}/d[1].txt") == [tmp_path / "d[1].txt"]
    assert paths_of("data.predict", f"{tmp_path}/d*.txt") == [tmp_path / "d1.txt", tmp_path / "d[1].txt"]
    assert paths_of("data.predict", str(tmp_path)) == [tmp_path / "d1.txt", tmp_path / "d[1].txt"]
    with pytest.raises(UserError, match=r"data.predict=.*d\[2\].txt: no such file; did you mean"):
        paths_of("data.predict", f"{tmp_path}/d[2].txt")


@pytest.mark.parametrize("value", ["x \ud83d", ["a", "\udc00"], {"content": "\ud83d"}])
def test_half_of_a_surrogate_pair_is_a_bad_row(value: Any) -> None:
    rows = [{"text": "\U0001f600", "where": "line 1"}, {"text": value, "where": "line 2"}]
    with pytest.raises(UserError, match="line 2: it holds half of a surrogate pair"):
        usable(rows, lambda number, row: row["text"], DATA)
    values, errors = usable(rows, lambda number, row: row["text"], DataConfig(source="files", on_bad_row="skip"))
    assert values == {0: "\U0001f600"}
    assert "surrogate" in errors[1]["error"]
