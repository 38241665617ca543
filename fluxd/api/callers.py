"""
Who may ask, and what they may name: checked for every request before anything is done for it.

The socket's mode keeps other users out, this module does it again: the kernel's word for the peer's uid, and no request
that a browser could have been tricked into making. A caller may have us open files of its own, sent by name and
never by content: an agent's socket, a known_hosts file, an identity file and others that it has the passphrases of.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from aiohttp import web

from fluxd import wire
from fluxd.core import errors
from fluxd.safesocket import peer_uid

T = TypeVar("T")

LARGEST_BODY: Final = 64 * 1024
BODY_WITHIN_S: Final = 5.0


def check(request: web.BaseRequest) -> None:
    """
    Let only a local client of our own user pass.

    Raises:
        RequestForbidden: another uid, a foreign Host, or a browser's Origin or Referer.
        APIVersionUnsupported: it speaks another version than ours.
    """
    connection = request.transport.get_extra_info("socket") if request.transport else None
    if connection is None or not _is_ours(connection):
        raise errors.RequestForbidden("fluxd answers only processes of its own user.")
    if request.headers.get("Host", "").lower() not in {"", "localhost"}:
        raise errors.RequestForbidden("The Host header must be `localhost`.")
    for name in ("Origin", "Referer"):
        if name in request.headers:
            raise errors.RequestForbidden(f"Requests with {name} come from browsers; fluxd answers none.")
    _check_version(request.headers.get("Flux-Api-Version"))


def _is_ours(connection: socket.socket) -> bool:
    return connection.family == socket.AF_UNIX and peer_uid(connection) == os.geteuid()


def _check_version(spoken: str | None) -> None:
    if spoken is None or spoken.split(".")[0] == wire.API_VERSION:
        return
    known = re.fullmatch(r"[0-9]{1,4}(?:\.[0-9]{1,4})?", spoken)
    raise errors.APIVersionUnsupported(
        f"The client speaks version {spoken if known else '?'} of the socket's contract, fluxd {wire.API_VERSION}."
    )


# ---------------------------------------------------------------- what was sent


async def body(request: web.Request, kind: type[T]) -> T:
    """
    The request's body as *kind*; an empty one counts as `{}`.

    Raises:
        BadRequest: not JSON, or not of that shape; the detail names the field, never its value.
        BodyTooLarge, BodyTooSlow: more than 64 KiB, or not there within 5 s.
    """
    try:
        async with asyncio.timeout(BODY_WITHIN_S):
            data = await request.read()
    except TimeoutError as error:
        raise errors.BodyTooSlow from error
    return decoded(data or b"{}", kind)


def decoded(data: bytes, kind: type[T]) -> T:
    try:
        return wire.decode(data, kind)
    except msgspec.ValidationError as error:
        raise errors.BadRequest(detail=str(error)) from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise errors.BadRequest("The request's body is not JSON.") from error


def plane(request: web.Request) -> wire.Plane:
    """The control plane that the headers of a GET or DELETE name."""
    return wire.Plane(api_base=request.headers.get("Flux-Api-Base"), token=_bearer(request))


def _bearer(request: web.Request) -> wire.Secret | None:
    sent = request.headers.get("Authorization")
    if sent is None:
        return None
    parts = re.fullmatch(r"Bearer\s+(\S+)\s*", sent, re.IGNORECASE)
    if parts is None:
        raise errors.BadRequest("The Authorization header must be `Bearer TOKEN`.")
    return wire.Secret(parts[1])


def ssh(request: web.Request) -> wire.SSH:
    """The SSH identity in the `Flux-SSH` header of a GET or DELETE, its paths checked."""
    return checked(decoded(request.headers.get("Flux-SSH", "{}").encode(), wire.SSH))


def project_hash(text: str) -> str:
    """A project's hash out of a path: 7 hex digits, whatever their case."""
    trimmed = text.strip().lower()
    if not re.fullmatch(r"[a-f0-9]{7}", trimmed):
        raise errors.BadRequest("A project's hash is 7 hexadecimal digits.")
    return trimmed


def number(request: web.Request, name: str, kind: Any) -> int | None:
    """The query parameter *name* as the number type *kind*, None where it is not given."""
    sent = request.query.get(name)
    if sent is None:
        return None
    try:
        found: int = msgspec.convert(sent, kind, strict=False)
    except msgspec.ValidationError as error:
        raise errors.BadRequest(f"`{name}` is not such a number.", detail=str(error)) from error
    return found


# ------------------------------------------------------------------------- paths


def checked(named: wire.SSH) -> wire.SSH:
    """
    *named* itself, once its paths are our own user's: files that are regular, an agent that is a socket.

    Raises:
        PathNotAllowed: one of them is not.
    """
    _check_path("agent", named.agent, stat.S_ISSOCK, "a socket")
    _check_path("identity_file", named.identity_file, stat.S_ISREG, "a regular file")
    for one in named.passphrases:
        _check_path("passphrases", one.file, stat.S_ISREG, "a regular file")
    _check_path("known_hosts", named.known_hosts, stat.S_ISREG, "a regular file")
    return named


def _check_path(name: str, path: str | None, is_kind: Callable[[int], bool], kind: str) -> None:
    if path is None:
        return
    try:
        found = Path(path).stat()
    except OSError as error:
        raise errors.PathNotAllowed(f"{name}: {path} cannot be used: {error.strerror}.") from error
    if not is_kind(found.st_mode):
        raise errors.PathNotAllowed(f"{name}: {path} is not {kind}.")
    if found.st_uid != os.geteuid():
        raise errors.PathNotAllowed(f"{name}: {path} belongs to uid {found.st_uid}, not to you.")
