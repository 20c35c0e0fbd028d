"""Read the layers that a config is composed of, one by one: each option's file in Hydra's order, then the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf


@dataclass(frozen=True)
class OptionFile:
    """The file of an option: its path below a folder of options (`model/gpt2`), and its settings from the root of the config."""

    path: str
    is_ours: bool
    """Whether it lies in our conf/, and not in a folder of the user's or in an installed package."""
    settings: DictConfig


def read_layers(loader: ConfigLoader, config_name: str, overrides: list[str]) -> tuple[list[OptionFile], list[Override]]:
    """Return the option files that a command line composes, in their order, and its overrides of single keys."""
    defaults = loader.compute_defaults_list(config_name, overrides, RunMode.RUN)
    chosen = [d for d in defaults.defaults if d.config_path != "schema" and not str(d.package).startswith("hydra")]
    return [_read_file(loader, str(default.config_path), default.package or "") for default in chosen], defaults.config_overrides


def find_option_file(files: list[OptionFile], key: str) -> str | None:
    """Return the path of the last file that sets a key, `a.b.c`; None if none does."""
    return next((file.path for file in reversed(files) if OmegaConf.select(file.settings, key) is not None), None)


def keep_own_optimizer(files: list[OptionFile], overrides: list[Override]) -> dict[str, Any]:
    """Return the settings of the user's own option of the group optimizer that presets of a model do not change.

    A preset's learning rate is meant for our AdamW. Recipes, tasks and the command line still change the user's settings.
    """
    user_settings: dict[str, Any] = {}
    for file in files:
        settings = OmegaConf.select(file.settings, "optimizer")
        if not isinstance(settings, DictConfig):
            continue
        if file.path.startswith("optimizer/"):
            user_settings = {} if file.is_ours else dict(OmegaConf.to_container(settings, resolve=False))  # type: ignore[arg-type]
        elif not file.path.startswith("model/"):
            user_settings = {key: value for key, value in user_settings.items() if key not in settings}
    changed = {override.key_or_group for override in overrides}
    return {key: value for key, value in user_settings.items() if f"optimizer.{key}" not in changed and "optimizer" not in changed}


def _read_file(loader: ConfigLoader, path: str, package: str) -> OptionFile:
    result = loader.repository.load_config(path)  # type: ignore[attr-defined]
    content = result.config if result is not None else {}
    node = OmegaConf.create()
    OmegaConf.update(node, package, content, force_add=True) if package else node.merge_with(_plain(content))
    return OptionFile(path, result is not None and result.provider == "main", node)


def _plain(content: Any) -> Any:
    return OmegaConf.to_container(content, resolve=False, throw_on_missing=False) if isinstance(content, DictConfig) else content
