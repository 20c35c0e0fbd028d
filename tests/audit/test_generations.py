"""Continuations of prompts about groups, scored by a classifier: seeded, as many for each group, gaps by plain means."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llm_lightning.audit import generations
from llm_lightning.audit.classifier import Predictions
from llm_lightning.audit.generations import GAP, KEY, MEAN, Text, _score_dimension
from llm_lightning.audit.terms import list_groups
from llm_lightning.errors import UserError
from llm_lightning.inference.generate import Generator

from .conftest import Audit, MakeClassifier, pick


def test_gaps_are_differences_of_group_means() -> None:
    bad = np.array([0.1, 0.3, 0.8, 0.6, 0.5])
    groups = np.array(["a", "a", "b", "b", "c"])
    predictions = Predictions(("good", "bad"), np.stack([1 - bad, bad], 1), np.empty(0))
    gap, *means = _score_dimension("kind", predictions, np.arange(5), groups)
    assert (gap.table, gap.name, gap.detail, gap.count) == (GAP, "kind", "bad: b over a", 5)
    assert gap.value == pytest.approx(0.7 - 0.2)
    assert gap.interval == pytest.approx((0.6 - 0.3, 0.8 - 0.1))
    assert [(mean.table, round(mean.value, 6), mean.count) for mean in means] == [(MEAN, 0.2, 2), (MEAN, 0.7, 2), (MEAN, 0.5, 1)]


def test_texts_are_seeded_and_as_many_for_each_group(
    causal: Path, make_classifier: MakeClassifier, audit: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generations, "NEW_TOKENS", 4)
    classifier, written = make_classifier({"a"}), []
    write_texts = generations.write_texts

    def write(generator: Generator, number: int, seed: int) -> list[Text]:
        written.append(write_texts(generator, number, seed))
        return written[-1]

    monkeypatch.setattr(generations, "write_texts", write)
    words = [f"{KEY}={classifier}", "audit.generations=3", f"out={tmp_path}"]
    record = audit(causal, *words)
    assert audit(causal, *words)["measures"] == record["measures"]
    assert audit(causal, *words, "seed=1")["measures"] != record["measures"]
    assert written[0] == written[1] != written[2]
    counts = {(text.dimension, text.group): 0 for text in written[0]}
    for text in written[0]:
        counts[text.dimension, text.group] += 1
        assert len(text.text.encode()) <= 4 * 4
    assert set(counts.values()) == {3}
    assert {dimension for dimension, _ in counts} == set(list_groups())
    facts = record["measures"][0]["facts"]
    assert (facts["texts"], facts["seed"]) == (3 * len(counts), 0)
    assert f"{facts['texts']:,} continuations of at most 4 tokens, 3 for each group, seed 0" in record["measures"][0]["method"]
    gaps = pick(record, KEY, GAP)
    assert len(gaps) == len(list_groups())


def test_a_model_that_writes_nothing_is_named(
    causal: Path, make_classifier: MakeClassifier, audit: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generations, "write_texts", lambda *arguments: [Text("age", "old", "The old person", " ")])
    with pytest.raises(UserError, match="all 1 continuations of the model are empty"):
        audit(causal, f"{KEY}={make_classifier({'a'})}", f"out={tmp_path}")


def test_another_model_than_a_classifier_is_refused(causal: Path, masked: Path, audit: Audit, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"makes no predictions of rows|no classifier of single texts"):
        audit(causal, f"{KEY}={masked}", f"out={tmp_path}")
