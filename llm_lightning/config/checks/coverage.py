"""Check that prediction sets can be made for a model: its rows have one class, and its folder has the scores of validation rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llm_lightning.config import signatures
from llm_lightning.config.schema import Config, expand_home

SCORES = "conformal.json"
"""File of an export: the scores of validation rows that prediction sets are made from."""


def check_coverage(config: Config) -> Iterator[str]:
    """Yield the reasons why predict.coverage and predict.conditional cannot be followed."""
    settings = config.predict
    if settings.coverage is None:
        if settings.conditional is not None:
            yield f"predict.conditional={settings.conditional}: needs predict.coverage=<share>, 0.95 for example."
        return
    key, target = f"predict.coverage={settings.coverage}", str(config.objective.get("_target_"))
    facts = signatures.constants(target)
    folder = export_folder(config)
    if not facts.get("one_class"):
        objective = config.choices.get("objective") or target.rpartition(".")[2]
        reason = "a row has several labels or none" if facts.get("encoding") == "label_sets" else "its predictions are no classes"
        yield f"{key}: a prediction set stands for one class of a row, and of objective={objective} {reason}; leave it out."
    elif not (folder / SCORES).is_file():
        way = (
            f"task=evaluate run={config.run} writes it"
            if config.run_folder is not None
            else "a run of this program writes it into its hf/ folder: give run=<run folder>, or train with "
            f"model.name_or_path={config.run}"
        )
        yield f"{key}: {folder} has no {SCORES}, the scores of validation rows that sets are made from; {way}."


def export_folder(config: Config) -> Path:
    """Return the folder of the weights that `run` names; it does not exist if `run` is a name on the hub."""
    return config.run_folder / "hf" if config.run_folder is not None else expand_home(str(config.run))
