"""Language models' likelihoods and the figures derived from them, against their formulas written out in fp64.

Hugging Face's own forward sees each sequence by itself; the objectives see flat batches of several. The weights are drawn wide, so
that a shifted or masked position that is not what it should be changes the sum by far more than the tolerance.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from llm_lightning.config.compose import load_config
from llm_lightning.data.collate import EVALUATION
from llm_lightning.data.datamodule import DataModule
from llm_lightning.inference.evaluate import evaluate_split
from llm_lightning.models import build
from llm_lightning.objectives.base import Objective
from llm_lightning.objectives.language import bits_per_byte, perplexity
from llm_lightning.run import prepare

from ..conftest import QUIET, TINY_BERT, TINY_GPT, published

WIDE = "initializer_range: 0.4"
CAUSAL = [*TINY_GPT, f"++model.config={{n_layer: 2, n_embd: 32, n_head: 2, {WIDE}}}"]
MASKED = [
    "objective=masked_lm",
    *TINY_BERT,
    f"++model.config={{num_hidden_layers: 2, hidden_size: 32, intermediate_size: 64, {WIDE}}}",
]
CASES = {
    "causal, one stream": [*CAUSAL, "data.packing=concat"],
    "causal, documents packed": [*CAUSAL, "data.packing=best_fit"],
    "causal, documents apart": [*CAUSAL, "data.packing=none"],
    "masked": MASKED,
}
# of unequal length, one longer than a block; with characters of several bytes; three words that train does not have
LINES = [
    f"{a} {b} on day {day}."
    for a in ("the cat", "my friend, a dog, the old man and Zoë")
    for b in ("sees", "likes")
    for day in range(7)
]
LINES += ["the sea " * 20 + "follows", "bread ☂ rain", "☃ and ☂"]

Maker = Callable[[str], tuple[DataModule, Objective, PreTrainedModel]]


@pytest.fixture
def make(corpus: Path, cache: Path, tmp_path: Path) -> Maker:
    """(data, objective, its model in fp64 without dropout) of a case."""

    def start(case: str) -> tuple[DataModule, Objective, PreTrainedModel]:
        (tmp_path / "validation.txt").write_text("\n".join(LINES), encoding="utf-8")
        files = ["data=text", f"data.train={corpus}", f"data.validation={tmp_path}/validation.txt", "data.document=line"]
        config = load_config(
            [*QUIET, f"cache_dir={cache}", "task=pretrain", *CASES[case], *files, "data.block_size=32", "batch.sequences=5"]
        )
        dataset, objective, data = prepare(config)
        model = build.build_model(config.model, objective.auto_class, dataset.tokenizer, data.longest_input, None).double().eval()
        objective.model = model
        return data, objective, published(model)

    return start


def log_p(model: PreTrainedModel, inputs: np.ndarray) -> np.ndarray:
    """log softmax of the logits of one sequence, (time, vocabulary) fp64."""
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(inputs)[None]).logits[0].numpy()
    assert logits.dtype == np.float64
    logits = logits - logits.max(1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def expected_loss(data: DataModule, model: PreTrainedModel, index: int) -> tuple[float, int]:
    """(Σ -log p of a validation sequence's targets, how many there are)"""
    tokens = data.dataset.splits["validation"][index].astype(np.int64)
    masking = data.collator.masking
    if masking is None:
        inputs, wanted = tokens[:-1], tokens[1:]
        places = np.arange(len(wanted))
    else:
        inputs, targets = masking(tokens, EVALUATION, index)
        places = np.flatnonzero(targets >= 0)
        wanted = tokens[places]  # what stood there, not what the masking says
    return float(-log_p(model, inputs)[places, wanted].sum()), len(places)


@pytest.mark.parametrize("case", CASES)
def test_summed_loss_of_a_batch_is_the_negative_log_likelihood_of_its_targets(case: str, make: Maker) -> None:
    data, objective, model = make(case)
    for batch in map(data.evaluation_batches("validation").__getitem__, range(3)):
        expected = [expected_loss(data, model, int(i)) for i in batch.indices]
        assert len(expected) > 1
        with torch.no_grad():
            loss = float(objective.loss_sum(batch))
        assert loss == pytest.approx(sum(loss for loss, _ in expected), rel=1e-5)
        assert loss > 1.2 * math.log(len(data.dataset.tokenizer)) * sum(n for _, n in expected)  # far from a flat guess


@pytest.mark.parametrize("case", CASES)
def test_metrics_of_a_split_follow_from_its_likelihood(case: str, make: Maker) -> None:
    data, objective, model = make(case)
    expected = [expected_loss(data, model, i) for i in range(len(data.dataset.splits["validation"]))]
    total, count = sum(loss for loss, _ in expected), sum(n for _, n in expected)
    engine = lightning.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
    )
    metrics = evaluate_split(engine, objective, data, "validation")
    wanted = {"validation/loss": total / count, "validation/perplexity": math.exp(total / count)}
    if case != "masked":  # the likelihood of the whole text; a masked model gives none
        size = sum(len(line.encode("utf-8")) for line in LINES)
        assert size > sum(map(len, LINES))
        wanted["validation/bits_per_byte"] = total / math.log(2) / size
    assert metrics == pytest.approx(wanted, rel=1e-4)


def entropy(tokens: Iterable[int]) -> float:
    counts = Counter(tokens)
    size = sum(counts.values())
    return -sum(n / size * math.log(n / size) for n in counts.values())


@pytest.mark.parametrize("case", CASES)
def test_unigram_entropy_is_the_loss_of_the_best_guess_from_frequencies_alone(case: str, make: Maker) -> None:
    """H = -Σ p log p of the tokens that can be targets: what the model is compared with, on the targets that it has."""
    data, objective, _ = make(case)
    tokenizer, split = data.dataset.tokenizer, data.dataset.splits["validation"]
    ids = [token for line in LINES for token in tokenizer(line, add_special_tokens=False)["input_ids"]]
    if case == "masked":
        assert ids.count(tokenizer.unk_token_id) >= 3  # guessed as any other token
    else:
        ids += [tokenizer.eos_token_id] * len(LINES)
        targets = Counter(int(token) for i in range(len(split)) for token in split[i][1:])
        assert sum((Counter(ids) - targets).values()) <= 1  # the first token of a stream follows on nothing
        assert not targets - Counter(ids)
    found = objective.summary()["validation/unigram_entropy"]
    assert found == pytest.approx(entropy(ids), abs=0.01 if case == "causal, one stream" else 1e-9)


def test_figures_at_known_points() -> None:
    assert perplexity(math.log(50)) == pytest.approx(50)  # a flat guess among 50
    assert math.isfinite(perplexity(1e4))  # a diverged model does not stop the run with an overflow
    assert bits_per_byte(1000 * math.log(256), 1000) == pytest.approx(8)  # a flat guess among all bytes
    assert bits_per_byte(200 * math.log(256), 1000) == pytest.approx(8 / 5)  # the same from tokens of five bytes
