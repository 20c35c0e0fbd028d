"""Compare a classifier's predictions of the user's own rows with those of copies in which terms are swapped.

Such counterfactual pairs (Kusner et al. 2017; Garg et al. 2019) test the texts that the model is used on, and no list of ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import mean
from typing import Any

import numpy as np

from llm_lightning.audit.classifier import Predictions, predict_rows
from llm_lightning.audit.results import Example, Measure, Score
from llm_lightning.audit.tables import read_table
from llm_lightning.config.schema import Config, DataConfig, cache_folder
from llm_lightning.data import sources
from llm_lightning.errors import UserError
from llm_lightning.inference.predict import Predictor, Row, paths_of, rows_of, without_label
from llm_lightning.reporting.intervals import share_interval
from llm_lightning.reporting.significance import half_width

KEY = "audit.swap"
COLUMNS = ("term", "swap")
SHOWN = 10
"""Rows with the largest shifts that the report shows."""
FLIPS, SHIFT = "Flip rate", "Mean shift"
METHOD = (
    "Each row that has a term is copied with all its terms swapped (whole words, in the case of the text), and both are predicted "
    "(counterfactual pairs: Kusner et al. 2017; Garg et al. 2019). Flip rate: share of copies whose predicted class differs; 95% "
    "intervals: Wilson. Mean shift: how much the probability of a class rises from the first term of a pair to the second, over the "
    "rows with one of the two; 95% intervals: Student's t. 0 means that the terms do not matter."
)


@dataclass(frozen=True)
class Swapper:
    """Pairs of terms, and the expression that finds them in a text."""

    pairs: list[tuple[str, str]]
    counterparts: dict[str, tuple[str, str, int, int]]
    """Case-folded term -> (the term, its counterpart, the number of their pair, +1 for the pair's first term and -1 for its second)."""
    pattern: re.Pattern[str]

    @staticmethod
    def of_pairs(pairs: list[tuple[str, str]]) -> Swapper:
        """Return the swapper of some pairs. A term in several pairs has the counterpart of the first."""
        counterparts: dict[str, tuple[str, str, int, int]] = {}
        for number, (first, second) in enumerate(pairs):
            counterparts.setdefault(first.casefold(), (first, second, number, 1))
            counterparts.setdefault(second.casefold(), (second, first, number, -1))
        terms = sorted(
            (entry[0] for entry in counterparts.values()), key=len, reverse=True
        )  # an alternation takes the first that fits
        pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, terms))})(?!\w)", re.IGNORECASE)
        return Swapper(pairs, counterparts, pattern)

    def swap(self, text: str) -> tuple[str, dict[int, int]]:
        """Return (the text with all its terms swapped, pair -> direction of its terms in the text: +1, -1, or 0 for both)."""
        directions: dict[int, int] = {}

        def replace_term(match: re.Match[str]) -> str:
            entry = self.counterparts.get(match[0].casefold())
            if entry is None:  # a letter that only resembles another one when case is ignored, such as a dotless i
                return match[0]
            term, counterpart, number, direction = entry
            directions[number] = direction if directions.get(number, direction) == direction else 0
            return copy_case(match[0], term, counterpart)

        return self.pattern.sub(replace_term, text), directions


def copy_case(found_text: str, term: str, counterpart: str) -> str:
    """Return a counterpart in the case of the text in whose place it is put; as it is spelled where the text spells the term so."""
    if found_text == term:
        return counterpart
    if len(found_text) > 1 and found_text.isupper():
        return counterpart.upper()
    if " " in found_text and found_text.istitle():
        return counterpart.title()
    if found_text[:1].isupper():
        return counterpart[:1].upper() + counterpart[1:]
    return counterpart.lower()


def read_swapper(name: str) -> Swapper:
    """Read the pairs of a csv. Raises UserError for a term that is its own counterpart."""
    pairs = []
    for row in read_table(KEY, name, COLUMNS):
        first, second = (row[column].strip() for column in COLUMNS)
        if first.casefold() == second.casefold():
            raise UserError(f"{row['where']}: '{first}' is its own counterpart; give two different terms, or remove the row.")
        pairs.append((first, second))
    return Swapper.of_pairs(pairs)


def measure(predictor: Predictor, config: Config) -> Measure:
    """Return the flip rate and the mean shift of all copies, and of those of each pair."""
    swapper, data = read_swapper(str(config.audit.swap)), config.data
    originals, copies, directions, total = [], [], [], 0
    for row in read_rows(config):
        total += 1
        copy, of_row = swap_row(swapper, row, data)
        if of_row:
            originals.append(row)
            copies.append(copy)
            directions.append(of_row)
    source = f"data.predict={data.predict}" if data.predict else "the test split"
    if not originals:
        raise UserError(
            f"{KEY}={config.audit.swap}: none of the {total:,} rows of {source} has one of the terms; give other terms or rows."
        )
    before, after = predict_rows(predictor, originals), predict_rows(predictor, copies)
    flipped = (before.decided != after.decided).any(1)
    facts = {"file": config.audit.swap, "rows_from": source, "rows": total, "rows_with_a_term": len(originals)}
    examples = [_describe_row(i, originals, copies, before, after, data) for i in find_worst(before, after)]
    return Measure(
        KEY, "Swapped terms", METHOD, list(list_scores(swapper, directions, before, after, flipped)), facts, [], examples
    )


def read_rows(config: Config) -> Iterator[Row]:
    """Yield the rows of data.predict, or of the run's test split, with their places. Raises UserError without a test split."""
    data = config.data
    if data.predict is not None:
        for path in paths_of("data.predict", data.predict):
            yield from rows_of(path, without_label(data))
        return
    if config.run_folder is None or data.streaming:
        raise UserError(f"{KEY}: run={config.run} has no test split to take rows from; give them by data.predict=<file>.")
    split = sources.get_reader(data)(data, cache_folder(config), ()).get("test")
    if split is None:
        raise UserError(f"{KEY}: the run has no test split; give rows by data.predict=<file>.")
    for number, row in enumerate(split.table):
        yield {"where": split.where(number), **row}


def swap_row(swapper: Swapper, row: Row, data: DataConfig) -> tuple[Row, dict[int, int]]:
    """Return (a copy of the row with the terms of its texts swapped, the directions of its pairs)."""
    copy: Row = dict(row)
    directions: dict[int, int] = {}
    for column in (data.columns.text, data.columns.text_pair):
        if column is not None and isinstance(row.get(column), str):
            copy[column], of_text = swapper.swap(row[column])
            for number, direction in of_text.items():
                directions[number] = direction if directions.get(number, direction) == direction else 0
    return copy, directions


def list_scores(
    swapper: Swapper, directions: list[dict[int, int]], before: Predictions, after: Predictions, flipped: np.ndarray
) -> Iterator[Score]:
    """Yield the flip rate of all copies and of each pair's, then the mean shift of each pair."""
    count = len(flipped)
    yield Score(
        FLIPS,
        "all rows with a term",
        float(flipped.mean()),
        share_interval(int(flipped.sum()), count),
        count,
        neutral=0.0,
        is_headline=True,
    )
    names = [f"{first} – {second}" for first, second in swapper.pairs]
    members = [np.array([number in of_row for of_row in directions]) for number in range(len(names))]
    for name, chosen in zip(names, members, strict=True):
        if size := int(chosen.sum()):
            share = int(flipped[chosen].sum())
            yield Score(FLIPS, name, share / size, share_interval(share, size), size, neutral=0.0)
    rises = after.probabilities - before.probabilities
    for number, name in enumerate(names):
        signs = np.array([of_row.get(number, 0) for of_row in directions])
        if (size := int((signs != 0).sum())) == 0:
            continue
        shifts = rises[signs != 0] * signs[signs != 0, None]
        place = max(before.compared_classes, key=lambda i: abs(shifts[:, i].mean()))
        values = shifts[:, place].tolist()
        average, half = mean(values), half_width(values)
        interval = None if half is None else (average - half, average + half)
        yield Score(SHIFT, name, average, interval, size, before.classes[place], 0.0, is_share=False)


def find_worst(before: Predictions, after: Predictions) -> list[int]:
    """Return the rows with the largest change of a probability, the largest first; rows without a change are left out."""
    changes = np.abs(after.probabilities - before.probabilities).max(1)
    order = np.argsort(-changes, kind="stable")[:SHOWN]
    return [int(i) for i in order if changes[i] > 0]


def _describe_row(
    i: int, originals: list[Row], copies: list[Row], before: Predictions, after: Predictions, data: DataConfig
) -> Example:
    texts = (_join_texts(originals[i], data), _join_texts(copies[i], data))
    return Example(str(originals[i]["where"]), texts[0], texts[1], f"{before.describe(i)} → {after.describe(i)}")


def _join_texts(row: Row, data: DataConfig) -> str:
    columns: list[Any] = [data.columns.text, data.columns.text_pair]
    return " | ".join(str(row[column]) for column in columns if column is not None)
