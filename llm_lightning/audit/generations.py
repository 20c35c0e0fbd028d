"""Measure what a causal language model writes about groups of people, by the scores of a classifier (Sheng et al. 2019)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from llm_lightning.audit.classifier import Predictions, to_predictions
from llm_lightning.audit.gaps import draw_weights
from llm_lightning.audit.results import Measure, Score
from llm_lightning.audit.terms import fill_term, list_groups, load_terms
from llm_lightning.config.schema import Config
from llm_lightning.errors import UserError
from llm_lightning.inference.generate import Generator
from llm_lightning.inference.predict import Predictor
from llm_lightning.reporting.intervals import BOUNDS, Interval
from llm_lightning.reporting.table import Table

KEY = "audit.classifier"
NEW_TOKENS = 30
"""Largest number of tokens of a continuation."""
METHOD = (
    "Prompts say nothing good or bad of a group (Sheng et al. 2019). The classifier reads the continuation without the prompt, and has "
    "a bias of its own. Gap: the largest difference between two groups of the mean probability of a class; 0 means that the group does "
    "not matter. 95% intervals by the bootstrap over continuations; the compared groups were chosen by their difference, so that a "
    "small gap is no evidence."
)
EXAMPLES = 3
"""Continuations of each dimension that the report shows."""


@dataclass(frozen=True)
class Text:
    """A continuation of a prompt about a group."""

    dimension: str
    group: str
    prompt: str
    text: str


def measure(generator: Generator, classifier: Predictor, config: Config) -> Measure:
    """Return the mean score of each group's continuations, and the largest gap of each dimension."""
    texts = write_texts(generator, config.audit.generations, config.seed)
    scored, predictions = score_texts(classifier, texts)
    scores: list[Score] = []
    for dimension in list_groups():
        chosen = np.array([text.dimension == dimension for text in scored])
        groups = np.array([text.group for text in scored])[chosen]
        scores += _score_dimension(dimension, predictions, np.flatnonzero(chosen), groups)
    scores.sort(key=lambda score: score.table != GAP)  # stable
    written = (
        f"{len(texts):,} continuations of at most {NEW_TOKENS} tokens, {config.audit.generations} for each group, seed {config.seed}, "
        f"temperature {generator.settings.temperature:g}; {len(texts) - len(scored)} were empty and have no score."
    )
    return Measure(
        KEY,
        "Continuations",
        f"{written} {METHOD}",
        scores,
        {"classifier": config.audit.classifier, "texts": len(texts), "empty": len(texts) - len(scored), "seed": config.seed},
        [_tabulate_samples(scored)],
    )


def score_texts(classifier: Predictor, texts: list[Text]) -> tuple[list[Text], Predictions]:
    """Return the texts that the classifier can read, and its predictions. Raises UserError if there are none."""
    column = classifier.objective.dataset.encoding.data.columns.text
    written = [text for text in texts if text.text.strip()]
    answers = classifier([{"where": f"{KEY}, behind {text.prompt!r}", column: text.text} for text in written])
    pairs = [(text, answer) for text, answer in zip(written, answers, strict=True) if "error" not in answer]
    if not pairs:
        raise UserError(f"{KEY}: all {len(texts):,} continuations of the model are empty; there is nothing to score.")
    return [text for text, _ in pairs], to_predictions([answer for _, answer in pairs])


def _tabulate_samples(texts: list[Text]) -> Table:
    """Return the first continuations of each dimension."""
    dimensions = dict.fromkeys(text.dimension for text in texts)
    samples = [text for name in dimensions for text in [t for t in texts if t.dimension == name][:EXAMPLES]]
    return Table("Some continuations", ["", ""], [[text.prompt, " ".join(text.text.split())] for text in samples])


GAP, MEAN = "Gap", "Mean probability"


def write_texts(generator: Generator, number: int, seed: int) -> list[Text]:
    """Return `number` continuations for each group. Prompts and terms take turns, so that each is used equally often."""
    plain = replace(generator, settings=replace(generator.settings, max_new_tokens=NEW_TOKENS, raw=True))
    column = generator.data.columns.text
    prompts = []
    for dimension, groups in list_groups().items():
        for group, terms in groups.items():
            filled = [fill_term(prompt, term) for prompt in load_terms()["prompts"] for term in terms]
            prompts += [(dimension, group, filled[i % len(filled)]) for i in range(number)]
    torch.manual_seed(seed)
    answers = plain([{"where": prompt, column: prompt} for _, _, prompt in prompts])
    return [Text(*prompt, answer["text"]) for prompt, answer in zip(prompts, answers, strict=True)]


def _score_dimension(dimension: str, predictions: Predictions, rows: np.ndarray, groups: np.ndarray) -> Iterator[Score]:
    """Yield the largest gap of a dimension, and the mean of each group for the class with that gap.

    `rows` (texts,) are the dimension's texts among the predictions, `groups` (texts,) the group of each.
    """
    names = list(dict.fromkeys(groups.tolist()))
    if len(names) < 2:
        return
    probabilities, classes = predictions.probabilities[rows], predictions.classes
    means = np.stack([probabilities[groups == name].mean(0) for name in names])
    place = max(predictions.compared_classes, key=lambda i: np.ptp(means[:, i]))
    high, low = int(means[:, place].argmax()), int(means[:, place].argmin())
    values = [probabilities[groups == name, place] for name in names]
    draws = [draw_weights(len(values[i]), seed=i) @ values[i] for i in range(len(names))]
    gap = float(means[high, place] - means[low, place])
    detail = f"{classes[place]}: {names[high]} over {names[low]}"
    yield Score(GAP, dimension, gap, _bound(draws[high] - draws[low]), len(groups), detail, 0.0, is_share=False, is_headline=True)
    for number, name in enumerate(names):
        size, value = int((groups == name).sum()), float(means[number, place])
        yield Score(MEAN, f"{dimension}: {name}", value, _bound(draws[number]), size, classes[place], is_share=False)


def _bound(draws: np.ndarray) -> Interval:
    low, high = np.quantile(draws, BOUNDS).tolist()
    return low, high
