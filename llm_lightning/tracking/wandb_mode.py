"""Decide whether W&B runs online, offline or not at all, by the configuration of this machine."""

from __future__ import annotations

import configparser
import netrc
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

from llm_lightning.config.schema import expand_home

TRUE = ("1", "true", "yes", "on", "y", "t")
MODES = {
    **dict.fromkeys(("online", "run", "shared"), "online"),
    **dict.fromkeys(("offline", "dryrun"), "offline"),
    **dict.fromkeys(("disabled", "disable", "off", "none", "false", "no", "0"), "disabled"),
}
"""Value of WANDB_MODE -> mode: W&B's present words, its earlier ones, and those of other switches."""


@dataclass(frozen=True)
class WandbMode:
    """How W&B is used: `online`, `offline`, `shared` or `disabled`; `reason` names the variable or the file that decides it, if any."""

    name: str
    reason: str = ""


def read_mode() -> WandbMode:
    """Return the mode set by the environment, `wandb disabled` or `wandb offline`, but never one that would prompt for a key.

    `WANDB_DISABLED=true` overrides `WANDB_MODE`. An unknown word means offline: nothing leaves the machine by mistake.
    """
    if os.environ.get("WANDB_DISABLED", "").strip().lower() in TRUE:
        return WandbMode("disabled", f"WANDB_DISABLED={os.environ['WANDB_DISABLED']}")
    word, source = os.environ.get("WANDB_MODE", "").strip(), "WANDB_MODE"
    if not word:
        settings = _read_settings()
        is_disabled = settings.get("default", "disabled", fallback="").strip().lower() in TRUE
        word, source = "disabled" if is_disabled else settings.get("default", "mode", fallback="").strip(), "wandb/settings: mode"
    if word and word.lower() not in MODES:
        return WandbMode("offline", f"{source}={word} is no mode (online, offline, disabled)")
    name = MODES[word.lower() or "online"]
    if name == "online" and not _has_key():
        return WandbMode("offline")
    return WandbMode("shared" if word.lower() == "shared" else name, f"{source}={word}" if word else "")


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL") or _chosen_server()).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _chosen_server() -> str:
    """Return the server of `wandb login --host`; W&B's own server if none was set."""
    return _read_settings().get("default", "base_url", fallback="https://api.wandb.ai")


def _read_settings() -> configparser.ConfigParser:
    """Return the settings that W&B's commands have stored for this user and this folder; empty if they cannot be read."""
    folder = expand_home(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb")
    settings = configparser.ConfigParser(interpolation=None)
    try:
        settings.read([folder / "settings", Path(os.environ.get("WANDB_DIR", "."), "wandb", "settings")])
    except (OSError, configparser.Error):
        settings.clear()
    return settings
