"""
What the shell says: which control plane, which token, which SSH identity.

Read from flags, the process environment and (for the plane only) `.env` and `.env.local` beside the nearest
`flux.json`, as the platform's contract has it, with one difference: **a token belongs to the base it was made for**.
One from the shell's environment is for the shell's base, one from a dotenv file for the base that the same file names
(each for the default where none is named). A token is sent only to the base it is for, so that a cloned repository's
`.env` with a `FLUX_API_BASE` collects nobody's; without one the daemon looks for a login for that very base.

(The contract infers the hosted base from `FLUX_URL` where `FLUX_API_BASE` is unset. That is the default base anyway.)
"""

from __future__ import annotations

import os
import stat

from fluxctl import project
from fluxctl.problem import Problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from fluxd.shapes import SSH, Plane

DEFAULT_API_BASE = "https://flux.vsl-base.com/api"
_SSH_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:-")
_LARGEST_DOTENV = 1024 * 1024


class Source:
    """One place that may name a base and a token: the shell, or one dotenv file."""

    def __init__(self, name: str, variables: Mapping[str, str]) -> None:
        self.name = name
        named = variables.get("FLUX_API_BASE", "").strip()
        self.base = normalised(named) if named else None
        self.token = variables.get("FLUX_API_TOKEN", "").strip() or None

    @property
    def token_base(self) -> str:
        """The base that this source's token was made for."""
        return self.base or DEFAULT_API_BASE


class Environment:
    """The shell's say, read once. `flags` hold what the command line said, which wins."""

    def __init__(self, variables: Mapping[str, str], directory: str, flags: Mapping[str, object] | None = None) -> None:
        self._variables = variables
        self._flags = flags or {}
        self.sources = [Source("the environment", variables), *_dotenv_sources(directory)]

    @property
    def api_base(self) -> str:
        """The control plane asked, normalised as the contract says."""
        named = self._flags.get("api_base")
        if isinstance(named, str) and named.strip():
            return normalised(named)
        return next((source.base for source in self.sources if source.base), DEFAULT_API_BASE)

    @property
    def token(self) -> str | None:
        """The first token that was made for `api_base`, None if there is none."""
        return next((one.token for one in self.sources if one.token and one.token_base == self.api_base), None)

    def withheld(self) -> str | None:
        """Why a token that is there was not sent, as a sentence; None if none was kept back."""
        if self.token:
            return None
        kept = next((source for source in self.sources if source.token), None)
        if kept is None:
            return None
        return (
            f"FLUX_API_TOKEN from {kept.name} was made for {kept.token_base} and is not sent to {self.api_base}. "
            f"Use `fluxctl login --api-base {self.api_base}`, or set both variables in the same place."
        )

    def plane(self) -> Plane:
        """The `plane` of a request's body."""
        found: Plane = {"api_base": self.api_base}
        if self.token:
            found["token"] = self.token
        return found

    def ssh(self) -> SSH:
        """
        The `ssh` of a request's body: flag, else environment. Paths are absolute.

        Raises:
            Problem: ssh_target_invalid, a name or number that is none.
        """
        found: SSH = {}
        if host := self._ssh_word("ssh_host", "FLUX_DB_TUNNEL_SSH_HOST"):
            found["host"] = host
        if user := self._ssh_word("ssh_user", "FLUX_DB_TUNNEL_SSH_USER"):
            found["user"] = user
        if port := self._ssh_port():
            found["port"] = port
        if identity := self._path("identity_file", "FLUX_DB_TUNNEL_IDENTITY_FILE"):
            found["identity_file"] = identity
        if known_hosts := self._path("known_hosts", "FLUX_DB_TUNNEL_KNOWN_HOSTS"):
            found["known_hosts"] = known_hosts
        networks = ("FLUX_DB_TUNNEL_PREFER_NETWORK", "FLUX_SHARED_POSTGRES_TUNNEL_DOCKER_NETWORK")
        if network := next(filter(None, map(self._variable, networks)), None):
            found["prefer_network"] = network
        if agent := _agent(self._variable("SSH_AUTH_SOCK")):
            found["agent"] = agent
        if (docker_host := self._variable("DOCKER_HOST")).startswith("ssh://"):
            found["docker_host"] = docker_host
        return found

    def _variable(self, name: str) -> str:
        return self._variables.get(name, "").strip()

    def _ssh_word(self, flag: str, variable: str) -> str | None:
        said = self._flags.get(flag)
        word = said if isinstance(said, str) else self._variable(variable)
        if word and not (word[0].isalnum() and len(word) <= 253 and _SSH_CHARACTERS.issuperset(word)):
            named = f"--{flag.replace('_', '-')}" if isinstance(said, str) else variable
            raise Problem("ssh_target_invalid", f"{named} is not a host or user name: {word}")
        return word or None

    def _ssh_port(self) -> int | None:
        said = self._flags.get("ssh_port")
        if isinstance(said, int):
            return said
        text = self._variable("FLUX_DB_TUNNEL_SSH_PORT")
        if not text:
            return None
        if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535):
            raise Problem("ssh_target_invalid", f"FLUX_DB_TUNNEL_SSH_PORT is not a port: {text}")
        return int(text)

    def _path(self, flag: str, variable: str) -> str | None:
        said = self._flags.get(flag)
        path = said if isinstance(said, str) else self._variable(variable)
        return os.path.abspath(os.path.expanduser(path)) if path else None  # noqa: PTH100, PTH111 - pathlib costs a start


def of_shell(flags: Mapping[str, object] | None = None) -> Environment:
    """This process' environment."""
    return Environment(os.environ, project.working_directory(), flags)


def normalised(base: str) -> str:
    """
    *base* as the contract compares it: no trailing slashes, exactly one `/api` at the end.

    `http://h:1`, `http://h:1/`, `http://h:1/api/` and `http://h:1/api/api` are all `http://h:1/api`; blank is the
    default.
    """
    base = base.strip().rstrip("/")
    if not base:
        return DEFAULT_API_BASE
    while base.lower().endswith("/api"):
        base = base[:-4].rstrip("/")
    return base + "/api"


def parse_dotenv(text: str) -> dict[str, str]:
    """`KEY=value` lines with optional matching quotes; `#` lines are comments; the first of a key wins."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, equals, value = line.strip().partition("=")
        key, value = key.strip(), value.strip()
        if not equals or key.startswith("#") or not key:
            continue
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        found.setdefault(key, value)
    return found


def _dotenv_sources(directory: str) -> list[Source]:
    """`.env.local`, which wins, then `.env`, of the nearest directory with a flux.json, else of *directory*."""
    place = project.nearest(directory) or directory
    found = []
    for name in (".env.local", ".env"):
        path = f"{place.rstrip('/')}/{name}"
        if (text := _read(path)) is not None:
            found.append(Source(path, parse_dotenv(text)))
    return found


def _read(path: str) -> str | None:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - pathlib costs a start
            return file.read(_LARGEST_DOTENV).decode("utf-8", "replace").removeprefix("\ufeff")
    except OSError:
        return None


def _agent(path: str) -> str | None:
    """*path* if it is an agent's socket that fluxd will open for us; a stale variable is no error."""
    try:
        found = os.stat(path) if path.startswith("/") else None  # noqa: PTH116 - pathlib costs a start
    except OSError:
        return None
    return path if found and stat.S_ISSOCK(found.st_mode) and found.st_uid == os.geteuid() else None
