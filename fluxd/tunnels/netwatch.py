"""
Has the network of this machine changed?

Linux tells whoever listens on a netlink socket, rtnetlink(7), of every link, address and route that comes, goes or is
altered. What it tells is not read: a change is a reason to look at one's connections, and they know best. Elsewhere
(macOS) nobody is told, and a dead connection is found by its keepalives.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import sys
from collections.abc import Callable
from typing import Final

log = logging.getLogger(__name__)

# RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE of linux/rtnetlink.h.
GROUPS: Final = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
# A link that comes up says so in several messages; its addresses and routes follow at once.
SETTLES_S: Final = 0.1
# Containers come and go all day on some machines: it is not told more often than this.
APART_S: Final = 0.5
LONGEST_MESSAGE: Final = 64 * 1024


class NetWatch:
    """Calls *changed* soon after each change, between `start` and `close`; many in a row are told as one."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._socket: socket.socket | None = None
        self._due: asyncio.TimerHandle | None = None
        self._told_at = float("-inf")

    def start(self) -> None:
        """In a running loop. Where there is no such socket nothing is told, for ever."""
        if sys.platform != "linux":
            return
        try:
            self._socket = _subscribed()
        except OSError as error:
            log.warning("changes of the network will be noticed by keepalives alone: %s", error.strerror)
            return
        asyncio.get_running_loop().add_reader(self._socket, self._readable, self._socket)

    def close(self) -> None:
        if self._due is not None:
            self._due.cancel()
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    def _readable(self, told: socket.socket) -> None:
        if _drained(told) and self._due is None:
            loop = asyncio.get_running_loop()
            self._due = loop.call_at(max(loop.time() + SETTLES_S, self._told_at + APART_S), self._tell)

    def _tell(self) -> None:
        self._due, self._told_at = None, asyncio.get_running_loop().time()
        log.debug("the network has changed")
        self._changed()


def _subscribed() -> socket.socket:
    subscribed = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    try:
        subscribed.setblocking(False)
        subscribed.bind((0, GROUPS))
    except OSError:
        subscribed.close()
        raise
    return subscribed


def _drained(told: socket.socket) -> bool:
    """Read all there is; whether any of it came from the kernel. More than the socket could hold counts as well."""
    changed = False
    while True:
        try:
            _, (sender, _) = told.recvfrom(LONGEST_MESSAGE)
        except BlockingIOError:
            return changed
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            sender = 0
        changed |= sender == 0
