"""What is known of a tunnel before anything of it is opened, and what people want of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec

from fluxd.core.login import Unproven
from fluxd.journal import Key, TunnelRecord
from fluxd.plane import Caller
from fluxplane import wire as plane_wire


@dataclass(slots=True)
class Hold:
    """Somebody's wish that the tunnel stay. `until`: it must be taken up by then; None: it is."""

    grant_id: str | None
    until: float | None


@dataclass(frozen=True, slots=True)
class Wish:
    """What a grant is asked for with, by whom."""

    caller: Caller
    ttl_s: int | None = None
    reason: str | None = None
    hold: str | None = None


@dataclass(slots=True)
class Facts:
    """
    A tunnel to be.

    `kept`: somebody opened it without holding it. `renew`: it renews by itself while clients are connected, each time
    by `ttl_s` (None: as the plane likes). `prefer_network`: the docker network to take an address from.
    """

    id: str
    key: Key
    plan: plane_wire.AccessPlan
    raw_plan: dict[str, Any]
    local_host: str
    opened_at: datetime
    prefer_network: str | None = None
    kept: bool = False
    renew: bool = False
    ttl_s: int | None = None
    notices: list[str] = field(default_factory=list)
    # Why nobody knows whose Postgres it is, as a sentence.
    unproven: str | None = None

    @property
    def project(self) -> str:
        return self.plan.project_name

    @property
    def pooled(self) -> plane_wire.PooledPlan | None:
        return self.plan if isinstance(self.plan, plane_wire.PooledPlan) else None

    @property
    def username(self) -> str | None:
        """Of v1, whose user is always the same."""
        return None if isinstance(self.plan, plane_wire.PooledPlan) else self.plan.database.username

    def say_unproven(self, unproven: Unproven) -> None:
        """Its clients are let through, but a person should know that nobody knows whose Postgres that is."""
        self.unproven = f"This Postgres cannot be proven to be the project's own: {unproven}."
        self.say_once(self.unproven)

    def say_once(self, notice: str) -> None:
        if notice not in self.notices:
            self.notices.append(notice)


def recalled(record: TunnelRecord) -> Facts:
    """
    The facts of a tunnel that an earlier daemon had open.

    Raises:
        msgspec.DecodeError: its plan is none any more.
    """
    plan: plane_wire.AccessPlan = plane_wire.decode(
        msgspec.json.encode(record.plan),
        plane_wire.AccessPlan,  # type: ignore[arg-type]
    )
    return Facts(
        id=record.id,
        key=record.key,
        plan=plan,
        raw_plan=record.plan,
        local_host=record.local_host,
        opened_at=record.opened_at,
        prefer_network=record.prefer_network,
        kept=record.kept,
        renew=record.renew,
        ttl_s=record.ttl_s,
    )
