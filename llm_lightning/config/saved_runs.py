"""Load the config of a saved run or model; like all checks of a config, without torch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llm_lightning.config import validation
from llm_lightning.config.messages import explain
from llm_lightning.config.open_keys import sort_open_keys
from llm_lightning.config.overrides import escape_interpolations, parse_overrides
from llm_lightning.config.schema import Config, expand_home, schema, to_dataclass
from llm_lightning.config.stored_code import keep_data_only
from llm_lightning.errors import UserError, nearest

STORED = ("evaluate", "predict", "generate", "chat", "export", "audit")
"""The tasks that start from a finished run."""
CHANGEABLE = (
    *("data.", "batch.", "trainer.", "cache_dir", "debug", "out", "prompt=", "prompt_file=", "generate.", "evaluate.", "export."),
    *("predict.", "audit.", "seed=", "trust=", "model.trust_remote_code="),
)
"""Keys that may change for these tasks: other files, other batch sizes, other hardware."""
OBJECTIVES: dict[str, dict[str | None, tuple[str, dict[str, str]]]] = {
    "ForSequenceClassification": {
        "multi_label_classification": ("multi_label.MultiLabel", {}),
        "regression": ("regression.Regression", {}),
        None: ("classification.Classification", {}),
    },
    "ForTokenClassification": {None: ("tagging.Tagging", {})},
    "ForQuestionAnswering": {None: ("question_answering.QuestionAnswering", {"text": "question", "text_pair": "context"})},
    "ForConditionalGeneration": {None: ("translation.Translation", {})},
    "MTModel": {None: ("translation.Translation", {})},
}
"""End of a model class's name -> problem type in its config -> the objective, and the columns that it reads."""


def load_saved_config(task: str, run: str | None, overrides: list[str], checked: bool = True) -> Config:
    """Return the config that a run was started with, changed by the command line; `checked`: whether to check the result, files included.

    Raises UserError if the run cannot be read, or for an override that such a task cannot follow.
    """
    if run is None:
        raise UserError(f"run is not set: task={task} needs run=<run folder>.")
    changes = [change for change in overrides if not change.startswith(("task=", "run="))]
    for change in changes:
        if not change.startswith(CHANGEABLE):
            raise UserError(
                f"{change}: task={task} takes the run as it is; only single keys of data, batch, trainer, "
                f"generate, evaluate, export, predict and audit may be changed (data.test=<file>, trainer.devices=1); leave this out."
            )
    folder = expand_home(run)
    try:
        values = parse_overrides(changes)
    except HydraException as error:
        raise UserError(explain(error, in_shell=False)) from error
    try:
        is_run = (folder / "config.yaml").is_file()
        stored = keep_data_only(run, _read_config(folder), values.get("trust")) if is_run else _build_config(task, run, changes)
        node = OmegaConf.merge(schema(), stored)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"run={run}: its config.yaml cannot be read ({str(error).splitlines()[0]}).") from error
    try:
        for key, value in values.items():
            OmegaConf.update(node, key, value, merge=True)
        sort_open_keys(node)  # type: ignore[arg-type]
        config = to_dataclass(node)  # type: ignore[arg-type]
    except OmegaConfBaseException as error:
        raise UserError(explain(error, in_shell=False)) from error
    config = replace(config, task=task, run=run)
    if checked:
        validation.check(config)
    return config


def _read_config(folder: Path) -> Any:
    if not (folder / "hf" / "config.json").is_file():
        raise UserError(
            f"run={folder}: the run has no weights yet (no hf/config.json); finish it with the same command and resume=auto."
        )
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise UserError(f"run={folder}: its config.yaml is no mapping of settings.")
    return escape_interpolations(config)


def _build_config(task: str, name: str, changes: list[str]) -> dict[str, Any]:
    """Return the config of a model without a run folder of this program: a Hugging Face folder, or a name on the hub."""
    path = expand_home(name) / "config.json"
    repeats = task == "evaluate" and not any(change.startswith(("evaluate.text=", "evaluate.choices=")) for change in changes)
    if repeats or (not path.is_file() and (path.parent.is_dir() or name.startswith((".", "/", "~")))):
        raise UserError(f"run={name}: not a run folder (it has no config.yaml).")
    runs = [str(file.parent) for file in path.parent.parent.glob("*/config.yaml")] if "/" in name else []
    if not path.is_file() and runs:  # no name on the hub, which would be asked for half a minute, but a misspelt run
        raise UserError(f"run={name}: there is no such folder.{nearest(name, runs)}")
    if not path.is_file():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            path = Path(hf_hub_download(name, "config.json"))
        except (OSError, ValueError, HfHubHTTPError, LocalEntryNotFoundError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"run={name}: neither a run folder nor a model that can be loaded from the hub ({reason}).") from error
    plain_config = {"task": task, "model": {"name_or_path": name}, "data": {"source": "files"}}
    if task not in ("predict", "audit"):
        return plain_config
    model_config = json.loads(path.read_text(encoding="utf-8"))
    architecture = (model_config.get("architectures") or ["?"])[0]
    kinds = next((kinds for end, kinds in OBJECTIVES.items() if architecture.endswith(end)), None)
    if kinds is None and task == "audit":  # of a language model, whose likelihoods need no objective
        return plain_config
    if kinds is None:
        raise UserError(f"run={name}: a {architecture} makes no predictions of rows.")
    objective, columns = kinds.get(model_config.get("problem_type")) or kinds[None]
    return {
        "task": task,
        "objective": {"_target_": f"llm_lightning.objectives.{objective}"},
        "model": {"name_or_path": name},
        "data": {"source": "files", "columns": columns},
    }
