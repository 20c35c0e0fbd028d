"""Check whether the objective can be evaluated by slices and by changed texts."""

from __future__ import annotations

from collections.abc import Iterator

from llm_lightning.config import signatures
from llm_lightning.config.schema import PERTURBATIONS, Config
from llm_lightning.errors import join_names, nearest

PERTURBED = ("texts", "label_sets", "scores")
"""Encodings of a whole text, or a pair, with one target: their texts can be changed without changing what is predicted."""


def check_slices(config: Config) -> Iterator[str]:
    names = config.evaluate.slice_names
    if not names:
        return
    if wrong := next((name for name in _items(config.evaluate.slices) if not isinstance(name, str | int)), None):
        yield f"evaluate.slices={wrong}: expected a list of length, language and names of columns: [length,source]."
    if len(set(names)) < len(names):
        yield f"evaluate.slices=[{','.join(names)}]: a name is there twice; leave it out."
    objective = config.choices.get("objective", config.objective.get("_target_"))
    if not signatures.constants(str(config.objective.get("_target_"))).get("scores_rows"):
        yield (
            f"evaluate.slices=[{','.join(names)}]: objective={objective} has no score of each row, only losses of batches, which mix rows "
            f"of several slices; leave it out."
        )
    elif config.objective.get("answered") == 0:
        yield (
            f"evaluate.slices=[{','.join(names)}]: objective.answered=0 answers no conversation, so that none has a score; raise it, or "
            f"leave evaluate.slices out."
        )


def check_invariance(config: Config) -> Iterator[str]:
    names = config.evaluate.perturbations
    for name in names:
        if name not in PERTURBATIONS:
            yield (
                f"evaluate.invariance: there is no change of texts called '{name}'; there are {join_names(PERTURBATIONS)}, and true for "
                f"all.{nearest(name, PERTURBATIONS)}"
            )
    if len(set(names)) < len(names):
        yield f"evaluate.invariance=[{','.join(names)}]: a name is there twice; leave it out."
    objective = config.choices.get("objective", config.objective.get("_target_"))
    if names and signatures.constants(str(config.objective.get("_target_"))).get("encoding") not in PERTURBED:
        yield (
            f"evaluate.invariance: objective={objective} predicts more than one label or number for a whole text, and its answers "
            f"change with the text; classification, multi_label and regression can be tested so. Leave it out."
        )


def _items(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else [value]
