"""
Where fluxd keeps things: the directories that platformdirs would answer, which a test holds.

Standard library only, like everything in the client; only `service` and `config` ask, so that pathlib may cost a start.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

APP = "fluxd"


def state_dir() -> Path:
    """Ports, the journal of grants, tunnels to restore."""
    return _named("FLUXD_STATE_DIR") or _place("XDG_STATE_HOME", ".local/state", "Library/Application Support")


def config_dir() -> Path:
    """config.toml."""
    return _named("FLUXD_CONFIG_DIR") or _place("XDG_CONFIG_HOME", ".config", "Library/Application Support")


def log_dir() -> Path:
    if named := _named("FLUXD_LOG_DIR"):
        return named
    if sys.platform == "darwin":
        return Path.home() / "Library/Logs" / APP
    return _place("XDG_STATE_HOME", ".local/state", "") / "log"


def units_dir() -> Path:
    """Where systemd looks for a user's own units."""
    return _base("XDG_CONFIG_HOME", ".config") / "systemd/user"


def agents_dir() -> Path:
    """Where launchd looks for a user's own agents."""
    return Path.home() / "Library/LaunchAgents"


def _named(variable: str) -> Path | None:
    named = os.environ.get(variable)
    return Path(named).absolute() if named else None


def _place(variable: str, default: str, on_mac: str) -> Path:
    return (Path.home() / on_mac if sys.platform == "darwin" else _base(variable, default)) / APP


def _base(variable: str, default: str) -> Path:
    named = os.environ.get(variable, "").strip()
    return Path(named) if named else Path.home() / default
