"""
Postgres servers of the lab's own: make a cluster, run it on loopback, stop it.

Everything here blocks (bounded by the constants below); an event loop calls it from threads. A server listens on
127.0.0.1 only, has no Unix socket and asks everybody for SCRAM. Which binaries, and as which user: `binaries`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self
from urllib.parse import quote

from fluxplane.binaries import Installation, Runner
from fluxplane.lab.errors import LabFailed
from fluxplane.lab.ports import free_port
from fluxplane.lab.processes import dying_with_us, end_leftover
from fluxplane.wire import Secret

INITDB_WITHIN_S: Final = 120
READY_WITHIN_S: Final = 60
STOP_WITHIN_S: Final = 20
QUIT_WITHIN_S: Final = 5
POLL_S: Final = 0.02
PORT_TRIES: Final = 5

BASE_SETTINGS: Final = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "shared_buffers": "32MB",
    "max_connections": "300",
    "max_prepared_transactions": "16",
    "max_wal_size": "256MB",
    "log_line_prefix": "%m [%p] %u@%d ",
}


@dataclass
class Server:
    """
    One Postgres cluster in `home` (its data, its log), owned by `who`, superuser `postgres` with `password`.

    `start` makes the cluster if it isn't there. A cluster outlives its server and may be started again.
    """

    home: Path
    installation: Installation
    who: Runner
    password: Secret
    settings: Mapping[str, str] = field(default_factory=dict)
    port: int | None = None
    _process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def log(self) -> Path:
        return self.home / "log"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """
        The running postmaster.

        Raises:
            RuntimeError: it was not started.
        """
        if self._process is None:
            raise RuntimeError("this server was not started")
        return self._process

    def url(self, database: str = "postgres") -> Secret:
        """A superuser's URL, password and all."""
        password = quote(self.password.reveal(), safe="")
        return Secret(f"postgresql://postgres:{password}@127.0.0.1:{self.port}/{database}")

    def start(self) -> None:
        """
        Return once it accepts logins; `port` is the one it listens on, the given one if that was free.

        Raises:
            LabFailed: initdb or the server failed, with the end of what they said.
        """
        self._make_cluster()
        stop_leftover(self.data)
        for last in (False,) * (PORT_TRIES - 1) + (True,):
            self.port = free_port(preferred=self.port)
            self._process = self._launch()
            if self._ready():
                return
            self.stop()
            if last or "Address already in use" not in self._last_words():
                raise LabFailed(f"Postgres did not start: {self._last_words()}", hint=f"Its log is {self.log}.")

    def stop(self) -> None:
        """Fast shutdown, then harder: sessions are ended, and no process is left when this returns."""
        if self._process is None:
            return
        for number, within_s in ((signal.SIGINT, STOP_WITHIN_S), (signal.SIGQUIT, QUIT_WITHIN_S)):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.send_signal(number)
                self._process.wait(within_s)
                break
        else:
            self._process.kill()
            self._process.wait()
        self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _make_cluster(self) -> None:
        if self.data.exists():
            return
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.home.chmod(0o700)
        self.who.take(self.home)
        unfinished = self.home / f"data.{secrets.token_hex(4)}"
        with self._password_file() as password_file:
            done = self._initdb(unfinished, password_file)
        if done.returncode != 0:
            raise LabFailed(
                f"initdb failed: {(done.stderr or done.stdout).strip()[-1000:]}",
                hint=f"Check that {self.home} can be reached by uid {self.who.uid} and that the disk is not full.",
            )
        unfinished.rename(self.data)

    def _initdb(self, data: Path, password_file: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                self.installation.program("initdb"),
                *("-D", str(data), "-U", "postgres", "-A", "scram-sha-256", f"--pwfile={password_file}"),
                *("--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"),
            ],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=INITDB_WITHIN_S,
            check=False,
            cwd="/",
            env=_environment(),
            **self.who.popen_arguments(),
        )

    @contextlib.contextmanager
    def _password_file(self) -> Iterator[Path]:
        path = self.home / f"password.{secrets.token_hex(4)}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(descriptor, self.password.reveal().encode())
            os.close(descriptor)
            self.who.take(path)
            yield path
        finally:
            path.unlink()

    def _launch(self) -> subprocess.Popen[bytes]:
        """In a session of its own: Ctrl+C in our terminal reaches only us, and we decide the order of ending."""
        settings = BASE_SETTINGS | dict(self.settings) | {"port": str(self.port)}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with self.log.open("wb") as log:
            return subprocess.Popen(
                [*dying_with_us(signal.SIGINT), self.installation.program("postgres"), "-D", self.data, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=_environment(),
                start_new_session=True,
                **self.who.popen_arguments(),
            )

    def _ready(self) -> bool:
        """Wait until the postmaster says so, as pg_ctl does (line 8 of postmaster.pid); False if it ended or hangs."""
        give_up_at = time.monotonic() + READY_WITHIN_S
        while self.process.poll() is None and time.monotonic() < give_up_at:
            lines = _pid_file(self.data)
            if len(lines) >= 8 and lines[0] == str(self.process.pid) and lines[7].strip() == "ready":
                return True
            time.sleep(POLL_S)
        return False

    def _last_words(self) -> str:
        return self.log.read_text(errors="replace").strip()[-1000:]


def stop_leftover(data: Path) -> None:
    """End the server that still runs on *data* because whoever started it was killed."""
    lines = _pid_file(data)
    if lines and lines[0].isdigit():
        end_leftover(int(lines[0]), str(data), signal.SIGINT, within_s=STOP_WITHIN_S)


def _pid_file(data: Path) -> list[str]:
    try:
        return (data / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return []


def _environment() -> dict[str, str]:
    """Nothing of the caller's PG* variables, and messages in English."""
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
