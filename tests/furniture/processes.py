"""The installed commands as child processes: their environment, waiting for them with a bound, what they started."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

BIN = Path(sys.executable).parent


def command(name: str) -> str:
    """The installed script beside this interpreter."""
    path = BIN / name
    assert path.exists(), f"{path} is not installed"
    return str(path)


def clean_environment(home: Path, **more: str) -> dict[str, str]:
    """PATH with the installed commands first, a home of its own, and nothing of FLUX_*, PG*, SSH_* or DOCKER_*."""
    path = f"{BIN}:{os.environ['PATH']}"
    return {"PATH": path, "HOME": str(home), "LANG": "C.UTF-8", "PYTHONWARNINGS": "default", **more}


def wait_until(true: Callable[[], object], what: str, *, within_s: float = 30) -> None:
    """Poll *true* until it is."""
    give_up_at = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < give_up_at, f"not within {within_s} s: {what}"
        time.sleep(0.02)


def end(process: subprocess.Popen, *, with_signal: int = signal.SIGTERM, within_s: float = 30) -> int:
    """Signal it and answer its exit code; one that doesn't listen is killed and fails the test."""
    if process.poll() is None:
        process.send_signal(with_signal)
    try:
        return process.wait(within_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise AssertionError(f"{process.args} did not end within {within_s} s") from None


def descendants(pid: int) -> Iterator[int]:
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in _children(path):
            yield child
            yield from descendants(child)


def _children(path: Path) -> list[int]:
    try:
        return [int(child) for child in path.read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []  # it has ended since it was seen


def alive(pids: list[int]) -> list[int]:
    """Those that still run; a zombie whose parent has not looked does not."""
    return [pid for pid in pids if _state(pid) not in {"", "Z", "X"}]


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def exported(env_file: Path) -> Mapping[str, str]:
    """What a shell has of FLUX_* after reading *env_file*."""
    script = '. "$1" && env -0'
    said = subprocess.run(
        ["sh", "-c", script, "sh", str(env_file)], env={"PATH": os.defpath}, capture_output=True, check=True, timeout=10
    )
    pairs = (entry.decode().split("=", 1) for entry in said.stdout.split(b"\0") if entry)
    return {name: value for name, value in pairs if name.startswith("FLUX")}
