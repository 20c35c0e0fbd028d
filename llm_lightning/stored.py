"""The config of a run that is read again; like all checks of a config without torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llm_lightning import checks
from llm_lightning.config import Config, schema, typed
from llm_lightning.errors import UserError

CHANGEABLE = ("data.", "batch.", "trainer.", "cache_dir", "debug")
"""What may be changed for an evaluation: other files, other batch sizes, other hardware."""


def stored(run: str | None, overrides: list[str]) -> Config:
    """The config that a run was started with, and what the command line changes of it.

    Raises UserError where the run cannot be read, or for an override that an evaluation cannot follow.
    """
    if run is None:
        raise UserError("run is not set: task=evaluate needs run=<run folder>.")
    folder = Path(run).expanduser()
    if not (folder / "config.yaml").is_file():
        raise UserError(f"run={run}: not a run folder (it has no config.yaml).")
    if not (folder / "hf" / "config.json").is_file():
        raise UserError(
            f"run={run}: the run has no weights yet (no hf/config.json); finish it with the same command and resume=auto."
        )
    changes = [change for change in overrides if not change.startswith(("task=", "run="))]
    for change in changes:
        if not change.startswith(CHANGEABLE):
            raise UserError(
                f"{change}: task=evaluate takes the run as it is; only single keys of data, batch and trainer may be changed "
                f"(data.test=<file>, trainer.devices=1); leave this out."
            )
    try:
        node = OmegaConf.merge(schema(), OmegaConf.load(folder / "config.yaml"))
        node.merge_with_dotlist(changes)
        config = typed(node)  # type: ignore[arg-type]
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(
            f"run={run}: its config.yaml, with what the command line changes, cannot be read ({str(error).splitlines()[0]})."
        ) from error
    checks.check(config)
    return replace(config, task="evaluate", run=run)
