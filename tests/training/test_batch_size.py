"""batch.micro_tokens=auto: what is planned is what autograd keeps, and the run is the same however it is cut."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from llm_lightning.config.compose import load_config
from llm_lightning.data.collate import MicroBatch
from llm_lightning.errors import UserError
from llm_lightning.objectives.causal_lm import CausalLM
from llm_lightning.run import build_and_connect, prepare
from llm_lightning.training import batch_size, trainer

from ..conftest import QUIET, TINY_GPT, Runner


def arguments(corpus: Path, *more: str) -> list[str]:
    data = ["task=pretrain", *TINY_GPT, "data=text", f"data.train={corpus}", "data.document=line", "data.block_size=32"]
    return [*data, "batch.sequences=16", "trainer.max_steps=3", "trainer.precision=32-true", *more]


def test_the_plan_is_what_autograd_keeps(corpus: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config([*QUIET, f"cache_dir={cache}", *arguments(corpus, "batch.micro_tokens=auto")])
    dataset, objective, data = prepare(config)
    build_and_connect(config, dataset, objective, data)
    engine = trainer.build_trainer(config.trainer, tmp_path, 3, 3, [], [])
    states = 16 * sum(p.numel() for p in objective.model.parameters())
    small, large = (batch_size._count_saved_bytes(objective, data.longest_rows(n), engine) for n in (2, 12))
    row = (large - small) / 10
    monkeypatch.setattr(batch_size, "free_memory", lambda device: states + 9.5 * row / batch_size.SHARE)
    longest = len(data.longest_rows(1).input_ids)
    assert 7 <= batch_size.plan(objective, data, engine) / longest <= 9  # the longest row is longer than the average of twelve
    monkeypatch.setattr(batch_size, "free_memory", lambda device: states + 0.5 * row)
    with pytest.raises(UserError, match=r"a row of \d+ tokens takes .* lower data\.block_size"):
        batch_size.plan(objective, data, engine)


def test_a_run_finds_what_fits_and_comes_out_the_same(
    corpus: Path, run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is planned for the whole step; the device turns out to hold a quarter of it."""
    sizes: list[int] = []
    whole = CausalLM.loss_sum

    def loss_sum(self: Any, batch: MicroBatch) -> Tensor:
        sizes.append(len(batch.input_ids))
        if len(batch.input_ids) > 150:
            raise torch.OutOfMemoryError("out of memory")
        return whole(self, batch)

    run(*arguments(corpus, f"run_dir={tmp_path}/whole"))
    monkeypatch.setattr(CausalLM, "loss_sum", loss_sum)
    with pytest.raises(UserError, match=r"no memory for \d+ tokens at once: set batch\.micro_tokens=auto"):
        run(*arguments(corpus, f"run_dir={tmp_path}/refused"))
    sizes.clear()
    run(*arguments(corpus, "batch.micro_tokens=auto", f"run_dir={tmp_path}/auto"))
    assert [size > 150 for size in sizes[:5]] == [False, False, True, True, False]  # two to plan by, three tried
    assert not any(size > 150 for size in sizes[5:])
    weights = [AutoModelForCausalLM.from_pretrained(tmp_path / name / "hf").state_dict() for name in ("whole", "auto")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=1e-6, rtol=1e-5)


def test_ranks_keep_to_the_least_that_one_of_them_found(corpus: Path, cache: Path) -> None:
    data = prepare(load_config([*QUIET, f"cache_dir={cache}", *arguments(corpus, "batch.micro_tokens=auto")]))[2]
    strategy = SimpleNamespace(root_device="cpu", reduce=lambda tensor, reduce_op: getattr(tensor, reduce_op)().clamp(max=96))
    data.trainer = SimpleNamespace(world_size=2, strategy=strategy)  # type: ignore[assignment]
    data.limit(128)
    data.setup("fit")
    assert data.spec.micro_tokens == 96
