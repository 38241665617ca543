"""
Without a service manager: the daemon that the first command starts, detached, until the machine stops it.

There is nothing to install: `install` says so as a problem, the others do what can be done.
"""

from __future__ import annotations

from fluxctl import environment, places, start
from fluxctl.client import ANSWER_WITHIN_S, Client
from fluxctl.exchange import Connection
from fluxctl.problem import Problem
from fluxctl.service.base import Manager, announce_restart, clear_runtime_dir, running_pid, stop_detached
from fluxd import address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any


class Detached(Manager):
    name = "none"

    def install(self) -> Iterator[str]:
        raise Problem("service_manager_missing")

    def uninstall(self) -> Iterator[str]:
        if (pid := running_pid()) is not None:
            yield stop_detached(pid)
        yield from clear_runtime_dir()

    def restart(self) -> Iterator[str]:
        kept = "."
        if (pid := running_pid()) is not None:
            kept = f"; {announce_restart(pid)}"
            yield stop_detached(pid)
            # Here, and not by the next question, which says that nobody was there as if it were news.
            place = address.socket_path()
            start.until_it_answers(lambda: Connection(place, answer_within_s=ANSWER_WITHIN_S)).__exit__()
        found = Client(environment.of_shell()).status()
        yield f"fluxd runs again (pid {found['pid']}){kept}"

    def status(self) -> dict[str, Any]:
        pid = running_pid()
        return {
            "manager": self.name,
            "installed": False,
            "enabled": False,
            "state": "running" if pid else "stopped",
            "pid": pid,
            "restarts": 0,
            "result": "success",
            "files": [],
        }

    def logs(self, lines: int, *, follow: bool) -> list[str]:
        path = places.log_dir() / "fluxd.log"
        if not path.is_file():
            raise Problem("service_failed", "fluxd has written no log yet.", detail=str(path))
        return ["tail", "-n", str(lines), *(["-F"] if follow else []), str(path)]
