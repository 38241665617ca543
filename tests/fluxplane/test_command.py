"""The operator's command, as installed: a platform set up by it alone, and what it says when something is wrong."""

import asyncio
import dataclasses
import os
import re
import secrets
import socket
import subprocess
from pathlib import Path
from urllib.parse import unquote, urlsplit

import aiohttp
import psycopg
import pytest

from fluxplane import keychain
from fluxplane.lab.postgres import Server
from tests.fluxplane.conftest import USER, Caller, World, login, serving, settings_for
from tests.fluxplane.test_leases import replica_process
from tests.furniture.processes import clean_environment, command
from tests.furniture.sshd import FakeEngine


class Operator:
    """Somebody at a shell of the platform's host, with the settings in the environment."""

    def __init__(self, server: Server, home: Path) -> None:
        self.settings = settings_for(server)
        assert self.settings.pool_url is not None
        self.said: list[str] = []
        self.env = clean_environment(
            home,
            FLUXPLANE_CATALOGUE_URL=self.settings.catalogue_url.reveal(),
            FLUXPLANE_CATALOGUE_ADMIN_URL=server.url().reveal(),
            FLUXPLANE_POOL_URL=self.settings.pool_url.reveal(),
            FLUXPLANE_POOL_ADMIN_URL=server.url().reveal(),
            FLUXPLANE_KEY_FILE=str(home / "key"),
        )

    def run(self, *words: str, stdin: str = "", code: int = 0, **env: str) -> str:
        """What the command printed, stderr included; it must exit with *code* and never show a traceback."""
        done = subprocess.run(
            [command("fluxplane"), *words],
            env=self.env | env,
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        self.said.append(done.stdout)
        assert done.returncode == code, done.stdout
        assert "Traceback" not in done.stdout
        return done.stdout.strip()


@pytest.fixture
def operator(pool18: Server, tmp_path: Path) -> Operator:
    return Operator(pool18, tmp_path)


def set_up(operator: Operator) -> str:
    """A platform with one user; a token."""
    operator.run("migrate")
    operator.run("pool", "prepare")
    operator.run("user", "create", USER)
    return operator.run("token", "create", "--user", USER)


async def test_a_platform_is_set_up_by_the_command_alone(operator: Operator, pool18: Server, tmp_path: Path):
    token = set_up(operator)
    assert re.fullmatch(r"flx_live_[a-f0-9]{32}_[a-f0-9]{4}", token)
    v2 = operator.run("project", "create", "--user", USER, "--slug", "My Foundry!", "--mode", "v2_shared")
    slug, hash_, mode, _ = v2.split()
    assert (slug, mode) == ("my-foundry", "v2_shared")
    url = tmp_path / "url"
    url.write_text(f"postgres://postgres:s3cret-v1@127.0.0.1:{pool18.port}/postgres\n")
    new = ("project", "create", "--user", USER, "--mode", "v1_dedicated")
    operator.run(*new, "--slug", "one", "--hash", "aaaaaa1", "--postgres-url", str(url))
    operator.run(*new, "--slug", "two", "--hash", "aaaaaa2", "--postgres-url", "-", stdin=url.read_text())
    operator.run(
        *new, "--slug", "three", "--hash", "aaaaaa3", "--internal-host", "db3", "--internal-port", "5433",
        "--container", "c3", FLUXPLANE_PROJECT_POSTGRES_URL=url.read_text(),
    )  # fmt: skip
    listed = operator.run("project", "list")
    assert [line.split()[1] for line in listed.splitlines()] == [hash_, "aaaaaa1", "aaaaaa3", "aaaaaa2"]
    assert "nothing to change" in operator.run("doctor")
    env = operator.env | {"FLUXPLANE_KEY": (tmp_path / "key").read_text().strip()}
    process = subprocess.Popen(
        [command("fluxplane"), "serve", "--listen", "127.0.0.1:0"], env=env, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        base = process.stdout.readline().split()[-1].removesuffix("/api")
        async with aiohttp.ClientSession() as http:
            ada = Caller(base, http, keychain.Secret(token))
            with login(pool18, (await ada.mint(hash_)).body) as session:
                session.execute("SELECT 1")
            for one in ("aaaaaa1", "aaaaaa2", "aaaaaa3"):
                answer = await ada.get(f"/api/cli/v1/projects/{one}/credentials")
                assert "s3cret-v1" in answer.body["postgresConnectionString"]
            plan = (await ada.get("/api/cli/v1/projects/aaaaaa3/db-access")).body
            assert plan["database"]["internalHost"] == "db3"
            assert plan["database"]["internalPort"] == 5433
            assert plan["database"]["containerName"] == "c3"
        cmdline = Path(f"/proc/{process.pid}/cmdline").read_text()
        assert "pool-pw" not in cmdline
        process.terminate()
        assert process.wait(15) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdout.close()
    refused = operator.run("project", "delete", "--user", USER, "--hash", hash_, code=1)
    assert "backup" in refused
    operator.run("project", "delete", "--user", USER, "--hash", hash_, "--skip-backup-check")
    assert hash_ not in operator.run("project", "list")
    everything = "\n".join(operator.said)
    for secret in ("s3cret-v1", "pool-pw", "catalogue-pw", pool18.password.reveal()):
        assert secret not in everything


async def test_a_revoked_token_is_refused_at_once(operator: Operator):
    token = set_up(operator)
    (line,) = operator.run("token", "list", "--user", USER).splitlines()
    assert line.endswith("never used")
    settings = dataclasses.replace(operator.settings, key_file=Path(operator.env["FLUXPLANE_KEY_FILE"]), key=None)
    async with serving(settings, keychain.Secret(token)) as ada:
        assert (await ada.get("/api/cli/v1/auth/verify")).status == 200
        await asyncio.to_thread(operator.run, "token", "revoke", line.split()[0])
        assert (await ada.get("/api/cli/v1/auth/verify")).status == 401
    assert operator.run("token", "list", "--user", USER) == ""
    assert "no such live token" in operator.run("token", "revoke", line.split()[0], code=1)
    operator.run("token", "revoke", "nonsense", code=2)


async def test_the_key_is_changed_while_two_replicas_serve_and_nothing_is_lost(operator: Operator, tmp_path: Path):
    token = keychain.Secret(set_up(operator))
    url = tmp_path / "url"
    url.write_text("postgres://postgres:s3cret-v1@127.0.0.1:1/postgres\n")
    new = ("project", "create", "--user", USER, "--hash")
    operator.run(*new, "aaaaaa1", "--slug", "one", "--mode", "v1_dedicated", "--postgres-url", str(url))
    operator.run(*new, "aaaaaa2", "--slug", "two", "--mode", "v2_shared")
    path = Path(operator.env["FLUXPLANE_KEY_FILE"])
    first = path.read_text().strip()
    settings = dataclasses.replace(operator.settings, key_file=path, key=None)

    def run(*words: str, code: int = 0) -> str:
        return operator.run("key", *words, code=code)

    async def serves(ada: Caller, grant_id: str) -> str:
        """The v1 password is there, and the same grant has the same password."""
        answer = await ada.get("/api/cli/v1/projects/aaaaaa1/credentials")
        assert "s3cret-v1" in answer.body["postgresConnectionString"]
        minted = await ada.mint("aaaaaa2", grantId=grant_id)
        assert minted.status == 200, minted.body
        return str(minted.body["password"])

    before, after = "1" * 32, "2" * 32
    assert "There is no next key" in await asyncio.to_thread(run, "rotate", code=1)
    await asyncio.to_thread(run, "add")
    assert "already" in await asyncio.to_thread(run, "add")
    async with serving(settings, token) as restarted:
        password = await serves(restarted, before)
        assert "3 secrets are sealed with the new key" in await asyncio.to_thread(run, "rotate")
        # It knew the next key before that was used.
        assert await serves(restarted, before) == password
        async with serving(settings, token) as renewed:
            assert await serves(renewed, before) == password
            assert await serves(renewed, after) == await serves(restarted, after)
            # The role that is live had its password from the old key.
            assert "0 keys removed. 1 older ones are still needed." in await asyncio.to_thread(run, "prune")
            await renewed.ask("DELETE", f"/api/cli/v1/grants/{before}")
            assert await asyncio.to_thread(run, "prune") == "1 keys removed."
            await renewed.ask("DELETE", f"/api/cli/v1/grants/{after}")
    assert first not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    async with serving(settings, token) as ada:
        await serves(ada, "3" * 32)
        await ada.ask("DELETE", f"/api/cli/v1/grants/{'3' * 32}")


def test_a_rotation_that_broke_off_goes_on(operator: Operator):
    set_up(operator)
    operator.run("project", "create", "--user", USER, "--slug", "two", "--mode", "v2_shared")
    path = Path(operator.env["FLUXPLANE_KEY_FILE"])
    operator.run("key", "add")
    keychain.take_next(path)
    assert "1 secrets are sealed with the new key" in operator.run("key", "rotate")
    assert operator.run("key", "prune") == "1 keys removed."


def test_a_key_in_the_environment_is_not_changed_by_a_command(operator: Operator):
    said = operator.run("key", "add", code=1, FLUXPLANE_KEY=keychain.new_key().reveal())
    assert "FLUXPLANE_KEY_FILE" in said


def test_everything_may_be_run_again(operator: Operator):
    set_up(operator)
    assert operator.run("migrate") == "Nothing to change."
    again = operator.run("pool", "prepare")
    assert [line for line in again.splitlines() if not line.startswith("--")] in ([], ["Nothing to change."])


def test_the_catalogue_is_closed_to_everybody_but_the_service(operator: Operator, pool18: Server):
    set_up(operator)
    database = urlsplit(operator.settings.catalogue_url.reveal()).path[1:]
    with psycopg.connect(pool18.url().reveal(), autocommit=True) as link:
        rows = link.execute(
            "SELECT rolname FROM pg_roles WHERE NOT rolsuper AND has_database_privilege(oid, %s, 'CONNECT')", [database]
        ).fetchall()
    # The pool's own login besides: whoever ends roles must look into every database of the server.
    expected = {
        unquote(urlsplit(url.reveal()).username or "")
        for url in (operator.settings.catalogue_url, operator.settings.pool_url)
        if url is not None
    }
    assert expected >= {row[0] for row in rows}


MISTAKES = [
    (("migrate",), {"FLUXPLANE_CATALOGUE_URL": ""}, "FLUXPLANE_CATALOGUE_URL is not set"),
    (("migrate",), {"FLUXPLANE_CATALOGUE_ADMIN_URL": ""}, "FLUXPLANE_CATALOGUE_ADMIN_URL"),
    (("migrate",), {"FLUXPLANE_CATALOGUE_ADMIN_URL": "postgresql://a:b@127.0.0.1:1/x"}, "cannot be reached"),
    (("migrate",), {"FLUXPLANE_CATALOGUE_URL": "postgresql://postgres:x@127.0.0.1:1/x"}, "FLUXPLANE_CATALOGUE_URL"),
    (("serve",), {"FLUXPLANE_CATALOGUE_URL": "postgresql://a:hunter2@127.0.0.1:1/x"}, "cannot be reached"),
    (("doctor",), {"FLUXPLANE_CATALOGUE_URL": "postgresql://a:hunter2@127.0.0.1:1/x"}, "cannot be reached"),
    (("serve",), {"FLUXPLANE_KEY_FILE": ""}, "no key"),
    (("serve",), {"FLUXPLANE_KEY": "hunter2"}, "FLUXPLANE_KEY"),
    (("serve", "--listen", "203.0.113.1:80"), {}, "Cannot listen"),
    (("token", "create", "--user", "nobody"), {}, "no user nobody"),
    (("user", "create", USER), {}, "exists already"),
    (("user", "create", " "), {}, "needs a name"),
    (("project", "create", "--user", USER, "--slug", "!", "--mode", "v2_shared"), {}, "slug"),
    (("project", "create", "--user", USER, "--slug", "x", "--mode", "v2_shared", "--hash", "xyz"), {}, "hash"),
    (("project", "create", "--user", USER, "--slug", "x", "--mode", "v1_dedicated", "--postgres-url", "/no"), {},
     "cannot be read"),
    (("project", "create", "--user", USER, "--slug", "x", "--mode", "v2_shared"), {"FLUXPLANE_POOL_ADMIN_URL": ""},
     "FLUXPLANE_POOL_ADMIN_URL"),
    (("project", "delete", "--user", USER, "--hash", "fffffff"), {}, "no project"),
    (("pool", "prepare"), {"FLUXPLANE_POOL_URL": ""}, "FLUXPLANE_POOL_URL"),
    (("pool", "prepare"), {"FLUXPLANE_POOL_ADMIN_URL": "postgresql://a:hunter2@127.0.0.1:1/x"}, "cannot be reached"),
    (("pool", "prepare", "--allow", "nobody"), {}, "no role"),
]  # fmt: skip


def test_every_mistake_is_one_line_and_shows_no_secret(operator: Operator):
    set_up(operator)
    for words, env, says in MISTAKES:
        printed = operator.run(*words, code=1, **env)
        assert says in printed
        assert "hunter2" not in printed
        assert len([line for line in printed.splitlines() if line.startswith("fluxplane:")]) <= 1


@pytest.mark.parametrize(
    "words", [(), ("nonsense",), ("serve", "--listen", "8080"), ("serve", "--listen", "h:99999"), ("project", "create")]
)
def test_usage_is_exit_code_2(operator: Operator, words: tuple[str, ...]):
    assert "usage:" in operator.run(*words, code=2)


def test_an_address_in_use_is_said(operator: Operator):
    set_up(operator)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        printed = operator.run("serve", "--listen", f"127.0.0.1:{taken.getsockname()[1]}", code=1)
    assert "Cannot listen" in printed


def test_doctor_names_what_has_drifted(operator: Operator, pool18: Server):
    set_up(operator)
    database = "late_" + secrets.token_hex(4)
    with psycopg.connect(pool18.url().reveal(), autocommit=True) as link:
        link.execute(f"CREATE DATABASE {database}")
        try:
            printed = operator.run("doctor")
            assert f'REVOKE CONNECT, TEMPORARY ON DATABASE "{database}"' in printed
            assert "fluxplane pool prepare" in printed
        finally:
            link.execute(f"DROP DATABASE {database}")


async def test_doctor_names_a_role_that_resists(world18: World, tmp_path: Path):
    operator = Operator(world18.server, tmp_path)
    operator.env |= {
        "FLUXPLANE_CATALOGUE_URL": world18.settings.catalogue_url.reveal(),
        "FLUXPLANE_POOL_URL": world18.settings.pool_url.reveal(),  # type: ignore[union-attr]
        "FLUXPLANE_KEY": world18.settings.key.reveal(),  # type: ignore[union-attr]
    }
    async with world18.serving() as ada:
        credential = (await ada.mint("5774112")).body
        with world18.admin() as link, link.transaction():
            link.execute(f"GRANT USAGE ON SCHEMA public TO {credential['username']}")
            answer = await ada.ask("DELETE", f"/api/cli/v1/grants/{credential['grantId']}")
            assert answer.body["state"] == "ending"
            printed = await asyncio.to_thread(operator.run, "doctor", code=1)
            async with ada.http.get(ada.base + "/metrics") as answer:
                numbers = dict(line.rsplit(" ", 1) for line in (await answer.text()).splitlines() if line[0] != "#")
        assert f"{credential['username']} resists" in printed
        assert float(numbers["fluxplane_roles_resisting"]) >= 1
        assert float(numbers['fluxplane_roles{state="ending"}']) >= 1


async def test_the_pools_admin_password_is_nowhere(world18: World, tmp_path: Path):
    """Not in an answer, an argv, a log or an error of a plane that serves; it does not even have it."""
    secret = world18.server.password.reveal()
    assert secret
    with replica_process(world18, tmp_path) as (process, base):
        async with aiohttp.ClientSession() as http:
            ada = Caller(base, http, world18.token)
            answers = [
                await ada.get("/api/cli/v1/projects/5774112" + where)
                for where in ("", "/db-access", "/credentials", "/activity", "/db-access/temporary-credentials")
            ]
            answers += [
                await ada.mint("5774112"),
                await ada.get("/api/cli/v1/audit"),
                await ada.get("/api/cli/v1/list"),
            ]
        shown = str(answers) + Path(f"/proc/{process.pid}/cmdline").read_text()
        environment = Path(f"/proc/{process.pid}/environ").read_text()
    shown += "".join(path.read_text() for path in tmp_path.glob("*.log"))
    assert secret not in shown
    assert secret not in environment


async def test_a_v1_project_in_a_container_is_read_through_docker(
    world18: World, docker_engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
):
    from fluxplane import catalogue, registry

    user = secrets.token_hex(4) + "@example.test"
    async with catalogue.connect(world18.settings) as store:
        await registry.create_user(store, user)
        token = await registry.create_token(store, user)
        new = registry.NewProject(user=user, slug="acme", mode="v1_dedicated", hash="abcdef1")
        await registry.create_project(store, world18.settings, new)
    monkeypatch.setenv("DOCKER_HOST", docker_engine.url)
    monkeypatch.setenv("PATH", os.environ["PATH"])
    async with world18.serving() as replica:
        ben = Caller(replica.base, replica.http, token)
        where = "/api/cli/v1/projects/abcdef1/credentials"
        assert (await ben.get("/api/cli/v1/list")).body[0]["status"] == "missing"
        assert (await ben.get(where)).status == 500
        docker_engine.containers["flux-abcdef1-acme-db"] = {}
        assert (await ben.get("/api/cli/v1/list")).body[0]["status"] == "running"
        answer = await ben.get(where)
        url = urlsplit(answer.body["postgresConnectionString"])
        assert (unquote(url.password or ""), url.hostname) == (FakeEngine.PASSWORD, "flux-abcdef1-acme-db")
        docker_engine.stopped.add("flux-abcdef1-acme-db")
        assert (await ben.get("/api/cli/v1/list")).body[0]["status"] == "stopped"
        assert (await ben.get(where)).status == 500
        monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
        assert (await ben.get("/api/cli/v1/list")).status == 503
        assert (await ben.get(where)).status == 503
