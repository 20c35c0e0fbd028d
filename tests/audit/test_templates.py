"""Gaps between groups by hand, of a classifier that was built to dislike one group, and of one that ignores terms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from llm_lightning.audit.classifier import Predictions
from llm_lightning.audit.gaps import find_largest_gap
from llm_lightning.audit.templates import FLIPS, KEY, ODDS, SCORES, average_groups, count_flips, find_odds_gap, measure_probe
from llm_lightning.audit.terms import Probe, build_occupation_probes, build_probes, list_groups, list_templates
from llm_lightning.errors import UserError

from .conftest import EXAMPLES, Audit, MakeClassifier, pick

WOMEN = {"woman", "mother", "sister", "daughter", "wife"}


def test_a_classifier_that_ignores_terms_has_no_gap_at_all() -> None:
    """Exactly zero: the mean of three equal numbers is not always the number."""
    rng = np.random.default_rng(0)
    for probe in [*build_probes(list_templates(None)), *build_occupation_probes()]:
        index = np.arange(probe.group.size).reshape(probe.group.shape)
        by_template = rng.dirichlet(np.ones(3), len(probe.texts))
        probabilities = np.repeat(by_template, probe.group.shape[1], axis=0)
        decided = probabilities == probabilities.max(1, keepdims=True)
        predictions = Predictions(("negative", "neutral", "positive"), probabilities, decided)
        scores = list(measure_probe(probe, predictions, index, {"negative": 0, "neutral": 1, "positive": 2}))
        assert {score.table for score in scores} == {SCORES, FLIPS, ODDS}
        for score in scores:
            assert score.value == 0
            assert score.interval == (0, 0)


def small_probe() -> Probe:
    return Probe("kind", ("a", "b"), [["", "", ""]] * 2, np.array([[0, 0, 1], [0, 0, 1]]), [None, None])


def test_gaps_are_differences_of_means_over_terms_and_sentences() -> None:
    values = np.array([[0.2, 0.4, 0.9], [0.1, 0.3, 0.4]])  # two sentences; two terms of group a, one of group b
    gap = find_largest_gap(average_groups(small_probe(), values))
    assert gap.value == pytest.approx((0.9 + 0.4) / 2 - (0.3 + 0.2) / 2)
    assert (gap.high, gap.low) == (1, 0)
    assert gap.interval is not None
    assert gap.interval == pytest.approx((0.4 - 0.2, 0.9 - 0.3))  # of two sentences a draw may hold one alone


def test_the_interval_of_a_gap_holds_that_of_students_t() -> None:
    """The difference within a sentence, and not that of two independent means, which is wider."""
    rng = np.random.default_rng(1)
    sentence, difference = rng.normal(0, 5, (200, 1)), rng.normal(0.3, 1, (200, 1))
    gap = find_largest_gap(np.hstack([sentence, sentence + difference]))
    assert gap.interval is not None
    half = 1.972 * difference.std(ddof=1) / np.sqrt(200)
    assert gap.interval == pytest.approx((difference.mean() - half, difference.mean() + half), abs=0.02)


def test_flips_are_counted_between_groups_only() -> None:
    decided = np.array([[[1, 0], [0, 1], [0, 1]], [[1, 0], [1, 0], [1, 0]]], dtype=bool)
    assert count_flips(small_probe(), decided) == pytest.approx([1 / 2, 0])  # of the pairs a1-b and a2-b


def test_equalised_odds_are_the_rates_of_each_class() -> None:
    """Of four sentences, two of each class, all are right for group a; group b has one false negative and three false positives less."""
    probe = Probe("kind", ("a", "b"), [], np.array([[0, 1]] * 4), [])
    truth = np.array([1, 1, 0, 0])
    predicted = np.array([[1, 1], [1, 0], [0, 1], [0, 1]])  # (sentences, groups)
    decided = predicted[..., None] == np.arange(2)
    gap, name = find_odds_gap(probe, decided, truth, ("no", "yes"))
    assert gap.value == 1  # group b never says no where it is right
    assert name == "true positives of no"
    rates = {(c, g): np.mean(predicted[truth == c, g] == c) for c in (0, 1) for g in (0, 1)}
    assert abs(rates[0, 0] - rates[0, 1]) == 1
    assert abs(rates[1, 0] - rates[1, 1]) == 0.5


def test_a_classifier_that_dislikes_a_group_is_found(make_classifier: MakeClassifier, audit: Audit, tmp_path: Path) -> None:
    folder = make_classifier(WOMEN)
    record = audit(folder, f"out={tmp_path}")
    gaps = pick(record, KEY, SCORES)
    assert gaps["gender"]["detail"] == "positive: men over women"
    groups = list_groups()["gender"]
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    means = {}
    for group in ("women", "men"):  # by plain transformers
        texts = [template.text.replace("{term}", term) for template in list_templates(None) for term in groups[group]]
        with torch.inference_mode():
            scores = model(**tokenizer(texts, return_tensors="pt", padding=True)).logits.softmax(-1)
        means[group] = float(scores[:, 1].mean())
    assert gaps["gender"]["value"] == pytest.approx(means["men"] - means["women"], abs=1e-6)
    assert gaps["gender"]["value"] > 0.5
    low, high = gaps["gender"]["interval"]
    assert low <= gaps["gender"]["value"] <= high
    other_terms = sum(len(terms) for group, terms in groups.items() if group != "women")
    flips = pick(record, KEY, FLIPS)["gender"]["value"]
    pairs = len(WOMEN) * (other_terms - 1) + (other_terms - 1 - 1)  # the two transgender terms are of one group
    assert flips == pytest.approx(pairs / count_pairs([len(terms) for terms in groups.values()]))
    odds = pick(record, KEY, ODDS)
    assert odds["gender"]["value"] == 1
    assert (odds["religion"]["value"], odds["religion"]["detail"]) == (0, "true positives of negative: no difference")


def count_pairs(sizes: list[int]) -> int:
    return (sum(sizes) ** 2 - sum(size**2 for size in sizes)) // 2


def test_a_classifier_that_dislikes_a_pronoun_is_found_by_occupations(
    make_classifier: MakeClassifier, audit: Audit, tmp_path: Path
) -> None:
    record = audit(make_classifier({"she"}), f"out={tmp_path}")
    flips = pick(record, KEY, FLIPS)
    assert flips["pronoun"]["value"] == 1
    assert flips["gender"]["value"] == 0
    gaps = pick(record, KEY, SCORES)
    assert gaps["occupation"]["value"] < 0.01  # as many occupations of either stereotype


def test_a_classifier_without_these_classes_has_no_odds(make_classifier: MakeClassifier, audit: Audit, tmp_path: Path) -> None:
    record = audit(make_classifier(WOMEN, ("0", "1")), f"out={tmp_path}")
    assert not pick(record, KEY, ODDS)
    assert pick(record, KEY, SCORES)


def test_multi_label_decisions_are_the_labels_above_the_threshold(
    make_classifier: MakeClassifier, audit: Audit, tmp_path: Path
) -> None:
    folder = make_classifier(WOMEN, ("rude", "kind"), problem_type="multi_label_classification")
    record = audit(folder, f"out={tmp_path}")
    assert pick(record, KEY, FLIPS)["gender"]["value"] > 0
    assert pick(record, KEY, FLIPS)["religion"]["value"] == 0


def test_sentences_of_the_user_take_the_place_of_ours(make_classifier: MakeClassifier, audit: Audit, tmp_path: Path) -> None:
    record = audit(make_classifier(WOMEN, ("bad", "good")), f"{KEY}={EXAMPLES}/templates.csv", f"out={tmp_path}")
    measure = record["measures"][0]
    assert measure["facts"]["templates"] == 5
    assert pick(record, KEY, FLIPS)["gender"]["count"] == 5 * sum(map(len, list_groups()["gender"].values()))
    odds = pick(record, KEY, ODDS)["gender"]
    assert odds["count"] == 4 * sum(map(len, list_groups()["gender"].values()))  # one has no right class


BAD = [
    ("text,label\nno place,good\n", "line 2: column 'text' has no {term}"),
    ("text,label\nThe {term} left.,fine\n", "the label 'fine' is no class of the model; it has bad, good"),
    ("sentence,label\nThe {term} left.,good\n", "there is no column 'text'; a table with the columns text, label"),
]


@pytest.mark.parametrize(("content", "message"), BAD)
def test_wrong_templates_are_refused(
    content: str, message: str, make_classifier: MakeClassifier, audit: Audit, tmp_path: Path
) -> None:
    (tmp_path / "mine.csv").write_text(content)
    with pytest.raises(UserError) as error:
        audit(make_classifier(WOMEN, ("bad", "good")), f"{KEY}={tmp_path}/mine.csv", f"out={tmp_path}")
    assert message in str(error.value)


def test_our_lists_are_whole() -> None:
    """No term is in two groups of a dimension, and a sentence has the place of its term once."""
    for dimension, groups in list_groups().items():
        terms = [term for members in groups.values() for term in members]
        assert len(set(terms)) == len(terms), dimension
        assert len(groups) > 1
    templates = list_templates(None)
    assert all(template.text.count("{term}") == 1 for template in templates)
    by_label = [sum(template.label == label for template in templates) for label in ("positive", "negative", "neutral")]
    assert len(set(by_label)) == 1
    for probe in build_occupation_probes():
        assert not any("{" in text for row in probe.texts for text in row)
        assert (np.bincount(probe.group.ravel()) == probe.group.size / 2).all()
