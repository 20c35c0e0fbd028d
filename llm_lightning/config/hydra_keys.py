"""Translate keys that Hydra users know to this program's keys: the run's folder, and experiments, which are recipes here.

A key that Hydra accepts and this program would ignore is refused; the message names the key to use.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from llm_lightning.errors import UserError

RUN_DIR, SWEEP_DIR = "hydra.run.dir", "hydra.sweep.dir"
REFUSED = {
    "hydra.sweep.subdir": "the folder of a job is named by the settings that the sweep varies; run_dir=<folder> names the sweep's",
    "hydra.job.chdir": "a run never changes the working folder; run_dir=<folder> says where its files go",
    "hydra.output_subdir": "a run writes config.yaml into its own folder, run_dir=<folder>",
    "hydra.job_logging": "a run writes train.log into its own folder; debug=true shows tracebacks",
    "hydra.hydra_logging": "a run writes train.log into its own folder; debug=true shows tracebacks",
}
"""Keys of Hydra that have no effect here -> what to do instead."""


FLAGS_WITH_VALUE = ("--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd", "--cfg", "-c", "--package", "-p")


def translate_hydra_keys(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with `hydra.run.dir` and, under -m, `hydra.sweep.dir` as `run_dir`, and `experiment` as `recipe`.

    Raises UserError for a key that would have no effect, and for two names of the folder.
    """
    multirun = is_multirun(arguments)
    return [_translate(argument, multirun, arguments) for argument in arguments]


def is_multirun(arguments: Sequence[str]) -> bool:
    """Return whether a command line starts a sweep."""
    return any(argument in ("-m", "--multirun") or argument.lower() == "hydra.mode=multirun" for argument in arguments)


def put_flags_first(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with Hydra's flags before all overrides: its parser refuses an override after a flag that follows another."""
    flags: list[str] = []
    overrides: list[str] = []
    for i, argument in enumerate(arguments):
        before = arguments[i - 1] if i else ""
        is_value = before in FLAGS_WITH_VALUE or (before in ("--info", "-i") and "=" not in argument)
        (flags if argument.startswith("-") or is_value else overrides).append(argument)
    return flags if "--hydra-help" in flags else [*flags, *overrides]  # which shows Hydra's own config


def _translate(argument: str, multirun: bool, arguments: Sequence[str]) -> str:
    match = re.fullmatch(r"\+{0,2}([\w./]+)=(.*)", argument, re.DOTALL)
    if match is None:
        return argument
    key, value = match.groups()
    if key == "experiment":
        return f"recipe={value}"
    if key in (RUN_DIR, SWEEP_DIR):
        if (key == SWEEP_DIR) != multirun:
            other = (
                "without -m; hydra.run.dir or run_dir names the folder of a run"
                if key == SWEEP_DIR
                else "with -m; hydra.sweep.dir does"
            )
            raise UserError(f"{key}: has no effect {other}.")
        if any(re.match(r"\+{0,2}run_dir=", other) for other in arguments):
            raise UserError(f"{key} and run_dir both name the folder; give one of them.")
        return f"run_dir={value}"
    refused = key.replace("/", ".")
    if refused in REFUSED and value not in ("null", "false", "none"):
        raise UserError(f"{key}: has no effect; {REFUSED[refused]}.")
    return argument
