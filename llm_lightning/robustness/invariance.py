"""Compare a model's predictions for texts with those for the same texts, changed: how many flip, and which.

These are the invariance tests and the directional expectations of CheckList (Ribeiro et al. 2020). The unchanged texts are predicted in
one pass over the model, the changed ones in one pass for each kind of change, by the batches and the precision of an evaluation. A changed
text of which the tokenizer makes the same tokens has the same prediction, and is not predicted again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llm_lightning.data.encode import TokenizedSplit, in_memory
from llm_lightning.data.encodings import Encoding
from llm_lightning.data.examples import Example
from llm_lightning.data.prepare import SHOWN
from llm_lightning.objectives.base import Objective
from llm_lightning.reporting.intervals import ratio_interval, share_interval
from llm_lightning.robustness.perturbations import DIRECTIONAL, perturb

Answer = dict[str, Any]
"""A row's prediction, as `Objective.answer_row` returns it."""
PredictSequences = Callable[[TokenizedSplit], list[Any]]
"""A function that returns the prediction of each sequence; a collective."""


@dataclass(frozen=True)
class Comparison:
    """A row with its text before and after a change, and both predictions."""

    change: str
    operation: str
    row: int
    before: str
    after: str
    predicted: str
    predicted_after: str
    has_flipped: bool
    distance: float
    """How far the scores moved."""


def choose_rows(numbers: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Return at most `most` of the rows, drawn by the seed, in their order."""
    if len(numbers) <= most:
        return numbers
    return np.sort(np.random.default_rng(seed).choice(numbers, most, replace=False))


def try_changes(
    objective: Objective, split: str, numbers: np.ndarray, changes: list[str], seed: int, predict: PredictSequences
) -> tuple[list[dict[str, Any]], list[Comparison]]:
    """Return (an entry for each kind of change, the rows that failed, the worst first) for the rows `numbers` of a split. A collective.

    A row fails if its prediction flips, or stays under a directional change. Of a model that predicts numbers, all rows whose number
    moved are returned, the furthest first.
    """
    dataset = objective.dataset
    is_number = dataset.label_names is None
    originals = {int(number): dataset.example(split, int(number)) for number in numbers}
    tokens = _tokenize(objective, list(originals.values()))
    answers = _answer(objective, list(originals.values()), predict)
    entries, flips = [], []
    for change in changes:
        perturbed = {row: perturb(change, originals[row].text, seed, row) for row in answers}
        changed = [replace(originals[row], text=text) for row, (text, _) in perturbed.items() if text != originals[row].text]
        changed_tokens = _tokenize(objective, changed)
        is_same = {row: ids == tokens[row] for row, ids in changed_tokens.items()}
        predicted = _answer(objective, [e for e in changed if not is_same.get(e.row, True)], predict)
        changed_answers = {row: answers[row] if same else predicted[row] for row, same in is_same.items()}
        comparisons = [
            Comparison(
                change,
                perturbed[row][1],
                row,
                _shorten(originals[row].text),
                _shorten(perturbed[row][0]),
                describe_answer(answers[row]),
                describe_answer(answer),
                *_compare(answers[row], answer),
            )
            for row, answer in changed_answers.items()
        ]
        entries.append(_summarise(change, len(originals), comparisons, sum(is_same.values()), is_number))
        listed = [c for c in comparisons if (c.distance > 0 if is_number else c.has_flipped != (change in DIRECTIONAL))]
        stays = change in DIRECTIONAL and not is_number
        flips += sorted(listed, key=lambda c: (c.distance if stays else -c.distance, c.row))
    return entries, flips


def _tokenize(objective: Objective, examples: list[Example]) -> dict[int, list[list[int]]]:
    """Return the tokens of each example's sequences, by row; an example without a token is left out."""
    tokens: dict[int, list[list[int]]] = {}
    if examples:
        sequences = objective.dataset.encoding(examples, None)
        for example, ids in zip(sequences.examples, sequences.tokens, strict=True):
            tokens.setdefault(example.row, []).append(list(ids))
    return tokens


def _answer(objective: Objective, examples: list[Example], predict: PredictSequences) -> dict[int, Answer]:
    """Return the prediction of each example, by row; an example without a token has none."""
    if not examples:
        return {}
    encoding: Encoding = objective.dataset.encoding
    sequences = encoding(examples, None)
    predictions = predict(in_memory(sequences, encoding.next_token)) if sequences.tokens else []
    parts: dict[int, list[Any]] = {}
    by_row = {example.row: example for example in sequences.examples}
    for example, prediction in zip(sequences.examples, predictions, strict=True):
        parts.setdefault(example.row, []).append(prediction)
    return {row: objective.answer_row(by_row[row], values) for row, values in parts.items()}


def _compare(before: Answer, after: Answer) -> tuple[bool, float]:
    """Return (whether the predicted label, or the set of labels, is another; how far the scores moved)."""
    if "label" in before:
        return before["label"] != after["label"], abs(before["score"] - after["scores"][before["label"]])
    if "labels" in before:
        moved = max((abs(score - after["scores"][name]) for name, score in before["scores"].items()), default=0.0)
        return set(before["labels"]) != set(after["labels"]), moved
    return False, abs(before["score"] - after["score"])


def describe_answer(answer: Answer) -> str:
    """Return a prediction as a short text."""
    if "label" in answer:
        return f"{answer['label']} {answer['score']:.0%}"
    if "labels" in answer:
        return ", ".join(f"{name} {answer['scores'][name]:.0%}" for name in answer["labels"]) or "none"
    return f"{answer['score']:.4g}"


def _summarise(change: str, tried: int, comparisons: list[Comparison], same: int, is_number: bool) -> dict[str, Any]:
    """Return the numbers of a kind of change: rows tried and changed, flips, their rate and its interval, and those of each operation.

    `same`: changed rows of which the tokenizer makes the same tokens, so that nothing can flip. Numbers have no flips, only how far they
    move.
    """
    entry: dict[str, Any] = {"change": change, "expected": "flip" if change in DIRECTIONAL else "stay", "tried": tried}
    entry |= {"changed": len(comparisons), "same_tokens": same}
    flips = [c.has_flipped for c in comparisons]
    entry |= dict.fromkeys(("flips", "rate", "low", "high", "mean_move", "move_low", "move_high"))
    if comparisons and not is_number:
        low, high = share_interval(sum(flips), len(flips))
        entry |= {"flips": sum(flips), "rate": sum(flips) / len(flips), "low": low, "high": high}
    if comparisons:
        moves = np.array([c.distance for c in comparisons])
        low, high = ratio_interval(moves, np.ones(len(moves)))
        entry |= {"mean_move": float(moves.mean()), "move_low": low, "move_high": high}
    by_operation: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        by_operation.setdefault(comparison.operation, []).append(comparison)
    entry["operations"] = {
        name: {
            "changed": len(members),
            "flips": None if is_number else sum(c.has_flipped for c in members),
            "mean_move": sum(c.distance for c in members) / len(members),
        }
        for name, members in sorted(by_operation.items())
    }
    return entry


def _shorten(text: str) -> str:
    """Return the beginning of a text, as reports show it."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
