"""
What the control plane's answers mean: bodies checked, refusals turned into problems, seconds left. No I/O.

The plane is another machine: its answers are bounded, held to the shapes of ``fluxplane.wire``, and its words are shown
on one line, without terminal controls and without the token that we sent. Shapes of errors: contract §1.4.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, TypeVar

import msgspec

from fluxd.core import errors
from fluxplane import wire

T = TypeVar("T")

# No credential lives longer, whatever a plane says (contract §2.2).
LONGEST_S: Final = 28800.0
DEFAULT_TTL_S: Final[Mapping[str, int]] = {"readonly": 3600, "readwrite": 1800}


@dataclass(frozen=True)
class Reply:
    """One HTTP answer, read to its end. *duration_s* is how long it took from asking to the last byte."""

    status: int
    body: bytes
    duration_s: float
    date: str | None = None
    retry_after: str | None = None


def decoded(reply: Reply, kind: type[T]) -> T:
    """
    The body of a 2xx answer.

    Raises:
        PlaneAnswerInvalid: not JSON or not of that shape; the detail names the field, never its value.
    """
    try:
        return wire.decode(reply.body, kind)
    except msgspec.ValidationError as error:
        raise errors.PlaneAnswerInvalid(detail=str(error)) from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise errors.PlaneAnswerInvalid(f"The control plane's answer was not JSON ({reply.status}).") from error


# ------------------------------------------------------------------- refusals

_BY_STATUS: Final[Mapping[int, type[errors.FluxError]]] = {
    401: errors.NotAuthenticated,
    403: errors.Forbidden,
    404: errors.ProjectNotFound,
    405: errors.NotSupportedByPlane,
    409: errors.ProjectNotAvailable,
    410: errors.LeaseOver,
    429: errors.RateLimited,
    501: errors.NotSupportedByPlane,
}
# Our extensions name the fact itself. The existing platform's codes are for MCP tokens and say no more than the status.
_BY_CODE: Final[Mapping[str, type[errors.FluxError]]] = {
    "grant_ended": errors.LeaseOver,
    "grant_id_taken": errors.PlaneRefused,
    "grant_unknown": errors.LeaseOver,
    "renewal_limit": errors.RenewLimit,
    "too_many_live_roles": errors.TooManyLiveRoles,
}
# These say better what happened than the plane does; its own words go into the detail.
_OWN_WORDS: Final = (
    errors.LeaseOver,
    errors.NotAuthenticated,
    errors.NotSupportedByPlane,
    errors.ProjectNotFound,
    errors.RateLimited,
    errors.ReadwriteDisabled,
    errors.RenewLimit,
    errors.TTLOutOfRange,
)


@dataclass(frozen=True)
class Refusal:
    """A non-2xx answer, read for people. *text* is None when the body was not the contract's `{"error": …}`."""

    status: int
    text: str | None
    code: str | None
    retry_after_s: float | None


def refusal(reply: Reply, token: wire.Secret | None) -> Refusal:
    """What a non-2xx *reply* says. The *token* is cut out of its words, should they repeat it."""
    try:
        body = wire.decode(reply.body, wire.ErrorBody)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return Refusal(reply.status, _other_words(reply, token), None, _pause(reply.retry_after, None))
    return Refusal(reply.status, plain(body.error, token), body.code, _pause(reply.retry_after, body.retry_after_sec))


class _OtherBody(msgspec.Struct):
    """What stands in for `error` in answers about backups (contract §1.4)."""

    message: str | None = None
    detail: str | None = None


def _other_words(reply: Reply, token: wire.Secret | None) -> str | None:
    try:
        body = wire.decode(reply.body, _OtherBody)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    return plain(body.message or body.detail or "", token) or None


def plain(text: str, token: wire.Secret | None = None) -> str:
    """Somebody else's words on one line of at most 500 characters, without terminal controls and our *token*."""
    if token:
        text = text.replace(token.reveal(), "…")
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+", " ", text).strip()[:500]


def problem(said: Refusal, base: str, kind: type[errors.FluxError] | None = None) -> errors.FluxError:
    """The problem that *said* is: *kind* where the route knows better than its status."""
    kind = _BY_CODE.get(said.code or "") or kind or _kind(said)
    if kind is errors.NotAuthenticated:
        return not_authenticated(base, f"The control plane at {base} did not accept the token.")
    if kind in _OWN_WORDS:
        return kind(detail=said.text, retry_after_s=said.retry_after_s)
    message = said.text or f"{kind.summary.removesuffix('.')} ({said.status})."
    return kind(message, detail=f"{base} answered {said.status}.", retry_after_s=said.retry_after_s)


def not_authenticated(base: str, detail: str) -> errors.NotAuthenticated:
    return errors.NotAuthenticated(
        detail=detail, hint=f"Run `fluxctl login --api-base {base}`, or set FLUX_API_TOKEN together with FLUX_API_BASE."
    )


def _kind(said: Refusal) -> type[errors.FluxError]:
    if said.status == 404 and said.text is None:
        return errors.PlaneAnswerInvalid  # some other web server's 404 says nothing about projects
    if said.status >= 500 and said.status != 501:
        return errors.PlaneFailed
    return _BY_STATUS.get(said.status, errors.PlaneRefused)


def _pause(header: str | None, said_s: int | None) -> float | None:
    """Seconds to wait as the `Retry-After` header or the body says, within an hour."""
    text = (header or "").strip()
    seconds = int(text) if re.fullmatch(r"[0-9]{1,9}", text) else said_s
    return None if seconds is None else float(min(max(seconds, 0), 3600))


# ----------------------------------------------------------------- seconds left


def seconds_left(expires_at: str, expires_in: float | None, reply: Reply) -> float | None:
    """
    How long a credential is still valid when *reply* has arrived; None if it cannot be told.

    From the plane's own clock alone: our wall clock may be wrong by hours. Between 0 and eight hours.
    """
    if expires_in is not None and math.isfinite(expires_in):
        return _bounded(expires_in - reply.duration_s)
    end, answered = instant(expires_at), _http_date(reply.date)
    if end is None or answered is None:
        return None
    return _bounded((end - answered).total_seconds() - reply.duration_s)


def ahead_s(reply: Reply, wall: datetime) -> float | None:
    """By how many seconds the plane's clock is ahead of *wall*, read when the answer had come; None: it has no Date."""
    answered = _http_date(reply.date)
    return None if answered is None else (answered - wall).total_seconds() + reply.duration_s / 2


def _bounded(seconds: float) -> float:
    return min(max(seconds, 0.0), LONGEST_S)


def instant(text: str) -> datetime | None:
    """An instant as planes write it: ISO 8601, else as in mail headers; without a zone it is UTC."""
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            found = read(text.strip())
        except (ValueError, TypeError, OverflowError, IndexError):
            continue
        return _utc(found)
    return None


def _utc(found: datetime) -> datetime | None:
    try:
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (OverflowError, ValueError):
        return None


def _http_date(text: str | None) -> datetime | None:
    return instant(text) if text else None
