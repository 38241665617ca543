"""
The product page's journeys, through the installed commands: a lab's `env` in the shell, a fluxd that never heard of it.

Each runs with the lab's embedded SSH host and with a real sshd.
"""

import json
import signal

import psycopg
import pytest

from tests.furniture.daemon import Daemon, Held, is_listening
from tests.furniture.lab import Lab
from tests.furniture.postgres import temporary_roles
from tests.furniture.processes import end, wait_until

pytestmark = pytest.mark.journey

FOUNDRY = ("foundry", "--hash", "5774112")
YEASTCOAST = ("yeastcoast", "--hash", "ffca33f")


def as_the_gui_does(held: Held, *, password: str | None = None) -> psycopg.Connection:
    """A connection with what the GUI block says."""
    return psycopg.connect(
        host=held.field("Host"),
        port=int(held.field("Port")),
        user=held.field("User"),
        password=password or held.field("Password"),
        dbname=held.field("Database"),
        sslmode="disable",
        options=f"-c search_path={held.field('Search path').replace(' ', '')}" if "Search path" in held.out else None,
        connect_timeout=20,
    )


def dedicated_password(lab: Lab) -> str:
    return str(psycopg.conninfo.conninfo_to_dict(lab.dedicated_url)["password"])


# -------------------------------------------------------------- v1 dedicated behaviour


def test_a_v1_tunnel_opens_the_projects_own_postgres(each_lab: Lab, daemon: Daemon):
    with daemon.hold("db", "tunnel", *YEASTCOAST, env=each_lab.env) as held:
        assert held.field("User") == "postgres"
        assert dedicated_password(each_lab) not in held.out + held.err
        with as_the_gui_does(held, password=dedicated_password(each_lab)) as connection:
            row = connection.execute("SELECT count(*) FROM batches").fetchone()
    assert row == (60,)


def test_the_password_alone_is_on_stdout(each_lab: Lab, daemon: Daemon):
    done = daemon.flux("db", "password", *YEASTCOAST, env=each_lab.env)
    assert (done.returncode, done.stdout) == (0, dedicated_password(each_lab) + "\n")


def test_credentials_print_one_field(each_lab: Lab, daemon: Daemon):
    done = daemon.flux("project", "credentials", *YEASTCOAST, "--field", "postgres.password", env=each_lab.env)
    assert (done.returncode, done.stdout) == (0, dedicated_password(each_lab) + "\n")


def test_a_v1_shell_asks_and_ends(each_lab: Lab, daemon: Daemon):
    done = daemon.flux(
        "db", "shell", *YEASTCOAST, "--command", "SELECT name FROM strains WHERE id = 1", env=each_lab.env
    )
    assert done.returncode == 0, done.stderr
    assert "Kveik Voss" in done.stdout
    assert tunnels(daemon, each_lab) == []


def test_the_v1_plan_in_words(each_lab: Lab, daemon: Daemon):
    done = daemon.flux("db", "access-plan", *YEASTCOAST, env=each_lab.env)
    assert done.returncode == 0, done.stderr
    for words in ("Mode: v1_dedicated", "Scope: whole_database", "flux-ffca33f-yeastcoast-db"):
        assert words in done.stdout


# ----------------------------------------------------------------- v2 pooled behaviour


def test_a_v2_tunnel_comes_with_a_temporary_role_that_reads_the_tenants_schema(each_lab: Lab, daemon: Daemon):
    with daemon.hold("db", "tunnel", *FOUNDRY, env=each_lab.env) as held:
        for words in (
            "Do not use the temp username as the database name",
            "SSH tunnel (GUI): off",
            "Database: postgres",
        ):
            assert words in held.out
        assert held.field("User").startswith("flux_temp_ro_5774112_")
        with as_the_gui_does(held) as connection:
            assert connection.execute("SELECT count(*) FROM castings").fetchone() == (40,)
            connection.rollback()
            connection.execute("SET default_transaction_read_only = off")  # a courtesy, which a role may lift
            connection.commit()
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("DELETE FROM castings")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_when_the_tunnels_terminal_ends_so_do_the_tunnel_and_its_role(each_lab: Lab, daemon: Daemon, number):
    before = temporary_roles(each_lab.pool_admin_url)
    with daemon.hold("db", "tunnel", *FOUNDRY, env=each_lab.env) as held:
        port = int(held.field("Port"))
        assert temporary_roles(each_lab.pool_admin_url) - before == {held.field("User")}
        code = end(held.process, with_signal=number)
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else 0), held.err
    wait_until(lambda: not is_listening(port), "the port is closed")
    wait_until(lambda: temporary_roles(each_lab.pool_admin_url) == before, "the role is ended")
    assert tunnels(daemon, each_lab) == []


def test_a_v2_shell_answers_also_while_a_tunnel_is_open(each_lab: Lab, daemon: Daemon):
    select_one = ("db", "shell", *FOUNDRY, "--command", "SELECT 1")
    alone = daemon.flux(*select_one, env=each_lab.env)
    assert (alone.returncode, alone.stdout.split()[-3:]) == (0, ["1", "(1", "row)"]), alone.stderr
    with daemon.hold("db", "tunnel", *FOUNDRY, env=each_lab.env) as held:
        beside = daemon.flux(*select_one, env=each_lab.env)
        assert (beside.returncode, beside.stdout) == (0, alone.stdout), beside.stderr
        with as_the_gui_does(held) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_v2_password_is_refused_with_the_way_out(each_lab: Lab, daemon: Daemon):
    done = daemon.flux("db", "password", *FOUNDRY, env=each_lab.env)
    assert done.returncode != 0
    assert done.stdout == ""
    assert "flux db tunnel foundry --hash 5774112" in done.stderr


def test_the_v2_plan_in_words(each_lab: Lab, daemon: Daemon):
    done = daemon.flux("db", "access-plan", *FOUNDRY, env=each_lab.env)
    assert done.returncode == 0, done.stderr
    for words in ("Mode: v2_shared (pooled)", "Supported: true", "Tenant schema: t_", "Database: postgres"):
        assert words in done.stdout


def test_readwrite_is_refused_where_the_platform_forbids_it(lab: Lab, daemon: Daemon):
    done = daemon.flux("db", "tunnel", *FOUNDRY, "--readwrite", env=lab.env)
    assert done.returncode != 0
    assert "FLUX_DB_ACCESS_ALLOW_READWRITE" in done.stderr


# ------------------------------------------------------------------- tunnels that stay


def test_an_opened_tunnel_stays_until_it_is_closed(each_lab: Lab, daemon: Daemon):
    opened = daemon.flux_json("tunnel", "open", *FOUNDRY, env=each_lab.env)
    tunnel, credential = opened["tunnel"], opened["credential"]
    assert [tunnel["id"]] == [one["id"] for one in tunnels(daemon, each_lab)]
    schema = credential["tenant_schema"]
    with psycopg.connect(
        host="127.0.0.1",
        port=tunnel["port"],
        user=credential["username"],
        password=credential["password"],
        dbname="postgres",
    ) as connection:
        assert connection.execute(f"SELECT count(*) FROM {schema}.alloys").fetchone() == (4,)
    again = daemon.flux_json("tunnel", "open", *FOUNDRY, env=each_lab.env)
    assert again["credential"] is None
    closed = daemon.flux("tunnel", "close", "foundry", env=each_lab.env)
    assert closed.returncode == 0, closed.stderr
    assert tunnels(daemon, each_lab) == []
    wait_until(lambda: credential["username"] not in temporary_roles(each_lab.pool_admin_url), "the role is ended")


def test_both_modes_share_one_ssh_connection(each_lab: Lab, daemon: Daemon):
    for project in (FOUNDRY, YEASTCOAST):
        daemon.flux_json("tunnel", "open", *project, env=each_lab.env)
    status = daemon.flux_json("status", env=each_lab.env)
    assert [each_lab.facts["ssh"]["port"]] == [host["port"] for host in status["hosts"]]
    assert {tunnel["port"] for tunnel in tunnels(daemon, each_lab)} == {daemon.first_port, daemon.first_port + 1}


def tunnels(daemon: Daemon, lab: Lab) -> list[dict]:
    found = daemon.flux_json("tunnel", "list", env=lab.env)["tunnels"]
    assert isinstance(found, list)
    return found


def test_without_the_labs_variables_nothing_is_reached(lab: Lab, daemon: Daemon):
    nowhere = {"FLUX_API_BASE": lab.env["FLUX_API_BASE"]}
    done = daemon.flux("db", "tunnel", *FOUNDRY, env=nowhere)
    assert done.returncode != 0
    assert "Not authenticated" in done.stderr
    assert json.loads(daemon.flux("tunnel", "list", "--json").stdout) == {"tunnels": []}
