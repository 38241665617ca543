"""
Mode, access and time to live → may it be, and for how long?

Pure: no clock, no database, no settings. The order of checks, the statuses and the defaults are the contract's
(§2.1, §2.2). What needs the catalogue (whose project, how many roles already) is `access`'s.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any, Final

from fluxplane.wire import GRANT_ID_PATTERN, HASH_PATTERN, V1, Access, Mode

DEFAULT_TTL_S: Final[dict[str, int]] = {"readonly": 3600, "readwrite": 1800}
MAX_TTL_S: Final = 28_800
REASON_MAX: Final = 500
LIFECYCLES_SERVED: Final = frozenset({"active"})


class Refusal(Exception):
    """A request that is answered with an error: the contract's `status`, `error` and sometimes `code`."""

    def __init__(
        self,
        status: int,
        error: str,
        code: str | None = None,
        *,
        tier: str | None = None,
        limit: int | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(error)
        self.status, self.error, self.code = status, error, code
        # A 429's.
        self.tier, self.limit, self.retry_after_s = tier, limit, retry_after_s


@dataclasses.dataclass(frozen=True, slots=True)
class Ask:
    """What a mint asks for, as far as it can be judged without the project."""

    access: Access
    ttl_s: int
    reason: str | None
    grant_id: str | None


def project_hash(text: str) -> str:
    """
    Raises:
        Refusal: 400, not seven hex digits after trimming and lower-casing.
    """
    trimmed = text.strip().lower()
    if not re.fullmatch(HASH_PATTERN, trimmed):
        raise Refusal(400, "Invalid project hash: it is seven hexadecimal digits.")
    return trimmed


def slug(name: str) -> str:
    """
    The platform's slug of a name.

    Raises:
        ValueError: nothing is left of it.
    """
    made = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not made:
        raise ValueError("a slug needs a letter or digit")
    return made


def parse_int(text: str | None) -> int | None:
    """JavaScript's parseInt, base 10, of a positive number: leading digits count, anything else is None."""
    match = re.match(r"\s*\+?([0-9]{1,15})", text or "")
    number = int(match[1]) if match else 0
    return number if number > 0 else None


def asked(body: dict[str, Any], *, allow_readwrite: bool, header_grant_id: str | None = None) -> Ask:
    """
    What this body asks for, checked in the contract's order.

    Raises:
        Refusal: 400 access, 403 read/write, 400 ttl, 400 grant id or reason.
    """
    access = _access(body.get("access"))
    if access == "readwrite" and not allow_readwrite:
        raise Refusal(
            403,
            "Read/write database access is disabled on this platform. Use read-only, or ask an operator about "
            "FLUX_DB_ACCESS_ALLOW_READWRITE.",
        )
    ttl_s = ttl(body.get("ttlSeconds"), default=DEFAULT_TTL_S[access])
    return Ask(access, ttl_s, _reason(body.get("reason")), _grant_id(body.get("grantId"), header_grant_id))


def ttl(value: Any, *, default: int) -> int:
    """
    Seconds; what is no finite number is ignored, as in the contract.

    Raises:
        Refusal: 400, not within 1..MAX_TTL_S.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
        return default
    seconds = math.floor(value)
    if not 0 < seconds <= MAX_TTL_S:
        raise Refusal(400, f"ttlSeconds must be between 1 and {MAX_TTL_S}.")
    return seconds


def grantable(mode: Mode, lifecycle: str) -> None:
    """
    Whether a project of this mode, in this stage of its life, has temporary credentials.

    Raises:
        Refusal: 409 dormant, archived or being deleted; 400 a v1 project.
    """
    awake(lifecycle)
    if mode == V1:
        raise Refusal(400, "Temporary credentials exist for v2_shared projects only; this project is v1_dedicated.")


def awake(lifecycle: str) -> None:
    """
    Raises:
        Refusal: 409, the project is dormant, archived or being deleted.
    """
    if lifecycle not in LIFECYCLES_SERVED:
        raise Refusal(409, f"The project is {lifecycle}: wake it first.", code="project_" + lifecycle)


def temporary_username(access: Access, hash_: str, suffix: str) -> str:
    """``flux_temp_ro_<hash>_<8hex>``: at most 63 bytes, as Postgres and the contract want it."""
    return f"flux_temp_{'rw' if access == 'readwrite' else 'ro'}_{hash_}_{suffix}"


def renewed_ttl(asked_s: int | None, access: Access, *, left_of_max_s: float) -> float:
    """
    How long from now a renewed grant lives: as asked, never past its maximum, eight hours after its mint.

    Raises:
        Refusal: 409, the maximum has come.
    """
    if left_of_max_s <= 0:
        raise Refusal(409, "The grant has reached its maximum of eight hours; open a new one.", code="renewal_limit")
    return min(float(asked_s or DEFAULT_TTL_S[access]), left_of_max_s)


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond any float: a number all the same, and too big
        return True


def _access(value: Any) -> Access:
    if value is None:
        return "readonly"
    if isinstance(value, str):
        match value.strip().lower():
            case "" | "readonly":
                return "readonly"
            case "readwrite":
                return "readwrite"
    raise Refusal(400, "Invalid access: use readonly or readwrite.")


def _reason(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > REASON_MAX or not value.isprintable():
        raise Refusal(400, f"reason must be one line of at most {REASON_MAX} characters.")
    return value.strip() or None


def _grant_id(value: Any, header: str | None) -> str | None:
    chosen = header if value is None else value
    if chosen is None:
        return None
    if not isinstance(chosen, str) or not re.fullmatch(GRANT_ID_PATTERN, chosen):
        raise Refusal(400, "grantId must be 32 lower-case hexadecimal digits.")
    if header is not None and header != chosen:
        raise Refusal(400, "grantId and Idempotency-Key differ.")
    return chosen
