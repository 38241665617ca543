"""The lab's SSH hosts, OpenSSH and embedded: two questions, the named places, and nothing else."""

import asyncio
import contextlib
import os
import subprocess

import asyncssh
import pytest

from fluxplane.lab.resolver import Table, answer
from tests.furniture.needs import needs_program
from tests.furniture.sshd import FakeEngine, OpenSSH, connect, serving

ON_EVERY_NETWORK = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}"
ON_ONE_NETWORK = '{{(index .NetworkSettings.Networks "flux-v2-shared").IPAddress}}'


@contextlib.asynccontextmanager
async def echo_server(host: str = "127.0.0.1"):
    """A port that says back what it hears."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(echo, host, 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        server.close()


async def ask(host, command: str) -> tuple[int, str, str]:
    async with connect(host) as connection:
        done = await connection.run(command)
    return done.exit_status, str(done.stdout), str(done.stderr)


async def test_getent_answers_a_known_name_and_says_nothing_of_others(ssh_host):
    ssh_host.know_name("flux-postgres-v2", 5432, "127.0.0.3")
    assert tuple_of_first_words(await ask(ssh_host, "getent hosts flux-postgres-v2")) == (0, "127.0.0.3", "")
    assert await ask(ssh_host, "getent hosts flux-other") == (2, "", "")


def tuple_of_first_words(said: tuple[int, str, str]) -> tuple[int, str, str]:
    return said[0], said[1].split()[0], said[2]


async def test_docker_inspect_answers_addresses_only(ssh_host):
    ssh_host.know_container("flux-postgres-v2", 5432, {"flux-v2-shared": "127.0.0.2", "flux-network": "127.0.0.3"})
    every = await ask(ssh_host, f"docker inspect -f '{ON_EVERY_NETWORK}' --type container flux-postgres-v2")
    assert (every[0], every[1].split()) == (0, ["127.0.0.3", "127.0.0.2"])
    one = await ask(ssh_host, f"docker inspect -f '{ON_ONE_NETWORK}' flux-postgres-v2")
    assert one == (0, "127.0.0.2\n", "")
    code, _, err = await ask(ssh_host, f"docker inspect -f '{ON_EVERY_NETWORK}' nobody")
    assert code == 1
    assert "No such container: nobody" in err


@pytest.mark.parametrize(
    "command",
    [
        "id",
        "getent passwd root",
        "getent hosts a b",
        "getent hosts localhost; id",
        "docker inspect flux-postgres-v2",
        "docker inspect -f '{{json .Config.Env}}' flux-postgres-v2",
        "docker ps",
        "'",
        "",
    ],
)
def test_every_other_command_is_refused(command):
    known = Table({"flux-postgres-v2": "127.0.0.1"}, {"flux-postgres-v2": {"n": "127.0.0.1"}})
    said = answer(command, known)
    assert (said.exit_code, said.out) == (126, "")
    assert "nothing else" in said.err


async def test_another_command_is_refused_over_ssh_too(ssh_host):
    assert (await ask(ssh_host, "id"))[:2] == (126, "")


async def test_channels_reach_a_known_name_and_its_address(ssh_host):
    async with echo_server() as port, connect(ssh_host) as connection:
        ssh_host.know_name("flux-postgres-v2", port)
        for name in ("flux-postgres-v2", "127.0.0.1"):
            assert await said_back(connection, name, port) == b"hello"


async def said_back(connection, name: str, port: int) -> bytes:
    reader, writer = await connection.open_connection(name, port)
    writer.write(b"hello")
    writer.write_eof()
    return await reader.read()


async def test_the_embedded_host_forwards_to_nothing_else(embedded):
    async with echo_server() as port, connect(embedded) as connection:
        with pytest.raises(asyncssh.ChannelOpenError) as refused:
            await connection.open_connection("127.0.0.1", port)
    assert refused.value.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED


async def test_the_embedded_host_says_when_nothing_listens_there(embedded):
    async with echo_server() as port:
        embedded.know_name("gone", port)
    async with connect(embedded) as connection:
        with pytest.raises(asyncssh.ChannelOpenError) as refused:
            await connection.open_connection("gone", port)
    assert refused.value.code == asyncssh.OPEN_CONNECT_FAILED


async def test_neither_host_forwards_back_or_to_unix_sockets(ssh_host, ssh_home):
    async with connect(ssh_host) as connection:
        with pytest.raises(asyncssh.ChannelListenError):
            await connection.forward_remote_port("127.0.0.1", 0, "127.0.0.1", 1)
        with pytest.raises(asyncssh.ChannelOpenError):
            await connection.open_unix_connection(str(ssh_home / "x"))


@pytest.mark.parametrize("difference", [{"username": "somebody"}, {"client_keys": "another"}])
async def test_another_user_or_key_is_refused(ssh_host, difference):
    if "client_keys" in difference:
        difference = {"client_keys": [asyncssh.generate_private_key("ssh-ed25519")]}
    with pytest.raises(asyncssh.PermissionDenied):
        await connect(ssh_host, **difference)


async def test_openssh_clients_are_served_too(ssh_host):
    needs_program("ssh")
    ssh_host.know_name("flux-postgres-v2", 5432)
    asking = await asyncio.create_subprocess_exec(
        *ssh_host.ssh_argv(), "getent hosts flux-postgres-v2", stdout=subprocess.PIPE
    )
    out, _ = await asking.communicate()
    assert (asking.returncode, out.split()[0]) == (0, b"127.0.0.1")


async def test_twenty_questions_fit_in_one_connection_when_asked_in_turn(ssh_host):
    ssh_host.know_name("flux-postgres-v2", 5432)
    async with connect(ssh_host) as connection:
        for _ in range(20):
            assert (await connection.run("getent hosts flux-postgres-v2")).exit_status == 0


async def test_a_host_that_hangs_up_lets_in_again(ssh_host):
    async with connect(ssh_host) as connection:
        await ssh_host.hang_up()
        async with asyncio.timeout(5):
            await connection.wait_closed()
    assert (await ask(ssh_host, "getent hosts nobody"))[0] == 2


async def test_a_restarted_host_has_its_port_and_key(ssh_host):
    await ssh_host.restart()
    assert (await ask(ssh_host, "getent hosts nobody"))[0] == 2


async def test_a_new_host_key_is_not_the_known_one(ssh_host):
    ssh_host.new_host_key()
    await ssh_host.restart()
    with pytest.raises(asyncssh.HostKeyNotVerifiable):
        await connect(ssh_host)


async def test_stopping_openssh_leaves_no_process(ssh_home):
    async with serving(OpenSSH(ssh_home)) as host:
        async with connect(host):
            pids = [host.server.process.pid, *host.server.sessions()]
            assert len(pids) > 1
            await host.stop()
        assert [pid for pid in pids if os.path.exists(f"/proc/{pid}")] == []  # noqa: PTH110


async def test_a_frozen_openssh_answers_again_when_thawed(openssh):
    openssh.freeze()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await connect(openssh)
    openssh.thaw()
    assert (await ask(openssh, "getent hosts nobody"))[0] == 2


async def test_the_real_docker_client_answers_through_a_fake_engine(openssh_with_docker, docker_engine):
    docker_engine.containers["flux-ffca33f-yeastcoast-db"] = {"flux-network": "127.0.0.1"}
    question = f"docker inspect -f '{ON_EVERY_NETWORK}' --type container flux-ffca33f-yeastcoast-db"
    assert await ask(openssh_with_docker, question) == (0, "127.0.0.1 \n", "")
    code, out, err = await ask(openssh_with_docker, question.replace("yeastcoast", "nobody"))
    assert code == 1
    assert "no such container" in err.lower()
    assert FakeEngine.PASSWORD not in out + err


async def test_the_lab_answers_as_the_real_docker_client_does(openssh_with_docker, docker_engine):
    networks = {"flux-v2-shared": "127.0.0.2", "flux-network": "127.0.0.3"}
    docker_engine.containers["c"] = networks
    for template in (ON_EVERY_NETWORK, ON_ONE_NETWORK):
        question = f"docker inspect -f '{template}' --type container c"
        ours = answer(question, Table(containers={"c": networks}))
        assert (ours.exit_code, ours.out, ours.err) == await ask(openssh_with_docker, question)


async def test_an_agent_logs_in(ssh_host, ssh_agent):
    await ssh_agent.add(ssh_host.identity_file)
    async with connect(ssh_host, client_keys=(), agent_path=str(ssh_agent.socket)) as connection:
        assert (await connection.run("getent hosts nobody")).exit_status == 2
