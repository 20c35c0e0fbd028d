"""The tokens that scores of text compare: words, or characters in scripts that put no blanks between words."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable

NO_BLANKS = {
    "Han": (
        (0x2E80, 0x2FDF),
        (0x3005, 0x3007),
        (0x3021, 0x3029),
        (0x3400, 0x4DBF),
        (0x4E00, 0x9FFF),
        (0xF900, 0xFAFF),
        (0x20000, 0x3FFFF),
    ),
    "Kana": ((0x3040, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F), (0x1B000, 0x1B16F)),
    "Thai": ((0x0E00, 0x0E7F),),
    "Lao": ((0x0E80, 0x0EFF),),
    "Myanmar": ((0x1000, 0x109F), (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F)),
    "Khmer": ((0x1780, 0x17FF), (0x19E0, 0x19FF)),
}
"""Script -> its ranges of code points (Unicode 15, Blocks.txt)."""
_CLASS = "".join(f"{chr(first)}-{chr(last)}" for ranges in NO_BLANKS.values() for first, last in ranges)
_ONE = re.compile(f"[{_CLASS}]")
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def is_latin(texts: Iterable[str]) -> bool:
    """Return whether no text has a letter of another script than Latin."""
    letters = {c for text in texts if not text.isascii() for c in text if not c.isascii() and c.isalpha()}
    return all("LATIN" in unicodedata.name(letter, "") for letter in letters)


def split_words(text: str) -> list[str]:
    """Return the lower-cased runs of letters, marks and digits of a text; in scripts without blanks each letter with its marks.

    In ASCII text these are the runs of [a-z0-9] that define ROUGE (Lin 2004); every other character separates words.
    """
    words: list[str] = []
    inside = False
    for character in text.lower():
        kind = unicodedata.category(character)[0]
        if kind == "M" and inside:
            words[-1] += character
        elif kind not in "LN":
            inside = False
        elif inside and not _ONE.match(character) and not _ONE.match(words[-1][0]):
            words[-1] += character
        else:
            words.append(character)
            inside = True
    return words


def split_answer(text: str, latin: bool) -> list[str]:
    """Return the words of an answer by SQuAD's rule: lower-cased, without ASCII punctuation and English articles, split at blanks.

    Unless `latin`, punctuation of every script is removed, and each letter of a script without blanks is a word, as in CMRC (Cui
    et al. 2019) and MLQA (Lewis et al. 2020).
    """
    text = text.lower()
    if latin:
        text = "".join(character for character in text if character not in string.punctuation)
        return _ARTICLES.sub(" ", text).split()
    text = "".join(c for c in text if (c not in string.punctuation and unicodedata.category(c)[0] not in "PC") or c.isspace())
    parts = _ARTICLES.sub(" ", text).split()
    return [word for part in parts for word in _split_word(part)]


def _split_word(text: str) -> list[str]:
    """Split a word into the letters of scripts without blanks, with their marks, and into runs of other characters."""
    words: list[str] = []
    for character in text:
        if words and (unicodedata.category(character)[0] == "M" or not (_ONE.match(character) or _ONE.match(words[-1][0]))):
            words[-1] += character
        else:
            words.append(character)
    return words


def describe_words(references: Iterable[str]) -> str:
    """Return a description of the units that `split_words` and `split_answer` make of texts."""
    present = {_find_script(c) for text in references for c in text if not c.isascii() and c.isalpha()}
    scripts = [script for script in NO_BLANKS if script in present]
    return f"characters of {', '.join(scripts)}, and words" if scripts else "words"


def name_bleu_tokenizer(references: Iterable[str]) -> str:
    """Return sacrebleu's tokenizer for a language: `zh` for Chinese, `char` for other scripts without blanks, `13a` for all others.

    Japanese is compared by characters, as sacrebleu's `ja-mecab` needs MeCab and a dictionary.
    """
    letters = Counter(_find_script(c) for text in references for c in text if c.isalpha())
    blankless = sum(letters[script] for script in NO_BLANKS)
    if 2 * blankless <= letters.total():
        return "13a"
    return "zh" if 20 * (blankless - letters["Han"]) < blankless else "char"


def _find_script(character: str) -> str:
    point = ord(character)
    if point < 0x0E00:
        return "other"
    return next((script for script, ranges in NO_BLANKS.items() if any(first <= point <= last for first, last in ranges)), "other")
