"""Tell the script of texts (Latin, Cyrillic, Han, …) by the Unicode ranges of their letters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RANGES = (
    *((0x41, 0x5B, "Latin"), (0x61, 0x7B, "Latin"), (0xAA, 0xAB, "Latin"), (0xBA, 0xBB, "Latin"), (0xC0, 0xD7, "Latin")),
    *(
        (0xD8, 0xF7, "Latin"),
        (0xF8, 0x2B0, "Latin"),
        (0x370, 0x400, "Greek"),
        (0x400, 0x530, "Cyrillic"),
        (0x531, 0x590, "Armenian"),
    ),
    *((0x5D0, 0x600, "Hebrew"), (0x600, 0x700, "Arabic"), (0x750, 0x780, "Arabic"), (0x8A0, 0x900, "Arabic")),
    *((0x900, 0x980, "Devanagari"), (0x980, 0xA00, "Bengali"), (0xA00, 0xA80, "Gurmukhi"), (0xA80, 0xB00, "Gujarati")),
    *((0xB80, 0xC00, "Tamil"), (0xC00, 0xC80, "Telugu"), (0xC80, 0xD00, "Kannada"), (0xD00, 0xD80, "Malayalam")),
    *(
        (0xD80, 0xE00, "Sinhala"),
        (0xE00, 0xE80, "Thai"),
        (0xE80, 0xF00, "Lao"),
        (0xF00, 0x1000, "Tibetan"),
        (0x1000, 0x10A0, "Burmese"),
    ),
    *((0x10A0, 0x1100, "Georgian"), (0x1100, 0x1200, "Hangul"), (0x1200, 0x1380, "Ethiopic"), (0x1780, 0x1800, "Khmer")),
    *((0x1E00, 0x1F00, "Latin"), (0x1F00, 0x2000, "Greek"), (0x3040, 0x3100, "Kana"), (0x3130, 0x3190, "Hangul")),
    *((0x3400, 0x4DC0, "Han"), (0x4E00, 0xA000, "Han"), (0xAC00, 0xD7B0, "Hangul"), (0xF900, 0xFB00, "Han")),
    *((0xFB1D, 0xFB50, "Hebrew"), (0xFB50, 0xFE00, "Arabic"), (0xFE70, 0xFF00, "Arabic"), (0xFF66, 0xFFA0, "Kana")),
    (0x20000, 0x32000, "Han"),
)
"""(first character, character behind the last, script), in order."""
NONE = "no letters"
NAMES = (*dict.fromkeys(name for _, _, name in RANGES), "other", NONE)
_STARTS, _ENDS = (np.array([row[place] for row in RANGES], np.uint32) for place in (0, 1))
_CODES = np.array([NAMES.index(name) for _, _, name in RANGES])
_OTHER_BOUNDS = np.array([0x530, 0x2000, 0x2C00, 0x2E00, 0xA000, 0xAC00, 0x10000, 0x1D000], np.uint32)
_OTHER_LETTERS = np.array([False, True] * 4 + [False])
"""Whether characters between two bounds are letters, in most of the ranges that RANGES leaves out; others are signs and emojis."""
_OTHER, _NONE = len(NAMES) - 2, len(NAMES) - 1


def find_scripts(texts: Sequence[str]) -> list[str]:
    """Return the script that most letters of each text are in. Japanese texts count as Kana if a tenth of their letters are."""
    sizes = [len(text) for text in texts]
    characters = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
    owners = np.repeat(np.arange(len(texts)), sizes)
    place = np.searchsorted(_STARTS, characters, "right") - 1
    inside = (place >= 0) & (characters < _ENDS[place])
    is_letter = inside | (_OTHER_LETTERS[np.searchsorted(_OTHER_BOUNDS, characters, "right")])
    codes = np.where(inside, _CODES[place], _OTHER)
    counts = np.bincount(owners[is_letter] * len(NAMES) + codes[is_letter], minlength=len(texts) * len(NAMES))
    counts = counts.reshape(len(texts), len(NAMES))
    counts[:, _OTHER] = np.where(counts[:, :_OTHER].any(1), 0, counts[:, _OTHER])  # signs and emojis beside letters
    counts[:, NAMES.index("Kana")] *= 9  # beside Han
    return [NAMES[code] for code in np.where(counts.any(1), counts.argmax(1), _NONE)]
