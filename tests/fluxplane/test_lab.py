"""`fluxplane lab` as a person runs it: what it writes, keeps, answers, allows, and leaves behind (nothing)."""

import contextlib
import json
import os
import signal
import stat
import subprocess
import urllib.request
from pathlib import Path

import asyncssh
import psycopg
import pytest

from fluxplane.lab.cli import loopback_address
from fluxplane.lab.processes import dying_with_us
from tests.furniture.daemon import is_listening
from tests.furniture.lab import Lab, launched, running_lab, wait_until_ready
from tests.furniture.postgres import enterable_directory
from tests.furniture.processes import alive, clean_environment, command, descendants, end, wait_until

EMBEDDED, OPENSSH = (), ("--ssh", "openssh")
VARIABLES = [
    "FLUX_API_BASE",
    "FLUX_API_TOKEN",
    "FLUX_DB_TUNNEL_SSH_HOST",
    "FLUX_DB_TUNNEL_SSH_USER",
    "FLUX_DB_TUNNEL_SSH_PORT",
    "FLUX_DB_TUNNEL_IDENTITY_FILE",
    "FLUX_DB_TUNNEL_KNOWN_HOSTS",
]
PROJECTS = [
    {"slug": "yeastcoast", "hash": "ffca33f", "mode": "v1_dedicated"},
    {"slug": "foundry", "hash": "5774112", "mode": "v2_shared"},
    {"slug": "neighbour", "hash": "0a1b2c3", "mode": "v2_shared"},
]


@pytest.fixture
def place():
    with enterable_directory("flux-lab-") as home:
        yield home / "lab"


@pytest.fixture
def log(place):
    return place.with_name("log")


def get(lab: Lab, path: str) -> dict:
    request = urllib.request.Request(
        f"{lab.facts['api_base']}/cli/v1/{path}", headers={"Authorization": f"Bearer {lab.facts['token']}"}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def rows(url: str, question: str) -> list[tuple]:
    with psycopg.connect(url) as connection:
        return connection.execute(question).fetchall()


def connect(lab: Lab):
    return asyncssh.connect(
        lab.env["FLUX_DB_TUNNEL_SSH_HOST"],
        int(lab.env["FLUX_DB_TUNNEL_SSH_PORT"]),
        username=lab.env["FLUX_DB_TUNNEL_SSH_USER"],
        client_keys=[lab.env["FLUX_DB_TUNNEL_IDENTITY_FILE"]],
        known_hosts=lab.env["FLUX_DB_TUNNEL_KNOWN_HOSTS"],
        config=None,
    )


# ------------------------------------------------------------------ what it writes


def test_env_holds_the_variables_that_make_fluxctl_use_this_lab(each_lab):
    lines = (each_lab.directory / "env").read_text().splitlines()
    assert [f"export {name}" for name in VARIABLES] == [line.partition("=")[0] for line in lines]
    ssh = each_lab.facts["ssh"]
    expected = {
        "FLUX_API_BASE": each_lab.facts["api_base"],
        "FLUX_API_TOKEN": each_lab.facts["token"],
        "FLUX_DB_TUNNEL_SSH_HOST": ssh["host"],
        "FLUX_DB_TUNNEL_SSH_USER": ssh["user"],
        "FLUX_DB_TUNNEL_SSH_PORT": str(ssh["port"]),
        "FLUX_DB_TUNNEL_IDENTITY_FILE": ssh["identity_file"],
        "FLUX_DB_TUNNEL_KNOWN_HOSTS": ssh["known_hosts"],
    }
    assert expected == dict(each_lab.env)


def test_lab_json_has_exactly_the_promised_shape(each_lab):
    facts = each_lab.facts
    assert list(facts) == ["api_base", "token", "ssh", "projects", "postgres"]
    assert list(facts["ssh"]) == ["host", "port", "user", "identity_file", "known_hosts"]
    assert list(facts["postgres"]) == ["dedicated_url", "pool_admin_url"]
    assert facts["projects"] == PROJECTS
    assert facts["api_base"].startswith("http://127.0.0.1:")
    assert facts["token"].startswith("flx_live_")
    for url in facts["postgres"].values():
        assert rows(url, "SELECT current_user::text, current_database()::text") == [("postgres", "postgres")]


def test_secrets_are_private(each_lab):
    directory = each_lab.directory
    assert mode(directory) == (0o711 if os.geteuid() == 0 else 0o700)
    for name in ("env", "lab.json", "seed", "plane.key", "id_ed25519", "ssh_host_ed25519_key"):
        assert mode(directory / name) == 0o600, name
    for name in ("dedicated", "pool"):
        assert mode(directory / name) == 0o700, name
        assert mode(directory / name / "data") == 0o700, name


def test_the_pools_admin_password_is_in_no_other_file_and_on_no_command_line(each_lab):
    password = psycopg.conninfo.conninfo_to_dict(each_lab.pool_admin_url)["password"].encode()
    files = [path for path in [*each_lab.directory.rglob("*"), each_lab.log] if path.is_file()]
    assert [path.name for path in files if password in path.read_bytes()] == ["lab.json"]
    for pid in [each_lab.process.pid, *descendants(each_lab.process.pid)]:
        with contextlib.suppress(FileNotFoundError):
            assert password not in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_what_it_prints_names_the_next_step_and_no_secret(each_lab):
    said = each_lab.log.read_text()
    for words in (
        f". {each_lab.directory / 'env'}",
        "flux db tunnel foundry --hash 5774112",
        each_lab.facts["api_base"],
    ):
        assert words in said
    assert each_lab.facts["token"] not in said
    assert "Password" not in said


# --------------------------------------------------------------------- what is in it


def test_the_projects_have_tables_with_rows(each_lab):
    assert rows(each_lab.dedicated_url, "SELECT count(*) FROM batches") == [(60,)]
    tables = "SELECT tablename::text, rowsecurity FROM pg_tables WHERE schemaname LIKE 't\\_%' ORDER BY 1"
    expected = [("alloys", False), ("castings", False), ("invoices", True), ("ledger", False), ("notes", False)]
    assert expected == rows(each_lab.pool_admin_url, tables)
    schema = get(each_lab, "projects/5774112/db-access")["tenantSchema"]
    serial = f"SELECT pg_get_serial_sequence('{schema}.castings', 'id') IS NOT NULL"
    assert rows(each_lab.pool_admin_url, serial) == [(True,)]


def test_the_control_plane_lists_them(each_lab):
    listed = {(one["slug"], one["hash"]) for one in get(each_lab, "list")}
    assert listed == {(one["slug"], one["hash"]) for one in PROJECTS}


def test_the_embedded_hosts_plan_names_containers(lab):
    for project_hash, container in (("ffca33f", "flux-ffca33f-yeastcoast-db"), ("5774112", "flux-postgres-v2")):
        database = get(lab, f"projects/{project_hash}/db-access")["database"]
        assert (database["internalHost"], database["internalPort"]) == (container, 5432)
        assert database["containerName"] == container


def test_a_real_sshds_plan_names_loopback_and_the_databases_own_ports(openssh_lab):
    urls = openssh_lab.facts["postgres"]
    for project_hash, url in (("ffca33f", urls["dedicated_url"]), ("5774112", urls["pool_admin_url"])):
        database = get(openssh_lab, f"projects/{project_hash}/db-access")["database"]
        port = int(psycopg.conninfo.conninfo_to_dict(url)["port"])
        assert (database["internalHost"], database["internalPort"]) == ("127.0.0.1", port)
        assert database["containerName"].startswith("flux-")


def test_the_plan_names_the_ssh_host_and_its_key(each_lab):
    plan = get(each_lab, "projects/5774112/db-access")
    ssh = each_lab.facts["ssh"]
    target = plan["tunnel"]
    assert (ssh["host"], ssh["port"], ssh["user"]) == (target["sshHost"], target["sshPort"], target["sshUser"])
    line = f"[{ssh['host']}]:{ssh['port']} {plan['hostKeys'][0]}\n"
    assert line == Path(ssh["known_hosts"]).read_text()


# --------------------------------------------------------------------- its SSH hosts


async def test_the_embedded_host_answers_for_containers_and_forwards_to_the_databases_only(lab):
    async with connect(lab) as connection:
        for container in ("flux-ffca33f-yeastcoast-db", "flux-postgres-v2"):
            address = str((await connection.run(f"getent hosts {container}", check=True)).stdout).split()[0]
            for name in (container, address):
                assert await greets_as_postgres(connection, name, 5432), name
        assert (await connection.run("getent hosts localhost")).exit_status == 2
        assert (await connection.run("id")).exit_status == 126
        await refuses_other_places(lab, connection)


async def test_openssh_answers_exactly_the_two_questions_and_forwards_to_the_databases_only(openssh_lab):
    urls = openssh_lab.facts["postgres"].values()
    ports = [int(psycopg.conninfo.conninfo_to_dict(url)["port"]) for url in urls]
    question = "docker inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}' --type container "
    async with connect(openssh_lab) as connection:
        for container in ("flux-ffca33f-yeastcoast-db", "flux-postgres-v2"):
            said = str((await connection.run(question + container, check=True)).stdout).split()
            assert {"127.0.0.1"} == set(said)
            assert (await connection.run(f"getent hosts {container}")).exit_status == 2
        assert str((await connection.run("getent hosts 127.0.0.1")).stdout).split()[0] == "127.0.0.1"
        assert (await connection.run("id")).exit_status == 126
        for port in ports:
            assert await greets_as_postgres(connection, "127.0.0.1", port)
        await refuses_other_places(openssh_lab, connection)


async def greets_as_postgres(connection, host: str, port: int) -> bool:
    """SSLRequest is answered N by a Postgres without TLS."""
    reader, writer = await connection.open_connection(host, port)
    writer.write(bytes([0, 0, 0, 8, 4, 210, 22, 47]))
    answer = await reader.read(1)
    writer.close()
    await writer.wait_closed()
    return answer == b"N"


async def refuses_other_places(lab: Lab, connection) -> None:
    api = int(lab.facts["api_base"].rpartition(":")[2].partition("/")[0])
    for host, port in (("127.0.0.1", api), ("127.0.0.1", lab.facts["ssh"]["port"]), ("localhost", api)):
        with pytest.raises(asyncssh.ChannelOpenError) as refused:
            await connection.open_connection(host, port)
        assert refused.value.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED


# ------------------------------------------------------------------ how it runs and ends


def test_a_lab_is_off_for_readwrite_unless_asked(lab, place):
    assert get(lab, "projects/5774112/db-access")["capabilities"]["readwrite"] is False
    with running_lab(place, FLUX_DB_ACCESS_ALLOW_READWRITE="1") as other:
        assert get(other, "projects/5774112/db-access")["capabilities"]["readwrite"] is True


def test_the_same_directory_is_the_same_lab_again(place):
    with running_lab(place) as first:
        rows_before = rows(first.dedicated_url, "SELECT count(*) FROM strains")
        with psycopg.connect(first.dedicated_url) as connection:
            connection.execute("CREATE TABLE mine AS SELECT 42 AS answer")
    assert not (place / "lab.json").exists()
    with running_lab(place) as second:
        assert first.facts == second.facts
        assert rows_before == rows(second.dedicated_url, "SELECT count(*) FROM strains")
        assert rows(second.dedicated_url, "SELECT answer FROM mine") == [(42,)]
        assert get(second, "auth/verify")["ok"] is True


def test_the_same_directory_may_change_its_ssh_host(place):
    with running_lab(place):
        pass
    with running_lab(place, *OPENSSH) as lab:
        assert get(lab, "projects/ffca33f/db-access")["database"]["internalHost"] == "127.0.0.1"
    with running_lab(place) as lab:
        assert get(lab, "projects/ffca33f/db-access")["database"]["internalHost"] == "flux-ffca33f-yeastcoast-db"


@pytest.mark.parametrize(
    ("arguments", "number"),
    [(EMBEDDED, signal.SIGINT), (EMBEDDED, signal.SIGHUP), (OPENSSH, signal.SIGTERM)],
    ids=["embedded, Ctrl+C", "embedded, terminal closed", "openssh, SIGTERM"],
)
def test_a_stopped_lab_leaves_no_process_and_no_port(place, log, arguments, number):
    with launched(place, log, *arguments) as process:
        wait_until_ready(place, process, log)
        below = list(descendants(process.pid))
        ports = json.loads((place / "ports.json").read_text()).values()
        assert all(is_listening(port) for port in ports)
        assert end(process, with_signal=number) == 0, log.read_text()
    assert alive(below) == []
    assert not any(is_listening(port) for port in ports)


def test_a_lab_that_is_told_to_stop_while_it_starts_leaves_no_process(place, log):
    with launched(place, log) as process:
        wait_until((place / "pool").exists, "the pool's directory")
        assert end(process) == 0, log.read_text()
    left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if bytes(place) in reading(path)]
    assert left == []
    with running_lab(place):
        pass


def reading(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


@pytest.mark.parametrize("arguments", [EMBEDDED, OPENSSH], ids=["embedded", "openssh"])
def test_a_killed_lab_can_be_started_again(place, log, arguments):
    with launched(place, log, *arguments) as process:
        wait_until_ready(place, process, log)
        orphans = list(descendants(process.pid))
        process.kill()
        process.wait()
    if dying_with_us(signal.SIGINT):
        wait_until(lambda: alive(orphans) == [], "what it started ends with it")
    (place / "lab.json").unlink()  # a killed lab could not, and we wait for the next one's
    with running_lab(place) as lab:
        assert alive(orphans) == []
        assert rows(lab.dedicated_url, "SELECT count(*) FROM strains") == [(4,)]


def test_without_a_directory_nothing_is_left():
    with enterable_directory() as temporary:
        environment = clean_environment(temporary, TMPDIR=str(temporary))
        with (temporary / "log").open("wb") as log:
            process = subprocess.Popen([command("fluxplane"), "lab"], stdout=log, stderr=log, env=environment)
        try:
            wait_until(lambda: list(temporary.glob("*/lab.json")), "lab.json", within_s=60)
        finally:
            assert end(process) == 0
        assert [path.name for path in temporary.iterdir()] == ["log"]


def test_a_second_lab_in_the_same_directory_is_refused(lab):
    log = lab.directory.with_name("second.log")
    with launched(lab.directory, log) as second:
        assert second.wait(30) == 1
    assert f"A lab runs in {lab.directory} already." in log.read_text()
    assert (lab.directory / "lab.json").exists()


def test_a_lab_whose_postgres_dies_says_so_and_stops(place, log):
    with launched(place, log) as process:
        wait_until_ready(place, process, log)
        os.kill(int((place / "pool/data/postmaster.pid").read_text().split()[0]), signal.SIGINT)
        assert process.wait(30) == 1
    assert "The lab's pool Postgres ended by itself." in log.read_text()
    assert not (place / "lab.json").exists()


def test_listen_takes_loopback_only():
    assert loopback_address("127.0.0.1:8080") == ("127.0.0.1", 8080)
    assert loopback_address("localhost:0") == ("127.0.0.1", 0)
    assert loopback_address("[::1]:80") == ("::1", 80)
    done = subprocess.run(
        [command("fluxplane"), "lab", "--listen", "0.0.0.0:8080"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert "is not a loopback address" in done.stderr


def test_listen_is_where_the_control_plane_is(place, unused_port):
    with running_lab(place, "--listen", f"127.0.0.1:{unused_port}") as lab:
        assert lab.facts["api_base"] == f"http://127.0.0.1:{unused_port}/api"
        assert get(lab, "auth/verify")["ok"] is True


@pytest.fixture
def unused_port() -> int:
    from fluxplane.lab.ports import free_port

    return free_port()
