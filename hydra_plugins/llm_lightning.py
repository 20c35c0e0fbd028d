"""What Hydra looks for here and nowhere else: the sweeper of `python train.py -m …`, and the options of installed packages."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class InstalledOptions(SearchPathPlugin):
    """Adds the `conf/` of installed packages: an entry point of the group `llm_lightning.conf` names the package that holds it."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for entry in entry_points(group="llm_lightning.conf"):
            search_path.append(provider=entry.name, path=f"pkg://{entry.value}")


class Sweeps(Sweeper):
    """Grids, random searches and Optuna's. Jobs are processes of this machine, or go to another launcher where one is chosen."""

    launcher: Launcher | None
    config: DictConfig | None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config, self.launcher = hydra_context, config, None
        if not config.hydra.launcher._target_.endswith(".BasicLauncher"):
            self.launcher = Plugins.instance().instantiate_launcher(
                hydra_context=hydra_context, task_function=task_function, config=config
            )

    def sweep(self, arguments: list[str]) -> Any:
        from llm_lightning.config.schema import SweepConfig
        from llm_lightning.sweep import sweep

        assert self.config is not None
        OmegaConf.set_struct(self.config, False)
        settings = SweepConfig(**OmegaConf.to_container(self.config.sweep, resolve=True))  # type: ignore[arg-type]
        sys.exit(sweep.run(arguments, settings, self.config.get("task"), self.config.run_dir, self.launcher))
