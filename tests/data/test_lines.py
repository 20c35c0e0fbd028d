"""Lines of text files: 7-bit encodings, and how often a file is read to decide on its encoding."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from llm_lightning.data import lines as lines_module
from llm_lightning.data.lines import FRONT, detect_format, lines, propose_encodings
from llm_lightning.errors import UserError

TEXTS = {
    "iso2022_jp": "日本語の文\n",
    "iso2022_kr": "한국어 문장\n",
    "hz": "汉字文本\n",
    "utf-7": "Grüße – €\n",
    "cp1252": "only ASCII\n",
}


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("encoding", TEXTS)
def test_text_of_7_bits_is_read_in_its_encoding(encoding: str, is_stream: bool, tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes((TEXTS[encoding] * 3).encode(encoding))
    assert list(lines(path, encoding, is_stream)) == [TEXTS[encoding]] * 3
    assert bool(detect_format(path, encoding).notes) == (encoding != "cp1252")


@pytest.mark.parametrize(("encoding", "text"), [("iso2022_jp", "日本\n"), ("utf-16-le", "plain\n"), ("hz", "汉字\n")])
def test_utf_8_is_read_as_such_whatever_the_encoding(encoding: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(text, encoding="utf-8")
    assert list(lines(tmp_path / "t.txt", encoding)) == [text]


@pytest.mark.parametrize("code", ["\x1b$B", "\x1b$)C", "\x1b(J", "\x0e", "\x0f"])
@pytest.mark.parametrize("encoding", [None, "cp1252"])
def test_codes_of_other_character_sets_are_refused(code: str, encoding: str | None, tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("plain\n" * 20_000 + f"a {code}F|K\\\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"line 20001: '\\x.* data\.encoding"):
        list(lines(path, encoding))


PROPOSED = [
    *(("cp1252", "it’s “fine” – café"), ("cp1252", "l’été, 100 €"), ("mac_roman", "café déjà"), ("cp1251", "хороший день")),
    *(("cp1250", "wszystko w porządku, ślicznie dziękuję"), ("iso8859_2", "wszystko w porządku, ślicznie dziękuję")),
    *(("cp932", "日本語のテキスト"), ("gb18030", "这个电影不错"), ("big5", "中文很好")),
    *(("cp874", "สวัสดีครับ วันนี้อากาศดี"), ("cp1253", "καλημέρα κόσμε")),
]


@pytest.mark.parametrize(("encoding", "text"), PROPOSED)
def test_the_encoding_that_reads_a_text_is_proposed_first(encoding: str, text: str) -> None:
    proposed = propose_encodings([text.encode(encoding)] * 3)
    assert next(iter(proposed)) == encoding
    assert proposed[encoding] in " / ".join([text] * 3)


def test_invisible_characters_of_a_wrong_encoding_are_named(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes("it’s “fine”\n".encode("cp1252"))
    for encoding, count in (("latin1", 2), ("iso-8859-15", 2), ("cp1252", 1)):
        notes = detect_format(tmp_path / "t.txt", encoding).notes
        assert len(notes) == count
        assert ("data.encoding=cp1252" in notes[-1]) == (count == 2)


def test_a_damaged_file_is_named_where_its_encoding_is_searched(tmp_path: Path) -> None:
    content = gzip.compress(b"".join(f"{i * i} caf\xe9\n".encode("latin-1") for i in range(100_000)))
    (tmp_path / "t.txt.gz").write_bytes(content[:-1000])
    with pytest.raises(UserError, match=r"t\.txt\.gz: the file is damaged"):
        list(lines(tmp_path / "t.txt.gz", "cp1252"))


def test_colours_of_terminals_are_text(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("\x1b[31mred\x1b[0m\n", encoding="utf-8")
    assert list(lines(tmp_path / "t.txt")) == ["\x1b[31mred\x1b[0m\n"]


def test_a_file_is_searched_once_for_its_encoding_and_a_stream_at_its_front(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(b"caf\xe9\n" * 100)
    opened: list[Path] = []
    open_file = lines_module.open_file
    monkeypatch.setattr(lines_module, "open_file", lambda path: opened.append(path) or open_file(path))
    for _ in range(3):
        assert list(lines(path, "cp1252")) == ["café\n"] * 100
    assert len(opened) == 1 + 3 * 2  # each reading looks at the head and reads
    path.write_text("café\n" * 100, encoding="utf-8")
    os.utime(path, ns=(1, 1))
    assert list(lines(path, "cp1252")) == ["café\n"] * 100
    path.write_bytes("café\n".encode() + b"a" * FRONT + b"\n\xe9\n")
    assert detect_format(path, "cp1252").encoding == "cp1252"
    assert detect_format(path, "cp1252", is_stream=True).encoding == "utf-8"
