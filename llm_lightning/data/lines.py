"""Read text files line by line: decompress and decode them, and refuse bytes that are not text, with the file and the line.

Text is UTF-8, or the encoding of its byte order mark. Other encodings are never guessed: the message shows the line in the encodings
that fit, and `data.encoding` sets one.
"""

from __future__ import annotations

import codecs
import functools
import io
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llm_lightning.config.schema import DataConfig
from llm_lightning.data.compression import DAMAGED, open_file
from llm_lightning.errors import UserError

NUL = "a NUL byte; the file is damaged, or no text."
HEAD = 1 << 16  # bytes at the front of a file that decide on its line ends
FRONT = 16 << 20  # bytes at the front of a streamed file that decide whether it is UTF-8
MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
SIGNATURES = {
    b"PK\x03\x04": "a zip archive or a spreadsheet (xlsx, ods): unpack it, or save the sheet as csv",
    b"\xd0\xcf\x11\xe0": "an old Excel or Word file: save it as csv or as text",
    b"%PDF-": "a PDF file: convert it to text",
    b"PAR1": "a parquet file: give it the ending .parquet, and read it by data=files",
    b"ARROW1": "an Arrow file: give it the ending .arrow, and read it by data=files",
    b"SQLite format 3": "an SQLite database: write its table to a csv file",
    b"{\\rtf": "rich text of a word processor: save it as plain text",
    b"7z\xbc\xaf": "a 7z archive: unpack it",
    b"Rar!": "a rar archive: unpack it",
    b"version https://git-lfs.github.com/spec/": "not the data but a pointer to them: fetch the file by 'git lfs pull'",
}
"""First bytes of files that are mistaken for text, with advice."""
ENCODINGS = {
    **{"cp1252": "CP1252", "cp1250": "CP1250", "iso8859_2": "ISO-8859-2", "cp1251": "CP1251", "koi8_r": "KOI8-R"},
    **{"cp1253": "CP1253", "cp1254": "CP1254", "cp1255": "CP1255", "cp1256": "CP1256", "cp874": "CP874", "gb18030": "GB18030"},
    **{"big5": "BIG5", "cp932": "CP932", "euc_jp": "EUC-JP", "cp949": "CP949", "cp866": "CP866", "mac_roman": "MACINTOSH"},
    **{"iso2022_jp": "ISO-2022-JP"},
}
"""Encodings that messages propose, with their names for iconv. Of two that decode a line alike the first is proposed."""
_COMMON = {"gb18030": (0xB0, 0xD7), "big5": (0xA4, 0xC6), "cp932": (0x82, 0x97), "euc_jp": (0xA4, 0xCF), "cp949": (0xB0, 0xC8)}
"""The range of lead bytes of the most common characters."""


ESCAPES = {b"\x1b$)C": "iso2022_kr", b"\x1b$B": "iso2022_jp", b"\x1b$@": "iso2022_jp"}
"""Codes that switch to another character set in files of 7-bit encodings, with their encoding."""
_C1 = re.compile(rb"[\x80-\x9f]")
_DESIGNATORS = "$()*+-./"  # after ESC they begin such a code; other escapes, such as colours of terminals, are text
_BYTES = "llm_lightning.bytes"
_UNDECODED = re.compile("[\udc00-\udcff]")
"""Characters that replace undecodable bytes; no decoded text has them."""


def _keep_bytes(error: UnicodeError) -> tuple[str, int]:
    """Return (replacement characters for undecodable bytes, the place where decoding continues): a handler for `bytes.decode`."""
    assert isinstance(error, UnicodeDecodeError)
    return "".join(chr(0xDC00 + code) for code in error.object[error.start : error.end]), error.end


codecs.register_error(_BYTES, _keep_bytes)


@dataclass(frozen=True)
class Format:
    """The encoding and the line ends of a text file."""

    encoding: str
    newline: str
    notes: tuple[str, ...] = ()
    """Notes on the recognised encoding, without the file's name."""


def lines(path: Path, encoding: str | None = None, is_stream: bool = False, keeps_damage: bool = False) -> Iterator[str]:
    """Yield the lines of a text file with their ends. The line ends of old Macs (a carriage return) become newlines.

    `encoding` holds for files that are not UTF-8; with `is_stream` the front of the file decides whether it is UTF-8. Raises UserError
    for damaged compressed files, files that are not text, and bytes that cannot be decoded. With `keeps_damage` a line with such bytes,
    or with a NUL byte, is yielded too: `find_damage` recognises it.
    """
    for number, (line, problem) in enumerate(_decode(path, detect_format(path, encoding, is_stream)), 1):
        if problem is not None and not keeps_damage:
            raise UserError(f"{path}, line {number}: {problem}")
        yield line


def open_lines(path: Path, data: DataConfig) -> Iterator[str]:
    """Yield the lines of a file as `lines` does; lines that are not text only with `data.on_bad_row=skip`."""
    return lines(path, data.encoding, data.streaming, keeps_damage=data.on_bad_row == "skip")


def find_damage(text: str) -> str | None:
    """Return the problem with a line, or a part of it, that `lines` yields with `keeps_damage`; None if it is text."""
    if not text.isascii() and (match := _UNDECODED.search(text)):
        return f"byte 0x{ord(match[0]) - 0xDC00:02x} cannot be decoded"
    problem = _find_codes(text)
    return problem and problem.removesuffix(".")


def describe_damage(path: Path, data: DataConfig) -> list[str]:
    """Return a note on lines of a file that are not text, under `data.on_bad_row=skip`."""
    if data.on_bad_row != "skip" or detect_format(path, data.encoding, data.streaming).encoding != "utf-8":
        return []
    _, count, is_text = count_lines(path, FRONT if data.streaming else None)
    if not is_text:
        return ["there are NUL bytes in it, whose lines are left out (data.on_bad_row=skip)"]
    if not count:
        return []
    advice = _advice(path).removesuffix(".")
    return [f"{count:,} lines have bytes that are not UTF-8; rows with them are left out (data.on_bad_row=skip); {advice}"]


def read_lines(path: Path, text_format: Format) -> Iterator[tuple[str, str | None]]:
    """Yield (line with its end, None), or ("", the problem as a sentence) for a line that is not text.

    Raises UserError for damaged compressed files, and for undecodable bytes whose line cannot be determined.
    """
    for line, problem in _decode(path, text_format):
        yield "" if problem is not None else line, problem


def _decode(path: Path, text_format: Format) -> Iterator[tuple[str, str | None]]:
    """Yield the pairs of `read_lines`, but with the text of bad lines: undecodable bytes become characters of _UNDECODED."""
    number, encoding, advice = 0, text_format.encoding, ""
    try:
        with open_file(path) as file:
            if text_format.newline == "\n" and _is_read_by_line(encoding):
                for number, line in enumerate(file, 1):
                    codec = "utf-8-sig" if number == 1 and encoding == "utf-8" else encoding
                    try:
                        decoded = line.decode(codec)
                    except UnicodeDecodeError as error:
                        advice = advice or (
                            _advice(path) if encoding == "utf-8" else "mend the line, or set another data.encoding."
                        )
                        yield line.decode(codec, _BYTES), f"byte 0x{line[error.start]:02x} is not {encoding.upper()}; {advice}"
                    else:
                        yield decoded, _find_codes(decoded)
                return
            text = io.TextIOWrapper(file, encoding, newline=text_format.newline)
            for number, decoded in enumerate(text, 1):
                if text_format.newline == "\r" and decoded.endswith("\r"):
                    decoded = f"{decoded[:-1]}\n"
                decoded = decoded.removeprefix("\ufeff") if number == 1 else decoded
                yield decoded, _find_codes(decoded)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}, behind line {number}: the bytes there are not {encoding} ({error.reason}); mend them, or set "
            f"data.encoding to the encoding of the file."
        ) from None
    except DAMAGED as error:
        raise UserError(f"{path}: the file is damaged or cannot be read ({str(error) or type(error).__name__}).") from error


def _is_read_by_line(encoding: str) -> bool:
    """Return whether each line can be decoded alone: not in UTF-16, nor if codes affect the following lines."""
    return "\n".encode(encoding) == b"\n" and not codecs.lookup(encoding).name.startswith(("iso2022", "hz", "utf-7"))


def _find_codes(line: str) -> str | None:
    """Return the problem with a line that holds a NUL character, or codes of a 7-bit encoding, which would be learnt as text."""
    if "\0" in line:
        return NUL
    code = next((c for c in "\x0e\x0f" if c in line), None)
    if code is None and "\x1b" in line:
        code = next((f"\x1b{c}" for c in _DESIGNATORS if f"\x1b{c}" in line), None)
    if code is None:
        return None
    return (
        f"{code!r} switches to another character set, as in ISO-2022 text; set data.encoding to the encoding of the file (iso2022_jp, "
        f"iso2022_kr), or take such codes out."
    )


def detect_format(path: Path, encoding: str | None = None, is_stream: bool = False) -> Format:
    """Return the format of a text file. `encoding` holds for files that are not UTF-8.

    With `is_stream` only the first 16 MiB are read. Raises UserError for a file that is not text.
    """
    try:
        with open_file(path) as file:
            head = file.read(HEAD)
    except DAMAGED as error:
        raise UserError(f"{path}: the file is damaged or cannot be read ({str(error) or type(error).__name__}).") from error
    refuse_binary(path, head)
    if marked := next((name for mark, name in MARKS.items() if head.startswith(mark)), None):
        return Format(
            marked, "\n" if _has_newline(head.decode(marked, "ignore")) else "\r", (f"read as {marked.upper()}, as its mark says",)
        )
    if encoding is not None and codecs.lookup(encoding).name not in ("utf-8", "utf-8-sig") and not head.startswith(codecs.BOM_UTF8):
        utf_8, others, decodable = count_lines(path, FRONT if is_stream else None)
        if utf_8 and not others and decodable:
            return Format("utf-8", _newline(head), (f"read as UTF-8, which it is, and not as data.encoding={encoding}",))
        if not decodable or others:
            notes: tuple[str, ...] = (f"read as {encoding}, as data.encoding says",)
            if utf_8:
                notes += (f"{utf_8:,} of {utf_8 + others:,} lines with characters beyond ASCII would be UTF-8 too: look at them",)
            if codecs.lookup(encoding).name.startswith("iso8859") and _C1.search(head):
                notes += (
                    f"bytes from 0x80 to 0x9f are control characters in {encoding}, which nobody sees; in Western European text they are "
                    f"quotation marks, dashes and € of data.encoding=cp1252",
                )
            return Format(encoding, "\n" if _has_newline(head.decode(encoding, "ignore")) else "\r", notes)
        if not codecs.lookup(encoding).name.startswith(("utf-16", "utf-32")):  # whose line ends have NUL bytes
            text = head.decode(encoding, "ignore")
            is_ascii = text == head.decode("ascii")  # not ISO-2022, HZ or UTF-7, which write all characters in ASCII bytes
            return Format(
                encoding,
                "\n" if _has_newline(text) else "\r",
                () if is_ascii else (f"read as {encoding}, as data.encoding says",),
            )
    if encoding is None and (name := _unmarked_utf_16(head[:1000])) is not None:
        raise UserError(f"{path}: this is UTF-16 without a mark: set data.encoding={name} (or iconv -f {name} -t utf-8).")
    for code, name in ESCAPES.items() if encoding is None else ():
        if code in head:
            iconv = name.upper().replace("2022_", "-2022-")
            raise UserError(f"{path}: this is {iconv}: set data.encoding={name} (or iconv -f {iconv} -t utf-8).")
    return Format("utf-8", _newline(head))


def _unmarked_utf_16(head: bytes) -> str | None:
    """Return the UTF-16 variant of bytes without a mark: every second byte is zero, and they decode to text; None for others."""
    if 3 * head.count(0) <= len(head):
        return None
    name = "utf-16-le" if head[1::2].count(0) > head[::2].count(0) else "utf-16-be"
    text = head.decode(name, "replace")
    return name if sum(c.isprintable() or c.isspace() for c in text) > 0.9 * len(text) else None


def refuse_binary(path: Path, head: bytes) -> None:
    """Raise UserError for a file whose first bytes are those of a binary format."""
    for signature, kind in SIGNATURES.items():
        if head.startswith(signature):
            raise UserError(f"{path}: this is {kind}.")
    if head[257:262] == b"ustar":
        raise UserError(f"{path}: this is a tar archive: unpack it.")


def _newline(head: bytes) -> str:
    return "\n" if _has_newline(head.decode("latin-1")) else "\r"


def _has_newline(head: str) -> bool:
    """Return whether lines end with a newline, and not, as on old Macs, with a carriage return alone.

    The quotes of a csv file may hold the other kind of end: the ends of lines come first, and are the most frequent.
    """
    text = head.replace("\r\n", "\n").rstrip("\r\n")
    returns, newlines = text.count("\r"), text.count("\n")
    return newlines >= returns or -1 < text.find("\n") < text.find("\r")


def count_lines(path: Path, front: int | None = None) -> tuple[int, int, bool]:
    """Return (lines beyond ASCII that are UTF-8, lines that are not UTF-8, whether the file has no NUL byte).

    `front` is the number of bytes to read, up to the end of a line; None reads all. An unchanged file is read once a process.
    """
    status = path.stat()
    try:
        return _count_lines(path, front, status.st_size, status.st_mtime_ns)
    except DAMAGED as error:
        raise UserError(f"{path}: the file is damaged or cannot be read ({str(error) or type(error).__name__}).") from error


@functools.lru_cache(maxsize=1 << 16)
def _count_lines(path: Path, front: int | None, _size: int, _mtime: int) -> tuple[int, int, bool]:
    utf_8 = others = read = 0
    with open_file(path) as file:
        for line in file:
            read += len(line)
            if b"\0" in line:
                return 0, 0, False
            if not line.isascii():
                try:
                    line.decode("utf-8")
                    utf_8 += 1
                except UnicodeDecodeError:
                    others += 1
            if front is not None and read >= front:
                break
    return utf_8, others, True


def _advice(path: Path) -> str:
    """Return advice on a file that is not UTF-8: the encodings that fit, with a line decoded in each."""
    utf_8, others, is_text = count_lines(path)
    if not is_text:
        return "the file is damaged, or no text: there are NUL bytes in it."
    if utf_8 >= others:
        return (
            f"{utf_8:,} lines are UTF-8 and {others:,} are not: the file is put together from several encodings, or damaged; mend "
            f"these lines (iconv -c -f utf-8 -t utf-8 drops the bytes)."
        )
    return advise_encoding(_sample(path))


def advise_encoding(sample: list[bytes]) -> str:
    """Return a sentence on the encodings that fit the lines, with a part decoded in each."""
    readings = list(propose_encodings(sample).items())[:4]
    if not readings:
        return "the file is damaged, or no text."
    shown = (f"data.encoding={name} reads {text!r} (iconv -f {ENCODINGS[name]} -t utf-8)" for name, text in readings)
    return f"set the encoding in which the text is right, or convert the file from it: {'; '.join(shown)}."


def _sample(path: Path) -> list[bytes]:
    """Return up to 200 lines that are not ASCII."""
    sample: list[bytes] = []
    with open_file(path) as file:
        for line in file:
            if not line.isascii():
                sample.append(line.rstrip(b"\r\n"))
            if len(sample) == 200:
                break
    return sample


def propose_encodings(sample: list[bytes]) -> dict[str, str]:
    """Return the encodings that can decode the lines, the most plausible first, each with a decoded part of a line."""
    scores: dict[str, tuple[float, str]] = {}
    readings: list[list[str]] = []
    for encoding in ENCODINGS:
        try:
            texts = [line.decode(encoding) for line in sample]
        except UnicodeDecodeError:
            continue
        plausibility = sum(_plausibility(text, encoding) for text in texts)
        shown = " / ".join(map(_cut_excerpt, sorted(set(texts), key=_count_beyond_ascii)[-3:]))[:60]
        if texts not in readings:
            scores[encoding] = (plausibility, shown)
            readings.append(texts)
    return {name: shown for name, (_, shown) in sorted(scores.items(), key=lambda item: -item[1][0])}


def _count_beyond_ascii(text: str) -> int:
    return sum(not c.isascii() for c in text[:2000])


def _cut_excerpt(text: str) -> str:
    """Return the part of a line around its first character beyond ASCII."""
    first = next((i for i, c in enumerate(text) if not c.isascii()), 0)
    return text[max(0, first - 10) : first + 20].strip()


_TYPOGRAPHY = re.compile(
    r"[^\W\d_]’[^\W\d_]|[\s(,;]?[“‘„«](?=\w)|[\w.!?,][”’»](?!\w)| [–—](?= )|\d–(?=\d)|[\w ]…|[\d\s,;]€|€(?=\d)"
)
"""A mark with the character before it, in a place usual in typography: apostrophes in words, dashes between blanks."""


def _plausibility(text: str, encoding: str) -> float:
    """Return how much a line looks like text: the share of characters beyond ASCII that are likely, given their neighbours."""
    beyond = [i for i, c in enumerate(text) if not c.isascii()]
    if encoding in _COMMON:
        low, high = _COMMON[encoding]
        leads = [code for i in beyond if len(code := text[i].encode(encoding)) > 1]
        return (sum(low <= lead[0] <= high for lead in leads) - (len(beyond) - len(leads))) / len(beyond)
    is_latin = encoding in ("cp1252", "cp1250", "iso8859_2", "cp1254", "mac_roman")
    letters = sum(c.isalpha() for c in text)
    score = 0.0
    for i in beyond:
        c, before = text[i], text[i - 1 : i]
        if unicodedata.category(c) == "Mn":  # vowels and tones of Thai, points of Hebrew and Arabic stand over a letter
            score += 1 if before.isalpha() or (before and unicodedata.category(before) == "Mn") else -1
        elif not c.isalpha():
            score += 1 if _TYPOGRAPHY.match(text, max(i - 1, 0)) else 0.3 if c in "“”‘’„–—…€°«»§\xa0" else -1
        elif c.isupper() and before.islower():
            score -= 1  # the case of KOI8-R read as Windows-1251
        elif not is_latin and any(n.isascii() and n.isalpha() for n in (before, text[i + 1 : i + 2])):
            score -= 1  # scripts are not mixed inside words
        else:
            score += 1
    if is_latin and sum(text[i].isalpha() for i in beyond) > 0.5 * letters:
        score -= len(beyond)  # most letters of Latin text are ASCII
    if not is_latin and len(beyond) < 3:
        score /= 2  # two bytes are rather one character of Chinese, Japanese or Korean than a word
    return score / len(beyond)
