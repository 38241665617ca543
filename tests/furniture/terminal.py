"""A person at a terminal: a command with a controlling terminal of its own, read and typed to."""

import contextlib
import os
import pty
import select
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path


class Terminal:
    """`shown` is all that the terminal showed so far."""

    def __init__(self, descriptor: int, process: subprocess.Popen) -> None:
        self._descriptor = descriptor
        self.process = process
        self.shown = ""

    def read_until(self, words: str, *, times: int = 1, within_s: float = 60) -> None:
        """Fail if *words* do not appear so often."""
        give_up_at = time.monotonic() + within_s
        while self.shown.count(words) < times:
            assert self._read(give_up_at - time.monotonic()), f"no {words!r} in {self.shown!r}"

    def type(self, line: str, *, encoding: str = "utf-8") -> None:
        os.write(self._descriptor, f"{line}\n".encode(encoding))

    def end(self, *, within_s: float = 60) -> int:
        """Read to the end; the exit code."""
        give_up_at = time.monotonic() + within_s
        while self._read(give_up_at - time.monotonic()):
            pass
        return self.process.wait(within_s)

    def _read(self, within_s: float) -> bool:
        ready, _, _ = select.select([self._descriptor], [], [], max(0.0, within_s))
        if not ready:
            return False
        try:
            more = os.read(self._descriptor, 65536)
        except OSError:  # EIO: nobody has the other side open any more
            return False
        self.shown += more.decode(errors="replace")
        return bool(more)


@contextlib.contextmanager
def at_a_terminal(argv: Sequence[str], env: Mapping[str, str], directory: Path) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", *argv], stdin=theirs, stdout=theirs, stderr=theirs, env=env, cwd=directory
    )
    os.close(theirs)
    try:
        yield Terminal(ours, process)
    finally:
        os.close(ours)  # hangs up on whatever still runs there
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()
