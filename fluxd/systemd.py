"""
What the service manager hands over at start, and what it wants to be told: sd_notify, in a few lines.

Nothing here decides anything: `Manager.of` reads the environment once and takes the variables out of it, so that no
ProxyCommand believes that they are for it. Without a service manager every method does nothing. The truth is
sd_notify(3), sd_listen_fds(3) and FileDescriptorStoreMax= in systemd.service(5).

Listening sockets of forwards are kept in systemd's file descriptor store: across a restart or an upgrade the port never
comes free, and a client that connects meanwhile waits in the socket's own backlog. systemd closes them when the unit is
stopped for good.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
import stat
from collections.abc import Iterable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Self

# SD_LISTEN_FDS_START: 0, 1 and 2 are the standard streams.
FIRST_FD: Final = 3
# sd_listen_fds_with_names(3): what a descriptor without a name is called.
UNNAMED: Final = "unknown"
# The manager reads its queue at once; a full one for this long means that it hangs, and we must not.
SEND_WITHIN_S: Final = 1.0
_VARIABLES: Final = ("NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID", "WATCHDOG_USEC")


@dataclass(frozen=True, slots=True)
class Manager:
    """
    The service manager that started this process, or the absence of one.

    `handed` are the sockets it opened or kept for us, by name, still blocking or not as they came; whoever takes one
    owns it. `watchdog_s` is how long it waits for a sign of life before it kills us, None when it does not watch.
    """

    address: str | None = None
    watchdog_s: float | None = None
    handed: dict[str, list[socket.socket]] = field(default_factory=dict)

    @classmethod
    def of(cls, environ: MutableMapping[str, str]) -> Self:
        """
        The manager that *environ* speaks of. Its variables are removed from *environ*.

        What is meant for another process (LISTEN_PID, WATCHDOG_PID), or is no number, counts as absent.
        """
        said = {name: environ.pop(name, "") for name in _VARIABLES}
        address = said["NOTIFY_SOCKET"]
        return cls(
            address=address if address.startswith(("/", "@")) else None,
            watchdog_s=_watchdog_s(said["WATCHDOG_PID"], said["WATCHDOG_USEC"]),
            handed=_handed(said["LISTEN_PID"], said["LISTEN_FDS"], said["LISTEN_FDNAMES"]),
        )

    def take(self, name: str) -> list[socket.socket]:
        """The sockets handed over under *name*, now the caller's; a second call has none."""
        return self.handed.pop(name, [])

    def discard_untaken(self) -> None:
        """Close what nobody took, and have the manager forget it: a port that nobody serves must come free."""
        for name in list(self.handed):
            self.drop(name)
            for one in self.handed.pop(name):
                one.close()

    def ready(self, status: str = "") -> None:
        """Start-up, or a reload, is over."""
        self._say("READY=1", *_status(status))

    def reloading(self) -> None:
        self._say("RELOADING=1")

    def stopping(self, status: str = "") -> None:
        self._say("STOPPING=1", *_status(status))

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._say(*_status(text))

    def keep(self, name: str, sockets: Iterable[socket.socket]) -> None:
        """
        Keep *sockets* for the next start of this unit, under *name*. Keeping one twice changes nothing.

        *name* is at most 255 printable ASCII characters, none of them a colon.
        """
        self._say("FDSTORE=1", f"FDNAME={name}", sockets=sockets)

    def drop(self, name: str) -> None:
        """Have everything that was kept under *name* closed."""
        self._say("FDSTOREREMOVE=1", f"FDNAME={name}")

    def alive(self) -> None:
        self._say("WATCHDOG=1")

    async def feed_watchdog(self) -> None:
        """Show life twice per period, as sd_watchdog_enabled(3) advises; an event loop that hangs gives none."""
        while self.watchdog_s is not None:
            self.alive()
            await asyncio.sleep(self.watchdog_s / 2)

    def _say(self, *assignments: str, sockets: Iterable[socket.socket] = ()) -> None:
        if self.address is None or not assignments:
            return
        fds = array.array("i", [one.fileno() for one in sockets])
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if fds else []
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaker:
            speaker.settimeout(SEND_WITHIN_S)
            # A manager that is gone, or hangs, is no reason to stop serving.
            with suppress(OSError):
                speaker.sendmsg(["\n".join(assignments).encode()], ancillary, 0, _socket_name(self.address))


def _status(text: str) -> list[str]:
    return [f"STATUS={' '.join(text.split())}"] if text else []


def _socket_name(address: str) -> str:
    return "\0" + address[1:] if address.startswith("@") else address


def _watchdog_s(pid: str, usec: str) -> float | None:
    ours = not pid or pid == str(os.getpid())
    return int(usec) / 1e6 if ours and _is_number(usec) and int(usec) > 0 else None


def _handed(pid: str, count: str, names: str) -> dict[str, list[socket.socket]]:
    found: dict[str, list[socket.socket]] = {}
    if pid != str(os.getpid()) or not _is_number(count):
        return found
    named = names.split(":") if names else []
    for place in range(int(count)):
        name = named[place] if place < len(named) else UNNAMED
        if (one := _adopt(FIRST_FD + place)) is not None:
            found.setdefault(name, []).append(one)
    return found


def _adopt(fd: int) -> socket.socket | None:
    """The socket on *fd*; whatever else it is on is closed. None where there is nothing to own."""
    try:
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            os.set_inheritable(fd, False)
            return socket.socket(fileno=fd)
        os.close(fd)
    except OSError:
        pass
    return None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
