"""
`fluxctl service install|uninstall|status|logs|restart`: fluxd at login, for this user alone.

Nothing needs root, everything may be repeated, and each says what it wrote and removed.
"""

from __future__ import annotations

import os
import shutil

from fluxctl import opening, options, places, screen
from fluxctl.options import Command, Option
from fluxctl.problem import Problem
from fluxctl.service import manager
from fluxctl.service.base import running_pid, stop_detached
from fluxd import address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any

    from fluxctl.options import Arguments

_HERE = {"running": "running", "waiting": "not running; the first command starts it", "stopped": "not running"}


def install(arguments: Arguments) -> int:
    if os.environ.get(address.SOCKET_VARIABLE):
        screen.warning(f"{address.SOCKET_VARIABLE} is set: this shell talks to another fluxd than the service.")
    return _tell("installed", manager().install(), as_json=arguments.json)


def uninstall(arguments: Arguments) -> int:
    return _tell("uninstalled", _uninstalling(purge=arguments.purge), as_json=arguments.json)


def _uninstalling(*, purge: bool) -> Iterator[str]:
    yield from manager().uninstall()
    kept = [place for place in (places.state_dir(), places.config_dir(), places.log_dir()) if place.exists()]
    if not purge:
        yield from (f"Left in place: {place} (--purge removes it)" for place in kept)
        return
    if (pid := running_pid()) is not None:
        yield stop_detached(pid)
    for place in kept:
        if place.exists():
            shutil.rmtree(place)
            _remove_if_empty(place.parent)
            yield f"Removed {place}"
    yield "A login in the system keyring is removed by `fluxctl logout` only."


def _remove_if_empty(place: Path) -> None:
    """The parents that exist for us alone: ~/.local/state and ~/.local on a machine where nobody else keeps a state."""
    home = place.home()
    while place != home and home in place.parents:
        try:
            place.rmdir()
        except OSError:
            return
        place = place.parent


def restart(arguments: Arguments) -> int:
    return _tell("restarted", manager().restart(), as_json=arguments.json)


def status(arguments: Arguments) -> int:
    """Exit code: 0 if fluxd runs or the next command starts it, else that of fluxd_not_running."""
    found = manager().status()
    found["unmanaged_pid"] = _unmanaged(found)
    found["socket"] = address.socket_path()
    if arguments.json:
        screen.json(found)
    else:
        for line in _status_lines(found):
            screen.line(line)
    good = found["state"] in {"running", "waiting"} or found["unmanaged_pid"]
    return 0 if good else Problem("fluxd_not_running").exit_code


def _unmanaged(found: dict[str, Any]) -> int | None:
    """The pid of a fluxd that answers here, though the service manager does not run it."""
    if found["manager"] == "none" or found["state"] in {"running", "waiting"}:
        return None
    return running_pid()


def _status_lines(found: dict[str, Any]) -> list[str]:
    if found["manager"] == "none":
        state = f"running (pid {found['pid']}), started by a command" if found["pid"] else "not running"
        return [
            "Service: none; this login has no service manager",
            f"State: {state}",
            f"Socket: {found['socket']}",
            "Commands start fluxd when they need it; its tunnels do not come back by themselves after a reboot.",
        ]
    state = _HERE.get(found["state"], f"failed ({found['result']}); `fluxctl service logs` tells why")
    lines = [
        f"Service: {found['manager']}, {'installed' if found['installed'] else 'not installed'}",
        f"At login: {'starts' if found['enabled'] else 'does not start'}",
        f"State: {state}" + (f" (pid {found['pid']})" if found["pid"] else ""),
        f"Socket: {found['socket']}",
    ]
    lines += [f"Restarted by itself: {found['restarts']} times"] if found["restarts"] else []
    lines += [f"Unit: {path}" for path in found["files"]]
    if found["unmanaged_pid"]:
        lines.append(f"A fluxd that a command has started runs without it (pid {found['unmanaged_pid']}).")
    return lines


def logs(arguments: Arguments) -> int:
    argv = manager().logs(arguments.lines or 100, follow=arguments.follow)
    try:
        os.execvp(argv[0], argv)  # noqa: S606 - no shell
    except OSError as error:
        raise Problem("service_failed", f"{argv[0]} cannot be run.", detail=error.strerror) from error


def _tell(what: str, said: Iterator[str], *, as_json: bool) -> int:
    """Each line as it comes; as JSON all of them at the end."""
    told = []
    for line in said:
        told.append(line)
        if not as_json:
            screen.line(line)
    if as_json:
        screen.json({what: True, "did": told, "service": manager().status()})
    return 0


COMMANDS = {
    "install": Command(install, options=(opening.JSON_FLAG,)),
    "uninstall": Command(
        uninstall,
        options=(Option("--purge", says="state, configuration and logs too"), opening.JSON_FLAG),
    ),
    "restart": Command(restart, options=(opening.JSON_FLAG,)),
    "status": Command(status, options=(opening.JSON_FLAG,)),
    "logs": Command(
        logs,
        options=(
            Option("-n", "--lines", takes="COUNT", check=options.count, says="the last so many (default 100)"),
            Option("-f", "--follow", says="go on as it is written"),
        ),
    ),
}
