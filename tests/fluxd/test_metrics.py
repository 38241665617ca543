"""What Prometheus reads off a daemon at work, parsed by Prometheus' own parser."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.fluxd.asking import asker
from tests.furniture.daemon import Daemon
from tests.furniture.lab import Lab


async def scraped(daemon: Daemon) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    async with asker(daemon.socket) as fluxd, fluxd.session.get("http://localhost/metrics") as response:
        assert response.headers["Content-Type"].startswith("text/plain")
        text = await response.text()
    families = list(text_string_to_metric_families(text))
    return {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}


def named(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


async def test_a_daemon_at_rest_says_that_it_is(daemon: Daemon):
    found = await scraped(daemon)
    assert found[named("fluxd_revocations_pending")] == 0
    assert any(name == "fluxd_info" for name, _ in found)
    assert any(name == "process_resident_memory_bytes" for name, _ in found)


async def test_a_tunnel_its_relay_its_lease_its_host_and_the_planes_answers_are_counted(lab: Lab, daemon: Daemon):
    hash_ = next(one["hash"] for one in lab.facts["projects"] if one["slug"] == "foundry")
    opened = await asyncio.to_thread(daemon.flux_json, "tunnel", "open", "foundry", "--hash", hash_, env=lab.env)
    tunnel = opened["tunnel"]
    with socket.create_connection((tunnel["host"], tunnel["port"])) as client:
        client.sendall(bytes.fromhex("0000000804d2162f"))  # SSLRequest
        assert await asyncio.to_thread(client.recv, 1) in {b"N", b"S"}
        found = await scraped(daemon)
    project = {"project": "foundry", "hash": hash_, "access": "readonly"}
    assert found[named("fluxd_tunnels", state="up")] == 1
    assert found[named("fluxd_relays", **project)] == 1
    assert found[named("fluxd_relays_accepted_total", **project)] >= 1
    assert found[named("fluxd_hosts", state="up")] == 1
    assert 3000 < found[named("fluxd_lease_remaining_seconds", **project)] <= 3600
    assert found[named("fluxd_events_total", event="lease_granted")] == 1
    granted = named(
        "fluxd_plane_request_seconds_count", route="POST /projects/*/db-access/temporary-credential", outcome="ok"
    )
    assert found[granted] == 1


async def test_two_connections_to_one_host_are_one_sample(lab: Lab, daemon: Daemon):
    """By another copy of the same key; a label that comes twice would spoil the whole page."""
    key = "FLUX_DB_TUNNEL_IDENTITY_FILE"
    copy = daemon.home / "id"
    copy.write_bytes(Path(lab.env[key]).read_bytes())
    copy.chmod(0o600)
    for slug, named_key in (("yeastcoast", lab.env[key]), ("foundry", str(copy))):
        hash_ = next(one["hash"] for one in lab.facts["projects"] if one["slug"] == slug)
        env = {**lab.env, key: named_key}
        await asyncio.to_thread(daemon.flux_json, "tunnel", "open", slug, "--hash", hash_, env=env)
    async with asker(daemon.socket) as fluxd, fluxd.session.get("http://localhost/metrics") as response:
        lines = (await response.text()).splitlines()
    assert 'fluxd_hosts{state="up"} 2.0' in lines
    for name in ("fluxd_host_channels", "fluxd_host_latency_seconds"):
        assert len([line for line in lines if line.startswith(name + "{")]) == 1, lines


async def test_a_refused_request_is_counted_under_its_problem(lab: Lab, daemon: Daemon):
    await asyncio.to_thread(daemon.flux, "tunnel", "open", "nobody", "--hash", "fffffff", env=lab.env)
    found = await scraped(daemon)
    refused = named("fluxd_plane_request_seconds_count", route="GET /projects/*/db-access", outcome="project_not_found")
    assert found[refused] == 1
