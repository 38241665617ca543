"""
fluxd as a launchd agent of the user's login.

Written from launchd.plist(5) and launchctl(1); it was not run on a Mac.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from fluxctl import places
from fluxctl.service import files
from fluxctl.service.base import Manager, announce_restart, ask, clear_runtime_dir, running_pid, stop_detached
from fluxd import address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

LABEL = "com.flux.fluxd"


class Launchd(Manager):
    name = "launchd"

    def __init__(self) -> None:
        self._path = places.agents_dir() / f"{LABEL}.plist"
        self._domain = f"gui/{os.getuid()}"
        self._target = f"{self._domain}/{LABEL}"

    def install(self) -> Iterator[str]:
        socket = Path(address.runtime_dir()) / "fluxd.sock"
        log = places.log_dir() / "launchd.log"
        # launchd makes neither directory, and would leave them open to others.
        for place in (socket.parent, log.parent):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        text = files.agent(
            files.shipped(f"launchd/{LABEL}.plist"), {"FLUXD": files.program(), "SOCKET": socket, "LOG": log}
        )
        changed = files.write(self._path, text)
        yield f"Wrote {self._path}" if changed else f"{self._path} is as it should be"
        loaded = self._printed() != ""
        if not loaded and (pid := running_pid()) is not None:
            yield stop_detached(pid)
        if changed and loaded:
            ask(["launchctl", "bootout", self._target], may_fail=True)
        if changed or not loaded:
            ask(["launchctl", "enable", self._target])
            ask(["launchctl", "bootstrap", self._domain, str(self._path)])
        yield "fluxd runs, and starts at every login."

    def uninstall(self) -> Iterator[str]:
        if self._printed():
            ask(["launchctl", "bootout", self._target])
            yield "Stopped fluxd; it no longer starts at login."
        if files.remove(self._path):
            yield f"Removed {self._path}"
        (Path(address.runtime_dir()) / "fluxd.sock").unlink(missing_ok=True)
        (places.log_dir() / "launchd.log").unlink(missing_ok=True)
        yield from clear_runtime_dir()

    def restart(self) -> Iterator[str]:
        pid = self.status()["pid"]
        kept = f"; {announce_restart(pid)}" if pid else "."
        ask(["launchctl", "kickstart", "-k", self._target])
        yield f"Restarted fluxd{kept}"

    def status(self) -> dict[str, Any]:
        printed = self._printed()
        pid = re.search(r"(?m)^\s*pid = (\d+)$", printed)
        runs = re.search(r"(?m)^\s*runs = (\d+)$", printed)
        exited = re.search(r"(?m)^\s*last exit code = (\d+)", printed)
        failed = exited is not None and exited[1] != "0"
        return {
            "manager": self.name,
            "installed": self._path.is_file(),
            "enabled": printed != "",
            "state": "running" if pid else "failed" if failed else "waiting" if printed else "stopped",
            "pid": int(pid[1]) if pid else None,
            "restarts": max(0, int(runs[1]) - 1) if runs else 0,
            "result": exited[0].strip() if exited and failed else "success",
            "files": [str(self._path)] if self._path.is_file() else [],
        }

    def logs(self, lines: int, *, follow: bool) -> list[str]:
        found = sorted(str(path) for path in places.log_dir().glob("*.log"))
        return ["tail", "-n", str(lines), *(["-F"] if follow else []), *found]

    def _printed(self) -> str:
        """What launchctl tells of the agent; "" if it is not loaded."""
        return ask(["launchctl", "print", self._target], may_fail=True)
