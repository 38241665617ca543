"""
Is a project's newest verified backup young enough, and which backups may go?

Pure; the figures' names and defaults are the contract's (§7). Freshness informs, it forbids nothing: what forbids is
`gate`. Retention only ever removes verified backups that are both many and old, so that the newest one stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal

Tier = Literal["fresh", "stale", "never_verified", "no_backups"]

DAY_S: Final = 86_400


@dataclass(frozen=True)
class Policy:
    """The newest verified one may be `interval_days` old; `retention_count` are kept and all below `retention_days`."""

    interval_days: int = 7
    retention_count: int = 4
    retention_days: int = 30


@dataclass(frozen=True)
class Kept:
    """A backup as far as its age matters."""

    id: str
    created_at: datetime
    verified_at: datetime | None


def freshness(backups: Sequence[Kept], policy: Policy, now: datetime) -> dict[str, Any]:
    """The wire's `platformMinimumBackupFreshness`."""
    latest = max((one.verified_at for one in backups if one.verified_at is not None), default=None)
    age_days = None if latest is None else max(0.0, (now - latest).total_seconds() / DAY_S)
    tier = _tier(bool(backups), age_days, policy)
    return {
        "effectivePolicy": {
            "intervalDays": policy.interval_days,
            "retentionCount": policy.retention_count,
            "retentionDays": policy.retention_days,
        },
        "freshness": {
            "tier": tier,
            "ageDays": None if age_days is None else round(age_days, 2),
            "dueInDays": None if age_days is None else round(policy.interval_days - age_days, 2),
            "latestRestoreVerifiedAt": None if latest is None else instant(latest),
            "platformBackupCompliant": tier == "fresh",
            "detail": _DETAIL[tier].format(days=policy.interval_days),
        },
    }


def instant(moment: datetime) -> str:
    """As the contract writes instants: UTC, milliseconds, Z."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def superfluous(backups: Sequence[Kept], policy: Policy, now: datetime) -> list[str]:
    """Ids of verified backups beyond the newest `retention_count` of them *and* older than `retention_days`."""
    verified = sorted((one for one in backups if one.verified_at is not None), key=lambda one: one.created_at)
    beyond = verified[: -policy.retention_count or None]
    return [one.id for one in beyond if now - one.created_at > timedelta(days=policy.retention_days)]


def _tier(any_backup: bool, age_days: float | None, policy: Policy) -> Tier:
    if age_days is not None:
        return "fresh" if age_days <= policy.interval_days else "stale"
    return "never_verified" if any_backup else "no_backups"


_DETAIL: Final[Mapping[Tier, str]] = {
    "fresh": "The newest restore-verified backup is at most {days} days old.",
    "stale": "The newest restore-verified backup is older than {days} days.",
    "never_verified": "There are backups, but none was verified by a restore.",
    "no_backups": "There is no backup yet.",
}
