"""Csv files as other programs write them hold the same rows, whatever their quotes, escapes, separators, line ends and encoding."""

from __future__ import annotations

import ast
import csv
import io
from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_lightning.config.schema import ColumnsConfig, DataConfig
from llm_lightning.data.rows import PROBLEM, Rows
from llm_lightning.data.sources import files
from llm_lightning.errors import UserError

ROWS = [
    ('he said "no", twice', "a"),
    ("plain", "b"),
    ("C:\\new\\dir", "a"),
    ("one, two;\tthree", "b"),
    ("naïve 好", "a"),
    ("", "b"),
] * 3


def load(path: Path, tmp_path: Path, extra_columns: tuple[str, ...] = (), **options: object) -> Rows:
    data = DataConfig(source="files", train=str(path), columns=ColumnsConfig(text="text", label="label"), **options)  # type: ignore[arg-type]
    return files.load(data, tmp_path / "cache", extra_columns)["train"]


def pairs(rows: Rows) -> list[tuple[str, str]]:
    assert rows.table[PROBLEM][:] == [None] * len(rows)
    return list(zip(rows.table["text"][:], rows.table["label"][:], strict=True))


def write(rows: list[tuple[str, str]], **options: object) -> str:
    file = io.StringIO()
    csv.writer(file, **options).writerows([("text", "label"), *rows])  # type: ignore[arg-type]
    return file.getvalue()


def spark(rows: list[tuple[str, str]]) -> str:
    """A quote inside quotes follows a backslash; other backslashes stay as they are."""
    lines = ["text,label", *('"' + text.replace('"', '\\"') + f'",{label}' for text, label in rows)]
    return "\n".join(lines) + "\n"


def outfile(rows: list[tuple[str, str]]) -> str:
    """MySQL's SELECT … INTO OUTFILE, with a header."""
    escaped = [text.replace("\\", "\\\\").replace("\t", "\\\t").replace("\n", "\\\n") for text, _ in rows]
    return "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, (_, label) in zip(escaped, rows, strict=True))


LINES = [*ROWS, ("two\nlines", "a")]
FILES: dict[str, tuple[str, str | bytes, list[tuple[str, str]], dict[str, object]]] = {  # name, content, rows, settings
    "rfc 4180": ("t.csv", write(LINES), LINES, {}),
    "all quoted": ("t.csv", write(LINES, quoting=csv.QUOTE_ALL), LINES, {}),
    "spark": ("t.csv", spark(ROWS), ROWS, {}),
    "mysql": ("t.tsv", outfile(LINES), LINES, {}),
    "python's escapes": ("t.csv", write(ROWS[:4], quoting=csv.QUOTE_NONE, escapechar="\\", quotechar=None), ROWS[:4], {}),
    "a path that ends in a backslash": ("t.csv", 'text,label\n"C:\\dir\\",a\n"D:\\",b\n', [("C:\\dir\\", "a"), ("D:\\", "b")], {}),
    "excel with sep": ("t.csv", "\ufeffsep=;\r\n" + write(LINES, delimiter=";"), LINES, {}),
    "excel with sep and setting": ("t.csv", "sep=;\r\n" + write(LINES, delimiter=";"), LINES, {"delimiter": ";"}),
    "semicolons": ("t.csv", write(LINES, delimiter=";"), LINES, {}),
    "tabs in csv": ("t.csv", write(LINES, delimiter="\t"), LINES, {}),
    "commas in tsv": ("t.tsv", write(LINES), LINES, {}),
    "bars": ("t.csv", write(LINES, delimiter="|"), LINES, {}),
    "no header, semicolons": (
        "t.csv",
        "one, two;a\nthree;b\n",
        [("one, two", "a"), ("three", "b")],
        {"column_names": ["text", "label"]},
    ),
    "old mac": ("t.csv", write(ROWS, lineterminator="\r"), ROWS, {}),
    "mac with newlines in cells": ("t.csv", write(LINES[-4:], lineterminator="\r", quoting=csv.QUOTE_ALL), LINES[-4:], {}),
    "windows with returns in cells": ("t.csv", write([("a\rb", "x")] * 3, lineterminator="\r\n"), [("a\rb", "x")] * 3, {}),
    "utf-16": ("t.csv", write(LINES).encode("utf-16"), LINES, {}),
    "utf-16 of a mac": ("t.csv", b"\xfe\xff" + write(ROWS, lineterminator="\r").encode("utf-16-be"), ROWS, {}),
    "utf-32": ("t.csv", write(LINES).encode("utf-32"), LINES, {}),
    "gbk": ("t.csv", write([("好电影", "a"), ("坏", "b")]).encode("gbk"), [("好电影", "a"), ("坏", "b")], {"encoding": "gb18030"}),
    "utf-16-le without mark": ("t.csv", write(ROWS).encode("utf-16-le"), ROWS, {"encoding": "utf-16-le"}),
    "blanks behind commas": ("t.csv", 'text, label\n"one, two", a\n three, "b"\n', [("one, two", "a"), ("three", "b")], {}),
    "padded names": ("t.csv", " text ,label \u200b\none,a\ntwo,b\n", [("one", "a"), ("two", "b")], {}),
    "header again": ("t.csv", write(ROWS) + "\ufeff" + write(ROWS), ROWS * 2, {}),
    "a line of dashes under the header": ("t.csv", "text,label\n----,-----\none,a\ntwo,---\n", [("one", "a"), ("two", "---")], {}),
    "markdown": ("t.csv", "| text | label |\n|:---|:---:|\n| one | a |\n| two | b |\n", [(" one ", " a "), (" two ", " b ")], {}),
    "trailing empty fields": (
        "t.csv",
        "text,label,,\none,a,,\ntwo,b\nthree,a,\n",
        [("one", "a"), ("two", "b"), ("three", "a")],
        {},
    ),
    "fields behind the header": ("t.csv", "text,label\none,a,,\ntwo,b,\n", [("one", "a"), ("two", "b")], {}),
    "blank lines": ("t.csv", "\n\ntext,label\n\none,a\n   \ntwo,b\n\n", [("one", "a"), ("two", "b")], {}),
    "unused columns that share a name": ("t.csv", "x,text,x,label\n1,one,2,a\n3,two,4,b\n", [("one", "a"), ("two", "b")], {}),
    "another ending": ("t.dat", write(LINES, delimiter="|"), LINES, {"delimiter": "|"}),
}


@pytest.mark.parametrize("name", FILES)
def test_a_csv_file_is_read_whoever_wrote_it(name: str, tmp_path: Path) -> None:
    file, content, expected, settings = FILES[name]
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    for _ in ("cold", "warm cache"):
        assert pairs(load(tmp_path / file, tmp_path, **settings)) == expected


NOTES = {
    "spark": ["written with a backslash"],
    "mysql": ["separators and line ends inside fields are written with a backslash"],
    "semicolons": ["separated by semicolons"],
    "utf-16": ["read as UTF-16"],
    "gbk": ["read as gb18030, as data.encoding says"],
    "padded names": ["blanks around names are left out", "' text '"],
    "header again": ["the header stands again between the rows (1 times)"],
    "markdown": ["line 2, of dashes under the header, is left out"],
    "unused columns that share a name": ["several columns share a name ('x')", "2 columns are not used: x"],
}


@pytest.mark.parametrize("name", NOTES)
def test_what_is_recognised_is_said(name: str, tmp_path: Path) -> None:
    file, content, _, settings = FILES[name]
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    for _ in ("cold", "warm cache"):
        notes = load(tmp_path / file, tmp_path, **settings).notes
        assert all(note.startswith(f"{tmp_path / file}: ") for note in notes)
        for part in NOTES[name]:
            assert any(part in note for note in notes), notes


def test_gaps_of_databases_are_empty_and_counted(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("text\tlabel\none\ta\n\\N\tb\nthree\t\\N\n")
    rows = load(tmp_path / "t.tsv", tmp_path)
    assert rows.table["text"][:] == ["one", None, "three"]
    assert rows.table["label"][:] == ["a", "b", None]
    assert "2 fields hold \\N" in " ".join(rows.notes)


REFUSED: dict[str, tuple[str | bytes, dict[str, object], list[str]]] = {
    "NUL": ("text,label\none,a\ntw\0o,b\n", {}, ["t.csv, line 3", "NUL"]),
    "utf-16 without mark": (
        "text,label\none,a\n".encode("utf-16-be"),
        {},
        ["UTF-16", "data.encoding=utf-16-be", "iconv -f utf-16-be"],
    ),
    "repeated name": ("text,label,text\none,a,two\n", {}, ["2 columns are named 'text'"]),
    "repeated padded name": ("text , text,label\none,two,a\n", {}, ["2 columns are named 'text'"]),
    "headers in another order": ("text,label\none,a\nlabel,text\nb,two\n", {}, ["line 3", "another header", "label, text"]),
    "plain quotes": ('text,label\n5" disk,a\n"a" and "b",b\n', {}, ["line 3", "set data.quotes=false"]),
    "quotes with commas": ('text,label\n"one, "two"",a\nthree,b\n', {}, ["line 2", "written twice"]),
    "two readings": ('text,label\n"\\"",a\n",\n0",a\n', {}, ["line 2", "a backslash before a double quote", "twice"]),
    "broken header": ("text,la\rbel\n\none,a\n\ntwo,b\n", {}, ["line 1", "the first row cannot be read"]),
    "quoted values behind a broken row": ('text,label\n"a\\\\b","x"\n"c" d,"y"\n', {}, ["line 3", "written twice"]),
    "open quote": ('text,label\none,a\n"two, three,b\nfour,a\n', {}, ["line 3", "not closed", "Mend the line"]),
    "quoted values": ('text,label\n"one","a"\n"two","b"\n', {"quotes": False}, ["'text' are in double quotes", "leave out"]),
    "tabs over lines": ('text\tlabel\n"one\ta\nsay "\tb\ntwo\ta\n', {"delimiter": "\t"}, ["line 2", "data.quotes=false"]),
    "web page": ("<!DOCTYPE html>\n<html>\n", {}, ["web page"]),
    "excel": (b"PK\x03\x04xxxxxxx", {}, ["spreadsheet", "csv"]),
    "pointer": ("version https://git-lfs.github.com/spec/v1\noid sha256:1\n", {}, ["git lfs pull"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_csv_file_that_cannot_be_read_is_refused(name: str, tmp_path: Path) -> None:
    content, settings, expected = REFUSED[name]
    (tmp_path / "t.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        load(tmp_path / "t.csv", tmp_path, **settings)
    for part in ["t.csv", *expected]:
        assert part in str(error.value)


ENCODED = {
    "gb18030": "好电影，我很喜欢\n坏",
    "big5": "這部電影非常好看\n壞",
    "cp932": "この映画はとても面白かった\n悪い",
    "cp949": "이 영화는 정말 재미있었어요",
    "cp1251": "Этот фильм очень хороший\nплохо",
    "koi8_r": "Этот фильм очень хороший",
    "cp1252": "it’s a café – naïve\nschön",
    "cp1250": "Film był świetny, żałuję",
    "cp1253": "Η ταινία ήταν πολύ καλή",
    "cp1256": "كان الفيلم رائعا",
    "mac_roman": "schön, très mauvaise",
}


@pytest.mark.parametrize("encoding", ENCODED)
def test_the_advised_encoding_reads_the_file(encoding: str, tmp_path: Path) -> None:
    """The message shows the text as it is, and the setting beside it leads to exactly these rows."""
    texts = ENCODED[encoding].split("\n")
    (tmp_path / "t.tsv").write_bytes(("text\tlabel\n" + "".join(f"{text}\ta\n" for text in texts)).encode(encoding))
    with pytest.raises(UserError) as error:
        load(tmp_path / "t.tsv", tmp_path)
    message = str(error.value)
    assert "line 2" in message
    advice = {part.split(" reads ")[0]: part for part in message.split("data.encoding=")[1:]}
    right = [name for name in advice if all(text.encode(encoding).decode(name, "ignore") == text for text in texts)]
    assert right, message
    shown = ast.literal_eval(advice[right[0]].split(" reads ")[1].split(" (iconv")[0])
    assert all(part.removesuffix("\ta") in ENCODED[encoding] for part in shown.split(" / "))
    assert [text for text, _ in pairs(load(tmp_path / "t.tsv", tmp_path, encoding=right[0]))] == texts


def test_a_file_of_two_encodings_is_no_file_of_one(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("text,label\nnaïve,a\nschön,b\n".encode() + "café,a\n".encode("cp1252"))
    with pytest.raises(UserError, match=r"line 4.*2 lines are UTF-8 and 1 are not"):
        load(tmp_path / "t.csv", tmp_path)


def test_utf_8_is_never_read_as_another_encoding(tmp_path: Path) -> None:
    """One split may be UTF-8 and another not: the setting is for those that are not."""
    (tmp_path / "t.csv").write_text("text,label\nnaïve,a\nschön,b\n")
    rows = load(tmp_path / "t.csv", tmp_path, encoding="cp1252")
    assert pairs(rows) == [("naïve", "a"), ("schön", "b")]
    assert "read as UTF-8" in rows.notes[0]


@pytest.mark.parametrize(
    ("line", "problem"), [("alone\n", "1 field"), ("a,b,c\n", "3 fields"), ("one\rtwo,a\n", "carriage return")]
)
def test_a_row_of_another_width_is_named_with_its_line(line: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b'text,label\n"two\nlines",a\n' + line.encode() + b"one,b\n")
    rows = load(tmp_path / "t.csv", tmp_path)
    problems = rows.table[PROBLEM][:]
    assert [text for text, bad in zip(rows.table["text"][:], problems, strict=True) if bad is None] == ["two\nlines", "one"]
    assert problem in problems[1]
    assert rows.where(1) == f"{tmp_path / 't.csv'}, line 4"


def test_extra_columns_are_read_where_a_file_has_them(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('text,label,system,id\none,a,"12",1\ntwo,b,,2\n')
    rows = load(tmp_path / "t.csv", tmp_path, ("system", "tools"))
    assert rows.table["system"][:] == ["12", None]
    assert [note.split(": ", 1)[1] for note in rows.notes] == ["1 column is not used: id"]


# without codes of 7-bit encodings (ESC, SO, SI), which are refused
TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0\x0e\x0f\x1b"), max_size=12) | st.text(
    st.sampled_from(list("ab\"\\,;\t|\n\r' N")), max_size=12
)
WRITERS: dict[str, Callable[[list[tuple[str, str]]], str]] = {
    "quotes where needed": write,
    "quotes everywhere": lambda rows: write(rows, quoting=csv.QUOTE_ALL),
    "semicolons of Excel": lambda rows: "sep=;\r\n" + write(rows, delimiter=";"),
    "tabs": lambda rows: write(rows, delimiter="\t", quoting=csv.QUOTE_ALL),
    "spark": spark,
}


@pytest.mark.parametrize("writer", WRITERS)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(texts=st.lists(TEXT, min_size=2, max_size=6))
def test_any_text_comes_back_or_is_refused(writer: str, texts: list[str], tmp_path: Path) -> None:
    """Never other text, and never another number of rows, whatever is inside quotes."""
    if writer == "spark":  # which doubles no backslash before the closing quote
        texts = [text.rstrip("\\").replace('\\"', '"').replace("\r", "") for text in texts]
    rows = [(text, "a") for text in texts]
    path = tmp_path / f"{xxhash.xxh3_64_hexdigest(repr(texts).encode())}.csv"
    path.write_bytes(WRITERS[writer](rows).encode())
    loaded, refusal = None, ""
    try:
        loaded = load(path, tmp_path)
    except UserError as error:
        refusal = str(error)
    if loaded is None:
        assert path.name in refusal
        assert writer in ("spark", "tabs") or "a backslash before a double quote" in refusal, (
            refusal
        )  # which can be read in two ways
        return
    problems = loaded.table[PROBLEM][:]
    assert len(problems) == len(texts) or (writer == "spark" and any(problems))
    if not any(problems):
        assert loaded.table["text"][:] == [None if text == "\\N" else text for text in texts]


R_ROWS = '"text","label"\n"1","one","a"\n"2","two","b"\n"3","three","a"\n'
ABOVE = "My survey,,\n,,\ntext,label,x\none,a,1\ntwo,b,1\nthree,a,1\n"


@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("r.csv", R_ROWS, "as R writes row names"),
        ("titles.csv", ABOVE, "named in line 3; above it, and left out, is 'My survey,,'"),
        ("comment.csv", "# exported\ntext,label\none,a\ntwo,b\nthree,a\n", "above it, and left out, is '# exported'"),
    ],
    ids=lambda value: value if len(value) < 12 else "",
)
def test_what_stands_beside_a_table_is_left_out_and_named(name: str, content: str, note: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    rows = load(path, tmp_path)
    assert pairs(rows) == [("one", "a"), ("two", "b"), ("three", "a")]
    assert any(note in line for line in rows.notes)


def test_row_names_that_count_nothing_are_no_row_names(tmp_path: Path) -> None:
    path = tmp_path / "odd.csv"
    path.write_text(R_ROWS.replace('"3"', '"7"'), encoding="utf-8")
    assert all("3 fields where there should be 2" in problem for problem in load(path, tmp_path).table[PROBLEM])


def test_apostrophes_around_all_values_are_named(tmp_path: Path) -> None:
    path = tmp_path / "apostrophes.csv"
    path.write_text("text,label\n'one','a'\n'two','b'\n", encoding="utf-8")
    assert any("column 'label' begin and end with an apostrophe" in note for note in load(path, tmp_path).notes)


def test_backslashes_at_the_end_of_a_field_stay(tmp_path: Path) -> None:
    path = tmp_path / "backslashes.csv"
    path.write_text('text,label\n"one\\\\","a"\n"two","b"\n', encoding="utf-8")
    rows = load(path, tmp_path)
    assert pairs(rows) == [("one\\\\", "a"), ("two", "b")]
    assert any("end with backslashes" in note for note in rows.notes)


def test_json_is_no_csv(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('{"text": "one", "label": "a"}\n{"text": "two", "label": "b"}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"this is JSON, not csv: give the file the ending \.jsonl"):
        load(path, tmp_path)


def test_a_row_like_the_header_is_one_but_between_rows_of_several_columns(tmp_path: Path) -> None:
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    one.write_text("text\ntext\nmessage\n")
    two.write_text("text,label\na,b\ntext,label\nc,d\n")
    data = DataConfig(source="files", columns=ColumnsConfig(text="text"))
    assert [row["text"] for row in files.rows(one, data)] == ["text", "message"]
    assert [row["text"] for row in files.rows(two, data)] == ["a", "text", "c"]
    train = files.load(DataConfig(source="files", train=str(one), columns=ColumnsConfig(text="text")), tmp_path / "cache")["train"]
    assert train.table["text"][:] == ["text", "message"]
    assert pairs(load(two, tmp_path)) == [("a", "b"), ("c", "d")]
