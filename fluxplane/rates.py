"""
How many requests per minute: the contract's fixed windows of 60 s, counted in the catalogue.

One count for all replicas. The bucket is the token; without a valid one it is the caller's address, so that nobody can
use up everybody's "anon" and nobody gets a fresh bucket by inventing tokens.
"""

from __future__ import annotations

import math
from typing import Final, Literal

from fluxplane.catalogue import Catalogue
from fluxplane.policy import Refusal
from fluxplane.settings import Limits

Tier = Literal["read", "sensitive", "write", "audit", "anonymous"]
WINDOW_S: Final = 60


def limit_of(tier: Tier, limits: Limits) -> int:
    return {
        "read": limits.reads_per_minute,
        "sensitive": limits.sensitive_per_minute,
        "write": limits.writes_per_minute,
        "audit": limits.audit_per_minute,
        "anonymous": limits.anonymous_per_minute,
    }[tier]


async def spend(store: Catalogue, limits: Limits, bucket: str, tier: Tier) -> None:
    """
    Count one request.

    Raises:
        Refusal: 429, with the seconds until the window ends.
    """
    row = await store.db.fetchrow(
        "INSERT INTO rates AS r (bucket, tier, minute, used)"
        " VALUES ($1, $2, floor(extract(epoch FROM clock_timestamp()) / $3)::bigint, 1)"
        " ON CONFLICT (bucket, tier, minute) DO UPDATE SET used = r.used + 1"
        " RETURNING used, ((minute + 1) * $3 - extract(epoch FROM clock_timestamp()))::float8 AS left_s",
        bucket,
        tier,
        WINDOW_S,
    )
    assert row is not None
    limit = limit_of(tier, limits)
    if row["used"] > limit:
        wait_s = max(1, math.ceil(row["left_s"]))
        raise Refusal(429, "rate limit exceeded", tier=tier, limit=limit, retry_after_s=wait_s)
