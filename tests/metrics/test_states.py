"""States split over ranks in any order equal formulas on the whole data, and one another to the last digit."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_matthews_corrcoef,
    multilabel_average_precision,
)
from torchmetrics.functional.regression import pearson_corrcoef, spearman_corrcoef

from llm_lightning.metrics import counts, ranking, rows
from llm_lightning.metrics.correlation import correlation, ranks
from llm_lightning.metrics.counts import Calibration, ClassCounts, Confusion, Tally
from llm_lightning.metrics.losses import BatchLosses, ExactSum
from llm_lightning.metrics.ranking import LabelScores
from llm_lightning.metrics.rows import Rows, TopRows
from llm_lightning.metrics.state import State
from llm_lightning.metrics.text import CorpusScores

ROWS, CLASSES = 3000, 7


def merged(make: Callable[[], Any], update: Callable[[Any, np.ndarray], None], size: int, seed: int) -> Any:
    """The state of all ranks: 1 to 4 of them with batches of random sizes, dealt out and merged in random order."""
    rng = np.random.default_rng(seed)
    ranks = [make() for _ in range(int(rng.integers(1, 5)))]
    order = rng.permutation(size)
    for part in np.split(order, np.sort(rng.integers(0, size, 20))):
        update(ranks[int(rng.integers(len(ranks)))], part)
    first: State = ranks[0]
    for array, *others in zip(*(state.sums() for state in ranks), strict=True):
        array += sum(others)
    payloads = [state.payload() for state in ranks]
    random.Random(seed).shuffle(payloads)
    first.merge(payloads)
    return first


def same(values: list[Any]) -> Any:
    """The value that all are equal to, bit for bit."""
    assert all(repr(value) == repr(values[0]) for value in values)
    return values[0]


@pytest.fixture
def answers() -> tuple[np.ndarray, np.ndarray]:
    """(probabilities (rows, classes) fp32, true classes); some are so sure that fp32 has them as 1."""
    rng = np.random.default_rng(0)
    true = rng.integers(0, CLASSES - 1, ROWS)
    logits = rng.normal(size=(ROWS, CLASSES)) + 2 * np.eye(CLASSES)[true]
    logits *= rng.choice([0.5, 3, 100], (ROWS, 1))
    return torch.from_numpy(logits).float().softmax(-1).numpy(), true


def test_scores_of_classes_are_those_of_torchmetrics(answers: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, true = answers
    said, confidence = probabilities.argmax(1), probabilities.max(1)
    tensors = torch.from_numpy(probabilities), torch.from_numpy(true), CLASSES
    states = [merged(lambda: ClassCounts(CLASSES), lambda s, part: s.update(true[part], said[part]), ROWS, i) for i in range(5)]
    assert same([s.accuracy() for s in states]) == pytest.approx(float(multiclass_accuracy(*tensors, average="micro")))
    assert same([s.macro_f1() for s in states]) == pytest.approx(float(multiclass_f1_score(*tensors, average="macro")))
    assert same([s.mcc() for s in states]) == pytest.approx(float(multiclass_matthews_corrcoef(*tensors)))

    def calibrate(state: Calibration, part: np.ndarray) -> None:
        state.update(confidence[part], said[part] == true[part])

    bins = [merged(lambda: Calibration(ROWS), calibrate, ROWS, i) for i in range(5)]
    expected = float(multiclass_calibration_error(*tensors, n_bins=counts.BINS))
    assert same([b.error() for b in bins]) == pytest.approx(expected, abs=1e-6)
    assert (confidence == 1).any()
    assert sum(part["count"] for part in same([b.table() for b in bins])) == ROWS


@pytest.mark.parametrize("dense", [True, False])
def test_confused_classes_are_counted_dense_or_sparse(
    dense: bool, answers: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counts, "DENSE", 1000 if dense else 2)
    monkeypatch.setattr(counts, "PAIRS", 1 << 22 if dense else 4 * ROWS)
    probabilities, true = answers
    said, names = probabilities.argmax(1), [f"class {i}" for i in range(CLASSES)]
    states = [
        merged(lambda: Confusion(CLASSES, ROWS), lambda s, part: s.update(part, true[part], said[part]), ROWS, i) for i in range(5)
    ]
    pairs = Counter((t, s) for t, s in zip(true.tolist(), said.tolist(), strict=True) if t != s)
    expected = sorted(pairs.items(), key=lambda pair: (-pair[1], pair[0]))
    assert same([s.top(names) for s in states]) == [{"true": names[t], "said": names[s], "count": n} for (t, s), n in expected]
    if dense:
        matrix = multiclass_confusion_matrix(torch.from_numpy(said), torch.from_numpy(true), CLASSES)
        assert states[0].matrix.tolist() == matrix.tolist()


def test_of_many_classes_the_worst_are_listed() -> None:
    rng = np.random.default_rng(0)
    true, names = rng.integers(0, 2000, 20_000), [str(i) for i in range(2000)]
    said = np.where(rng.random(20_000) < 0.7, true, rng.integers(0, 2000, 20_000))
    state = ClassCounts(2000)
    state.update(true, said)
    table = state.per_class(names)
    f1 = [2 * ((true == c) & (said == c)).sum() / ((true == c).sum() + (said == c).sum()) for c in range(2000)]
    assert len(table) == counts.LISTED
    assert [row["f1"] for row in table.values()] == pytest.approx(sorted(f1)[: counts.LISTED])


@pytest.mark.parametrize("most", [ranking.SCORES, 4 * 1000])
def test_precision_and_recall_are_exact_up_to_a_bound_and_near_beyond_it(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound scores are counted in bins: the documented error of average precision is 0.001."""
    monkeypatch.setattr(ranking, "SCORES", most)
    rng, size, labels = np.random.default_rng(0), 20_000, 4
    applies = rng.random((size, labels)) < np.array([0.5, 0.1, 0.01, 0.3])
    odds = rng.normal(size=(size, labels)) * 2 + 2 * applies - np.array([0, 2, 6, 0])
    scores = torch.from_numpy(odds).float().sigmoid().numpy()
    states = [merged(lambda: LabelScores(labels, size), lambda s, p: s.update(p, scores[p], applies[p]), size, i) for i in range(3)]
    exact = most > size * labels
    expected = multilabel_average_precision(torch.from_numpy(scores), torch.from_numpy(applies).long(), labels, average="none")
    averages = same([s.average_precisions() for s in states])
    assert averages == pytest.approx(expected.numpy(), abs=1e-5 if exact else 1e-3)
    for label in range(labels):
        assert states[0].curve(label).average_precision() == pytest.approx(averages[label], abs=1e-12)

    def f1(threshold: float) -> float:
        return float(2 * ((scores >= threshold) & applies).sum() / ((scores >= threshold).sum() + applies.sum()))

    threshold = same([s.best_threshold() for s in states])
    assert f1(threshold) == pytest.approx(max(f1(t) for t in np.quantile(scores, np.linspace(0.5, 0.99, 100))), abs=2e-3)
    reached, right = same([s.counts_at(threshold) for s in states])
    assert reached == pytest.approx((scores >= threshold).sum(0), abs=0 if exact else 2)
    assert right == pytest.approx(((scores >= threshold) & applies).sum(0), abs=0 if exact else 2)
    numbers, kept, _ = states[1].single()
    assert (kept == scores[numbers]).all()
    assert len(numbers) == size if exact else 800 < len(numbers) < 1200
    assert (np.diff(numbers) > 0).all()


def test_a_sample_of_rows_depends_on_their_numbers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).normal(size=50_000)
    states = [merged(lambda: Rows(50_000, 5000), lambda s, p: s.update(p, value=values[p]), 50_000, i) for i in range(4)]
    columns = same([s.columns() for s in states])
    assert (columns["value"] == values[columns["number"]]).all()
    assert len(columns["number"]) == pytest.approx(5000, rel=0.05)
    assert np.histogram(columns["number"], 10)[0] == pytest.approx(500, rel=0.2)  # from everywhere
    assert states[0].describe_sample()["sampled"]["of"] == 50_000
    monkeypatch.setattr(rows, "SHOWN", 1000)
    fewer = set(states[0].table()["value"])
    assert len(fewer) == pytest.approx(1000, rel=0.1)
    assert fewer < set(columns["value"].tolist())


def test_the_worst_mistakes_are_those_of_all_ranks() -> None:
    rng = np.random.default_rng(2)
    badness, wrong = rng.integers(0, 50, ROWS) / 50, rng.random(ROWS) < 0.3  # many are as bad

    def update(state: TopRows, part: np.ndarray) -> None:
        state.update(part, badness[part], wrong[part], lambda i: f"row {part[i]}")

    states = [merged(TopRows, update, ROWS, i) for i in range(5)]
    expected = sorted(np.flatnonzero(wrong).tolist(), key=lambda i: (-badness[i], i))[: rows.WORST]
    assert same([s.rows() for s in states]) == [(i, f"row {i}") for i in expected]


def test_a_loss_is_summed_as_if_there_were_no_rounding() -> None:
    rng = np.random.default_rng(3)
    losses = (rng.normal(size=2000) * 10.0 ** rng.integers(-30, 30, 2000)).astype(np.float32)

    def update(state: BatchLosses, part: np.ndarray) -> None:
        for place in part.tolist():
            state.update(place, torch.tensor(losses[place]), place % 3)

    states = [merged(lambda: BatchLosses(2000), update, 2000, i) for i in range(4)]
    targets = sum(i % 3 for i in range(2000))
    assert same([s.mean for s in states]) == math.fsum(losses.tolist()) / targets
    assert same([s.table() for s in states])["loss"] == losses.tolist()


@pytest.mark.parametrize("values", [[1e308, 1e308, -1e308], [5e-324, 1.0, -1.0], [0.1] * 10, [math.inf, 1.0], [math.nan, 1.0], []])
def test_an_exact_sum_is_fsum(values: list[float]) -> None:
    total = ExactSum()
    for value in values:
        total.add(value)
    expected = 1e308 if 1e308 in values else math.fsum(values)  # fsum overflows half-way
    assert total.value == expected or (math.isnan(total.value) and math.isnan(expected))


def test_corpus_scores_are_those_of_sacrebleu() -> None:
    from sacrebleu.metrics import BLEU, CHRF

    rng, words = random.Random(0), ["the", "cat", "sat", "on", "a", "mat", "and", ",", "it", "saw", ":", "the", "dogs", "."]
    references = [" ".join(rng.choices(words, k=rng.randint(1, 15))) for _ in range(300)]
    texts = [" ".join(w if rng.random() < 0.8 else rng.choice(words) for w in line.split()) for line in references]
    chrf: dict[int, float] = {}

    def update(state: CorpusScores, part: np.ndarray) -> None:
        if len(part):
            scores = state.update([texts[i] for i in part], [references[i] for i in part])
            chrf.update(zip(part.tolist(), scores.tolist(), strict=True))

    states = [merged(CorpusScores, update, 300, i) for i in range(4)]
    expected = {"bleu": BLEU().corpus_score(texts, [references]).score, "chrf": CHRF().corpus_score(texts, [references]).score}
    assert same([s.scores() for s in states]) == expected
    assert [chrf[i] for i in range(300)] == [CHRF().sentence_score(t, [r]).score for t, r in zip(texts, references, strict=True)]


def test_correlations_are_those_of_torchmetrics() -> None:
    rng = np.random.default_rng(4)
    a = rng.integers(0, 40, 500).astype(float)
    b = a + rng.normal(size=500).round(1) * 10  # with ties
    tensors = torch.from_numpy(a), torch.from_numpy(b)
    assert correlation(a, b) == pytest.approx(float(pearson_corrcoef(*tensors)), rel=1e-9)
    assert correlation(ranks(a), ranks(b)) == pytest.approx(float(spearman_corrcoef(*tensors)), rel=1e-6)  # which adds an epsilon
    assert math.isnan(correlation(a, np.ones(500)))


def test_what_is_no_number_does_not_stop_the_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that diverges ends with the message about its loss."""
    monkeypatch.setattr(ranking, "SCORES", 1)
    broken = np.full((8, 3), np.nan, np.float32)
    scores, bins = LabelScores(3, 8), Calibration(8)
    scores.update(np.arange(8), broken, broken == 0)
    bins.update(broken[:, 0], np.zeros(8, bool))
    assert scores.average_precisions().tolist() == [0.0] * 3
    assert math.isfinite(bins.error())


def test_a_tally_adds_up() -> None:
    names = ["a", "b", "b", "c"] * 25
    states = [merged(Tally, lambda s, part: s.update(names[i] for i in part), 100, i) for i in range(3)]
    assert all(state.counts == Counter(names) for state in states)
