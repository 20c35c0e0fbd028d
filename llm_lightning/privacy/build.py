"""Build what private training needs from a run's config and its data."""

from __future__ import annotations

import logging

import numpy as np
import xxhash
from transformers import PreTrainedModel

from llm_lightning import distributed
from llm_lightning.config.schema import Config, PrivacyConfig
from llm_lightning.data.datamodule import DataModule
from llm_lightning.data.plan import PoissonPlan
from llm_lightning.data.prepare import TokenizedDataset
from llm_lightning.errors import UserError
from llm_lightning.privacy.budget import Budget
from llm_lightning.privacy.noise import SeededNoise, secure_noise
from llm_lightning.privacy.step import PrivateGradient

log = logging.getLogger(__name__)


def check_units(dataset: TokenizedDataset) -> None:
    """Raise UserError if a training row is several sequences, or is there twice: what is told of it would not be bounded by epsilon."""
    train = dataset.splits["train"]
    if train.rows is not None and len(np.unique(train.rows)) < len(train):
        parted = len(train) - len(np.unique(train.rows))
        raise UserError(
            f"privacy=dp: {parted:,} training rows are cut into several sequences, and epsilon would hold for each part alone; raise "
            f"data.block_size, or cut the texts."
        )
    digests = [xxhash.xxh3_64_intdigest(np.ascontiguousarray(train[i]).tobytes()) for i in range(len(train))]
    repeated = len(digests) - len(set(digests))
    if repeated:
        raise UserError(
            f"privacy=dp: {repeated:,} training rows repeat others, so that more is told of them than epsilon says; leave them out "
            f"(data.clean=[near_duplicates])."
        )


def plan_budget(config: PrivacyConfig, data: DataModule) -> Budget:
    """Return the budget of a run: all ranks have the same."""
    assert isinstance(data.plan, PoissonPlan)
    return Budget(config, data.plan.sampling_rate, data.total_steps)


def build_private_gradient(config: Config, model: PreTrainedModel, data: DataModule) -> PrivateGradient:
    """Build the private gradient of the model's trained weights, and log the guarantee."""
    budget = plan_budget(config.privacy, data)
    expected = budget.sampling_rate * len(data.plan.lengths)
    noise = secure_noise if config.privacy.secure_noise else SeededNoise(config.seed, distributed.rank())
    private = PrivateGradient(
        model, config.privacy.threshold, budget.noise_multiplier, expected, config.privacy.clipping == "automatic", noise
    )
    log.info(
        "privacy: noise multiplier %.3f, sampling rate %.4f, %s steps: epsilon %.3g at delta %.0e for each row",
        budget.noise_multiplier,
        budget.sampling_rate,
        f"{data.total_steps:,}",
        budget.epsilon_after(data.total_steps),
        config.privacy.delta,
    )
    share = 1 / len(data.plan.lengths)
    if config.privacy.delta >= share:
        log.warning("privacy.delta=%.0e is not below 1 / rows (%.0e): with it, whole rows may be told", config.privacy.delta, share)
    return private
