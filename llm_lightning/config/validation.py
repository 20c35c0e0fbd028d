"""Check a composed config before anything heavy is imported.

Every check yields messages with the mistake, its key, and the remedy; `check` raises them together, so that one run shows all mistakes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llm_lightning.config import signatures
from llm_lightning.config.checks.audit import check_audit
from llm_lightning.config.checks.coverage import check_coverage
from llm_lightning.config.checks.data import check_data, check_encoding, check_labels
from llm_lightning.config.checks.files import (
    check_export,
    check_folders,
    check_inspect,
    check_likelihood,
    check_predict,
    check_prompt,
    check_stops,
)
from llm_lightning.config.checks.label_errors import check_label_errors
from llm_lightning.config.checks.model import check_model
from llm_lightning.config.checks.objective import check_long, check_objective
from llm_lightning.config.checks.privacy import check_privacy
from llm_lightning.config.checks.robustness import check_invariance, check_slices
from llm_lightning.config.checks.targets import check_targets
from llm_lightning.config.checks.trainer import check_resume, check_trainer
from llm_lightning.config.checks.trainer_flags import check_flags
from llm_lightning.config.overrides import escape_interpolations
from llm_lightning.config.schema import Config, GenerateConfig, SweepConfig
from llm_lightning.errors import UserError, nearest

OF_TRAINING = [
    *(check_targets, check_model, check_data, check_objective, check_long, check_labels),
    *(check_trainer, check_flags, check_resume, check_folders),
    *(check_slices, check_invariance, check_label_errors, check_privacy),
]
"""Checks for tasks that train, and for those that repeat a run's evaluation."""
OF_STORED = {
    "predict": [check_targets, check_model, check_long, check_predict, check_coverage],
    "generate": [check_model, check_prompt],
    "chat": [check_model],
    "weigh": [check_model, check_likelihood],
    "export": [check_model, check_export],
    "inspect": [check_targets, check_model, check_data, check_inspect, check_folders],
    "audit": [check_model, check_audit],
}
"""Checks for tasks that train nothing."""


def check(config: Config) -> None:
    """Raise a `UserError` that names every mistake in the config."""
    mistakes = [*_values(config), *check_encoding(config.data.encoding)]
    if not mistakes:
        weighs = config.task == "evaluate" and config.evaluate.weighs
        checks = OF_STORED.get("weigh" if weighs else config.task, OF_TRAINING)
        mistakes = [mistake for find in checks for mistake in find(config)]
    if mistakes:
        raise UserError("\n".join(mistakes))


def check_generate(settings: dict[str, Any]) -> GenerateConfig:
    """Return settings of `generate`, given from Python, as a config. Raises UserError for a wrong type or value."""
    node = OmegaConf.structured(GenerateConfig)
    OmegaConf.set_readonly(node, None)
    for key, value in settings.items():
        try:
            OmegaConf.update(node, key, escape_interpolations(value))
        except OmegaConfBaseException as error:
            raise UserError(f"generate.{key}={value!r}: {str(error).splitlines()[0].rstrip('.')}.") from error
    config: Any = OmegaConf.to_object(node)
    if mistakes := [*_values(config, "generate."), *check_stops(config)]:
        raise UserError("\n".join(mistakes))
    return config


def check_sweep(settings: SweepConfig) -> None:
    """Raise a `UserError` that names every mistake in the settings of a sweep."""
    if mistakes := list(_values(settings, "sweep.")):
        raise UserError("\n".join(mistakes))


def _values(config: Any, prefix: str = "") -> Iterator[str]:
    """Yield values outside the range or the choices that their field declares."""
    for f in fields(config):
        value, key = getattr(config, f.name), f"{prefix}{f.name}"
        rule = f.metadata.get("rule")
        if value == "":
            yield f"{key} is empty; leave it out{'' if key == 'prompt' else f', or give {key}=null'}."
            continue
        if is_dataclass(value):
            yield from _values(value, key + ".")
        elif rule is not None and not rule.allows(value):
            hint = nearest(str(value), map(str, rule.values)) if isinstance(rule, signatures.Choice) else ""
            yield f"{key}={value}: expected {rule}.{hint}"
