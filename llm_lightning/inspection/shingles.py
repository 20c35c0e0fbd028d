"""Hash the word n-grams of texts, of many texts at once.

A word is a run of letters and digits, in lower case; a character of Chinese, Japanese or Korean is a word of its own, as these scripts put
no blanks between words. A text of fewer words than an n-gram has is one shingle. Texts are bytes of one buffer here: the polynomial hash of
each word is a difference of prefix sums modulo 2^64 (Karp and Rabin 1987), so that no word becomes a Python object. 40 MB/s a core.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

WORDS = 5
"""Words of a shingle (Lee et al. 2022, section 4.2, take tokens)."""
GROUP = 1 << 18  # characters that are hashed together: the arrays stay in a core's cache
MULTIPLIER = 0x9E3779B97F4A7C15 | 1
_INVERSE = pow(MULTIPLIER, -1, 1 << 64)
_FACTOR = 0xD6E8FEB86659FD93


@dataclass(frozen=True)
class Shingles:
    """The shingles of some texts: those of text i are `hashes[starts[i] : starts[i + 1]]`, with repeats."""

    hashes: np.ndarray
    """(shingles,) uint64"""
    starts: np.ndarray
    """(texts + 1,) int64"""

    def __len__(self) -> int:
        return len(self.starts) - 1

    def of(self, text: int) -> np.ndarray:
        """Return the set of a text's shingles, sorted."""
        return np.unique(self.hashes[self.starts[text] : self.starts[text + 1]])


def hash_shingles(texts: Sequence[str], words: int = WORDS) -> Shingles:
    """Return the shingles of texts, each of so many `words`; a text without a word has none."""
    parts = [_hash_group(group, words) for group in _group(texts)]
    sizes = np.concatenate([np.zeros(1, np.int64), *(np.diff(part.starts) for part in parts)])
    return Shingles(np.concatenate([np.empty(0, np.uint64), *(part.hashes for part in parts)]), np.cumsum(sizes))


def _group(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield texts in groups of about GROUP characters, whose arrays stay in a core's cache."""
    begin = size = 0
    for end, text in enumerate(texts, 1):
        size += len(text)
        if size >= GROUP or end == len(texts):
            yield texts[begin:end]
            begin, size = end, 0


def _hash_group(texts: Sequence[str], size: int) -> Shingles:
    buffer = np.frombuffer(
        "\0".join([*(text.replace("\0", " ") for text in texts), ""]).lower().encode("utf-8", "surrogatepass"), np.uint8
    )
    words, word_text = _hash_words(buffer)
    counts = np.bincount(word_text, minlength=len(texts))
    hashes, owners = _join_words(words, word_text, counts, size)
    order = np.argsort(owners, kind="stable")  # short texts stand behind the others
    return Shingles(hashes[order], np.searchsorted(owners[order], np.arange(len(texts) + 1)))


def _hash_words(buffer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (hash, number of its text) of each word of a buffer of texts that end with a zero byte."""
    is_word = _IS_WORD[buffer]
    before = np.concatenate([[False], is_word[:-1]])
    begins = is_word & (~before | _BEGINS_WORD[buffer] | _follows_ideograph(buffer))
    starts = np.flatnonzero(begins)
    if not len(starts):
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    ends_run = np.flatnonzero(is_word & ~np.concatenate([is_word[1:], [False]])) + 1
    next_start = np.append(starts[1:], len(buffer))
    ends = np.minimum(next_start, ends_run[np.searchsorted(ends_run, starts, "right")])
    powers, inverses = _list_powers(len(buffer))
    prefix = np.concatenate(
        [np.zeros(1, np.uint64), np.cumsum((buffer.astype(np.uint64) + np.uint64(1)) * powers, dtype=np.uint64)]
    )
    hashes = _mix((prefix[ends] - prefix[starts]) * inverses[starts])
    text_ends = np.flatnonzero(buffer == 0)
    return hashes, np.searchsorted(text_ends, starts)


def _follows_ideograph(buffer: np.ndarray) -> np.ndarray:
    """Return which bytes stand behind a three-byte character that is a word of its own."""
    follows = np.zeros(len(buffer), bool)
    follows[3:] = _BEGINS_WORD[buffer[:-3]]
    return follows


def _join_words(words: np.ndarray, word_text: np.ndarray, counts: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (hash, text) of every shingle of `size` words."""
    factors = np.array([pow(_FACTOR, power, 1 << 64) for power in range(1, size + 1)], np.uint64)
    last = len(words) - size + 1
    if last > 0:
        hashes = np.zeros(last, np.uint64)
        for place, factor in enumerate(factors):
            hashes += words[place : place + last] * factor
        inside = word_text[:last] == word_text[size - 1 :]
        hashes, owners = hashes[inside], word_text[:last][inside]
    else:
        hashes, owners = np.empty(0, np.uint64), np.empty(0, np.int64)
    short = (counts > 0) & (counts < size)
    is_short = short[word_text]
    first = np.cumsum(counts) - counts
    place = np.arange(len(words)) - first[word_text]
    sums = np.zeros(len(counts), np.uint64)
    np.add.at(sums, word_text[is_short], words[is_short] * factors[place[is_short]])
    return _mix(np.concatenate([hashes, sums[short]])), np.concatenate([owners, np.flatnonzero(short)])


def _mix(values: np.ndarray) -> np.ndarray:
    """Return a bijection of 64-bit numbers whose bits all depend on all bits of its input (Steele et al. 2014, SplitMix64)."""
    values = values ^ (values >> np.uint64(30))
    values = values * np.uint64(0xBF58476D1CE4E5B9)
    values = values ^ (values >> np.uint64(27))
    values = values * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


_powers: tuple[np.ndarray, np.ndarray] | None = None


def _list_powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first `count` powers of MULTIPLIER and of its inverse, modulo 2^64."""
    global _powers
    if _powers is None or len(_powers[0]) < count:
        _powers = tuple(  # type: ignore[assignment]
            np.cumprod(np.append(np.uint64(1), np.full(count - 1, base, np.uint64)), dtype=np.uint64)
            for base in (MULTIPLIER, _INVERSE)
        )
    assert _powers is not None
    return _powers[0][:count], _powers[1][:count]


_BYTES = np.arange(256)
_IS_WORD = np.isin(_BYTES, np.frombuffer(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", np.uint8)) | (
    _BYTES >= 0x80
)
_BEGINS_WORD = (_BYTES >= 0xE3) & (_BYTES <= 0xED)  # first bytes of U+3000 to U+DFFF: kana, Chinese characters, Hangul
