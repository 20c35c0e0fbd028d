"""A step that does not fit is repeated in halves and comes out the same; what cannot be halved ends with advice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM

from llm_lightning.data.collate import Collator, MicroBatch, split_micro_batch
from llm_lightning.data.masking import IGNORED
from llm_lightning.errors import RunError
from llm_lightning.objectives.causal_lm import CausalLM

from ..conftest import TINY_GPT, Runner


class Sequences:
    token_targets = None

    def __init__(self, lengths: list[int], extra: int, classes: bool) -> None:
        self.inputs = np.array(lengths)
        self.labels = np.arange(len(lengths)) if classes else None
        self.second = self.inputs // 2
        self.sequences = [np.arange(length + extra) + 100 * i for i, length in enumerate(lengths)]

    def __getitem__(self, index: int) -> np.ndarray:
        return self.sequences[index]


def even(tokens: np.ndarray, epoch: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    return -tokens, np.where(tokens % 2, IGNORED, tokens)


@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=12),
    st.sampled_from(["stream", "documents", "texts"]),
    st.sampled_from([2, 4, 8]),
)
def test_pieces_are_the_batches_of_their_sequences(lengths: list[int], encoding: str, count: int) -> None:
    data = Sequences(lengths, extra=encoding == "stream", classes=encoding == "texts")
    masking: Any = even if encoding == "documents" else None
    collate = Collator(next_token=encoding == "stream", masking=masking, token_types=encoding == "texts")
    batch = collate(data, [np.array([i]) for i in range(len(lengths))], 0)
    parts = split_micro_batch(batch, count)
    assert len(parts) <= count
    assert all(len(part.indices) == 1 for part in parts) or len(parts) > 1
    assert torch.cat([part.indices for part in parts]).equal(batch.indices)
    for part in parts:
        alone = collate(data, [np.array([i]) for i in part.indices.tolist()], 0)
        for name, expected in vars(alone).items():
            found = getattr(part, name)
            assert found.equal(expected) if isinstance(expected, Tensor) else found == expected, name


def limited(monkeypatch: pytest.MonkeyPatch, tokens: int) -> list[int]:
    """A device with room for so many tokens; returns the sizes of the micro-batches that it was given."""
    seen: list[int] = []
    whole = CausalLM.loss_sum

    def loss_sum(self: Any, batch: MicroBatch) -> Tensor:
        if self._trainer is not None and self.trainer.training:  # the preflight's step is not what is tried here
            seen.append(len(batch.input_ids))
            if len(batch.input_ids) > tokens:
                whole(self, batch).backward()  # what was computed before memory ran out must not count
                raise torch.OutOfMemoryError("out of memory")
        return whole(self, batch)

    monkeypatch.setattr(CausalLM, "loss_sum", loss_sum)
    return seen


def arguments(corpus: Path, folder: Path) -> list[str]:
    data = ["task=pretrain", *TINY_GPT, "data=text", f"data.train={corpus}", "data.document=line", "data.block_size=32"]
    return [*data, "batch.sequences=8", "trainer.max_steps=4", "trainer.precision=32-true", f"run_dir={folder}"]


def test_a_step_that_does_not_fit_is_repeated_in_halves(
    corpus: Path, run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(*arguments(corpus, tmp_path / "whole"))
    seen = limited(monkeypatch, 100)
    run(*arguments(corpus, tmp_path / "halved"))
    assert [size > 100 for size in seen[:4]] == [True, True, False, False]  # once whole, once in halves, then in quarters
    assert not any(size > 100 for size in seen[2:])  # from then on
    assert (tmp_path / "halved" / "train.log").read_text().count("out of memory") == 2
    whole, halved = (AutoModelForCausalLM.from_pretrained(tmp_path / name / "hf").state_dict() for name in ("whole", "halved"))
    for name, tensor in whole.items():
        torch.testing.assert_close(halved[name], tensor, atol=1e-6, rtol=1e-5)


def test_what_cannot_be_halved_ends_with_advice(corpus: Path, run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, 3)
    with pytest.raises(RunError, match=r"ran out of memory .* single sequence .* lower data\.block_size"):
        run(*arguments(corpus, tmp_path))
