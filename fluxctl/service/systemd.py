"""fluxd as a systemd user service: a socket that starts it, a unit that keeps it and its ports."""

from __future__ import annotations

import shutil
import subprocess

from fluxctl import places
from fluxctl.service import files
from fluxctl.service.base import Manager, announce_restart, ask, clear_runtime_dir, running_pid, stop_detached

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

SERVICE, SOCKET = "fluxd.service", "fluxd.socket"
_ANSWERS_WITHIN_S = 5.0
_STATES = {"active": "running", "activating": "running", "reloading": "running", "failed": "failed"}


def answers() -> bool:
    """Whether this login has a systemd of its own. A container, `su` or cron has none."""
    if shutil.which("systemctl") is None:
        return False
    try:
        argv = ["systemctl", "--user", "show-environment"]
        return subprocess.run(argv, capture_output=True, timeout=_ANSWERS_WITHIN_S, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


class Systemd(Manager):
    name = "systemd"

    def install(self) -> Iterator[str]:
        fluxd = files.program()
        texts = {SOCKET: files.shipped(f"systemd/{SOCKET}"), SERVICE: files.shipped(f"systemd/{SERVICE}")}
        texts[SERVICE] = files.unit(texts[SERVICE], fluxd)
        changed = False
        for name, text in texts.items():
            path = places.units_dir() / name
            new = files.write(path, text)
            changed = changed or new
            yield f"Wrote {path}" if new else f"{path} is as it should be"
        if changed:
            _systemctl("daemon-reload")
        yield from self._make_way()
        _systemctl("enable", SERVICE, SOCKET)
        _systemctl("start", SOCKET)
        if changed and self._pid():
            yield from self.restart()
        yield "fluxd starts with the first command, and at every login."

    def _make_way(self) -> Iterator[str]:
        """Systemd would take the socket's path from a daemon that it does not run; that one would go on unseen."""
        pid = running_pid() if _show(SOCKET)["ActiveState"] != "active" else None
        if pid is not None and pid != self._pid():
            yield stop_detached(pid)

    def uninstall(self) -> Iterator[str]:
        paths = [places.units_dir() / name for name in (SERVICE, SOCKET)]
        if any(path.exists() for path in paths):
            _systemctl("disable", "--now", SERVICE, SOCKET)
            yield "Stopped fluxd; it no longer starts at login."
        for path in paths:
            if files.remove(path):
                yield f"Removed {path}"
        _systemctl("daemon-reload")
        _systemctl("reset-failed", SERVICE, SOCKET, may_fail=True)
        yield from clear_runtime_dir()

    def restart(self) -> Iterator[str]:
        # Without a daemon there is nobody to tell; asking would start one.
        pid = self._pid()
        kept = f"; {announce_restart(pid)}" if pid else "."
        _systemctl("restart", SERVICE)
        yield f"Restarted fluxd (pid {self._pid()}){kept}"

    def status(self) -> dict[str, Any]:
        service, socket = _show(SERVICE), _show(SOCKET)
        state = _STATES.get(service["ActiveState"], "stopped")
        if state == "stopped" and socket["ActiveState"] == "active":
            state = "waiting"
        return {
            "manager": self.name,
            "installed": bool(service["FragmentPath"]),
            "enabled": service["UnitFileState"] == "enabled",
            "state": state,
            "pid": int(service["MainPID"] or 0) or None,
            "restarts": int(service["NRestarts"] or 0),
            "result": service["Result"],
            "files": [unit["FragmentPath"] for unit in (service, socket) if unit["FragmentPath"]],
        }

    def logs(self, lines: int, *, follow: bool) -> list[str]:
        # By its own name too: journald may look at a process before systemd has moved it into the unit's cgroup.
        about = ("_SYSTEMD_USER_UNIT", "USER_UNIT")
        matches = [word for field in about for word in (f"{field}={SERVICE}", "+")] + ["SYSLOG_IDENTIFIER=fluxd"]
        more = ["--follow"] if follow else []
        return ["journalctl", "--user", "--quiet", "--no-pager", f"--lines={lines}", *more, *matches]

    def _pid(self) -> int | None:
        return int(_show(SERVICE)["MainPID"] or 0) or None


_PROPERTIES = ("ActiveState", "FragmentPath", "MainPID", "NRestarts", "Result", "UnitFileState")


def _show(unit: str) -> dict[str, str]:
    said = _systemctl("show", unit, f"--property={','.join(_PROPERTIES)}")
    found = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    return {name: found.get(name, "") for name in _PROPERTIES}


def _systemctl(*words: str, may_fail: bool = False) -> str:
    return ask(["systemctl", "--user", *words], may_fail=may_fail)
