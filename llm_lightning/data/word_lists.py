"""Read lists of words and of tags in a row: lists, text that spells a list, or text with blanks between."""

from __future__ import annotations

from typing import Any

from llm_lightning.data.examples import BadRow
from llm_lightning.data.literals import BROKEN, parse_structure, split_bare


def read_items(value: Any) -> list[Any]:
    """Return the words or tags of a row: a list of them, or text with blanks between. Raises BadRow for a part of a list."""
    value = parse_structure(value)
    if isinstance(value, str):
        if BROKEN.match(value):
            raise BadRow(f"{_cut(value)} cannot be read as a list")
        items = split_bare(value) if "," in value else None
        return value.split() if items is None else items
    return [value] if isinstance(value, bool | int | float) else list(value or [])


def read_tags(value: Any) -> list[Any]:
    """Return the tags of a row.

    Raises BadRow for a list that cannot be read, such as an abridged one of numpy's ([0 1 ... 0]), and for the tag -100.
    """
    tags = read_items(value)
    if -100 in tags or "-100" in tags:
        raise BadRow(
            "the tag -100 stands for pieces of words, which have no tag of their own; give whole words and a tag for each (words are cut "
            "into the tokenizer's pieces here)"
        )
    if isinstance(value, str) and len(tags) > 1 and str(tags[0])[0] == "[" != tags[0] and str(tags[-1])[-1] == "]":
        raise BadRow(f"{_cut(value)} cannot be read as a list")
    return tags


def _cut(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}…")


def read_words(value: Any) -> list[Any]:
    """Return the words of a row: a list of them, or text with blanks between.

    Text spells a list of words only if all items are text: `[1]` is a word.
    """
    words = read_items(value)
    is_text = isinstance(value, str) and (
        isinstance(parse_structure(value), dict) or not all(isinstance(word, str) for word in words)
    )
    return value.split() if is_text else words
