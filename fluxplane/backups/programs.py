"""
Runs PostgreSQL's programs: which one, caged, with a private passfile, bounded, and gone when we are.

No password is ever on a command line or in an environment: libpq reads it from a 0600 file that lives as long as the
run. What a program says is English (LC_ALL=C), kept up to a bound, and only shown when it failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fluxplane import binaries
from fluxplane.backups import cage
from fluxplane.wire import Secret

END_WITHIN_S: Final = 5
TICK_S: Final = 0.5
_DESCRIPTORS: Final = Path("/proc/self/fd")
KEPT_OF_STDERR: Final = 64 * 1024
CONNECT_WITHIN_S: Final = 10


class BackupFailed(Exception):
    """What went wrong, for the owner of the project and for the operator. Never holds a secret."""


class Unable(BackupFailed):
    """Nothing is wrong with the backup; this machine could not do it."""


@dataclass(frozen=True)
class Login:
    """How to reach one database. `host` may be the directory of a Unix socket."""

    host: str
    port: int
    user: str
    password: Secret
    database: str = "postgres"

    def arguments(self) -> list[str]:
        return ["-h", self.host, "-p", str(self.port), "-U", self.user, "-d", self.database]


@dataclass(frozen=True)
class Cage:
    """See `cage`. `by` is what the program gets when we die."""

    by: signal.Signals = signal.SIGKILL
    uid: int | None = None
    offline: bool = False
    limits: Mapping[str, int] = field(default_factory=dict)

    def command(self, argv: Sequence[str | Path]) -> list[str]:
        spec: dict[str, Any] = {
            "parent": os.getpid(),
            "signal": int(self.by),
            "uid": self.uid,
            "offline": self.offline,
            "limits": dict(self.limits),
        }
        return [sys.executable, "-I", "-S", cage.__file__, json.dumps(spec), *map(str, argv)]


@dataclass(frozen=True)
class Finished:
    """How a program ended, and the end of what it said on stderr."""

    status: int
    said: str

    def words(self) -> str:
        """One line: the errors if there are any, else the last thing it said."""
        lines = [line.strip() for line in self.said.splitlines() if line.strip()]
        errors = [line for line in lines if "error:" in line or "ERROR:" in line or "FATAL:" in line]
        return " ".join((errors or lines or [f"it ended with status {self.status} and said nothing"])[-3:])[:1000]


def environment(passfile: Path | None = None) -> dict[str, str]:
    """Nothing of the caller's PG* variables."""
    known = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC", "PGCONNECT_TIMEOUT": str(CONNECT_WITHIN_S)}
    return known | ({"PGPASSFILE": str(passfile)} if passfile else {})


@contextlib.asynccontextmanager
async def passfile(login: Login) -> AsyncIterator[Path]:
    """
    A 0600 file with this one login, for as long as the block runs. On Linux it is in memory only, so that not even a
    kill leaves it behind; elsewhere in a private directory of its own.
    """
    words = (login.host, str(login.port), login.database, login.user, login.password.reveal())
    line = ":".join(word.replace("\\", "\\\\").replace(":", "\\:") for word in words) + "\n"
    with _in_memory(line) if hasattr(os, "memfd_create") else _in_a_directory(line) as path:
        yield path


@contextlib.contextmanager
def _in_memory(line: str) -> Iterator[Path]:
    descriptor = os.memfd_create("pass", os.MFD_CLOEXEC)
    try:
        os.fchmod(descriptor, 0o600)  # libpq ignores what others may read
        os.write(descriptor, line.encode())
        yield _DESCRIPTORS / str(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _in_a_directory(line: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="flux-pass-") as directory:
        path = Path(directory) / "pass"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(line)
        yield path


def _inherited(env: Mapping[str, str]) -> tuple[int, ...]:
    """The descriptor of a passfile in memory: the program opens it by its own /proc."""
    path = Path(env.get("PGPASSFILE", ""))
    return (int(path.name),) if path.parent == _DESCRIPTORS else ()


@contextlib.asynccontextmanager
async def started(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str],
    within: Cage | None = None,
    stdout: int = asyncio.subprocess.DEVNULL,
    stderr: int = asyncio.subprocess.PIPE,
    ending: signal.Signals = signal.SIGTERM,
) -> AsyncIterator[asyncio.subprocess.Process]:
    """
    A running program. Leaving the block ends it, by *ending* first; no process is left.

    Raises:
        BackupFailed: it cannot be started.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *(within or Cage()).command(argv),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=dict(env),
            cwd="/",
            start_new_session=True,
            pass_fds=_inherited(env),
        )
    except OSError as failure:
        raise Unable(f"{Path(argv[0]).name} cannot be started: {failure.strerror}") from failure
    try:
        yield process
    finally:
        await asyncio.shield(_end(process, ending))


async def _end(process: asyncio.subprocess.Process, ending: signal.Signals) -> None:
    for number in (ending, signal.SIGKILL):
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_WITHIN_S):
                    await process.wait()
    await process.wait()


async def run(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str],
    within_s: float,
    within: Cage | None = None,
    tick: Callable[[], object] | None = None,
    line: Callable[[str], object] | None = None,
) -> Finished:
    """
    Run to the end; *tick* is called about every `TICK_S` (what it raises ends the program), *line* with each line of
    stdout.

    Raises:
        BackupFailed: not started, or not done *within_s*.
    """
    stdout = asyncio.subprocess.DEVNULL if line is None else asyncio.subprocess.PIPE
    try:
        async with (
            asyncio.timeout(within_s),
            started(argv, env=env, within=within, stdout=stdout) as process,
            beside(_ticking(tick)),
        ):
            said, _ = await asyncio.gather(tail(process.stderr), _each_line(process.stdout, line))
            return Finished(await process.wait(), said)
    except TimeoutError:
        raise Unable(f"{Path(argv[0]).name} was not done within {within_s:.0f} s.") from None


@contextlib.asynccontextmanager
async def beside(coroutine: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """The block, and *coroutine* as long as that runs; a failure of either ends both and comes out as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(coroutine)
            yield
            task.cancel()
    except* Exception as failures:  # noqa: BLE001 - raised again, out of its group
        raise first(failures) from None


def first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first failure in a group, however nested."""
    found: BaseException = failures
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


async def _ticking(tick: Callable[[], object] | None) -> None:
    while tick is not None:
        tick()
        await asyncio.sleep(TICK_S)


async def tail(stream: asyncio.StreamReader | None) -> str:
    kept = b""
    while stream is not None and (more := await stream.read(16 * 1024)):
        kept = (kept + more)[-KEPT_OF_STDERR:]
    return kept.decode(errors="replace")


async def _each_line(stream: asyncio.StreamReader | None, line: Callable[[str], object] | None) -> None:
    """Lines may be longer than any buffer (a function's body): their rest is dropped."""
    if stream is None or line is None:
        return
    begun = b""
    while more := await stream.read(64 * 1024):
        *whole, begun = (begun + more).split(b"\n")
        for one in whole:
            line(one.decode(errors="replace"))
        begun = begun[:KEPT_OF_STDERR]


# ----------------------------------------------------------------------- choosing


async def installations() -> list[binaries.Installation]:
    """Every PostgreSQL of this machine, each major version once: PATH's, then the system's, then the embedded one."""
    return await asyncio.to_thread(_installations)


def _installations() -> list[binaries.Installation]:
    found: dict[int, binaries.Installation] = {}
    for one in (*_on_path(), *binaries.system(), *filter(None, map(binaries.embedded, binaries.EMBEDDED))):
        found.setdefault(one.major, one)
    return list(found.values())


def _on_path() -> list[binaries.Installation]:
    """Only where server and clients stand side by side: Debian's wrappers on PATH choose by configuration."""
    place = shutil.which("postgres")
    if place is None:
        return []
    with contextlib.suppress(binaries.Unusable):
        return [binaries.at(Path(place).resolve().parent)]
    return []


def fitting(server_major: int, known: Sequence[binaries.Installation]) -> binaries.Installation:
    """
    The nearest major version at or above the server's: pg_dump refuses a newer server, and a restore needs one at
    least as new.

    Raises:
        Unable: there is none; both versions are named.
    """
    able = sorted((one for one in known if one.major >= server_major), key=lambda one: one.major)
    if able:
        return able[0]
    newest = max((one.major for one in known), default=None)
    has = f"this machine's newest is {newest}" if newest else "this machine has none"
    raise Unable(
        f"The project's server is PostgreSQL {server_major}; its backup needs programs at least as new, and {has}. "
        f"The operator can install postgresql-{server_major}."
    )
