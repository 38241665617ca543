"""
The daemon's settings: environment over file over default, read once into one frozen value.

The file is ``config.toml`` in platformdirs' configuration directory. Whoever needs a setting is handed it; nobody below
``__main__`` reads this module's file or the environment again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import platformdirs

from fluxd.core.errors import SettingsInvalid

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
FIRST_PORT: Final = 15432
LAST_PORT: Final = 65535


@dataclass(frozen=True)
class TunnelSettings:
    """What every tunnel is opened with."""

    first_port: int = FIRST_PORT
    # How long a client waits for an SSH host that is away, before it is told so.
    client_waits_s: float = 30.0
    ssh_connect_s: float = 15.0


@dataclass(frozen=True)
class Settings:
    state_dir: Path
    config_dir: Path
    log_dir: Path
    log_level: LogLevel = "info"
    log_format: LogFormat = "text"
    tunnels: TunnelSettings = field(default_factory=TunnelSettings)


def load(environ: Mapping[str, str] = os.environ) -> Settings:
    """
    The settings as environment, file and defaults give them.

    Raises:
        SettingsInvalid: one of them is not what it must be.
    """
    return Settings(
        state_dir=_directory(environ, "FLUXD_STATE_DIR", platformdirs.user_state_path("fluxd")),
        config_dir=_directory(environ, "FLUXD_CONFIG_DIR", platformdirs.user_config_path("fluxd")),
        log_dir=_directory(environ, "FLUXD_LOG_DIR", platformdirs.user_log_path("fluxd")),
        tunnels=TunnelSettings(first_port=_first_port(environ)),
    )


def _first_port(environ: Mapping[str, str]) -> int:
    text = environ.get("FLUXD_FIRST_PORT", "").strip() or str(FIRST_PORT)
    if not text.isascii() or not text.isdecimal() or not 0 < int(text) <= LAST_PORT:
        raise SettingsInvalid(f"FLUXD_FIRST_PORT is {text!r}; it must be a port, 1 to {LAST_PORT}.")
    return int(text)


def _directory(environ: Mapping[str, str], name: str, default: Path) -> Path:
    named = environ.get(name)
    return Path(named).absolute() if named else default
