"""
May this restore overwrite a database?

The contract's classification (§7) looks at the newest backup only; ours also wants it young, since a verified backup
of last month does not bring back yesterday. Pure, and of the standard library alone: the client's `fluxctl/gate.py` is
a generated copy, so that both sides mean the same. Backups are the wire's JSON objects, newest
first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal

Classification = Literal[
    "no_backups",
    "latest_not_complete",
    "restorable",
    "restore_failed",
    "artifact_pending",
    "pipeline_incomplete",
    "not_restore_verified",
    "too_old",
]
Ground = Literal["scratch", "skipped", "verified", "pooled", "not_acknowledged", "no_safe_backup"]

MAX_AGE_S: Final = 24 * 3600
# How far ahead of us a plane's clock may be before its instants count as nonsense.
SKEW_S: Final = 600

SAYS: Final[Mapping[str, str]] = {
    "no_backups": "The project has no backup.",
    "latest_not_complete": "The newest backup is not complete.",
    "restorable": "The newest backup is complete and restore-verified.",
    "restore_failed": "The newest backup could not be restored when it was verified.",
    "artifact_pending": "The newest backup's file has not been checked yet.",
    "pipeline_incomplete": "The newest backup's file is not valid.",
    "not_restore_verified": "The newest backup has not been verified by a restore.",
    "too_old": "The newest backup is restore-verified but too old.",
}


@dataclass(frozen=True)
class Verdict:
    """`allowed`, on what `ground`, and (unless nobody had to look) how the newest backup was classified."""

    allowed: bool
    ground: Ground
    classification: Classification | None = None


def classify(backups: Sequence[Mapping[str, Any]]) -> Classification:
    """What the newest backup is good for: the contract's words, in the contract's order. Age is no part of it."""
    if not backups:
        return "no_backups"
    newest = backups[0]
    restored = newest.get("restoreVerificationStatus") or "pending"
    artifact = newest.get("artifactValidationStatus") or "pending"
    if newest.get("status") != "complete":
        return "latest_not_complete"
    if restored == "restore_verified":
        return "restorable"
    if restored in {"restore_failed", "skipped"}:
        return "restore_failed"
    if artifact == "pending":
        return "artifact_pending"
    return "not_restore_verified" if artifact == "artifact_valid" else "pipeline_incomplete"


def judge(
    *,
    pooled: bool,
    backups: Sequence[Mapping[str, Any]],
    now: datetime,
    max_age_s: float = MAX_AGE_S,
    acknowledged: bool = False,
    skip_backup_check: bool = False,
    scratch: bool = False,
) -> Verdict:
    """
    Whether a restore may run. *now* is the plane's clock; *scratch*: into a new database, which destroys nothing.

    In the contract's order: a pooled project never; without the acknowledgement never; then the newest backup, unless
    the caller explicitly does without.
    """
    if pooled:
        return Verdict(allowed=False, ground="pooled")
    if scratch:
        return Verdict(allowed=True, ground="scratch")
    if not acknowledged:
        return Verdict(allowed=False, ground="not_acknowledged")
    found = _aged(backups, now, max_age_s)
    if found == "restorable":
        return Verdict(allowed=True, ground="verified", classification=found)
    if skip_backup_check:
        return Verdict(allowed=True, ground="skipped", classification=found)
    return Verdict(allowed=False, ground="no_safe_backup", classification=found)


def _aged(backups: Sequence[Mapping[str, Any]], now: datetime, max_age_s: float) -> Classification:
    found = classify(backups)
    if found == "restorable" and not _young(backups[0].get("createdAt"), now, max_age_s):
        return "too_old"
    return found


def _young(created_at: object, now: datetime, max_age_s: float) -> bool:
    """A backup holds what was there when it was begun. An instant that cannot be read proves nothing."""
    try:
        begun = datetime.fromisoformat(str(created_at))
        return timedelta(seconds=-SKEW_S) <= now - begun <= timedelta(seconds=max_age_s)
    except (ValueError, TypeError):
        return False
