"""
The control plane over HTTPS: one session, one method per route, every answer bounded and checked.

It never follows a redirect to another origin, keeps no cookies and sends a token to the base it was given for only.
What answers mean is in ``answers``; whose token it is, in ``tokens``. Routes: the contract §2, and for our extensions
docs/decisions/0001.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import urljoin

import aiohttp

from fluxd.core import errors
from fluxd.plane import answers
from fluxd.plane.answers import Refusal, Reply
from fluxd.plane.base import Caller, same_origin
from fluxplane import wire

ANSWER_WITHIN_S: Final = 30.0
CONNECT_WITHIN_S: Final = 10.0
LARGEST_ANSWER: Final = 4 * 1024 * 1024
MOST_REDIRECTS: Final = 3
# A rate-limited GET waits this long by itself, once; longer pauses are the caller's business.
PATIENCE_S: Final = 3.0

Observer = Callable[[str, float, str], None]
T = TypeVar("T")
Judge = Callable[[Refusal], type[errors.FluxError] | None]


@dataclass(frozen=True)
class Granted:
    """
    A grant, and how long it was still valid when the answer had arrived.

    *max_remaining_s* is until the end that no renewal passes, None where the plane does not say.
    """

    grant: wire.Grant
    remaining_s: float
    max_remaining_s: float | None
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Renewal:
    """The same role with a later end; times as in `Granted`."""

    renewed: wire.Renewed
    remaining_s: float
    max_remaining_s: float | None
    notices: tuple[str, ...] = ()


def _now() -> float:
    # The request's duration must count a sleeping laptop too.
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class _AuditAnswer(wire.Body, frozen=True):
    events: list[wire.AuditEvent]


class ControlPlane:
    """Every control plane this daemon talks to. Leave it (`async with`, or `aclose`) to close its connections."""

    def __init__(self, observe: Observer | None = None, *, answer_within_s: float = ANSWER_WITHIN_S) -> None:
        """*observe* hears of every request: its route's name, how long it took, `ok` or the problem's code."""
        self._answer_within_s = answer_within_s
        self._observe = observe or (lambda _route, _took_s, _outcome: None)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    # ------------------------------------------------------------- the contract

    async def verify(self, api_base: str, token: wire.Secret) -> wire.Verified:
        """Whose token this is. `NotSupportedByPlane` where the plane has no such route."""
        reply = await self._get(api_base, "/auth/verify", token, judge=_no_such_route)
        verified = answers.decoded(reply, wire.Verified)
        if not verified.ok or not verified.user.strip():
            raise answers.not_authenticated(api_base, f"The control plane at {api_base} did not accept the token.")
        return verified

    async def clock_ahead_s(self, api_base: str, token: wire.Secret, wall: Callable[[], datetime]) -> float | None:
        """By how many seconds its clock is ahead of *wall*, to a second or so; None where it does not say."""
        reply = await self._get(api_base, "/auth/verify", token)
        return answers.ahead_s(reply, wall())

    async def plan(
        self,
        caller: Caller,
        project_hash: str,
        *,
        local_port: int | None = None,
        ssh_host: str | None = None,
        ssh_user: str | None = None,
        ssh_port: int | None = None,
    ) -> tuple[wire.AccessPlan, dict[str, Any]]:
        """What a grant would be: typed and checked, and as it came."""
        asked = {"localPort": local_port, "sshHost": ssh_host, "sshUser": ssh_user, "sshPort": ssh_port}
        query = {name: str(value) for name, value in asked.items() if value is not None}
        reply = await self._get(caller.api_base, f"/projects/{project_hash}/db-access", _token(caller), query=query)
        plan: wire.AccessPlan = answers.decoded(reply, wire.AccessPlan)  # type: ignore[arg-type]
        if plan.project_hash != project_hash:
            raise errors.PlaneAnswerInvalid("The control plane answered with another project's plan.")
        return plan, answers.decoded(reply, dict[str, Any])

    async def grant(
        self, caller: Caller, project_hash: str, request: wire.GrantRequest, *, extensions: Collection[str]
    ) -> Granted:
        """
        A temporary role. Its id and reason are sent only to a plane that lists these *extensions*.

        With the id, asking again answers the same role. A plane without it may have made a role even if this fails.
        """
        sent = wire.GrantRequest(
            access=request.access,
            ttl_seconds=request.ttl_seconds,
            grant_id=request.grant_id if "grant_id" in extensions else None,
            reason=request.reason if "audit" in extensions else None,
        )
        reply = await self._send(
            "POST",
            caller.api_base,
            f"/projects/{project_hash}/db-access/temporary-credential",
            _token(caller),
            body=sent,
            headers={"Idempotency-Key": sent.grant_id} if sent.grant_id else {},
            judge=lambda said: _grant_refusal(said, request.access),
        )
        return _granted(reply, request)

    async def credentials(self, caller: Caller, project_hash: str) -> wire.Credentials:
        """The project's long-lived secrets: for v1 its Postgres password."""
        reply = await self._get(caller.api_base, f"/projects/{project_hash}/credentials", _token(caller))
        found: wire.Credentials = answers.decoded(reply, wire.Credentials)  # type: ignore[arg-type]
        return found

    async def project(self, caller: Caller, project_hash: str) -> wire.Project:
        reply = await self._get(caller.api_base, f"/projects/{project_hash}", _token(caller))
        return answers.decoded(reply, wire.Project)

    async def projects(self, caller: Caller) -> list[wire.ListedProject]:
        reply = await self._get(caller.api_base, "/list", _token(caller))
        return answers.decoded(reply, list[wire.ListedProject])

    async def activity(self, caller: Caller, project_hash: str, *, limit: int | None = None) -> wire.Activity:
        query = {} if limit is None else {"limit": str(limit)}
        reply = await self._get(caller.api_base, f"/projects/{project_hash}/activity", _token(caller), query=query)
        return answers.decoded(reply, wire.Activity)

    # -------------------------------------------------------------- extensions

    async def renew(self, caller: Caller, grant_id: str, ttl_s: int | None) -> Renewal:
        """A later end for a live grant. `LeaseOver` when it has ended, `RenewLimit` at eight hours."""
        body = {} if ttl_s is None else {"ttlSeconds": ttl_s}
        path = f"/grants/{grant_id}/renew"
        reply = await self._send("POST", caller.api_base, path, _token(caller), body=body, judge=_no_such_route)
        renewed = answers.decoded(reply, wire.Renewed)
        left = answers.seconds_left(renewed.expires_at, renewed.expires_in, reply)
        most = answers.seconds_left(renewed.expires_at, renewed.max_expires_in, reply)
        return Renewal(renewed, left or 0.0, most)

    async def revoke(self, api_base: str, grant_id: str, token: wire.Secret | None) -> wire.Revoked:
        """End one grant. Its id is enough; a token spares the rate limit for strangers."""
        reply = await self._send("DELETE", api_base, f"/grants/{grant_id}", token, judge=_no_such_route)
        return answers.decoded(reply, wire.Revoked)

    async def audit(
        self, caller: Caller, *, project_hash: str | None = None, since: str | None = None
    ) -> list[wire.AuditEvent]:
        """What the plane recorded about the caller and the caller's projects since then, newest first."""
        query = {name: value for name, value in (("hash", project_hash), ("since", since)) if value is not None}
        reply = await self._get(caller.api_base, "/audit", _token(caller), query=query, judge=_no_audit)
        return answers.decoded(reply, _AuditAnswer).events

    async def report(self, caller: Caller, project_hash: str, report: wire.TunnelReport) -> None:
        """Tell the plane's audit about a tunnel."""
        path = f"/projects/{project_hash}/db-access/tunnel-events"
        await self._send("POST", caller.api_base, path, _token(caller), body=report)

    async def ask(
        self,
        method: str,
        caller: Caller,
        path: str,
        kind: type[T],
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        judge: Judge | None = None,
        within_s: float | None = None,
    ) -> tuple[int, T]:
        """Any other route: its status and its 2xx answer as *kind*."""
        reply = await self._send(
            method, caller.api_base, path, _token(caller), query=query, body=body, judge=judge, within_s=within_s
        )
        return reply.status, answers.decoded(reply, kind)

    @contextlib.asynccontextmanager
    async def stream(
        self,
        caller: Caller,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        judge: Judge | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """
        A 2xx answer whose body the caller reads, and bounds. No redirect is followed.

        What fails in the block on the way to the plane comes out as the problem it is.
        """
        token = _token(caller)
        url = f"{caller.api_base}/cli/v1{path}"
        sent = {**_headers(caller.api_base, token, None), "Accept": "*/*", **(headers or {})}
        try:
            async with asyncio.timeout(self._answer_within_s):
                response = await self._open_session().get(url, params=query, headers=sent, allow_redirects=False)
            async with response:
                if not 200 <= response.status < 300:
                    raise await _stream_refusal(response, token, caller.api_base, judge)
                yield response
        except TimeoutError as error:
            raise errors.PlaneUnreachable("The control plane stopped answering.", detail=url) from error
        except aiohttp.ClientError as error:
            raise _unreachable(url, error) from error

    # -------------------------------------------------------------- the wire

    async def _get(
        self,
        base: str,
        path: str,
        token: wire.Secret,
        *,
        query: Mapping[str, str] | None = None,
        judge: Judge | None = None,
    ) -> Reply:
        try:
            return await self._send("GET", base, path, token, query=query, judge=judge)
        except errors.RateLimited as limited:
            if limited.retry_after_s is None or limited.retry_after_s > PATIENCE_S:
                raise
            await asyncio.sleep(limited.retry_after_s)
        return await self._send("GET", base, path, token, query=query, judge=judge)

    async def _send(
        self,
        method: str,
        base: str,
        path: str,
        token: wire.Secret | None,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        judge: Judge | None = None,
        within_s: float | None = None,
    ) -> Reply:
        """The plane's 2xx answer; anything else is raised as the problem it is."""
        data = None if body is None else wire.encode(body)
        named = {**_headers(base, token, data), **(headers or {})}
        began, outcome = _now(), "cancelled"
        try:
            reply = await self._exchange(
                method, f"{base}/cli/v1{path}", query or {}, data, named, within_s or self._answer_within_s
            )
            if not 200 <= reply.status < 300:
                said = answers.refusal(reply, token)
                raise answers.problem(said, base, judge(said) if judge else None)
            outcome = "ok"
        except errors.FluxError as error:
            outcome = error.code
            raise
        finally:
            self._observe(_route(method, path), _now() - began, outcome)
        return reply

    async def _exchange(
        self,
        method: str,
        url: str,
        query: Mapping[str, str],
        data: bytes | None,
        headers: Mapping[str, str],
        within_s: float | None,
    ) -> Reply:
        within_s = ANSWER_WITHIN_S if within_s is None else within_s
        try:
            async with asyncio.timeout(within_s):
                return await self._follow(method, url, query, data, headers)
        except TimeoutError as error:
            raise errors.PlaneUnreachable(
                f"The control plane did not answer within {within_s:.0f} s.", detail=url
            ) from error
        except aiohttp.ClientError as error:
            raise _unreachable(url, error) from error
        except (ValueError, OSError) as error:
            raise errors.PlaneUnreachable(detail=f"{url}: {type(error).__name__}") from error

    async def _follow(
        self, method: str, url: str, query: Mapping[str, str], data: bytes | None, headers: Mapping[str, str]
    ) -> Reply:
        """Ask, and ask again where a redirect within the same origin leads."""
        for _ in range(MOST_REDIRECTS + 1):
            reply, location = await self._once(method, url, query, data, headers)
            if location is None:
                return reply
            url, query = _next_hop(method, url, reply.status, location), {}
        raise errors.PlaneRedirected("The control plane redirects in circles.")

    async def _once(
        self, method: str, url: str, query: Mapping[str, str], data: bytes | None, headers: Mapping[str, str]
    ) -> tuple[Reply, str | None]:
        began = _now()
        async with self._open_session().request(
            method, url, params=dict(query), data=data, headers=dict(headers), allow_redirects=False
        ) as response:
            location = response.headers.get("Location") if 300 <= response.status < 400 else None
            body = await _bounded(response)
            return (
                Reply(
                    status=response.status,
                    body=body,
                    duration_s=_now() - began,
                    date=response.headers.get("Date"),
                    retry_after=response.headers.get("Retry-After"),
                ),
                location,
            )

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_WITHIN_S),
                headers={"User-Agent": f"fluxd/{version('flux-db-access')}"},
            )
        return self._session


async def _stream_refusal(
    response: aiohttp.ClientResponse, token: wire.Secret, base: str, judge: Judge | None
) -> errors.FluxError:
    if 300 <= response.status < 400:
        return errors.PlaneRedirected(detail=f"{base} answers {response.status} to a download; it is not followed.")
    async with asyncio.timeout(ANSWER_WITHIN_S):
        body = await _bounded(response)
    said = answers.refusal(Reply(response.status, body, 0.0, retry_after=response.headers.get("Retry-After")), token)
    return answers.problem(said, base, judge(said) if judge else None)


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_chunked(65536):
        body += chunk
        if len(body) > LARGEST_ANSWER:
            raise errors.PlaneAnswerInvalid(f"The control plane's answer is larger than {LARGEST_ANSWER} bytes.")
    return bytes(body)


def _route(method: str, path: str) -> str:
    """*path* without what differs from project to project: a name for statistics."""
    named = re.sub(r"/(projects|grants|backups|restores)/[^/]+", r"/\1/*", path)
    return f"{method} {named}"


def _headers(base: str, token: wire.Secret | None, data: bytes | None) -> dict[str, str]:
    # identity: nothing here is large, and nothing can unfold to something that is.
    headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
    if data is not None:
        headers["Content-Type"] = "application/json"
    if token is not None:
        headers["Authorization"] = f"Bearer {_sendable(base, token)}"
    return headers


def _sendable(base: str, token: wire.Secret) -> str:
    text = token.reveal()
    if not re.fullmatch(r"[\x21-\x7e]{1,4096}", text):
        raise answers.not_authenticated(base, "The token holds characters that no token has.")
    return text


def _token(caller: Caller) -> wire.Secret:
    if caller.token is None:
        raise answers.not_authenticated(caller.api_base, f"There is no token for {caller.api_base}.")
    return caller.token


def _next_hop(method: str, url: str, status: int, location: str) -> str:
    there = urljoin(url, location)
    if not same_origin(url, there):
        raise errors.PlaneRedirected(detail=f"{url} leads to {answers.plain(there)}; nothing was sent there.")
    if method != "GET" and status not in {307, 308}:
        raise errors.PlaneRedirected(detail=f"{url} answers {status} to a {method}; it cannot be repeated there.")
    return there


def _unreachable(url: str, error: aiohttp.ClientError) -> errors.FluxError:
    match error:
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientConnectorSSLError():
            reason = error.strerror if isinstance(error, OSError) and error.strerror else "TLS failed"
            return errors.PlaneUnreachable(
                "The control plane's certificate could not be verified.",
                detail=f"{url}: {answers.plain(str(_tls_reason(error) or reason))}",
                hint="Check the clock, the address in FLUX_API_BASE, and that its CA is known (SSL_CERT_FILE).",
            )
        case aiohttp.ClientConnectorDNSError():
            return errors.PlaneUnreachable("The control plane's name has no address.", detail=url)
        case aiohttp.ClientResponseError() | aiohttp.InvalidURL():
            return errors.PlaneAnswerInvalid("What answers there does not speak HTTP.", detail=url)
        case aiohttp.ClientPayloadError():
            return errors.PlaneAnswerInvalid("The control plane's answer broke off.", detail=url)
        case _:
            return errors.PlaneUnreachable(detail=f"{url}: {answers.plain(str(error)) or type(error).__name__}")


def _tls_reason(error: aiohttp.ClientError) -> str | None:
    cause = error.__cause__ or getattr(error, "os_error", None) or getattr(error, "certificate_error", None)
    return getattr(cause, "verify_message", None) if isinstance(cause, ssl.SSLError) else None


# ------------------------------------------------------------- route's own refusals


def _no_such_route(said: Refusal) -> type[errors.FluxError] | None:
    return errors.NotSupportedByPlane if said.status == 404 else None


def _no_audit(said: Refusal) -> type[errors.FluxError] | None:
    """A plane that has an audit says 404 of a project only."""
    return None if "project" in (said.text or "").lower() else _no_such_route(said)


def _grant_refusal(said: Refusal, access: wire.Access) -> type[errors.FluxError] | None:
    text = (said.text or "").lower()
    if said.status == 403 and access == "readwrite" and said.code is None:
        return errors.ReadwriteDisabled
    if said.status == 400 and "ttl" in text:
        return errors.TTLOutOfRange
    if said.status == 500 and said.text is not None:
        return errors.GrantFailed
    return None


def _granted(reply: Reply, asked: wire.GrantRequest) -> Granted:
    grant = answers.decoded(reply, wire.Grant)
    if grant.access != asked.access:
        raise errors.PlaneAnswerInvalid(f"Asked for {asked.access} access, the control plane granted {grant.access}.")
    most = None if grant.max_expires_in is None else answers.seconds_left("", grant.max_expires_in, reply)
    left = answers.seconds_left(grant.expires_at, grant.expires_in, reply)
    if left is not None:
        return Granted(grant, left, most)
    assumed = float(asked.ttl_seconds or answers.DEFAULT_TTL_S[asked.access])
    notice = f"The control plane does not say when this credential ends; taken as {assumed:.0f} s from now."
    return Granted(grant, assumed, most, (notice,))
