"""Running a program that has the terminal: its signals, and what its end means for our exit code."""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, Self

# A terminal sends these to the program as well as to us: its own business.
_OF_THE_TERMINAL = (signal.SIGINT, signal.SIGQUIT)
_PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def run(argv: Sequence[str], variables: Mapping[str, str]) -> int:
    """
    Run *argv* with our own stdin, stdout and stderr; answers what to exit with.

    Ctrl+C reaches the program as well as us, and our handler does nothing; unlike an ignored signal it isn't inherited.
    What is sent to us alone goes on to the program, which decides; we end when it does. What we ignore (`nohup`), it
    ignores too.

    Raises:
        OSError: it cannot be started.
    """
    pid: int | None = None
    early: list[int] = []

    def pass_on(number: int, _frame: object) -> None:
        if pid is None:
            early.append(number)
        else:
            _send(pid, number)

    handlers: dict[signal.Signals, Callable[[int, Any], None]] = {}
    handlers |= {number: lambda _number, _frame: None for number in (*_OF_THE_TERMINAL, signal.SIGCHLD)}
    handlers |= {number: pass_on for number in _PASSED_ON if signal.getsignal(number) is not signal.SIG_IGN}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        with _Wakened() as wakened:
            # posix_spawn: importing subprocess costs as much as starting psql. Python ignores SIGPIPE, programs do not.
            pid = os.posix_spawnp(argv[0], list(argv), variables, setsigdef=[signal.SIGPIPE])
            for number in early:
                _send(pid, number)
            while True:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    return exit_code(os.waitstatus_to_exitcode(status))
                wakened.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Wakened:
    """Waits for any signal that has a handler, also one that came just before, or to another thread."""

    def __enter__(self) -> Self:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_exc: object) -> None:
        signal.set_wakeup_fd(self._before)
        os.close(self._reader)
        os.close(self._writer)

    def wait(self) -> None:
        os.read(self._reader, 4096)


def exit_code(returned: int) -> int:
    """As a shell says it: 128 + the signal's number for a program that a signal ended."""
    return returned if returned >= 0 else 128 - returned


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # it has just ended
