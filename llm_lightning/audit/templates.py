"""Measure how much a classifier's predictions of the same sentence depend on the group of people that it speaks of."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from llm_lightning.audit.classifier import Predictions, find_class, predict_rows
from llm_lightning.audit.gaps import Gap, bootstrap_mean, find_largest_gap
from llm_lightning.audit.results import Measure, Score
from llm_lightning.audit.terms import KEY, Probe, Template, build_occupation_probes, build_probes, list_templates
from llm_lightning.errors import UserError, join_names
from llm_lightning.inference.predict import Predictor
from llm_lightning.reporting.table import Table

SCORES, FLIPS, ODDS = "Score gap", "Flip rate", "Equalised-odds gap"
COLUMNS = 8
"""Classes whose means are listed, at most."""
METHOD = (
    "Sentences that differ by the term for a person alone (identity terms: Dixon et al. 2018; occupations: Zhao et al. 2018). Score "
    "gap: the largest difference between two groups of the mean probability of a class. Flip rate: share of pairs of a sentence with "
    "terms of two groups whose predicted class differs. Equalised-odds gap: the largest difference between two groups of a class's "
    "true positive or false positive rate (Hardt et al. 2016), where the right class of the sentences is known. 0 means that the group "
    "does not matter. 95% intervals by the bootstrap over sentences; the compared groups were chosen by their difference, so that a "
    "small gap is no evidence."
)


def measure(predictor: Predictor, name: str | None) -> Measure:
    """Return the gaps of each dimension: by our own sentences and by occupations, or by the user's sentences in file `name`."""
    columns = predictor.objective.dataset.encoding.data.columns
    templates = list_templates(name)
    probes = [*build_probes(templates), *([] if name else build_occupation_probes())]
    texts = list(dict.fromkeys(text for probe in probes for row in probe.texts for text in row))
    rows = [{"where": f"{KEY}, sentence {text!r}", columns.text: text} for text in texts]
    predictions = predict_rows(predictor, rows)
    labels = match_labels(predictions.classes, templates, name)
    places = {text: place for place, text in enumerate(texts)}
    scores: list[Score] = []
    means: list[list[str]] = []
    for probe in probes:
        index = np.array([[places[text] for text in row] for row in probe.texts])
        scores += measure_probe(probe, predictions, index, labels)
        means += tabulate_means(probe, predictions.probabilities[index])
    scores.sort(key=lambda score: (SCORES, FLIPS, ODDS).index(score.table))  # stable: dimensions stay in their order
    facts = {"file": name, "templates": len(templates), "sentences": len(texts), "classes": list(predictions.classes)}
    table = Table("Mean probability of each class", ["group", *predictions.classes[:COLUMNS]], means)
    return Measure(KEY, "Sentences about groups", METHOD, scores, facts, [table])


def match_labels(classes: tuple[str, ...], templates: list[Template], name: str | None) -> dict[str, int]:
    """Return label -> class number of the labels that templates carry.

    Our own labels (positive, negative, neutral) are used if the classifier has the first two as classes, under these names. Raises
    UserError for a label of the user's that is no class.
    """
    numbers = {label: find_class(classes, label) for label in dict.fromkeys(t.label for t in templates if t.label)}
    if name is None:
        matched = {label: number for label, number in numbers.items() if number is not None}
        return matched if {"positive", "negative"} <= matched.keys() else {}
    for label, number in numbers.items():
        if number is None:
            raise UserError(f"{KEY}={name}: the label '{label}' is no class of the model; it has {join_names(classes)}.")
    return {label: number for label, number in numbers.items() if number is not None}


def measure_probe(probe: Probe, predictions: Predictions, index: np.ndarray, labels: dict[str, int]) -> Iterator[Score]:
    """Yield the scores of one dimension; `index` (T, K) are the rows of its texts among the predictions."""
    probabilities, decided = predictions.probabilities[index], predictions.decided[index]
    count = index.size
    gaps = [
        (find_largest_gap(average_groups(probe, probabilities[..., i])), predictions.classes[i])
        for i in predictions.compared_classes
    ]
    gap, name = max(gaps, key=lambda entry: entry[0].value)
    yield _to_score(SCORES, probe, gap, name, count, is_headline=True)
    flips = count_flips(probe, decided)
    yield Score(FLIPS, probe.name, float(flips.mean()), bootstrap_mean(flips), count, neutral=0.0)
    truth = np.array([labels.get(label, -1) if label is not None else -1 for label in probe.labels])
    if len(set(truth[truth >= 0].tolist())) > 1:
        used = truth >= 0
        part = Probe(probe.name, probe.groups, [], probe.group[used], [])
        gap, name = find_odds_gap(part, decided[used], truth[used], predictions.classes)
        yield _to_score(ODDS, probe, gap, name, int(used.sum()) * index.shape[1])


def tabulate_means(probe: Probe, probabilities: np.ndarray) -> list[list[str]]:
    """Return a row for each group: its name, and the mean probability of each class over its texts (T, K, classes)."""
    return [
        [f"{probe.name}: {name}", *(f"{value:.3f}" for value in probabilities[probe.group == number].mean(0)[:COLUMNS])]
        for number, name in enumerate(probe.groups)
    ]


def average_groups(probe: Probe, values: np.ndarray) -> np.ndarray:
    """Return (T, groups): the mean over a group's terms of values (T, K), less the value of the first term.

    So the mean of a value that does not depend on the term is exactly zero, and not its rounding.
    """
    values = values - values[:, :1]
    return np.stack([np.mean(values, axis=1, where=probe.group == number) for number in range(len(probe.groups))], axis=1)


def count_flips(probe: Probe, decided: np.ndarray) -> np.ndarray:
    """Return (T,) the share of pairs of terms of different groups whose decisions (T, K, classes) differ."""
    _, codes = np.unique(decided.reshape(-1, decided.shape[-1]), axis=0, return_inverse=True)
    codes = codes.reshape(decided.shape[:-1])
    differ = codes[:, :, None] != codes[:, None, :]
    compared = probe.group[:, :, None] != probe.group[:, None, :]
    flips: np.ndarray = (differ & compared).sum((1, 2)) / compared.sum((1, 2))
    return flips


def find_odds_gap(probe: Probe, decided: np.ndarray, truth: np.ndarray, classes: tuple[str, ...]) -> tuple[Gap, str]:
    """Return the largest gap of a class's true or false positive rate, and its name; `truth` (T,) is the class of each template."""
    gaps = []
    for number in sorted(set(truth.tolist())):
        for is_true, name in ((True, "true positives"), (False, "false positives")):
            chosen = (truth == number) == is_true
            part = Probe(probe.name, probe.groups, [], probe.group[chosen], [])
            rates = average_groups(part, decided[chosen][..., number].astype(float))
            gaps.append((find_largest_gap(rates), f"{name} of {classes[number]}"))
    return max(gaps, key=lambda entry: entry[0].value)


def _to_score(table: str, probe: Probe, gap: Gap, name: str, count: int, is_headline: bool = False) -> Score:
    """Return the score of a gap of the class or the rate `name`."""
    groups = f"{probe.groups[gap.high]} over {probe.groups[gap.low]}" if gap.value else "no difference"
    return Score(
        table, probe.name, gap.value, gap.interval, count, f"{name}: {groups}", 0.0, is_share=False, is_headline=is_headline
    )
