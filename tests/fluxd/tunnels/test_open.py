"""Opening: the order that burns no role, what undoes it, and a query at its end."""

import asyncio
import socket

import msgspec
import pytest

from fluxd import wire
from fluxd.core import errors
from fluxd.core.target import bracketed
from tests.fluxd.tunnels.rig import V1_HASH, V2_HASH, until
from tests.fluxd.tunnels.upstreams import Upstream
from tests.furniture.provoked import provoked


async def test_a_v1_tunnel_carries_a_query(rig):
    opened = await rig.open(V1_HASH)
    assert opened.tunnel.state == "up"
    assert opened.credential is None
    assert opened.tunnel.lease is None
    assert opened.tunnel.username == "postgres"
    assert await rig.ask(opened) == "postgres"
    assert rig.plane.asked["mint"] == 0


async def test_a_v2_tunnel_carries_a_query_of_its_temporary_role(rig):
    opened = await rig.open(V2_HASH)
    assert opened.tunnel.state == "up"
    assert opened.tunnel.resolution_method == "docker_inspect"
    assert opened.credential is not None
    assert await rig.ask(opened) == opened.credential.username
    closed = await rig.up.close("foundry")
    assert closed.revoked
    assert closed.tunnel is not None
    assert closed.tunnel.state == "closed"
    assert rig.roles() == set()


async def test_20_tunnels_at_once_share_one_connection(rig):
    for number in range(19):
        rig.add(f"tenant{number}", f"{number:07x}", "v2_shared" if number % 2 else "v1_dedicated")
    hashes = [V2_HASH, *(f"{number:07x}" for number in range(19))]
    opened = await asyncio.gather(*(rig.open(project) for project in hashes))
    assert {one.tunnel.state for one in opened} == {"up"}
    assert len({one.tunnel.port for one in opened}) == 20
    [host] = rig.up._hosts
    assert host.generation == 1
    answers = await asyncio.gather(*(rig.ask(one) for one in opened))
    assert answers == [rig.password(one)[0] for one in opened]


async def test_upstream_is_reached_by_name_when_getent_knows_it(rig):
    rig.host.know_name("flux-5774112-foundry-db", rig.postgres.port)
    opened = await rig.open()
    assert opened.tunnel.resolution_method == "getent"
    assert opened.tunnel.upstream == f"{bracketed('flux-5774112-foundry-db')}:{rig.postgres.port}"
    assert await rig.ask(opened) == opened.credential.username


async def test_a_plane_without_extensions_is_said_once_and_closed_all_the_same(small_rig):
    small_rig.plane.extensions = ()
    opened = await small_rig.open()
    [notice] = opened.notices
    assert "cannot renew or revoke" in notice
    assert await small_rig.ask(opened) == opened.credential.username
    closed = await small_rig.up.close("foundry")
    assert not closed.revoked
    assert small_rig.plane.asked["revoke"] == 0
    assert small_rig.up.pending_revocations() == 0
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(opened.tunnel.host, opened.tunnel.port)


async def test_the_wrong_name_for_a_hash_is_said(small_rig):
    opened = await small_rig.open(project="bakery")
    assert opened.tunnel.project == "foundry"
    assert "foundry" in opened.notices[0]
    assert "bakery" in opened.notices[0]


# ------------------------------------------------- failures burn no role


async def refused(rig, *, minted=0, **request):
    """An open that fails leaves no role, no listener, no host and nothing to be revoked."""
    with pytest.raises(errors.FluxError) as caught:
        await rig.open(**request)
    await until(lambda: rig.up.pending_revocations() == 0, "revocations")
    assert rig.up.list() == []
    await until(lambda: rig.up.hosts() == [], "the host to be let go")
    assert len(rig.plane.made) == minted
    assert rig.roles() == set()
    socket.create_server(("127.0.0.1", rig.settings.first_port)).close()  # it is free
    return caught.value


async def test_a_container_that_is_not_there(rig):
    rig.add("ghost", "0000000", "v2_shared", known=False)
    provoked("container_not_found", await refused(rig, project_hash="0000000"))


async def test_a_stopped_container(small_rig):
    small_rig.host.containers["flux-5774112-foundry-db"] = {"net": ""}
    small_rig.host.publish()
    provoked("container_not_running", await refused(small_rig))


async def test_nothing_listens_upstream(rig):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rig.add("foundry", V2_HASH, "v2_shared", port=port)
    provoked("upstream_refused", await refused(rig), says=f":{port}")


async def test_what_answers_is_no_postgres(small_rig):
    async with Upstream("pour", 100_000) as upstream:
        small_rig.add("foundry", V2_HASH, "v2_shared", port=upstream.port)
        provoked("upstream_not_postgres", await refused(small_rig))


async def test_an_unknown_host_key(small_rig, tmp_path):
    ssh = wire.SSH(identity_file=str(small_rig.host.identity_file), known_hosts=str(tmp_path / "none"))
    provoked("ssh_host_key_unknown", await refused(small_rig, ssh=ssh), says="SHA256:", hint="Compare the fingerprint")


async def test_an_ssh_host_that_is_down(small_rig):
    await small_rig.host.stop()
    provoked("ssh_refused", await refused(small_rig), says=f":{small_rig.host.port} refuses")
    await small_rig.host.start()


async def test_a_plan_without_an_ssh_host(small_rig):
    small_rig.plane.ssh["sshHost"] = ""
    provoked("ssh_host_missing", await refused(small_rig))


@pytest.mark.parametrize(
    ("status", "body", "code", "says"),
    [
        (403, {"error": "Read/write is disabled"}, "forbidden", "Read/write is disabled"),
        (429, {"error": "rate limit exceeded", "tier": "sensitive", "retryAfterSec": 37}, "rate_limited", None),
        (409, {"error": "Project is dormant"}, "project_not_available", "dormant"),
        (500, {"error": "Failed to create"}, "grant_failed", "Failed to create"),
    ],
)
async def test_a_plane_that_refuses_the_grant(small_rig, status, body, code, says):
    small_rig.plane.refuse["mint"] = (status, body)
    provoked(code, await refused(small_rig), says=says)


async def test_a_role_that_cannot_log_in_is_revoked(small_rig, pg18):
    """The plane made it on another server than the one behind the tunnel."""
    small_rig.add("foundry", V2_HASH, "v2_shared", port=pg18.port)
    provoked("upstream_login_failed", await refused(small_rig, minted=1))


async def test_a_caller_who_leaves_during_the_mint_leaves_no_role(small_rig):
    small_rig.plane.hold_mints = asyncio.Event()
    opening = asyncio.ensure_future(small_rig.open())
    await small_rig.plane.minting.wait()
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    small_rig.plane.hold_mints.set()
    await until(lambda: small_rig.up.list() == [], "the tunnel to end")
    await until(lambda: small_rig.up.pending_revocations() == 0, "the revocation")
    assert small_rig.roles() == set()


async def test_a_mint_whose_answer_is_lost_gives_the_same_role_when_asked_again(small_rig):
    """The plane hangs up once after it made the role."""
    lost = []
    mint = small_rig.plane.mint

    async def lose_first(request):
        answer = await mint(request)
        if not lost:
            lost.append(True)
            request.transport.abort()
        return answer

    small_rig.plane.mint_answer = lose_first
    opened = await small_rig.open()
    assert lost
    assert small_rig.plane.made == [opened.credential.username]
    assert await small_rig.ask(opened) == opened.credential.username


async def test_the_password_is_in_no_file_of_ours(small_rig):
    opened = await small_rig.open()
    secret = opened.credential.password.reveal().encode()
    files = [path for path in small_rig.state_dir.rglob("*") if path.is_file()]
    assert files
    assert all(secret not in path.read_bytes() for path in files)
    assert all(path.stat().st_mode & 0o077 == 0 for path in files)
    assert secret.decode() not in repr(opened)


# ------------------------------------------------------------- once it is open


async def test_a_second_opening_joins_the_first(rig):
    first = await rig.open()
    new, second = await rig.up.open(rig.request(), rig.caller)
    assert not new
    assert second.tunnel.id == first.tunnel.id
    assert second.credential is None
    assert len(rig.plane.made) == 1


async def test_a_new_credential_is_another_role_on_the_same_forward(rig):
    first = await rig.open()
    second = await rig.open(credential="new")
    assert second.tunnel.id == first.tunnel.id
    assert second.tunnel.grants == 2
    assert second.credential.username != first.credential.username
    assert await asyncio.gather(rig.ask(first), rig.ask(second)) == [
        first.credential.username,
        second.credential.username,
    ]


async def test_many_open_the_same_project_at_once_and_share_it(small_rig):
    opened = await asyncio.gather(*(small_rig.open(credential="new") for _ in range(8)))
    assert len({one.tunnel.id for one in opened}) == 1
    assert len({one.credential.username for one in opened}) == 8


async def test_a_v1_project_has_one_forward_for_either_access(small_rig):
    first = await small_rig.open(V1_HASH)
    second = await small_rig.open(V1_HASH, access="readwrite")
    assert second.tunnel.id == first.tunnel.id
    assert first.tunnel.access == "readwrite"


async def test_readonly_and_readwrite_of_a_pooled_project_are_two_forwards(small_rig):
    first = await small_rig.open()
    second = await small_rig.open(access="readwrite")
    assert second.tunnel.id != first.tunnel.id
    with pytest.raises(errors.TunnelAmbiguous) as caught:
        await small_rig.up.close("foundry")
    provoked("tunnel_ambiguous", caught.value, says="foundry")
    assert (await small_rig.up.close(second.tunnel.id)).revoked


@pytest.mark.parametrize(
    "different",
    [
        {"local_port": 25999},
        {"local_host": "127.0.0.2"},
        {"ssh": wire.SSH(host="elsewhere")},
        {"ssh": wire.SSH(user="somebody")},
        {"ssh": wire.SSH(port=2)},
    ],
    ids=lambda it: str(next(iter(it))),
)
async def test_asking_for_it_in_another_way_names_both(small_rig, different):
    opened = await small_rig.open()
    with pytest.raises(errors.TunnelOpenDifferently) as caught:
        await small_rig.open(**different)
    assert opened.tunnel.id in caught.value.message
    assert len(small_rig.plane.made) == 1


async def test_asking_for_it_just_as_it_is_joins(small_rig):
    opened = await small_rig.open()
    ssh = wire.SSH(host=small_rig.host.host, user=small_rig.host.user, port=small_rig.host.port)
    again = await small_rig.open(ssh=ssh, local_port=opened.tunnel.port, local_host="127.0.0.1")
    assert again.tunnel.id == opened.tunnel.id


async def test_it_is_shown_by_id_slug_hash_and_port(small_rig):
    opened = await small_rig.open()
    tunnel = opened.tunnel
    for name in (tunnel.id, "foundry", V2_HASH, str(tunnel.port)):
        assert small_rig.up.show(name).id == tunnel.id
    with pytest.raises(errors.TunnelNotFound):
        small_rig.up.show("bakery")


async def test_its_traffic_is_counted(small_rig):
    opened = await small_rig.open()
    await small_rig.ask(opened)
    await until(lambda: small_rig.up.show("foundry").traffic.relays == 0, "the relay to end")
    traffic = small_rig.up.show("foundry").traffic
    assert traffic.relays_total == 1
    assert traffic.bytes_up > 100
    assert traffic.bytes_down > 300


async def test_a_container_that_moved_is_asked_for_again(small_rig, monkeypatch):
    """Its docker address is older than ten seconds: the next client gets the new one."""
    opened = await small_rig.open()
    container = "flux-5774112-foundry-db"
    small_rig.host.know_container(container, small_rig.postgres.port, {"net": "127.0.0.2"})
    small_rig.host.allow("127.0.0.2", "127.0.0.1", small_rig.postgres.port)
    assert await small_rig.ask(opened) == opened.credential.username
    assert small_rig.up.show("foundry").upstream == f"127.0.0.1:{small_rig.postgres.port}"
    monkeypatch.setattr("fluxd.tunnels.whereabouts.ADDRESS_FRESH_S", 0.0)
    assert await small_rig.ask(opened) == opened.credential.username
    assert small_rig.up.show("foundry").upstream == f"127.0.0.2:{small_rig.postgres.port}"


async def test_after_a_reconnect_it_is_asked_for_again_however_fresh_the_address_is(small_rig):
    opened = await small_rig.open()
    small_rig.host.know_container("flux-5774112-foundry-db", small_rig.postgres.port, {"net": "127.0.0.2"})
    small_rig.host.allow("127.0.0.2", "127.0.0.1", small_rig.postgres.port)
    await small_rig.host.hang_up()
    assert await small_rig.ask(opened) == opened.credential.username
    assert small_rig.up.show("foundry").upstream == f"127.0.0.2:{small_rig.postgres.port}"


@pytest.fixture
def ssh_config(monkeypatch, tmp_path):
    """The user's own, as the daemon reads it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / ".ssh" / "config"
    path.parent.mkdir(mode=0o700)
    return path


async def test_the_plans_user_and_port_count_and_what_ssh_config_says_is_told(small_rig, ssh_config):
    ssh_config.write_text("Host 127.*\n  User somebody\n  Port 2222\n")
    opened = await small_rig.open(V1_HASH)
    assert await small_rig.ask(opened) == "postgres"
    user, port = (one for one in opened.notices if "ssh/config" in one)
    assert "User somebody" in user
    assert "FLUX_DB_TUNNEL_SSH_USER=somebody" in user
    assert "FLUX_DB_TUNNEL_SSH_PORT=2222" in port


async def test_what_the_shell_says_counts_before_both_and_nothing_is_told(small_rig, ssh_config):
    ssh_config.write_text("Host 127.*\n  User somebody\n  Port 2222\n")
    host, small_rig.plane.ssh = small_rig.host, {**small_rig.plane.ssh, "sshUser": "planned", "sshPort": 2}
    said = msgspec.structs.replace(small_rig.ssh, user=host.user, port=host.port)
    opened = await small_rig.open(V1_HASH, ssh=said)
    assert opened.tunnel.ssh == f"{host.user}@{host.host}:{host.port}"
    assert [one for one in opened.notices if "ssh/config" in one] == []


async def test_ssh_configs_alias_of_the_plans_host_counts(small_rig, ssh_config):
    host = small_rig.host
    ssh_config.write_text(f"Host bastion\n  HostName {host.host}\n  HostKeyAlias [{host.host}]:{host.port}\n")
    small_rig.plane.ssh["sshHost"] = "bastion"
    assert await small_rig.ask(await small_rig.open(V1_HASH)) == "postgres"


@pytest.mark.parametrize("address", ["0.0.0.0", "192.168.1.2", "::", "example.com", "127.0.0.1.example.com"])
async def test_only_loopback_is_listened_on(small_rig, address):
    with pytest.raises(errors.LocalHostForbidden):
        await small_rig.open(local_host=address)
    assert small_rig.plane.asked["mint"] == 0


async def test_nothing_is_opened_once_it_stops(small_rig):
    up = small_rig.up
    await up.aclose()
    with pytest.raises(errors.ShuttingDown) as caught:
        await small_rig.open()
    provoked("shutting_down", caught.value)
