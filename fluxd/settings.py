"""
The daemon's settings: environment over file over default, read once into one frozen value.

The file is ``config.toml`` in platformdirs' configuration directory (`docs/config.example.toml` shows all of it). A
mistake in it is told with file, line and reason, and stops the daemon: a setting that is silently ignored is worse.
Whoever needs a setting is handed it; nobody below ``__main__`` reads the file or the environment again.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
import platformdirs

from fluxd import wire
from fluxd.core.errors import FluxError, SettingsInvalid
from fluxd.plane.base import normalised

T = TypeVar("T")

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
FIRST_PORT: Final = 15432
FILE_NAME: Final = "config.toml"

Seconds = Annotated[float, msgspec.Meta(gt=0, le=600)]


class DeclaredTunnel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[[tunnel]]` of the file: listened for from the daemon's start on, unless `autostart` is false."""

    project: wire.SlugText
    hash: wire.HashText
    api_base: str | None = None
    access: wire.Access = "readonly"
    port: wire.PortNumber | None = None
    autostart: bool = True
    ssh: wire.SSH = wire.SSH()


class File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file's shape; every name in it is optional."""

    first_port: wire.PortNumber = FIRST_PORT
    client_waits_s: Seconds = 30.0
    ssh_connect_s: Seconds = 15.0
    ssh_idle_s: Annotated[float, msgspec.Meta(gt=0, le=86400)] = 600.0
    log_level: LogLevel = "info"
    log_format: LogFormat = "text"
    token_file: wire.AbsolutePath | None = None
    tunnel: list[DeclaredTunnel] = []


@dataclass(frozen=True)
class TunnelSettings:
    """What every tunnel is opened with."""

    first_port: int = FIRST_PORT
    # How long a client waits for an SSH host that is away, before it is told so.
    client_waits_s: float = 30.0
    ssh_connect_s: float = 15.0
    # An SSH connection that nobody uses for so long is closed, and comes back with the next client.
    ssh_idle_s: float = 600.0
    # After so long a silence it is asked for a sign of life; after three times as long it is lost. No key of the file.
    ssh_keepalive_s: float = 4.0


@dataclass(frozen=True)
class Settings:
    """`sources` says for each setting where its value comes from: a variable's name, the file's path, or `default`."""

    state_dir: Path
    config_dir: Path
    log_dir: Path
    log_level: LogLevel = "info"
    log_format: LogFormat = "text"
    token_file: Path | None = None
    tunnels: TunnelSettings = field(default_factory=TunnelSettings)
    declared: tuple[DeclaredTunnel, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)


VARIABLES: Final[Mapping[str, str]] = {
    "first_port": "FLUXD_FIRST_PORT",
    "client_waits_s": "FLUXD_CLIENT_WAITS_S",
    "ssh_connect_s": "FLUXD_SSH_CONNECT_S",
    "ssh_idle_s": "FLUXD_SSH_IDLE_S",
    "log_level": "FLUXD_LOG_LEVEL",
    "log_format": "FLUXD_LOG_FORMAT",
    "token_file": "FLUXD_TOKEN_FILE",
}
DIRECTORIES: Final[Mapping[str, str]] = {
    "state_dir": "FLUXD_STATE_DIR",
    "config_dir": "FLUXD_CONFIG_DIR",
    "log_dir": "FLUXD_LOG_DIR",
}


def load(environ: Mapping[str, str] = os.environ) -> Settings:
    """
    The settings as environment, file and defaults give them.

    Raises:
        SettingsInvalid: one of them is not what it must be; the message names variable, or file and line.
    """
    places = _places(environ)
    path = places["config_dir"] / FILE_NAME
    text = _text(path)
    file = _read(path, text)
    chosen, sources = _chosen(environ, file, path, text)
    for name, variable in DIRECTORIES.items():
        sources[name] = variable if environ.get(variable) else "default"
    return Settings(
        **places,
        log_level=chosen["log_level"],
        log_format=chosen["log_format"],
        token_file=Path(chosen["token_file"]) if chosen["token_file"] else None,
        tunnels=TunnelSettings(
            first_port=chosen["first_port"],
            client_waits_s=chosen["client_waits_s"],
            ssh_connect_s=chosen["ssh_connect_s"],
            ssh_idle_s=chosen["ssh_idle_s"],
        ),
        declared=_declared(path, text, file),
        sources=sources,
    )


def shown(settings: Settings) -> list[tuple[str, str, str]]:
    """Each setting's name, value and source, for `fluxctl config show`."""
    values: dict[str, object] = {
        "state_dir": settings.state_dir,
        "config_dir": settings.config_dir,
        "log_dir": settings.log_dir,
        "log_level": settings.log_level,
        "log_format": settings.log_format,
        "token_file": settings.token_file or "",
        "first_port": settings.tunnels.first_port,
        "client_waits_s": settings.tunnels.client_waits_s,
        "ssh_connect_s": settings.tunnels.ssh_connect_s,
        "ssh_idle_s": settings.tunnels.ssh_idle_s,
    }
    return [(name, str(value), settings.sources[name]) for name, value in values.items()]


# -------------------------------------------------------------------- environment


def _places(environ: Mapping[str, str]) -> dict[str, Path]:
    defaults: dict[str, Callable[[str], Path]] = {
        "state_dir": platformdirs.user_state_path,
        "config_dir": platformdirs.user_config_path,
        "log_dir": platformdirs.user_log_path,
    }
    return {
        name: Path(named).absolute() if (named := environ.get(variable)) else defaults[name]("fluxd")
        for name, variable in DIRECTORIES.items()
    }


def _chosen(environ: Mapping[str, str], file: File, path: Path, text: str) -> tuple[dict[str, Any], dict[str, str]]:
    in_file = tomllib.loads(text)
    chosen: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for one in msgspec.structs.fields(File):
        if one.name not in VARIABLES:
            continue
        variable = VARIABLES[one.name]
        if sent := environ.get(variable, "").strip():
            chosen[one.name], sources[one.name] = _of_environment(variable, sent, one.type), variable
        else:
            chosen[one.name] = getattr(file, one.name)
            sources[one.name] = str(path) if one.name in in_file else "default"
    return chosen, sources


def _of_environment(variable: str, sent: str, kind: Any) -> Any:
    try:
        return msgspec.convert(sent, kind, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsInvalid(f"{variable} is {sent[:80]!r}: {error}.") from error


# --------------------------------------------------------------------------- file


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except UnicodeDecodeError as error:
        raise SettingsInvalid(f"{path}: it is not UTF-8 text.") from error
    except OSError as error:
        raise SettingsInvalid(f"{path}: it cannot be read: {error.strerror}.") from error


def _read(path: Path, text: str) -> File:
    try:
        return msgspec.convert(tomllib.loads(text), File)
    except tomllib.TOMLDecodeError as error:
        raise SettingsInvalid(f"{path}: {error}.") from error
    except msgspec.ValidationError as error:
        raise SettingsInvalid(f"{path}{_line(text, str(error))}: {error}.") from error


def _declared(path: Path, text: str, file: File) -> tuple[DeclaredTunnel, ...]:
    """The tunnels of the file, their bases in normal form; no two the same, no two on one port."""
    found: list[DeclaredTunnel] = []
    for index, one in enumerate(file.tunnel):
        try:
            base = None if one.api_base is None else normalised(one.api_base)
        except FluxError as error:
            raise SettingsInvalid(f"{path}{_line(text, f'$.tunnel[{index}].api_base')}: {error.message}") from error
        declared = msgspec.structs.replace(one, api_base=base)
        if clash := next((other for other in found if _clash(declared, other)), None):
            raise SettingsInvalid(f"{path}{_line(text, f'$.tunnel[{index}]')}: this is {_clash(declared, clash)}.")
        found.append(declared)
    return tuple(found)


def _clash(one: DeclaredTunnel, other: DeclaredTunnel) -> str | None:
    if (one.api_base, one.hash, one.access) == (other.api_base, other.hash, other.access):
        return f"the tunnel of {other.project} again"
    if one.port is not None and one.port == other.port:
        return f"the port of {other.project} again"
    return None


def _line(text: str, complaint: str) -> str:
    """`:LINE` of what *complaint* names, found by its key, since tomllib keeps no places; "" for an empty file."""
    unknown = re.search(r"unknown field `([^`]+)`", complaint)
    place = re.search(r"\$((?:\.\w+|\[\d+\])*)`?$", complaint)
    steps = re.findall(r"\.(\w+)|\[(\d+)\]", place[1]) if place else []
    names = [name for name, _ in steps if name] + ([unknown[1]] if unknown else [])
    table = next((int(number) for _, number in steps if number), None)
    lines = text.splitlines()
    start = _table_start(lines, table)
    if names and names[-1] != "tunnel":
        key = re.compile(
            rf"^\s*(?:[\w.\"-]+\.)?[\"']?{re.escape(names[-1])}[\"']?\s*=|[{{,]\s*{re.escape(names[-1])}\s*="
        )
        start = next((n for n, line in enumerate(lines[start:], start) if key.search(line)), start)
    return f":{start + 1}" if lines else ""


def _table_start(lines: list[str], table: int | None) -> int:
    starts = [n for n, line in enumerate(lines) if re.match(r"\s*\[\[\s*tunnel\s*\]\]", line)]
    return starts[table] if table is not None and table < len(starts) else 0
