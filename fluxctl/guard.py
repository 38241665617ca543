"""
Undoes what this command was making, should it be killed: a process of its own, which our `kill -9` does not reach.

It waits at a pipe whose other end we alone hold. A byte says that there is nothing to undo; the pipe's end without one
says that we are gone, or gave up. It then ends the programs that we started in its process group, runs one program,
removes one path, and ends. Descriptors that it keeps (a hold) stay open until then, and with them the tunnel.

The class is our side. As a script, ``python -I -S guard.py SPEC``, this is the other one: of the standard library
alone, so that it is there at once. SPEC is JSON and holds no secret: it stands on a command line.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Any, Self

_TRIES = 3
_AGAIN_AFTER_S = 0.5
_RUN_WITHIN_S = 15.0
# Longer than all of that together.
_TIDY_WITHIN_S = 100.0


class Guard:
    """
    Leaving the block without `dismiss` undoes, and waits for that; `tidied` says whether it went well.

    `group` is the process group of the programs that end with us.
    """

    def __init__(
        self,
        *,
        remove: Path | None = None,
        run: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
        keeps: Sequence[int] = (),
    ) -> None:
        """*remove*: a file or directory; *run*: a program with its *variables*; *keeps*: descriptors to hold open."""
        spec = {"remove": str(remove) if remove else None, "run": list(run)}
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**(variables or {}), "LC_ALL": "C"},
            pass_fds=keeps,
            # Of our session, as `group` must be; but no Ctrl+C reaches it.
            process_group=0,
            bufsize=0,
        )
        self.group = self._process.pid
        self.tidied = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._leave()
        self.tidied = self._process.wait(_TIDY_WITHIN_S) == 0

    def dismiss(self) -> None:
        """There is nothing to undo any more."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b".")
        except (BrokenPipeError, ValueError):
            return  # it was killed, or dismissed before
        self._leave()

    def _leave(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()


# ----------------------------------------------------------------- the other side


def watch(spec: Mapping[str, Any]) -> int:
    """The exit status: 0, nothing is left."""
    signal.signal(signal.SIGTERM, lambda _number, _frame: None)  # not ignored: that would be inherited
    if os.read(0, 1):
        return 0
    if not _undone(spec):
        return 1
    # What was just being started when we were killed has begun by now.
    time.sleep(_AGAIN_AFTER_S)
    return 0 if _undone(spec) else 1


def _undone(spec: Mapping[str, Any]) -> bool:
    for _ in range(_TRIES):
        os.killpg(0, signal.SIGTERM)
        if _succeeds(spec["run"]) and _is_gone(spec["remove"]):
            return True
        time.sleep(_AGAIN_AFTER_S)
    return False


def _succeeds(argv: Sequence[str]) -> bool:
    if not argv:
        return True
    try:
        # Not in our group, which is being ended.
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, timeout=_RUN_WITHIN_S, check=False, start_new_session=True
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


def _is_gone(path: str | None) -> bool:
    """A program that is just ending may still write into a directory: then it is not gone yet."""
    if path is None:
        return True
    try:
        shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)  # noqa: PTH108, PTH112 - pathlib costs a start
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(watch(json.loads(sys.argv[1])))
