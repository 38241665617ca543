"""
A request's head, which aiohttp reads before anything of ours runs: it must come soon, and what it says is not logged.

aiohttp bounds a body's time and a head's size. It waits for a connection's first head for ever (later ones fall under
its own bound on idle connections), and logs one that it cannot read with a trace that may quote it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from aiohttp import web
from aiohttp.http import HttpProcessingError

HEAD_WITHIN_S: Final = 5.0

log = logging.getLogger(__name__)
log.addFilter(lambda record: not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError)))


class Heads:
    """The connections that have not asked anything yet."""

    def __init__(self) -> None:
        self._awaited: dict[asyncio.BaseProtocol, asyncio.TimerHandle] = {}

    def bounded(self, server: web.Server) -> Callable[[], asyncio.BaseProtocol]:
        """*server* as a protocol factory; a connection is cut off when no head has `arrived` after `HEAD_WITHIN_S`."""

        def connected() -> asyncio.BaseProtocol:
            handler = server()
            self._awaited[handler] = asyncio.get_running_loop().call_later(HEAD_WITHIN_S, self._too_late, handler)
            return handler

        return connected

    def arrived(self, request: web.BaseRequest) -> None:
        if timer := self._awaited.pop(request.protocol, None):
            timer.cancel()

    def _too_late(self, handler: web.RequestHandler) -> None:
        del self._awaited[handler]
        if handler.transport is not None:
            handler.transport.abort()
