"""
A Postgres to restore into and throw away: never the pool, never the project.

What is restored is a tenant's own program: defaults, constraints and index expressions run while it loads. So the
server has a private directory, a Unix socket only, no network at all where the kernel lets us (Linux), limits on
processes and files, and for root an OS user of its own that owns nothing else. Where we are not root it shares our
user: then nothing is restored as a superuser (`superuser` says so), since a superuser may run programs. It ends with
us, however we end; a directory left by a crash is removed by the next `sweep`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pwd
import secrets
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fluxplane import binaries
from fluxplane.backups import programs
from fluxplane.backups.programs import Cage, Login, Unable
from fluxplane.wire import Secret

MADE_WITHIN_S: Final = 120
READY_WITHIN_S: Final = 60
POLL_S: Final = 0.05
PORT: Final = 5432
DATABASE: Final = "verify"
PREFIX: Final = "verify-"
LOCK: Final = "lock"
# A Unix socket's path has at most 104 bytes on macOS, 108 on Linux.
LONGEST_PATH: Final = 80
# Where systemd's DynamicUser takes its users from: nobody else uses these.
OWN_UIDS: Final = range(61_184, 65_520)

_SETTINGS: Final = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "autovacuum": "off",
    "max_connections": "10",
    "max_worker_processes": "0",
    "max_parallel_workers": "0",
    "shared_buffers": "64MB",
    "maintenance_work_mem": "64MB",
    "max_wal_size": "256MB",
    "jit": "off",
}


@dataclass(frozen=True)
class Limits:
    """What the server's processes may use. `reserve_bytes` stay free on the disk, whatever is restored."""

    processes: int = 64
    file_bytes: int = 2 * 1024**3
    memory_bytes: int = 4 * 1024**3
    reserve_bytes: int = 512 * 1024**2


@dataclass(frozen=True)
class Throwaway:
    """A running server. `superuser`: it runs as a user of its own, so that a restore may be a superuser's."""

    home: Path
    password: Secret
    superuser: bool

    def login(self, user: str = "postgres", database: str = DATABASE) -> Login:
        return Login(str(self.home), PORT, user, self.password, database)


@contextlib.asynccontextmanager
async def throwaway(
    installation: binaries.Installation, work: Path, limits: Limits | None = None
) -> AsyncIterator[Throwaway]:
    """
    A new, empty, running server below *work*; gone with all it held when the block ends.

    Raises:
        Unable: it cannot be made or started, with the end of what it said.
    """
    bounds = limits or Limits()
    async with _home(work) as home:
        who = binaries.runner()
        who.take(home)
        usable = await _reachable(installation, who, work)
        password = Secret(secrets.token_urlsafe(24))
        await _initdb(usable, home, who, password)
        uid = await asyncio.to_thread(_own, home) if who.changed else None
        async with _running(usable, home, uid, bounds):
            yield Throwaway(home, password, superuser=uid is not None)


def sweep(work: Path) -> list[str]:
    """Remove what crashed verifications left; a directory whose maker still lives is locked and stays."""
    return [home.name for home in work.glob(PREFIX + "*") if _abandoned(home)]


def _abandoned(home: Path) -> bool:
    with contextlib.suppress(OSError), _locked(home):
        shutil.rmtree(home, ignore_errors=True)
        return True
    return False


@contextlib.asynccontextmanager
async def _home(work: Path) -> AsyncIterator[Path]:
    home = work / (PREFIX + secrets.token_hex(4))
    if len(os.fsencode(home)) > LONGEST_PATH:
        raise Unable(f"{work} is too long a path for a Unix socket: choose a shorter directory for the backups.")
    try:
        home.mkdir(mode=0o700, parents=True)
        with _locked(home):
            try:
                yield home
            finally:
                # What was restored may be large: not in the event loop, and to its end.
                await asyncio.shield(asyncio.to_thread(shutil.rmtree, home, ignore_errors=True))
    except OSError as failure:
        raise Unable(f"{home} cannot be used: {failure.strerror}") from failure


@contextlib.contextmanager
def _locked(home: Path) -> Iterator[None]:
    descriptor = os.open(home / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


async def _reachable(installation: binaries.Installation, who: binaries.Runner, work: Path) -> binaries.Installation:
    try:
        return await asyncio.to_thread(binaries.reachable, installation, who, work / "bin")
    except binaries.Unusable as failure:
        raise Unable(str(failure)) from failure


async def _initdb(installation: binaries.Installation, home: Path, who: binaries.Runner, password: Secret) -> None:
    """As a user that has a name, which initdb insists on."""
    file = home / "password"
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as opened:
        opened.write(password.reveal())
    who.take(file)
    options = ["-U", "postgres", "-A", "scram-sha-256", f"--pwfile={file}", "--encoding=UTF8", "--locale=C"]
    done = await programs.run(
        [installation.program("initdb"), "-D", home / "data", *options, "--no-sync", "--no-instructions"],
        env=programs.environment(),
        within_s=MADE_WITHIN_S,
        within=Cage(uid=who.uid if who.changed else None),
    )
    file.unlink()
    if done.status != 0:
        raise Unable(f"The verification's database cannot be made: {done.words()}")


def _own(home: Path) -> int:
    """Give *home* to an OS user that nobody is."""
    uid = next(number for number in iter(lambda: secrets.choice(OWN_UIDS), None) if _unknown(number))
    for path in (home, *home.rglob("*")):
        os.chown(path, uid, uid, follow_symlinks=False)
    return uid


def _unknown(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return True
    return False


@contextlib.asynccontextmanager
async def _running(
    installation: binaries.Installation, home: Path, uid: int | None, limits: Limits
) -> AsyncIterator[None]:
    settings = _SETTINGS | {"unix_socket_directories": str(home), "port": str(PORT)}
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    log = home / "log"
    with log.open("wb") as said:
        async with programs.started(
            [installation.program("postgres"), "-D", home / "data", *options],
            env=programs.environment(),
            within=_cage(uid, limits),
            stdout=said.fileno(),
            stderr=said.fileno(),
            ending=signal.SIGQUIT,
        ) as process:
            await _ready(process, home / "data" / "postmaster.pid", log)
            yield


def _cage(uid: int | None, limits: Limits) -> Cage:
    """A limit on processes counts a whole user, so it is set only for one that is the server's own."""
    bounds = {"FSIZE": limits.file_bytes, "CORE": 0}
    bounds |= {"AS": limits.memory_bytes} if sys.platform == "linux" else {}
    bounds |= {"NPROC": limits.processes} if uid is not None else {}
    # SIGQUIT: the postmaster takes its children with it, at once.
    return Cage(by=signal.SIGQUIT, uid=uid, offline=True, limits=bounds)


async def _ready(process: asyncio.subprocess.Process, pid_file: Path, log: Path) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(READY_WITHIN_S):
            while process.returncode is None:
                if _says_ready(pid_file):
                    return
                await asyncio.sleep(POLL_S)
    raise Unable(f"The verification's server did not start: {_last_words(log)}")


def _says_ready(pid_file: Path) -> bool:
    """As pg_ctl asks: line 8 of postmaster.pid."""
    lines = pid_file.read_text().splitlines() if pid_file.exists() else []
    return len(lines) >= 8 and lines[7].strip() == "ready"


def _last_words(log: Path) -> str:
    return " ".join(log.read_text(errors="replace").split())[-500:] or "it said nothing"
