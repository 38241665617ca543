"""
A `fluxd` of the test's own: private socket and directories, ports of its own, no FLUX_* variable in its environment.

`daemon.flux(...)` runs the installed client against it with the environment of a shell (a lab's `env`, say) and answers
what it printed; `daemon.hold(...)` keeps one running in the foreground. At the end nothing may be left.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.furniture.portranges import PORTS_EACH, port_range
from tests.furniture.processes import clean_environment, command, end, wait_until

_daemons: "weakref.WeakSet[Daemon]" = weakref.WeakSet()


def stop_all() -> None:
    """Every daemon that still runs drains, and ends the roles it has."""
    for daemon in list(_daemons):
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.stop()


class Daemon:
    def __init__(self, home: Path) -> None:
        _daemons.add(self)
        self.home = home
        self.socket = home / "s"
        self.log = home / "fluxd.out"
        self.first_port = port_range()
        self.process: subprocess.Popen | None = None
        directories = {
            "FLUXD_STATE_DIR": str(home / "state"),
            "FLUXD_CONFIG_DIR": str(home / "config"),
            "FLUXD_LOG_DIR": str(home / "log"),
            "XDG_RUNTIME_DIR": str(home),
        }
        where = {"FLUXD_SOCKET": str(self.socket), "FLUXD_FIRST_PORT": str(self.first_port)}
        self.environment = clean_environment(home, **directories, **where)

    def start(self, *words: str, **environment: str) -> None:
        """`fluxd WORDS…` with *environment* besides its own."""
        assert not any(name.startswith("FLUX_") for name in self.environment)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [command("fluxd"), *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment | environment,
                cwd=self.home,
            )
        wait_until(lambda: self.answers() or self._ended(), "fluxd on its socket")
        assert not self._ended(), self.said()

    def stop(self) -> None:
        """SIGTERM: it drains, and nothing of it is left."""
        assert self.process is not None
        code = end(self.process)
        assert code == 0, self.said()
        assert not self.answers()
        assert self.listening() == []

    def kill(self) -> None:
        """As a crash does."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def said(self) -> str:
        """Everything it printed and logged."""
        logs = [self.log, *(self.home / "log").rglob("*")]
        return "\n".join(path.read_text(errors="replace") for path in logs if path.is_file())

    def answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def listening(self) -> list[int]:
        """Ports of its range that somebody listens on."""
        return [port for port in range(self.first_port, self.first_port + PORTS_EACH) if is_listening(port)]

    def _ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def flux(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        program: str = "flux",
        stdin: str = "",
        within_s: float = 60,
        under: Sequence[str] = (),
    ) -> subprocess.CompletedProcess[str]:
        """Run `flux …` to its end in a shell with *env*; *under* is a program, such as prlimit, that runs it."""
        return subprocess.run(
            [*under, command(program), *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            env=self.environment | dict(env or {}),
            cwd=self.home,
            timeout=within_s,
            check=False,
        )

    def flux_json(self, *arguments: str, env: Mapping[str, str] | None = None) -> Any:
        done = self.flux(*arguments, "--json", env=env)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    @contextlib.contextmanager
    def hold(self, *arguments: str, env: Mapping[str, str] | None = None, ready: str = "Ctrl+C") -> Iterator["Held"]:
        """`flux …` in the foreground, once it has printed *ready*; ended by SIGTERM if it runs at the end."""
        held = Held(self, arguments, dict(env or {}))
        try:
            held.wait_for(ready)
            yield held
        finally:
            if held.process.poll() is None:
                end(held.process)


class Held:
    """A foreground command; `out` and `err` are what it printed so far."""

    def __init__(self, daemon: Daemon, arguments: tuple[str, ...], env: Mapping[str, str]) -> None:
        descriptor, out = tempfile.mkstemp(dir=daemon.home, prefix="out.")
        error_descriptor, err = tempfile.mkstemp(dir=daemon.home, prefix="err.")
        self._out, self._err = Path(out), Path(err)
        with os.fdopen(descriptor, "wb") as stdout, os.fdopen(error_descriptor, "wb") as stderr:
            self.process = subprocess.Popen(
                [command("flux"), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env=daemon.environment | dict(env),
                cwd=daemon.home,
            )

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def wait_for(self, words: str, *, within_s: float = 60) -> None:
        wait_until(lambda: words in self.out or self.process.poll() is not None, f"{words!r}", within_s=within_s)
        assert words in self.out, self.out + self.err

    def field(self, name: str) -> str:
        """What the GUI block says for *name*."""
        values = [
            line.split(":", 1)[1].strip() for line in self.out.splitlines() if line.strip().startswith(name + ":")
        ]
        assert values, f"no {name} in {self.out}"
        return values[-1]


def is_listening(port: int, host: str = "127.0.0.1") -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


@pytest.fixture
def daemon_home() -> Iterator[Path]:
    """Short, so that a socket's path fits; gone afterwards."""
    home = Path(tempfile.mkdtemp(prefix="fluxd-"))
    yield home
    shutil.rmtree(home)


@pytest.fixture
def daemon(daemon_home: Path) -> Iterator[Daemon]:
    """A running fluxd that never heard of any lab."""
    own = Daemon(daemon_home)
    own.start()
    yield own
    if own.process is not None and own.process.poll() is None:
        own.stop()
    assert "Traceback" not in own.said()
