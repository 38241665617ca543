"""Tunnels, leases and hosts as they stand on the wire."""

from __future__ import annotations

from fluxd import wire
from fluxd.journal import GrantRecord

from .forward import Forward
from .ssh import Host


def shown_lease(record: GrantRecord | None, now: float) -> wire.Lease | None:
    """The lease of a tunnel's latest grant; None without one."""
    if record is None or record.lease is None:
        return None
    lease = record.lease
    return wire.Lease(
        expires_at=lease.expires_at,
        remaining_s=lease.remaining(now),
        state=lease.state(now),
        renewable=record.revocable and lease.limit_at > lease.ends_at + 1,
    )


def shown_traffic(forward: Forward | None) -> wire.Traffic:
    """What went through a forward; nothing before it is bound."""
    if forward is None:
        return wire.Traffic(relays=0, relays_total=0, bytes_up=0, bytes_down=0)
    return wire.Traffic(
        relays=forward.relays,
        relays_total=forward.relays_total,
        bytes_up=forward.bytes_up,
        bytes_down=forward.bytes_down,
    )


def shown_host(host: Host) -> wire.HostStatus:
    target = host.destination.target
    return wire.HostStatus(
        host=target.host,
        port=target.port,
        user=target.user,
        state=host.state,
        channels=host.channels,
        latency_s=host.latency_s,
        connected_at=host.connected_at,
        last_problem=wire.problem_of(host.last_problem) if host.last_problem else None,
        data_plane="channels",
    )
