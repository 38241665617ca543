"""
The lab's directory: what it keeps between runs, and what it tells its users.

Kept: a random `seed` from which every password is derived (so that none lies in a file but `lab.json` and `env`), the
SSH keys, the control plane's key, the clusters, `ports.json`, and in `env` the token. `lab.json` is there exactly while
a lab runs and is ready. Everything secret is 0600.
"""

from __future__ import annotations

import contextlib
import fcntl
import hmac
import json
import os
import re
import secrets
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fluxplane.lab.errors import LabFailed
from fluxplane.wire import Secret

TOKEN_LINE: Final = re.compile(r"^export FLUX_API_TOKEN=(\S+)$", re.MULTILINE)
SEED_BYTES: Final = 32


@dataclass(frozen=True)
class Directory:
    """A directory that this lab has for itself, and a seed nobody else knows."""

    path: Path
    seed: bytes

    def secret(self, name: str) -> Secret:
        """The same for the same name, in every run."""
        return Secret(hmac.digest(self.seed, name.encode(), "sha256").hex())

    @property
    def env(self) -> Path:
        return self.path / "env"

    @property
    def lab_json(self) -> Path:
        return self.path / "lab.json"

    def last_token(self) -> Secret | None:
        """The one that the last run told its users."""
        found = TOKEN_LINE.search(self.env.read_text()) if self.env.exists() else None
        return Secret(shlex.split(found[1])[0]) if found else None

    def last_ports(self) -> dict[str, int]:
        """Where the last run listened; empty when there was none."""
        try:
            return {str(name): int(port) for name, port in json.loads((self.path / "ports.json").read_text()).items()}
        except (FileNotFoundError, ValueError, AttributeError, TypeError):
            return {}

    def write_ports(self, ports: Mapping[str, int]) -> None:
        write_private(self.path / "ports.json", json.dumps(dict(ports)) + "\n")

    def write_env(self, variables: Mapping[str, str]) -> None:
        lines = (f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
        write_private(self.env, "".join(lines))

    def write_lab_json(self, facts: Mapping[str, Any]) -> None:
        write_private(self.lab_json, json.dumps(facts, indent=2) + "\n")


def write_private(path: Path, text: str) -> None:
    """All of it or nothing, 0600 from the first byte."""
    descriptor, unfinished = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    Path(unfinished).rename(path)


@contextlib.contextmanager
def opened(path: Path, *, enterable: bool) -> Iterator[Directory]:
    """
    *path* as a lab's own directory: made if it isn't there, 0700 (0711 if *enterable*), locked while in use.

    Raises:
        LabFailed: it belongs to somebody else, or a lab runs in it.
    """
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.stat().st_uid != os.geteuid():
        raise LabFailed(f"{path} belongs to another user.", hint="Choose a --dir of your own.")
    path.chmod(0o711 if enterable else 0o700)
    with _locked(path):
        directory = Directory(path, _seed(path / "seed"))
        directory.lab_json.unlink(missing_ok=True)
        try:
            yield directory
        finally:
            directory.lab_json.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as taken:
        raise LabFailed(f"A lab runs in {path} already.", hint="Use that one, or another --dir.") from taken
    finally:
        os.close(descriptor)


def _seed(path: Path) -> bytes:
    if not path.exists():
        write_private(path, secrets.token_hex(SEED_BYTES))
    return bytes.fromhex(path.read_text())
