"""The temperature is the maximum of the likelihood, found by another program too; it calibrates, and changes no prediction."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_expit, log_softmax, softmax

from llm_lightning.metrics.counts import Calibration
from llm_lightning.metrics.temperature import HIGHEST, LEAST, LOWEST, fit_temperature
from llm_lightning.objectives.multi_label import move_threshold


def draw(rows: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax is the distribution that the true classes are drawn from: calibrated by construction."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (rows, classes))
    chances = softmax(logits, 1).cumsum(1)
    return logits, (rng.random((rows, 1)) > chances).sum(1)


def negative_log_likelihood(logits: np.ndarray, targets: np.ndarray, temperature: float) -> float:
    if targets.ndim == 1:
        return float(-log_softmax(logits / temperature, 1)[np.arange(len(targets)), targets].mean())
    return float(-log_expit(np.where(targets == 1, logits, -logits) / temperature).mean())


@pytest.mark.parametrize("scale", [0.2, 1.0, 3.0, 12.0])
@pytest.mark.parametrize("classes", [2, 7])
def test_it_is_the_minimum_that_scipy_finds(scale: float, classes: int) -> None:
    logits, labels = draw(600, classes, seed=classes)
    several = (np.random.default_rng(1).random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(float)
    for targets in (labels, several):
        scaled = (scale * logits).astype(np.float32)
        fit = fit_temperature(scaled, targets)
        search = minimize_scalar(
            lambda log_t, targets=targets, scaled=scaled: negative_log_likelihood(scaled.astype(float), targets, math.exp(log_t)),
            bounds=(math.log(LOWEST), math.log(HIGHEST)),
            method="bounded",
            options={"xatol": 1e-9},
        )
        assert (fit.problem, fit.rows) == (None, 600)
        assert fit.temperature == pytest.approx(math.exp(search.x), rel=1e-5)


def calibration_error(logits: np.ndarray, labels: np.ndarray) -> float:
    probabilities, state = softmax(logits, 1).astype(np.float32), Calibration(len(labels))
    state.update(probabilities.max(1), probabilities.argmax(1) == labels)
    return state.error()


def test_logits_three_times_too_sure_are_calibrated_on_other_rows() -> None:
    logits, labels = draw(22_000, 4, seed=3)
    sure = 3 * logits
    temperature = fit_temperature(sure[:2000], labels[:2000]).temperature
    assert temperature == pytest.approx(3, rel=0.15)
    before, after = (calibration_error(values[2000:], labels[2000:]) for values in (sure, sure / temperature))
    assert before > 0.15
    assert after < 0.02
    assert ((sure / temperature).argmax(1) == sure.argmax(1)).all()


@pytest.mark.parametrize(
    ("logits", "labels", "problem"),
    [
        (np.eye(2)[np.arange(LEAST - 1) % 2], np.zeros(LEAST - 1, int), "fewer than"),
        (np.eye(3)[np.arange(LEAST) % 3], np.arange(LEAST) % 3, "separate the labels"),
        (np.eye(3)[np.arange(LEAST) % 3], (np.arange(LEAST) + 1) % 3, "tell nothing"),
        (np.zeros((LEAST, 3)), np.arange(LEAST) % 3, "tell nothing"),
        (np.full((LEAST, 3), np.nan), np.arange(LEAST) % 3, "not a finite number"),
        (2.0 * np.eye(3)[np.arange(LEAST) % 3] - 1, np.eye(3)[np.arange(LEAST) % 3], "separate the labels"),
    ],
)
def test_without_a_maximum_of_the_likelihood_it_stays_one(logits: np.ndarray, labels: np.ndarray, problem: str) -> None:
    fit = fit_temperature(logits, labels)
    assert fit.temperature == 1
    assert problem in str(fit.problem)


@pytest.mark.parametrize("temperature", [0.7, 1.7, 6.0])
def test_the_threshold_of_labels_moves_with_the_temperature(temperature: float) -> None:
    """Also for a probability that is 1 in fp32. Left out are others that are nearly as likely, which fp32 cannot tell apart."""
    sure = [40.0, 30.0, -40.0] if temperature > 1 else [8.0, 8.0, -8.0]  # 40 / 0.7 and 12 / 0.7 are the same to an fp32 probability
    logits = np.append(np.random.default_rng(0).normal(0, 2, 2000), sure).astype(np.float32)

    def sigmoid(values: np.ndarray) -> np.ndarray:
        return torch.from_numpy(values).sigmoid().numpy()

    for place in [*range(0, 2000, 20), 2000, 2002]:
        threshold = float(sigmoid(logits)[place])
        moved = move_threshold(threshold, temperature)
        reached, before = sigmoid(logits / np.float32(temperature)) >= np.float32(moved), sigmoid(logits) >= threshold
        assert reached[place]
        near = np.abs(sigmoid(logits) - threshold) <= 6 * max(1, temperature) * np.spacing(np.float32(threshold))
        assert (reached == before)[~near].all()
        assert near.sum() < 10
