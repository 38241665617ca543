"""The ports of declared tunnels: who may have them, and what becomes of whoever waits there."""

import asyncio
import contextlib
import socket

import pytest

from fluxd import declared, wire
from fluxd.core import errors
from fluxd.core.target import Target
from fluxd.declared import Declared
from fluxd.plane import Caller, Tokens
from fluxd.settings import DeclaredTunnel
from fluxd.tunnels.dial import Destination
from fluxd.tunnels.doors import Door
from fluxplane.wire import Secret
from tests.fluxd.tunnels.rig import V1_HASH, V2_HASH, Rig, until
from tests.furniture.contract import TOKEN, NoKeyring


def asked_for(rig: Rig, project_hash: str = V1_HASH, **more) -> wire.OpenTunnel:
    more.setdefault("local_port", rig.settings.first_port + 20)
    return rig.request(project_hash, strict_port=more["local_port"] is not None, credential="keep", **more)


async def door_of(rig: Rig, request: wire.OpenTunnel) -> Door:
    door = await rig.up.listen_for(request, rig.plane.api_base, lambda: None)
    assert isinstance(door, Door)
    return door


async def test_of_two_accounts_at_one_door_the_second_is_refused_and_no_client_is_misled(small_rig):
    ada, bob = small_rig.caller, Caller(small_rig.plane.api_base, Secret(TOKEN), "bob@example.com")
    for caller in (ada, bob):  # each has another port of its own
        await small_rig.up.open(small_rig.request(V1_HASH), caller)
        await small_rig.up.close(V1_HASH)
    door = await door_of(small_rig, asked_for(small_rig))
    both = [small_rig.up.open(small_rig.request(V1_HASH), caller) for caller in (ada, bob)]
    first, second = await asyncio.gather(*both, return_exceptions=True)
    assert {type(one) for one in (first, second)} == {tuple, errors.PortTaken}
    [tunnel] = small_rig.up._tunnels.values()
    assert (tunnel.port, tunnel.life.listening) == (door.port, True)
    assert await small_rig.ask((first if isinstance(first, tuple) else second)[1]) == "postgres"


async def test_a_door_that_is_closed_meanwhile_leads_to_no_tunnel(small_rig, monkeypatch):
    door = await door_of(small_rig, asked_for(small_rig))
    keep = small_rig.up._book.keep

    async def kept(*arguments, **more):
        await keep(*arguments, **more)
        await small_rig.up.undeclare(door)

    monkeypatch.setattr(small_rig.up._book, "keep", kept)
    with pytest.raises(errors.PortTaken):
        await small_rig.up.declare(door.request, small_rig.caller)
    assert small_rig.up.list() == []
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", door.port)


async def test_whoever_asked_and_left_has_left_no_tunnel(small_rig):
    door = await door_of(small_rig, asked_for(small_rig))
    declaring = asyncio.create_task(small_rig.up.declare(door.request, small_rig.caller))
    async with asyncio.timeout(10):
        while not small_rig.up._tunnels:
            await asyncio.sleep(0)
    assert declaring.cancel(), "it is in the making"
    await asyncio.gather(declaring, return_exceptions=True)
    await small_rig.up.undeclare(door)
    await until(lambda: small_rig.up.list() == [], "its end")


@pytest.mark.parametrize("project_hash", [V1_HASH, V2_HASH], ids=["v1", "v2"])
async def test_a_tunnel_that_is_declared_without_a_port_has_the_one_it_had_last(small_rig, project_hash):
    had = (await small_rig.open(project_hash)).tunnel.port
    await small_rig.up.close(project_hash)
    door = await door_of(small_rig, asked_for(small_rig, project_hash, local_port=None))
    assert door.port == had
    # and nobody is told that another program holds it
    assert small_rig.up.port_of(small_rig.caller, project_hash) == (had, None)


async def test_readwrite_s_port_is_not_readonly_s(small_rig):
    await small_rig.open(access="readwrite")
    await small_rig.up.close(V2_HASH)
    request = asked_for(small_rig, V2_HASH, local_port=None)
    assert await small_rig.up.listen_for(request, small_rig.plane.api_base, lambda: None) is None


async def test_clients_of_a_declared_tunnel_burn_no_role_while_nothing_listens_upstream(small_rig):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        small_rig.add("foundry", V2_HASH, "v2_shared", port=nobody.getsockname()[1])
        tunnel = await small_rig.up.declare(asked_for(small_rig, V2_HASH), small_rig.caller)
        for _ in range(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", tunnel.port)
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read(1) == b""
            writer.close()
    assert small_rig.plane.made == []


async def test_a_client_at_one_door_is_not_forgotten_for_another_s_sake(small_rig, monkeypatch):
    """Each is tried again for its own clients: the first one here is in a long pause, the second has just failed."""
    monkeypatch.setattr(declared, "FIRST_PAUSE_S", declared.LONGEST_PAUSE_S)
    small_rig.plane.refuse["plan"] = (503, {"error": "not now"})
    environment = {"FLUX_API_BASE": small_rig.plane.api_base, "FLUX_API_TOKEN": TOKEN}
    state_dir = small_rig.state_dir / "tokens"
    tokens = Tokens(control=small_rig.control, keychain=NoKeyring(), state_dir=state_dir, environ=environment)
    keeping = Declared(small_rig.up, tokens, small_rig.clock)
    first, second = (
        DeclaredTunnel(project=slug, hash=project_hash, access="readonly", port=small_rig.settings.first_port + place)
        for place, (slug, project_hash) in enumerate([("yeastcoast", V1_HASH), ("foundry", V2_HASH)], 30)
    )
    try:
        await keeping.apply([first])
        await until(lambda: small_rig.plane.asked["plan"] == 1, "the first try")
        await asyncio.sleep(declared.LEAST_PAUSE_S + 0.1)
        await keeping.apply([first, second])
        await until(lambda: small_rig.plane.asked["plan"] == 2, "the second one's first try")
        small_rig.plane.refuse.clear()
        _, writer = await asyncio.open_connection("127.0.0.1", second.port)
        await until(lambda: V2_HASH in {one.hash for one in small_rig.up.list()}, "its second try", within_s=5)
        writer.close()
    finally:
        await keeping.aclose()


async def test_one_plan_s_pinned_keys_are_not_another_s(small_rig):
    where = Destination(Target("bastion", "flux", 22))
    ours = small_rig.up._hosts.shared(where, None, ["ssh-ed25519 OURS"])
    theirs = small_rig.up._hosts.shared(where, None, ["ssh-ed25519 THEIRS"])
    assert (ours.pinned, theirs.pinned) == (("ssh-ed25519 OURS",), ("ssh-ed25519 THEIRS",))
    assert small_rig.up._hosts.shared(where, None, ["ssh-ed25519 OURS"]) is ours
    for host in (ours, theirs):
        await small_rig.up._hosts.release(host)


async def test_the_key_of_whoever_joins_opens_a_declared_tunnel_that_names_none(small_rig):
    """config.toml says nothing of keys; the shell does."""
    bare = wire.SSH(known_hosts=str(small_rig.host.known_hosts))
    tunnel = await small_rig.up.declare(asked_for(small_rig, ssh=bare), small_rig.caller)
    _, writer = await asyncio.open_connection("127.0.0.1", tunnel.port)
    await until(lambda: small_rig.up.hosts()[0].last_problem is not None, "a refusal")
    opened = await small_rig.open(V1_HASH)
    assert opened.tunnel.id == tunnel.facts.id
    assert await small_rig.ask(opened) == "postgres"
    [host] = small_rig.up.hosts()
    assert host.state == "up"
    writer.close()
