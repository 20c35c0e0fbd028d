"""Show a run's first rows as the model learns them: decoded from the encoded arrays, with their targets.

The rows themselves are not read, so the output shows exactly the training data. It takes some milliseconds: a few hundred tokens are
decoded in each split of any size.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_lightning.data.encode import TokenizedSplit
from llm_lightning.data.masking import IGNORED

if TYPE_CHECKING:
    from llm_lightning.data.datamodule import DataModule

log = logging.getLogger(__name__)

ROWS = 2
WIDTH = 300
"""Characters shown of a text."""
DECODED = 400
"""Tokens decoded of a sequence; more would not be shown."""
WINDOWS = 1000
"""Sequences searched in a row."""
COUNTED = 100_000
"""Tokens among which targets are counted."""


def show_rows(data: DataModule) -> None:
    """Log the first rows of train, and only to the log file those of the other splits."""
    for split, encoded in data.dataset.splits.items():
        shown = "\n".join(f"  {number}. {row}" for number, row in enumerate(decode_rows(data, split), 1))
        log.info(
            "%s, as the model learns it%s:\n%s", split, _count_targets(encoded, data), shown, extra={"file_only": split != "train"}
        )


def decode_rows(data: DataModule, split: str, count: int = ROWS) -> list[str]:
    """Return the first rows of a split as text, with special tokens and targets, and one sequence of each row."""
    encoded = data.dataset.splits[split]
    return [_decode_sequence(data, encoded, index) for index in _choose(encoded, count)]


def _choose(encoded: TokenizedSplit, count: int) -> list[int]:
    """Return a sequence of each of the first rows; of a question's windows the first with the answer."""
    if encoded.rows is None:
        return list(range(min(count, len(encoded))))
    chosen: list[int] = []
    start = 0
    while start < len(encoded) and len(chosen) < count:
        block = encoded.rows[start : start + WINDOWS]
        end = start + int(np.count_nonzero(block == block[0]))  # the sequences of a row are neighbours
        answered = [i for i in range(start, end) if encoded.labels[i].any()] if _is_span(encoded) else []  # type: ignore[index]
        chosen.append(answered[0] if answered else start)
        start = end
    return chosen


def _is_span(encoded: TokenizedSplit) -> bool:
    """Return whether targets are the first and the last token of an answer: a pair of texts with two integers."""
    return encoded.second is not None and encoded.labels is not None and encoded.labels.ndim == 2


def _decode_sequence(data: DataModule, encoded: TokenizedSplit, index: int) -> str:
    names, encoding = data.dataset.label_names, data.dataset.encoding
    tokens = encoded[index].astype(np.int64)
    if encoding.translates:
        assert encoded.second is not None
        source, target = np.split(tokens, [encoded.second[index]])
        return f"{_shorten(_decode(data, source))} → {_shorten(_decode(data, target))}"
    if encoded.labels is not None and _is_span(encoded) and names is None:
        assert encoded.second is not None
        return _mark_answer(data, tokens, int(encoded.second[index]), *encoded.labels[index].tolist())
    if encoded.labels is not None:
        pair = [encoded.second[index]] if encoded.second is not None else []
        texts = " ‖ ".join(_decode(data, part) for part in np.split(tokens, pair))
        return f"{_shorten(texts)} → {_name(encoded.labels[index], names)}"
    if data.collator.masking is not None:
        inputs, targets = data.collator.masking(tokens, 0, index)
        return _mark(data, inputs[:DECODED], targets[:DECODED])
    if encoded.token_targets is None:
        return _shorten(_decode(data, tokens))
    start = encoded.starts[index]
    targets = encoded.token_targets[start : start + len(tokens)]
    if names is not None and not encoding.next_token:
        return _shorten(" ".join(_tag_words(data, tokens[:DECODED], targets[:DECODED], names)))
    return _mark(data, tokens, targets)


def _decode(data: DataModule, tokens: Iterable[int]) -> str:
    ids = [int(token) for token in tokens]
    if len(ids) > 2 * DECODED:
        ids = ids[:DECODED] + ids[-DECODED:]  # the middle is not shown
    text: str = data.dataset.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text.replace("\r", "␍").replace("\n", "⏎")


def _shorten(text: str, width: int = WIDTH) -> str:
    return text if len(text) <= width else f"{text[: 2 * width // 3].rstrip()} … {text[-width // 3 :].lstrip()}"


def _name(label: Any, names: tuple[str, ...] | None) -> str:
    """Return a class, the classes that apply, or a number."""
    if names is None:
        return f"{float(label):g}"
    if np.ndim(label) == 0:
        return names[int(label)]
    return ", ".join(names[i] for i in np.flatnonzero(label)) or "no label"


def _mark_answer(data: DataModule, tokens: np.ndarray, second: int, first: int, last: int) -> str:
    """Return question ‖ context with the answer in «»."""
    question = _shorten(_decode(data, tokens[:second]))
    if (first, last) == (0, 0):
        return f"{question} ‖ {_shorten(_decode(data, tokens[second:]))} → no answer here"
    before, answer, after = (_decode(data, part) for part in np.split(tokens, [second, first, last + 1])[1:])
    before = before if len(before) <= WIDTH // 2 else f"… {before[-WIDTH // 2 :].lstrip()}"
    return f"{question} ‖ {before} «{_shorten(answer.strip())}» {_shorten(after, WIDTH // 2)}"


def _mark(data: DataModule, tokens: np.ndarray, targets: np.ndarray) -> str:
    """Return the tokens with each run of targets in «». For a replaced token the «» hold the target."""
    pieces = []
    for is_target, places in groupby(range(len(tokens)), lambda i: bool(targets[i] != IGNORED)):
        run = list(places)
        text = _shorten(_decode(data, (targets if is_target else tokens)[run]), WIDTH // 2)
        pieces.append(f"«{text}»" if is_target else text)
    return _shorten_pieces(pieces)


def _shorten_pieces(pieces: list[str]) -> str:
    """Return the first pieces, up to four widths together. Pieces are not cut, so that marks stay in pairs."""
    shown: list[str] = []
    for piece in pieces:
        if sum(map(len, shown)) > 4 * WIDTH:
            return "".join([*shown, " …"])
        shown.append(piece)
    return "".join(shown)


def _tag_words(data: DataModule, tokens: np.ndarray, targets: np.ndarray, names: tuple[str, ...]) -> Iterator[str]:
    """Yield word/tag of each word. A word begins with the token that has its tag."""
    bounds = [*(int(i) for i in np.flatnonzero(targets != IGNORED)), len(tokens)]
    yield from [_decode(data, tokens[: bounds[0]])] if bounds[0] > 0 else []
    special = set(data.dataset.tokenizer.all_special_ids)
    for start, end in pairwise(bounds):
        stop = next((i for i in range(start + 1, end) if int(tokens[i]) in special), end)
        yield f"{_decode(data, tokens[start:stop]).strip()}/{names[targets[start]]}"
        yield from [_decode(data, tokens[stop:end])] if stop < end else []


def _count_targets(encoded: TokenizedSplit, data: DataModule) -> str:
    """Return a clause on the share of learnt tokens; empty if all tokens are learnt."""
    if encoded.token_targets is None or not data.dataset.encoding.next_token:
        return ""
    sample = encoded.token_targets[:COUNTED]
    of = "" if len(sample) == len(encoded.token_targets) else f" of the first {COUNTED:,}"
    return f" ({100 * float((sample != IGNORED).mean()):.0f}% of the tokens{of} are learnt, those in «»)"
