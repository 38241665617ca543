"""What goes wrong, as ``application/problem+json``; and what every answer says besides its body."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from fluxd import wire
from fluxd.core import errors

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def answer(body: Any, *, status: int = 200) -> web.Response:
    return web.Response(
        status=status,
        body=wire.encode(body),
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )


@web.middleware
async def versioned(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every answer says which version of the contract it is of."""
    response = await handler(request)
    if not response.prepared:
        response.headers["Flux-Api-Version"] = wire.API_VERSION
    log.debug("%s %s %d", request.method, request.path, response.status)
    return response


@web.middleware
async def spoken(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Whatever fails below is said as a problem; what nobody expected is logged with its trace and said without."""
    try:
        return await handler(request)
    except errors.FluxError as error:
        return _problem(error)
    except web.HTTPException as refused:
        return _problem(_of_http(refused), allow=refused.headers.get("Allow"))
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return _problem(errors.FluxError())


def _problem(error: errors.FluxError, *, allow: str | None = None) -> web.Response:
    headers = {"Cache-Control": "no-store"}
    if allow is not None:
        headers["Allow"] = allow
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    return web.Response(
        status=error.status,
        body=wire.encode(wire.problem_of(error)),
        content_type="application/problem+json",
        headers=headers,
    )


def _of_http(refused: web.HTTPException) -> errors.FluxError:
    if isinstance(refused, web.HTTPMethodNotAllowed):
        return errors.MethodNotAllowed(detail="It takes " + ", ".join(sorted(refused.allowed_methods)) + ".")
    if isinstance(refused, web.HTTPRequestEntityTooLarge):
        return errors.BodyTooLarge()
    if isinstance(refused, web.HTTPNotFound):
        return errors.RouteNotFound()
    return errors.BadRequest(f"HTTP {refused.status}: {refused.reason}.")
