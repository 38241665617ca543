"""One SSH host: every way that dialling, asking and opening fails has one name; the connection is shared and kept."""

import asyncio
import contextlib
import itertools
import os
import resource
import socket
import subprocess
from pathlib import Path

import asyncssh
import pytest

from fluxd.clock import Clock
from fluxd.core import errors
from fluxd.core.target import Target
from fluxd.tunnels.dial import Destination, Dialling, dial
from fluxd.tunnels.ssh import Host
from tests.fluxd.tunnels.rig import until
from tests.fluxd.tunnels.upstreams import Upstream
from tests.furniture.provoked import provoked
from tests.furniture.sshd import OpenSSH, serving

HOW = Dialling(config="/nonexistent", connect_s=5)


def destination(ssh, **changed) -> Destination:
    target = Target(changed.get("host", ssh.host), changed.get("user", ssh.user), changed.get("port", ssh.port))
    return Destination(
        target, changed.get("identity", str(ssh.identity_file)), changed.get("known_hosts", str(ssh.known_hosts))
    )


async def problem_of_dialling(where: Destination, how: Dialling = HOW, **more) -> errors.FluxError:
    with pytest.raises(errors.FluxError) as caught:
        await dial(where, how, agent=more.get("agent", ""), pinned=more.get("pinned", ()))
    return caught.value


@contextlib.asynccontextmanager
async def host_of(ssh, seen=None, **changed):
    host = Host(
        destination(ssh, **changed), HOW, Clock(), lambda _, name: seen.append(name) if seen is not None else None
    )
    host.agent = ""
    try:
        yield host
    finally:
        await host.aclose()


@contextlib.asynccontextmanager
async def listening(serve):
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


# ------------------------------------------------------------------ dialling


async def test_a_good_key_is_in(ssh_host):
    connection = await dial(destination(ssh_host), HOW, agent="", pinned=())
    assert connection.get_extra_info("send_cipher") == "aes128-gcm@openssh.com"
    connection.abort()
    await connection.wait_closed()


async def test_a_name_without_an_address(embedded):
    assert (await problem_of_dialling(destination(embedded, host="no-such-host.invalid"))).code == "ssh_host_unresolved"


async def test_a_port_where_nobody_listens(embedded):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert (await problem_of_dialling(destination(embedded, port=port))).code == "ssh_refused"


async def test_a_host_that_never_answers(embedded):
    async def silence(reader, writer):
        await reader.read()
        writer.close()

    async with listening(silence) as port:
        how = Dialling(config="/nonexistent", connect_s=0.3)
        problem = await problem_of_dialling(destination(embedded, port=port), how)
    provoked("ssh_unreachable", problem, says="did not answer")


@pytest.mark.parametrize(
    "greeting", [b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-1.5-old\r\n"]
)
async def test_a_host_that_hangs_up_or_speaks_something_else(embedded, greeting):
    async def rude(reader, writer):
        writer.write(greeting)
        writer.close()

    async with listening(rude) as port:
        problem = await problem_of_dialling(destination(embedded, port=port))
    provoked("ssh_handshake_failed", problem, says="handshake")


async def test_a_key_that_the_host_does_not_want(ssh_host, tmp_path):
    stranger = tmp_path / "stranger"
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(stranger)
    assert (await problem_of_dialling(destination(ssh_host, identity=str(stranger)))).code == "ssh_auth_failed"


@pytest.mark.parametrize("content", [None, "this is no key\n"])
async def test_an_identity_file_that_cannot_be_used(embedded, tmp_path, content):
    broken = tmp_path / "broken"
    if content is not None:
        broken.write_text(content)
    assert (await problem_of_dialling(destination(embedded, identity=str(broken)))).code == "ssh_key_unusable"


async def test_an_encrypted_identity_that_no_agent_has(embedded, tmp_path):
    locked = tmp_path / "locked"
    embedded.client_key.write_private_key(locked, passphrase="secret")
    problem = await problem_of_dialling(destination(embedded, identity=str(locked)))
    assert problem.code == "ssh_key_encrypted"
    assert "ssh-add" in problem.hint


async def test_an_encrypted_identity_that_the_agent_has(embedded, tmp_path, ssh_agent):
    await ssh_agent.add(embedded.identity_file)
    locked = tmp_path / "locked"
    key = asyncssh.read_private_key(embedded.identity_file)
    key.write_private_key(locked, passphrase="secret")
    key.write_public_key(f"{locked}.pub")
    connection = await dial(destination(embedded, identity=str(locked)), HOW, agent=str(ssh_agent.socket), pinned=())
    connection.abort()
    await connection.wait_closed()


async def test_the_agent_of_the_request_is_asked(embedded, ssh_agent):
    await ssh_agent.add(embedded.identity_file)
    connection = await dial(destination(embedded, identity=None), HOW, agent=str(ssh_agent.socket), pinned=())
    connection.abort()
    await connection.wait_closed()


async def test_a_broken_ssh_config_is_named_with_its_line(embedded, tmp_path):
    config = tmp_path / "config"
    config.write_text("Host *\n  Port not-a-number\n")
    problem = await problem_of_dialling(destination(embedded), Dialling(config=str(config)))
    assert "line 2" in provoked("ssh_config_invalid", problem)


async def test_ssh_config_is_honoured(embedded, tmp_path):
    config = tmp_path / "config"
    config.write_text(f"Host bastion\n  HostName 127.0.0.1\n  HostKeyAlias [127.0.0.1]:{embedded.port}\n")
    config.chmod(0o600)
    connection = await dial(destination(embedded, host="bastion"), Dialling(config=str(config)), agent="", pinned=())
    connection.abort()
    await connection.wait_closed()


# ------------------------------------------------------------------ host keys


async def test_an_unknown_host_is_refused_with_its_fingerprint(ssh_host, tmp_path):
    problem = await problem_of_dialling(destination(ssh_host, known_hosts=str(tmp_path / "none")))
    assert problem.code == "ssh_host_key_unknown"
    assert ssh_host.host_key.get_fingerprint() in problem.message
    assert "known_hosts" in problem.hint


async def test_a_key_that_changed_is_another_problem_and_says_what_changed(ssh_host):
    old = ssh_host.host_key.get_fingerprint()
    ssh_host.new_host_key()
    await ssh_host.restart()
    problem = await problem_of_dialling(destination(ssh_host))
    assert problem.code == "ssh_host_key_changed"
    assert old in problem.detail
    assert ssh_host.host_key.get_fingerprint() in problem.detail


async def test_a_change_of_the_keys_type_is_a_change_too(ssh_host, tmp_path):
    other = asyncssh.generate_private_key("ecdsa-sha2-nistp256").export_public_key().decode()
    known = tmp_path / "known"
    known.write_text(f"[{ssh_host.host}]:{ssh_host.port} {other}")
    problem = await problem_of_dialling(destination(ssh_host, known_hosts=str(known)))
    assert problem.code == "ssh_host_key_changed"


async def test_a_revoked_key_is_refused_even_if_it_is_known(ssh_host, tmp_path):
    line = ssh_host.known_hosts.read_text()
    known = tmp_path / "known"
    known.write_text(f"{line}@revoked {line}")
    problem = await problem_of_dialling(destination(ssh_host, known_hosts=str(known)))
    provoked("ssh_host_key_revoked", problem, says="revoked")


async def test_a_hashed_entry_is_found(openssh):
    subprocess.run(["ssh-keygen", "-H", "-f", openssh.known_hosts], check=True, capture_output=True)
    connection = await dial(destination(openssh), HOW, agent="", pinned=())
    connection.abort()
    await connection.wait_closed()


async def test_a_bad_line_does_not_hide_the_good_ones(embedded):
    embedded.known_hosts.write_text("@nonsense\n!!!\n" + embedded.known_hosts.read_text())
    connection = await dial(destination(embedded), HOW, agent="", pinned=())
    connection.abort()
    await connection.wait_closed()


async def test_the_plan_may_add_a_key(ssh_host, tmp_path):
    pinned = ssh_host.host_key.export_public_key().decode().strip()
    connection = await dial(
        destination(ssh_host, known_hosts=str(tmp_path / "none")), HOW, agent="", pinned=["garbage", pinned]
    )
    connection.abort()
    await connection.wait_closed()


async def test_the_plan_never_overrides_known_hosts(ssh_host, tmp_path):
    pinned = ssh_host.host_key.export_public_key().decode().strip()
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    known = tmp_path / "known"
    known.write_text(f"[{ssh_host.host}]:{ssh_host.port} {other}")
    problem = await problem_of_dialling(destination(ssh_host, known_hosts=str(known)), pinned=[pinned])
    assert problem.code == "ssh_host_key_changed"


async def test_a_known_hosts_that_cannot_be_read_trusts_nobody(ssh_host, tmp_path):
    """Whatever the plan pins: it might stand against that."""
    pinned = ssh_host.host_key.export_public_key().decode().strip()
    problem = await problem_of_dialling(destination(ssh_host, known_hosts=str(tmp_path)), pinned=[pinned])
    assert problem.code == "ssh_config_invalid"
    assert str(tmp_path) in problem.message
    assert "FLUX_DB_TUNNEL_KNOWN_HOSTS" in problem.hint


@pytest.mark.parametrize("named", [True, False])
async def test_dialling_without_a_descriptor_left_is_that_problem_and_no_other(openssh, named, monkeypatch):
    """Not an unknown host, since known_hosts could not be read, nor a refused key, since none could."""
    monkeypatch.setenv("USER", openssh.user)  # as a login does; else asyncssh asks /etc/passwd
    where = destination(openssh) if named else destination(openssh, identity=None)
    async with host_of(openssh) as host:
        await host.reach()  # whatever is opened once only
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(one.name) for one in Path("/dev/fd").iterdir())
    holding = [os.dup(0) for _ in range(highest)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(holding) + 1, hard))
    try:
        problem = await problem_of_dialling(where)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for one in holding:
            os.close(one)
    assert problem.code == "too_many_open_files", problem.detail
    assert "ulimit -n" in problem.hint


async def test_the_plan_never_unrevokes(ssh_host, tmp_path):
    line = ssh_host.known_hosts.read_text()
    known = tmp_path / "known"
    known.write_text(f"@revoked {line}")
    pinned = ssh_host.host_key.export_public_key().decode().strip()
    problem = await problem_of_dialling(destination(ssh_host, known_hosts=str(known)), pinned=[pinned])
    assert problem.code == "ssh_host_key_revoked"


@pytest.mark.parametrize(
    "line", ["UserKnownHostsFile none", "StrictHostKeyChecking no", "UserKnownHostsFile /dev/null"]
)
async def test_no_ssh_config_turns_the_check_off(embedded, tmp_path, line, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = tmp_path / "config"
    config.write_text(line + "\n")
    where = destination(embedded, known_hosts=None)
    assert (await problem_of_dialling(where, Dialling(config=str(config)))).code == "ssh_host_key_unknown"


# ------------------------------------------------------------------ channels


async def test_a_channel_to_where_nobody_listens(ssh_host):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ssh_host.know_container("gone", port)
    async with host_of(ssh_host) as host:
        await host.reach()
        with pytest.raises(errors.UpstreamRefused):
            await host.open_channel(asyncio.Protocol, "127.0.0.1", port)
        assert host.channels == 0


async def test_a_channel_that_sshd_forbids(ssh_home):
    async with serving(OpenSSH(ssh_home, lines=("AllowTcpForwarding no",))) as openssh:
        provoked("ssh_forwarding_refused", await forbidden(openssh), says="127.0.0.1:")


async def test_a_channel_that_an_embedded_host_forbids(embedded):
    provoked("ssh_forwarding_refused", await forbidden(embedded), says="127.0.0.1:")


async def forbidden(ssh):
    async with Upstream() as upstream, host_of(ssh) as host:
        await host.reach()
        with pytest.raises(errors.SSHForwardingRefused) as caught:
            await host.open_channel(asyncio.Protocol, "127.0.0.1", upstream.port)
    return caught.value


async def test_a_protocol_that_fails_ends_its_own_channel_alone(ssh_host):
    class Bad(asyncio.Protocol):
        def data_received(self, data):
            raise RuntimeError("a bug of ours")

    async with Upstream() as upstream, host_of(ssh_host) as host:
        ssh_host.know_container("upstream", upstream.port)
        await host.reach()
        reader, writer = await host.open_stream("127.0.0.1", upstream.port)
        bad = await host.open_channel(Bad, "127.0.0.1", upstream.port)
        bad.write(b"boom")
        await until(lambda: host.channels == 1, "the bad channel to end")
        writer.write(b"fine")
        assert await reader.readexactly(4) == b"fine"
        assert host.state == "up"
        writer.close()
        await writer.wait_closed()


async def test_an_opening_that_is_cancelled_leaves_no_channel(ssh_host):
    async with Upstream() as upstream, host_of(ssh_host) as host:
        ssh_host.know_container("upstream", upstream.port)
        await host.reach()
        for delay in (0, 0, 0.001, 0.002, 0.005):
            opening = asyncio.ensure_future(host.open_channel(asyncio.Protocol, "127.0.0.1", upstream.port))
            await asyncio.sleep(delay)
            opening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                (await opening).abort()
        await until(lambda: (host.channels, upstream.open) == (0, 0), "every channel to close")


# ----------------------------------------------------------------- questions


async def test_questions_beyond_what_sshd_allows_wait_their_turn(openssh):
    openssh.know_name("db", 5432)
    async with host_of(openssh) as host:
        await host.reach()
        answers = await asyncio.gather(*(host.ask("getent hosts db") for _ in range(30)))
    assert {answer.exit_code for answer in answers} == {0}


async def test_four_questions_are_asked_at_a_time(ssh_home):
    """Of the ten that sshd allows. Each says when it comes and when it goes, which it may not before it is told to."""
    said, go = ssh_home / "said", ssh_home / "go"
    question = f"echo + >>{said}; until test -e {go}; do sleep 0.02; done; echo - >>{said}"
    async with serving(OpenSSH(ssh_home, forced=False)) as openssh, host_of(openssh) as host:
        await host.reach()
        asking = asyncio.gather(*(host.ask(question) for _ in range(12)))
        await until(lambda: said.exists() and said.read_text().count("+") == 4, "four questions")
        await asyncio.sleep(0.3)  # for a fifth, which would be there by now
        go.touch()
        await asking
    at_once = list(itertools.accumulate(1 if one == "+" else -1 for one in said.read_text().split()))
    assert (max(at_once), len(at_once)) == (4, 24)


async def test_a_host_that_is_busy_is_asked_again(ssh_home):
    async with serving(OpenSSH(ssh_home, lines=("MaxSessions 1",))) as openssh, host_of(openssh) as host:
        openssh.know_name("db", 5432)
        await host.reach()
        answers = await asyncio.gather(*(host.ask("getent hosts db") for _ in range(8)))
    assert {answer.exit_code for answer in answers} == {0}


async def test_questions_whose_asker_left_take_no_room(ssh_host):
    """A client that goes while its upstream is looked for: sshd has ten sessions, and they would stay taken."""
    ssh_host.know_name("localhost", 5432)
    async with host_of(ssh_host) as host:
        await host.reach()
        for number in range(40):
            asking = asyncio.ensure_future(host.ask("getent hosts localhost"))
            await asyncio.sleep(number * 0.0005)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        await until(lambda: len(host._connection._channels) == 0, "every session to end")
        assert (await host.ask("getent hosts localhost")).exit_code == 0


async def test_a_host_without_any_room_is_busy(ssh_home, monkeypatch):
    monkeypatch.setattr("fluxd.tunnels.ssh.BUSY_S", 0.5)
    async with serving(OpenSSH(ssh_home, lines=("MaxSessions 0",))) as openssh, host_of(openssh) as host:
        await host.reach()
        with pytest.raises(errors.SSHBusy) as caught:
            await host.ask("getent hosts db")
    provoked("ssh_busy", caught.value)


# ------------------------------------------------------------- the connection


async def test_many_reach_one_connection(openssh):
    async with host_of(openssh) as host:
        await asyncio.gather(*(host.reach() for _ in range(20)))
        assert host.generation == 1
    assert openssh.server.log.read_text().count("Accepted publickey") == 1


async def test_a_lost_connection_is_redialled_by_itself(ssh_host):
    seen = []
    async with host_of(ssh_host, seen) as host:
        await host.reach()
        await ssh_host.hang_up()
        await until(lambda: host.generation == 2 and host.state == "up", "the next connection")
    assert seen == ["host_up", "host_lost", "host_up"]


async def test_waiting_survives_an_sshd_that_is_away_for_a_while(ssh_host):
    async with host_of(ssh_host) as host:
        await host.reach()
        await ssh_host.stop()
        await until(lambda: host.state != "up", "the loss")
        waiting = asyncio.ensure_future(host.wait_up())
        await asyncio.sleep(0.3)
        assert not waiting.done()
        await ssh_host.start()
        async with asyncio.timeout(20):
            await waiting


async def test_reach_answers_for_one_try(embedded):
    await embedded.stop()
    async with host_of(embedded) as host:
        with pytest.raises(errors.SSHRefused):
            await host.reach()
        assert host.last_problem.code == "ssh_refused"
    await embedded.start()


async def test_a_bug_while_dialling_is_a_problem_and_the_next_try_is_made(embedded, monkeypatch):
    async def buggy(*_, **__):
        raise RuntimeError("nobody thought of this")

    async with host_of(embedded) as host:
        with monkeypatch.context() as broken:
            broken.setattr("fluxd.tunnels.ssh.dial", buggy)
            with pytest.raises(errors.FluxError) as caught:
                await host.reach()
        provoked("internal_error", caught.value)
        await host.reach()
        assert host.state == "up"
