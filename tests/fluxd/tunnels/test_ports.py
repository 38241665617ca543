"""Ports: a project keeps its own, across closing and restarts, and no other project ever gets it."""

import socket

import msgspec
import pytest

from fluxd.core import errors
from tests.fluxd.tunnels.rig import V1_HASH, V2_HASH
from tests.furniture.provoked import provoked


async def reopened(rig, project_hash=V2_HASH, **more):
    await rig.up.close(project_hash)
    return (await rig.open(project_hash, **more)).tunnel.port


async def restarted(rig):
    await rig.up.aclose()
    rig.supervisor = None


async def test_the_first_free_ports_are_given_in_turn_and_kept(small_rig):
    first = small_rig.settings.first_port
    assert (await small_rig.open(V1_HASH)).tunnel.port == first
    assert (await small_rig.open(V2_HASH)).tunnel.port == first + 1
    await small_rig.up.close(V1_HASH)
    assert await reopened(small_rig) == first + 1


async def test_they_outlive_the_daemon(small_rig):
    await small_rig.open(V1_HASH)
    port = (await small_rig.open()).tunnel.port
    await restarted(small_rig)
    assert (await small_rig.open()).tunnel.port == port


async def test_a_busy_port_is_replaced_for_this_time_and_that_is_said(small_rig):
    port = (await small_rig.open()).tunnel.port
    await small_rig.up.close("foundry")
    with socket.create_server(("127.0.0.1", port)):
        opened = await small_rig.open()
        assert opened.tunnel.port == port + 1
        assert str(port) in opened.notices[0]
        await small_rig.up.close("foundry")
    assert (await small_rig.open()).tunnel.port == port


async def test_a_port_busy_from_the_start_is_passed_over(small_rig):
    with socket.create_server(("127.0.0.1", small_rig.settings.first_port)):
        assert (await small_rig.open()).tunnel.port == small_rig.settings.first_port + 1


async def test_a_strict_port_that_is_busy_is_an_error_before_any_role_is_asked_for(small_rig):
    busy = small_rig.settings.first_port + 7
    with socket.create_server(("127.0.0.1", busy)), pytest.raises(errors.PortTaken):
        await small_rig.open(local_port=busy, strict_port=True)
    assert small_rig.plane.asked["mint"] == 0


async def test_a_port_that_is_asked_for_is_had(small_rig):
    wanted = small_rig.settings.first_port + 7
    assert (await small_rig.open(local_port=wanted)).tunnel.port == wanted


async def test_another_projects_port_is_never_given_away(small_rig):
    port = (await small_rig.open(V1_HASH)).tunnel.port
    await small_rig.up.close(V1_HASH)
    assert (await small_rig.open(local_port=port)).tunnel.port == port + 1
    await small_rig.up.close("foundry")
    with pytest.raises(errors.PortTaken):
        await small_rig.open(local_port=port, strict_port=True)


async def test_forgetting_gives_it_to_whoever_comes_next(small_rig):
    port = (await small_rig.open(V1_HASH)).tunnel.port
    await small_rig.up.forget("yeastcoast")
    assert small_rig.up.list() == []
    assert (await small_rig.open()).tunnel.port == port
    with pytest.raises(errors.TunnelNotFound):
        await small_rig.up.forget("bakery")


async def test_a_closed_projects_port_is_forgotten_by_name(small_rig):
    port = (await small_rig.open(V1_HASH)).tunnel.port
    await small_rig.up.close(V1_HASH)
    await small_rig.up.forget("yeastcoast")
    assert (await small_rig.open()).tunnel.port == port


@pytest.mark.parametrize("content", [b"", b"{", b'{"version": 99}', b'{"version": 1, "ports": 7, "grants": 7}', b"[1]"])
async def test_a_state_file_that_cannot_be_read_is_set_aside_not_overwritten(small_rig, content):
    small_rig.state_dir.mkdir(parents=True)
    for name in ("ports.json", "journal.json"):
        (small_rig.state_dir / name).write_bytes(content)
    await small_rig.open()
    for name in ("ports.json", "journal.json"):
        assert (small_rig.state_dir / f"{name}.unreadable-0").read_bytes() == content
        assert msgspec.json.decode((small_rig.state_dir / name).read_bytes())["version"] == 1
    said = small_rig.up.notices()
    assert len(said) == 2
    provoked("state_unreadable", said[0])
    provoked("state_unreadable", said[1])
    for name, notice in zip(("journal.json", "ports.json"), said, strict=True):
        assert str(small_rig.state_dir / f"{name}.unreadable-0") in notice


async def test_a_state_that_cannot_be_written_asks_for_no_role(small_rig):
    small_rig.state_dir.mkdir(parents=True)
    (small_rig.state_dir / "journal.json.new").mkdir()
    with pytest.raises(errors.StateUnwritable) as caught:
        await small_rig.open()
    assert "journal.json" in provoked("state_unwritable", caught.value)
    assert small_rig.plane.asked["mint"] == 0
    assert small_rig.up.list() == []
