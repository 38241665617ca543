"""
What Prometheus may scrape from the socket (`GET /metrics`): hosts, tunnels, relays, leases, events, the control plane.

Gauges are read off the tunnels when somebody asks; only the plane's answers are timed as they come. Series are labelled
by project and access, never by tunnel id, account or client: they stay few, and say nothing a status page would not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Histogram, Metric, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from fluxd import wire

MEDIA_TYPE: Final = CONTENT_TYPE_LATEST
_PROJECT: Final = ("project", "hash", "access")
_BUCKETS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """One registry of this daemon's own; `text` is the answer to a scrape."""

    def __init__(self, *, version: str) -> None:
        self._version = version
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._plane = Histogram(
            "fluxd_plane_request_seconds",
            "How long the control plane took to answer; outcome is `ok` or a problem's code.",
            ("route", "outcome"),
            buckets=_BUCKETS,
            registry=self._registry,
        )

    def plane_answered(self, route: str, took_s: float, outcome: str) -> None:
        """One request to a control plane has ended."""
        self._plane.labels(route, outcome).observe(took_s)

    def watch(
        self,
        *,
        tunnels: Callable[[], Collection[wire.Tunnel]],
        hosts: Callable[[], Collection[wire.HostStatus]],
        pending: Callable[[], int],
        happened: Callable[[], Mapping[str, int]],
    ) -> None:
        """From now on, ask these at every scrape."""

        def collect() -> Iterator[Metric]:
            yield InfoMetricFamily("fluxd", "The daemon.", {"version": self._version})
            yield from _of_tunnels(tunnels())
            yield from _of_hosts(hosts())
            yield GaugeMetricFamily(
                "fluxd_revocations_pending", "Grants whose end is not confirmed yet.", value=pending()
            )
            yield _of_events(happened())

        self._registry.register(_Asked(collect))

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _Asked(Collector):
    def __init__(self, collect: Callable[[], Iterator[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterator[Metric]:
        return self._collect()


def _of_tunnels(tunnels: Collection[wire.Tunnel]) -> Iterator[Metric]:
    states = GaugeMetricFamily("fluxd_tunnels", "Tunnels in each state.", labels=("state",))
    for state, count in sorted(Counter(tunnel.state for tunnel in tunnels).items()):
        states.add_metric((state,), count)
    relays = GaugeMetricFamily("fluxd_relays", "Clients connected now.", labels=_PROJECT)
    accepted = CounterMetricFamily("fluxd_relays_accepted", "Clients since the tunnel was opened.", labels=_PROJECT)
    moved = CounterMetricFamily(
        "fluxd_bytes", "Bytes since the tunnel was opened: `up` to Postgres.", labels=(*_PROJECT, "direction")
    )
    lease = GaugeMetricFamily("fluxd_lease_remaining_seconds", "Until the latest grant ends.", labels=_PROJECT)
    for tunnel in tunnels:
        named = (tunnel.project, tunnel.hash, tunnel.access)
        relays.add_metric(named, tunnel.traffic.relays)
        accepted.add_metric(named, tunnel.traffic.relays_total)
        moved.add_metric((*named, "up"), tunnel.traffic.bytes_up)
        moved.add_metric((*named, "down"), tunnel.traffic.bytes_down)
        if tunnel.lease is not None:
            lease.add_metric(named, tunnel.lease.remaining_s)
    yield from (states, relays, accepted, moved, lease)


def _of_hosts(hosts: Collection[wire.HostStatus]) -> Iterator[Metric]:
    states = GaugeMetricFamily("fluxd_hosts", "SSH hosts in each state.", labels=("state",))
    for state, count in sorted(Counter(host.state for host in hosts).items()):
        states.add_metric((state,), count)
    latency = GaugeMetricFamily("fluxd_host_latency_seconds", "What opening the last channel took.", labels=("host",))
    channels = GaugeMetricFamily("fluxd_host_channels", "Channels open on the shared connection.", labels=("host",))
    # Several connections to one host (other keys, say) are one sample: a label may not come twice.
    open_channels, slowest = Counter[str](), dict[str, float]()
    for host in hosts:
        name = f"{host.user}@{host.host}:{host.port}"
        open_channels[name] += host.channels
        if host.latency_s is not None:
            slowest[name] = max(host.latency_s, slowest.get(name, 0.0))
    for name, count in open_channels.items():
        channels.add_metric((name,), count)
    for name, seconds in slowest.items():
        latency.add_metric((name,), seconds)
    yield from (states, latency, channels)


def _of_events(happened: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily("fluxd_events", "What has happened, by the event's name.", labels=("event",))
    for name, count in sorted(happened.items()):
        family.add_metric((name,), count)
    return family
