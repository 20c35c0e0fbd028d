"""Hydra's multirun (`python train.py -m …`) by `llm_lightning.sweep`: Hydra finds the sweeper here, and nowhere else."""

from __future__ import annotations

import sys
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


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
