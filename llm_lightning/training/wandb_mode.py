"""Whether W&B can be reached with what is configured on this machine."""

from __future__ import annotations

import configparser
import netrc
import os
from pathlib import Path
from urllib.parse import urlparse


def mode() -> str:
    """`WANDB_MODE` where it is set, but never one that would ask for a key: offline where there is none."""
    wanted = os.environ.get("WANDB_MODE") or "online"
    return wanted if wanted != "online" or _has_key() else "offline"


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL") or _chosen_server()).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _chosen_server() -> str:
    """Where `wandb login --host` went; W&B's own server where there is no such word."""
    folder = Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser()
    settings = configparser.ConfigParser(interpolation=None)
    try:
        settings.read([folder / "settings", Path(os.environ.get("WANDB_DIR", "."), "wandb", "settings")])
    except (OSError, configparser.Error):
        settings.clear()
    return settings.get("default", "base_url", fallback="https://api.wandb.ai")
