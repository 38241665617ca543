"""
The product page, heading by heading, through the installed `flux`, for both modes.

The main job is in test_main_job, "psql setup" in test_psql_setup, "Troubleshooting" in test_troubleshooting.
"""

import contextlib
import json
import re
import socket
import subprocess

import psycopg
import pytest

from fluxd.core.errors import IN_A_GUI
from tests.furniture.daemon import Daemon
from tests.furniture.lab import Lab, running_lab
from tests.furniture.postgres import enterable_directory, temporary_roles
from tests.furniture.processes import wait_until
from tests.furniture.provoked import provoked

pytestmark = pytest.mark.journey

FOUNDRY = ("foundry", "--hash", "5774112")
YEASTCOAST = ("yeastcoast", "--hash", "ffca33f")
BOTH = pytest.mark.parametrize("project", [YEASTCOAST, FOUNDRY], ids=["v1", "v2"])
TRAP = "Do not use the temp username as the database name. Use database postgres."


def said(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def connected(fields: dict, password: str, **more: object) -> psycopg.Connection:
    """A GUI that was filled in from *fields* (`guiFields`)."""
    settings: dict = {
        "host": fields["host"],
        "port": fields["port"],
        "user": fields["user"],
        "password": password,
        "dbname": fields["databaseName"],
        "sslmode": fields["sslMode"],
        "connect_timeout": 20,
        **more,
    }
    return psycopg.connect(**settings)


# ------------------------------------------------ Beekeeper / DBeaver / TablePlus setup


@BOTH
def test_the_gui_block_has_one_field_per_line_to_copy(daemon: Daemon, lab: Lab, project):
    with daemon.hold("db", "tunnel", *project, env=lab.env) as held:
        for name in ("Connection Name", "Type", "Host", "Port", "User", "Password", "Database", "SSL"):
            assert held.field(name)
        assert held.field("Database") == "postgres"
        assert held.field("SSH tunnel (GUI)").startswith("off — Flux CLI already opened")
        assert (TRAP in held.out) == (project == FOUNDRY)
        for program in ("Beekeeper Studio", "DBeaver", "TablePlus", "DataGrip", "psql"):
            assert f"Port {held.field('Port')}" in held.field(program) or f"-p {held.field('Port')}" in held.field(
                program
            )


@BOTH
def test_the_printed_psql_line_works_as_it_stands(daemon: Daemon, lab: Lab, project):
    with daemon.hold("db", "tunnel", *project, env=lab.env) as held:
        line = held.field("psql")
        password = held.field("Password")
        if project == YEASTCOAST:
            password = said(daemon.flux(*password.split()[1:], env=lab.env)).strip()
        done = subprocess.run(
            ["sh", "-c", f"{line} -Atc 'SELECT 41 + 1'"],
            env=daemon.environment | {"PGPASSWORD": password},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert said(done) == "42\n"


def test_v1_the_password_is_revealed_by_the_command_that_the_block_names(daemon: Daemon, lab: Lab):
    with daemon.hold("db", "tunnel", *YEASTCOAST, "--json", env=lab.env, ready="\n}\n") as held:
        fields = json.loads(held.out)["guiFields"]
        password = said(daemon.flux(*fields["passwordHint"].split()[1:], env=lab.env)).strip()
        assert password not in held.out + held.err
        with connected(fields, password) as connection:
            assert connection.execute("SELECT current_user").fetchone() == ("postgres",)


def test_v2_the_json_block_connects_a_gui(daemon: Daemon, lab: Lab):
    with daemon.hold("db", "tunnel", *FOUNDRY, "--json", env=lab.env, ready="\n}\n") as held:
        found = json.loads(held.out)
        assert found["guiFields"]["v2DatabaseWarning"] == TRAP
        assert found["plan"]["tunnel"]["recommendedLocalPort"] == found["guiFields"]["port"]
        with connected(found["guiFields"], found["guiFields"]["passwordHint"]) as connection:
            row = connection.execute("SHOW search_path").fetchone()
        assert row == (", ".join(found["guiFields"]["searchPath"]),)


def test_v2_the_block_names_the_tables_whose_rows_a_policy_hides(daemon: Daemon, lab: Lab):
    with daemon.hold("db", "tunnel", *FOUNDRY, env=lab.env) as held:
        assert "this role sees only the rows that a policy shows it, in t_" in held.field("Row-level security")
        assert held.field("Row-level security").endswith(".invoices")


def test_gui_config_knows_the_port_of_the_tunnel_that_is_open(daemon: Daemon, lab: Lab):
    before = daemon.flux_json("db", "gui-config", *YEASTCOAST, env=lab.env)["guiFields"]
    assert "already opened" not in before["guiSshTunnelNote"]
    assert before["port"] == daemon.first_port
    wanted = daemon.first_port + 42
    with daemon.hold("db", "tunnel", *YEASTCOAST, "--local-port", str(wanted), env=lab.env):
        during = daemon.flux_json("db", "gui-config", *YEASTCOAST, env=lab.env)["guiFields"]
        printed = said(daemon.flux("db", "tunnel", *YEASTCOAST, "--print-config", env=lab.env))
    assert during["port"] == wanted
    assert during["guiSshTunnelNote"] == "Flux CLI already opened the SSH tunnel"
    assert f"Port: {wanted}\n" in printed


def test_gui_config_knows_the_port_that_a_tunnel_will_have(daemon: Daemon, lab: Lab):
    """A project's own, as long as it has one; never another project's."""
    with daemon.hold("db", "tunnel", *YEASTCOAST, env=lab.env):
        pass
    for project, port in ((YEASTCOAST, daemon.first_port), (FOUNDRY, daemon.first_port + 1)):
        assert daemon.flux_json("db", "gui-config", *project, env=lab.env)["guiFields"]["port"] == port
        plan = daemon.flux_json("db", "access-plan", *project, env=lab.env)
        assert plan["tunnel"]["recommendedLocalPort"] == port
        with daemon.hold("db", "tunnel", *project, env=lab.env) as held:
            assert held.field("Port") == str(port)


def test_v2_what_postgres_says_in_a_gui_is_in_the_guide(daemon: Daemon, lab: Lab):
    """Provoked with the block's own fields and one mistake each; the guide is made from `IN_A_GUI`."""
    with daemon.hold("db", "tunnel", *FOUNDRY, "--json", env=lab.env, ready="\n}\n") as held:
        fields = json.loads(held.out)["guiFields"]
        password, user = fields["passwordHint"], fields["user"]
        said = [
            refusal(fields, password, dbname=user),
            refusal(fields, "another"),
            refusal(fields, password, sslmode="require"),
        ]
        session = connected(fields, password)
        with psycopg.connect(lab.pool_admin_url, autocommit=True) as admin:
            admin.execute(psycopg.sql.SQL("ALTER ROLE {} CONNECTION LIMIT 1").format(psycopg.sql.Identifier(user)))
        said.append(refusal(fields, password))
    with contextlib.closing(session), pytest.raises(psycopg.Error) as cut:
        session.execute("SELECT pg_sleep(20)")
    for text in [*said, str(cut.value)]:
        assert any(re.search(re.escape(one).replace("…", ".*"), text) for one, _ in IN_A_GUI), text


def refusal(fields: dict, password: str, **mistake: object) -> str:
    with pytest.raises(psycopg.OperationalError) as caught:
        connected(fields, password, **mistake)
    return str(caught.value)


# ------------------------------------------------ Getting the password for your SQL viewer


def test_the_structured_output_of_v1(daemon: Daemon, lab: Lab):
    text = said(daemon.flux("project", "credentials", *YEASTCOAST, env=lab.env))
    for name in (
        "User: postgres",
        "Password: ",
        "Database: postgres",
        "Host: flux-ffca33f-yeastcoast-db",
        "Port: 5432",
    ):
        assert f"  {name}" in text
    assert re.search(r"URL: postgres(ql)?://postgres:", text)


def test_v2_never_exposes_pooled_credentials(daemon: Daemon, lab: Lab):
    text = said(daemon.flux("project", "credentials", *FOUNDRY, env=lab.env))
    assert "postgres://" not in text
    assert text.startswith("FLUX_GATEWAY_JWT_SECRET=")
    done = daemon.flux("project", "credentials", *FOUNDRY, "--field", "postgres.password", env=lab.env)
    assert (done.returncode, done.stdout) == (11, "")
    assert "flux db tunnel foundry --hash 5774112" in done.stderr


# ------------------------------------------------------------ Read-only vs read-write access


def test_readwrite_where_the_platform_enables_it(daemon: Daemon):
    with enterable_directory("flux-rw-") as home, running_lab(home / "lab", FLUX_DB_ACCESS_ALLOW_READWRITE="1") as lab:
        write = "BEGIN READ WRITE; INSERT INTO alloys (name) SELECT 'x' WHERE false; COMMIT"
        refused = daemon.flux("db", "shell", *FOUNDRY, "-c", write, env=lab.env)
        assert "permission denied" in refused.stderr
        done = daemon.flux("db", "shell", *FOUNDRY, "--readwrite", "-c", write, env=lab.env)
        assert done.returncode == 0, done.stderr
        found = daemon.flux_json("tunnel", "open", *FOUNDRY, "--readwrite", env=lab.env)
        assert found["credential"]["username"].startswith("flux_temp_rw_5774112_")
        assert found["tunnel"]["access"] == "readwrite"
        said(daemon.flux("tunnel", "close", "foundry"))
        wait_until(lambda: not temporary_roles(lab.pool_admin_url), "the roles are ended")


# --------------------------------------------------------------------- Temporary credentials


def test_a_credential_lives_as_long_as_asked_and_is_renewed(daemon: Daemon, lab: Lab):
    opened = daemon.flux_json("tunnel", "open", *FOUNDRY, "--ttl", "900", env=lab.env)
    assert 880 < opened["credential"]["remaining_s"] <= 900
    renewed = daemon.flux_json("tunnel", "renew", opened["tunnel"]["id"], "--ttl", "7200", env=lab.env)
    assert 7180 < renewed["tunnel"]["lease"]["remaining_s"] <= 7200
    assert "Closed foundry" in said(daemon.flux("tunnel", "close", "5774112"))


def test_the_default_is_an_hour(daemon: Daemon, lab: Lab):
    with daemon.hold("db", "tunnel", *FOUNDRY, env=lab.env) as held:
        assert held.field("Expires").endswith("in 59 min")


def test_a_password_is_shown_once_and_a_lost_one_is_replaced(daemon: Daemon, lab: Lab):
    first = daemon.flux_json("tunnel", "open", *FOUNDRY, env=lab.env)["credential"]
    again = said(daemon.flux("tunnel", "open", *FOUNDRY, env=lab.env))
    assert first["password"] not in again
    assert first["username"] in again
    assert "--new-credential" in again
    second = daemon.flux_json("tunnel", "open", *FOUNDRY, "--new-credential", env=lab.env)["credential"]
    assert second["username"] != first["username"]
    for text in (said(daemon.flux("tunnel", "show", "foundry")), daemon.said()):
        assert first["password"] not in text
        assert second["password"] not in text
    said(daemon.flux("tunnel", "close", "foundry"))
    wait_until(lambda: first["username"] not in temporary_roles(lab.pool_admin_url), "both ended")


@pytest.mark.parametrize("words", [("gui-config", "--create-temp-credentials"), ("tunnel", "--print-config")])
def test_a_role_without_a_tunnel_works_through_any_tunnel_and_ends_by_closing(daemon: Daemon, lab: Lab, words):
    before = temporary_roles(lab.pool_admin_url)
    found = daemon.flux_json("db", words[0], *FOUNDRY, *words[1:], env=lab.env)
    assert found["guiFields"]["passwordHint"] == found["credential"]["password"]
    assert daemon.listening() == []
    assert temporary_roles(lab.pool_admin_url) - before == {found["credential"]["username"]}
    with daemon.hold("db", "tunnel", *FOUNDRY, env=lab.env) as held:
        port = int(held.field("Port"))
        with connected({**found["guiFields"], "port": port}, found["credential"]["password"]) as connection:
            assert connection.execute("SELECT current_user").fetchone() == (found["credential"]["username"],)
    wait_until(lambda: not daemon.listening(), "the tunnel is closed")
    assert "foundry" in said(daemon.flux("tunnel", "close", "foundry", env=lab.env))
    wait_until(lambda: temporary_roles(lab.pool_admin_url) == before, "the role is ended")


def test_the_printed_config_of_a_role_without_a_tunnel_says_what_becomes_of_it(daemon: Daemon, lab: Lab):
    """What it prints is true of the tunnel that comes after it: the port, the role, and how that ends."""
    before = temporary_roles(lab.pool_admin_url)
    printed = said(daemon.flux("db", "tunnel", *FOUNDRY, "--print-config", "--ttl", "1800", env=lab.env))
    fields = dict(line.strip().split(": ", 1) for line in printed.splitlines() if ": " in line)
    assert fields["Expires"].endswith("in 29 min")
    assert "`flux db tunnel` makes one of its own." in printed
    with daemon.hold("db", "tunnel", *FOUNDRY, env=lab.env) as held:
        assert held.field("User") != fields["User"]
        there = {"host": fields["Host"], "port": fields["Port"], "user": fields["User"]}
        with connected({**there, "databaseName": fields["Database"], "sslMode": "disable"}, fields["Password"]) as one:
            assert one.execute("SELECT current_user").fetchone() == (fields["User"],)
    wait_until(lambda: temporary_roles(lab.pool_admin_url) - before == {fields["User"]}, "the tunnel's own role ended")
    closing = next(line for line in printed.splitlines() if "ends it sooner" in line).split("`")[1]
    said(daemon.flux(*closing.split()[1:], env=lab.env))
    assert temporary_roles(lab.pool_admin_url) == before


@pytest.mark.parametrize("words", [("gui-config", "--create-temp-credentials"), ("tunnel", "--print-config")])
def test_no_role_is_made_for_a_config_that_could_not_work(daemon: Daemon, lab: Lab, words):
    before = temporary_roles(lab.pool_admin_url)
    with socket.create_server(("127.0.0.1", daemon.first_port)):
        done = daemon.flux("db", words[0], *FOUNDRY, *words[1:], "--strict-port", env=lab.env)
    provoked("port_taken", done, says=f"Local port {daemon.first_port} is in use.")
    assert temporary_roles(lab.pool_admin_url) == before


# ---------------------------------------------------------------------- flux list, activity


def test_list_and_activity(daemon: Daemon, lab: Lab):
    for words in (("list",), ("project", "list")):
        listed = daemon.flux_json(*words, env=lab.env)
        assert [one["slug"] for one in listed] == ["foundry", "neighbour", "yeastcoast"]
    said(daemon.flux("db", "shell", *FOUNDRY, "-c", "SELECT 1", env=lab.env))
    for words in (("activity",), ("project", "activity")):
        found = daemon.flux_json(*words, *FOUNDRY, "--limit", "5", env=lab.env)
        assert (found["projectSlug"], found["hash"]) == ("foundry", "5774112")
        assert len(found["events"]) <= 5
        assert "db.temp_credential_issued" in {event["kind"] for event in found["events"]}
    trail = daemon.flux_json("audit", *FOUNDRY, env=lab.env)["events"]
    assert {"grant_minted", "grant_revoked"} <= {event["event"] for event in trail}
    assert daemon.flux_json("audit", *FOUNDRY, "--since", "2999-01-01", env=lab.env)["events"] == []
    assert daemon.flux("audit", "x", "--hash", "0000000", env=lab.env).returncode == 4


# ------------------------------------------------------------------------ flux.json, dotenv


def test_inside_a_project_directory_nothing_has_to_be_named(daemon: Daemon, lab: Lab):
    (daemon.home / "flux.json").write_text('{"slug": "yeastcoast", "hash": "FFCA33F", "mode": "v1_dedicated"}')
    base, token = lab.env["FLUX_API_BASE"], lab.env["FLUX_API_TOKEN"]
    (daemon.home / ".env").write_text(f"FLUX_API_BASE={base}\nFLUX_API_TOKEN='{token}'\n")
    ssh = {name: value for name, value in lab.env.items() if name.startswith("FLUX_DB_")}
    assert "42" in said(daemon.flux("db", "shell", "-c", "SELECT 42", env=ssh))


def test_a_cloned_repository_collects_no_token(daemon: Daemon, lab: Lab):
    """Its .env names a plane; the shell's token is for another. Nothing reaches the former."""
    (daemon.home / ".env").write_text(f"FLUX_API_BASE={lab.env['FLUX_API_BASE']}\n")
    done = daemon.flux("db", "password", *YEASTCOAST, env={"FLUX_API_TOKEN": lab.env["FLUX_API_TOKEN"]})
    assert (done.returncode, done.stdout) == (3, "")
    assert "is not sent to" in done.stderr
    assert lab.env["FLUX_API_TOKEN"] not in done.stderr


# ------------------------------------------------------------------- the existing platform


@BOTH
def test_without_extensions_every_command_works_and_says_once_what_cannot_be(
    daemon: Daemon, contract_lab: Lab, project
):
    env = contract_lab.env
    for words in (("access-plan",), ("gui-config",), ("shell", "-c", "SELECT 1")):
        said(daemon.flux("db", words[0], *project, *words[1:], env=env))
    with daemon.hold("db", "tunnel", *project, env=env) as held:
        wait_until(lambda: held.err or project == YEASTCOAST, "the notice")
        lines = [line for line in held.err.splitlines() if "cannot renew or revoke" in line]
        assert len(lines) == (1 if project == FOUNDRY else 0)
    for words in (
        ("project", "credentials", *project),
        ("activity", *project),
        ("list",),
        ("doctor", *project),
        ("exec", *project, "--", "psql", "-Atc", "SELECT 1"),
        ("db", "dump", *project, "--schema-only"),
        ("tunnel", "open", *project),
        ("tunnel", "list"),
        ("tunnel", "show", project[0]),
        ("status",),
        ("tunnel", "close", project[0]),
        ("tunnel", "forget", project[0]),
    ):
        said(daemon.flux(*words, env=env))


@pytest.mark.parametrize("words", [("gui-config", "--create-temp-credentials"), ("tunnel", "--print-config")])
def test_without_extensions_a_role_without_a_tunnel_is_said_to_end_by_itself(daemon: Daemon, contract_lab: Lab, words):
    done = daemon.flux("db", words[0], *FOUNDRY, *words[1:], "--ttl", "60", env=contract_lab.env)
    assert "flux_temp_ro_5774112_" in said(done)
    assert "ends it sooner" not in done.stdout
    assert done.stderr.count("cannot renew or revoke") == 1
    closed = daemon.flux("tunnel", "close", "foundry", env=contract_lab.env)
    assert "end at their expiry" in said(closed)
    assert closed.stderr.count("cannot renew or revoke") == 1


def test_without_extensions_v1_s_password_is_revealed_all_the_same(daemon: Daemon, contract_lab: Lab):
    password = str(psycopg.conninfo.conninfo_to_dict(contract_lab.dedicated_url)["password"])
    assert said(daemon.flux("db", "password", *YEASTCOAST, env=contract_lab.env)) == f"{password}\n"


def test_without_extensions_what_needs_one_says_so(daemon: Daemon, contract_lab: Lab):
    env = contract_lab.env
    done = daemon.flux("audit", env=env)
    provoked("not_supported_by_plane", done)
    daemon.flux_json("tunnel", "open", *FOUNDRY, env=env)
    renewed = daemon.flux("tunnel", "renew", "foundry", env=env)
    assert renewed.returncode == 6
    closed = daemon.flux("tunnel", "close", "foundry", env=env)
    assert "Closed foundry" in said(closed)
    assert "its temporary role ended" not in closed.stdout


# ------------------------------------------------------- Keep the tunnel terminal open


@BOTH
def test_a_held_tunnel_outlives_a_crash_of_the_daemon(daemon: Daemon, lab: Lab, project):
    before = temporary_roles(lab.pool_admin_url)
    with daemon.hold("db", "tunnel", *project, env=lab.env) as held:
        password = held.field("Password")
        if project == YEASTCOAST:
            password = said(daemon.flux(*password.split()[1:], env=lab.env)).strip()
        fields = {"host": "127.0.0.1", "port": held.field("Port"), "user": held.field("User")}
        daemon.kill()
        wait_until(lambda: "waiting for it to come back" in held.err, "it is noticed")
        daemon.start()
        wait_until(lambda: "fluxd is back" in held.err, "the hold is kept")
        with connected({**fields, "databaseName": "postgres", "sslMode": "disable"}, password) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        assert held.process.poll() is None
    wait_until(lambda: not daemon.listening(), "the port is closed")
    wait_until(lambda: temporary_roles(lab.pool_admin_url) == before, "the role is ended")
