"""
The page's "Troubleshooting", and the other ways the journey to a database ends early, each provoked for real.

A person sees the message and the hint and nothing else; no role was made for nothing, no port is left open. (What a
GUI is told by Postgres itself, a database that does not exist and no tables, is the CLI's text: test_the_page.)
"""

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncssh
import pytest

from fluxctl.problems import PROBLEMS
from fluxplane.lab import keys
from fluxplane.lab.openssh import OpenSSHHost
from tests.furniture.daemon import Daemon
from tests.furniture.lab import Lab
from tests.furniture.postgres import temporary_roles
from tests.furniture.processes import command, wait_until
from tests.furniture.provoked import provoked

pytestmark = pytest.mark.journey

FOUNDRY = ("foundry", "--hash", "5774112")
YEASTCOAST = ("yeastcoast", "--hash", "ffca33f")
BOTH = pytest.mark.parametrize("project", [YEASTCOAST, FOUNDRY], ids=["v1", "v2"])


@pytest.fixture
def refused(daemon: Daemon, lab: Lab) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `flux …` in vain: no role is made by it, no port left open, nothing that the daemon stumbles over."""
    before = temporary_roles(lab.pool_admin_url)

    def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        done = daemon.flux(*words, env={**lab.env, **environment})
        assert "Traceback" not in daemon.said()
        assert temporary_roles(lab.pool_admin_url) == before
        wait_until(lambda: not daemon.listening(), "no port is left open")
        return done

    return run


def unused_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


# --------------------------------------------------------------------- SSH auth failed


@BOTH
def test_ssh_auth_failed(refused, daemon, project):
    keys.private_key(stranger := daemon.home / "stranger")
    done = refused("db", "tunnel", *project, FLUX_DB_TUNNEL_IDENTITY_FILE=str(stranger))
    error = provoked("ssh_auth_failed", done, says="refused every key that was offered")
    for word in ("FLUX_DB_TUNNEL_SSH_HOST", "key", "DOCKER_HOST=ssh://"):
        assert word in error


def test_an_encrypted_identity_file_that_nobody_opens(refused, daemon, lab):
    key = asyncssh.read_private_key(lab.env["FLUX_DB_TUNNEL_IDENTITY_FILE"])
    key.write_private_key(locked := daemon.home / "locked", passphrase="open sesame")
    error = provoked("ssh_key_encrypted", refused("db", "tunnel", *FOUNDRY, "--identity-file", str(locked)))
    assert "ssh-add" in error


def test_nothing_at_the_ssh_port(refused):
    done = refused("db", "tunnel", *FOUNDRY, FLUX_DB_TUNNEL_SSH_PORT=str(port := unused_port()))
    provoked("ssh_refused", done, says=f":{port} refuses connections")


def test_a_host_that_has_no_address(refused):
    done = refused("db", "tunnel", *FOUNDRY, "--ssh-host", "nowhere.invalid")
    provoked("ssh_host_unresolved", done, says="nowhere.invalid")


def test_a_host_that_is_not_known(daemon, contract_lab):
    """The existing platform pins no host key in its plan."""
    (nobody := daemon.home / "known").write_text("")
    env = {**contract_lab.env, "FLUX_DB_TUNNEL_KNOWN_HOSTS": str(nobody)}
    done = daemon.flux("db", "shell", *FOUNDRY, env=env)
    error = provoked("ssh_host_key_unknown", done, says="SHA256:", hint="Compare the fingerprint with your operator's")
    assert "known_hosts" in error
    assert "fluxctl host trust" in error


def test_a_host_whose_key_has_changed(refused, daemon, lab):
    other = keys.private_key(daemon.home / "other")
    ssh = lab.facts["ssh"]
    (daemon.home / "known").write_text(keys.known_hosts_line(ssh["host"], ssh["port"], other))
    known = {"FLUX_DB_TUNNEL_KNOWN_HOSTS": str(daemon.home / "known")}
    done = refused("db", "shell", *FOUNDRY, **known)
    provoked("ssh_host_key_changed", done, says="is not the one you know", hint="Ask your operator whether")


def test_an_identity_file_that_is_not_there(refused, daemon):
    done = refused("db", "tunnel", *FOUNDRY, "--identity-file", "missing")
    provoked("path_not_allowed", done, says="/missing cannot be used: No such file")


# ------------------------------------------------------------------ Local port in use


@pytest.fixture
def busy(daemon: Daemon) -> Iterator[int]:
    """The port that a tunnel would take, taken by somebody else."""
    with socket.create_server(("127.0.0.1", daemon.first_port)):
        yield daemon.first_port


@BOTH
def test_a_port_in_use_is_an_error_with_strict_port(daemon, lab, busy, project):
    before = temporary_roles(lab.pool_admin_url)
    done = daemon.flux("db", "tunnel", *project, "--strict-port", "--local-port", str(busy), env=lab.env)
    provoked("port_taken", done, says=str(busy))
    assert temporary_roles(lab.pool_admin_url) == before


@BOTH
def test_else_the_next_free_one_is_taken(daemon, lab, busy, project):
    with daemon.hold("db", "tunnel", *project, env=lab.env) as held:
        assert int(held.field("Port")) == busy + 1


@pytest.fixture
def last_port(daemon: Daemon) -> Iterator[None]:
    """The daemon's first port is the last there is, and in use."""
    daemon.stop()
    daemon.start(FLUXD_FIRST_PORT="65535")
    with socket.socket() as listener:
        wait_until(lambda: is_bound(listener, 65535), "its being ours: another run may have it", within_s=30)
        listener.listen()
        yield


def is_bound(listener: socket.socket, port: int) -> bool:
    try:
        listener.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True


def test_no_port_is_left(refused, last_port):
    provoked("no_port_left", refused("db", "tunnel", *YEASTCOAST), says="65535")


# -------------------------------------------- Docker permission denied / container not found


@contextlib.contextmanager
def answering(home: Path, script: str) -> Iterator[dict[str, str]]:
    """A real sshd that answers every question with *script*; the variables that lead there."""
    (home / "answer.sh").write_text(script)
    host_key = keys.private_key(home / "host_key")
    client_key = keys.private_key(home / "client_key")
    server = OpenSSHHost(
        home / "sshd",
        home / "host_key",
        client_key.export_public_key().decode(),
        permit_open=("any",),
        force_command=f"sh {home / 'answer.sh'}",
    )
    server.start()
    try:
        (home / "known").write_text(keys.known_hosts_line("127.0.0.1", server.port or 0, host_key))
        yield {
            "FLUX_DB_TUNNEL_SSH_PORT": str(server.port),
            "FLUX_DB_TUNNEL_SSH_USER": server.user,
            "FLUX_DB_TUNNEL_IDENTITY_FILE": str(home / "client_key"),
            "FLUX_DB_TUNNEL_KNOWN_HOSTS": str(home / "known"),
        }
    finally:
        server.stop()


def docker_says(text: str, code: int = 1) -> str:
    """getent knows nothing; docker says *text* on stderr."""
    return f'case "$SSH_ORIGINAL_COMMAND" in getent*) exit 2;; *) echo {text!r} >&2; exit {code};; esac\n'


def docker_at(address: str) -> str:
    """getent knows nothing; docker names *address*."""
    return f'case "$SSH_ORIGINAL_COMMAND" in getent*) exit 2;; *) echo {address};; esac\n'


NO_DAEMON = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?"
FORBIDDEN = (
    "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock: "
    "dial unix /var/run/docker.sock: connect: permission denied"
)


@pytest.mark.parametrize(
    ("code", "script"),
    [
        ("docker_permission_denied", docker_says(FORBIDDEN)),
        ("docker_unavailable", docker_says(NO_DAEMON)),
        ("docker_unavailable", docker_says("sh: 1: docker: not found", 127)),
        ("container_not_found", docker_says("Error: No such container: flux-postgres-v2")),
        ("container_not_running", 'case "$SSH_ORIGINAL_COMMAND" in getent*) exit 2;; *) echo " ";; esac\n'),
        ("multiple_addresses", 'case "$SSH_ORIGINAL_COMMAND" in *range*) echo 10.0.0.1 10.0.0.2;; *) exit 2;; esac\n'),
        ("resolver_failed", docker_says("something else")),
    ],
)
def test_the_resolver_s_two_questions_and_what_they_may_be_answered(refused, daemon, code, script):
    with answering(daemon.home, script) as there:
        provoked(code, refused("db", "tunnel", *FOUNDRY, **there))


def test_nobody_listens_where_postgres_should_be(refused, daemon):
    with answering(daemon.home, docker_at("127.0.0.9")) as there:
        provoked("upstream_refused", refused("db", "tunnel", *FOUNDRY, **there), says="127.0.0.9:5432")


# --------------------------------------------------- Read/write denied on pooled project


@pytest.mark.parametrize(
    "words", [("tunnel",), ("shell", "-c", "SELECT 1"), ("gui-config", "--create-temp-credentials")]
)
def test_readwrite_denied(refused, words):
    error = provoked("readwrite_disabled", refused("db", words[0], *FOUNDRY, *words[1:], "--readwrite"))
    assert "FLUX_DB_ACCESS_ALLOW_READWRITE" in error


# --------------------------------------------------------------- the project, the token


def test_a_hash_of_nobodys(refused):
    provoked("project_not_found", refused("db", "tunnel", "ghost", "--hash", "0000000"))


def test_no_token(refused):
    error = provoked(
        "not_authenticated", refused("db", "tunnel", *FOUNDRY, FLUX_API_TOKEN=""), hint="Run `fluxctl login"
    )
    assert "Not authenticated." in error


def test_a_token_that_the_plane_does_not_know(refused):
    token = "flx_live_0123456789abcdef0123456789abcdef_33b0"
    error = provoked(
        "not_authenticated", refused("db", "tunnel", *FOUNDRY, FLUX_API_TOKEN=token), hint="Run `fluxctl login"
    )
    assert token not in error


def test_no_control_plane(refused):
    provoked("plane_unreachable", refused("list", FLUX_API_BASE=f"http://127.0.0.1:{unused_port()}"))


def test_plain_http_to_somewhere_else(refused):
    provoked("insecure_api_base", refused("list", FLUX_API_BASE="http://flux.example.com"), says="is plain http")


@pytest.mark.parametrize("base", ["ftp://x", "nonsense", "https://u:p@h"])
def test_a_base_that_is_none(refused, base):
    provoked("bad_api_base", refused("list", FLUX_API_BASE=base), says="is not a URL")


# ------------------------------------------------------------------ this machine, this command


def test_a_tunnel_of_no_name(refused):
    provoked("tunnel_not_found", refused("tunnel", "show", "nothing"), says="'nothing'")


def test_v1_has_nothing_to_renew(daemon, lab):
    daemon.flux_json("tunnel", "open", *YEASTCOAST, env=lab.env)
    done = daemon.flux("tunnel", "renew", "yeastcoast", env=lab.env)
    provoked("wrong_mode", done, says="no lease")


def test_a_tunnel_that_is_open_in_another_way(daemon, lab):
    daemon.flux_json("tunnel", "open", *FOUNDRY, env=lab.env)
    done = daemon.flux("tunnel", "open", *FOUNDRY, "--local-port", str(daemon.first_port + 9), env=lab.env)
    error = provoked("tunnel_open_differently", done, says=str(daemon.first_port), hint="Close it first")
    assert str(daemon.first_port + 9) in error
    assert "fluxctl tunnel close" in error
    assert daemon.flux("tunnel", "close", "foundry", env=lab.env).returncode == 0


def test_fluxd_ends_while_a_tunnel_is_held(daemon, lab):
    with daemon.hold("db", "tunnel", *FOUNDRY, env=lab.env) as held:
        daemon.stop()
        wait_until(lambda: held.process.poll() is not None, "the command ended")
    assert held.process.returncode in {0, PROBLEMS["fluxd_not_running"][2]}
    assert "closed" in held.err or "went away" in held.err


@pytest.mark.parametrize(
    ("words", "number"),
    [
        (("db", "tunnel", *FOUNDRY), signal.SIGINT),
        (("db", "tunnel", *FOUNDRY), signal.SIGHUP),
        (("db", "shell", *FOUNDRY), signal.SIGTERM),
        (("exec", *FOUNDRY, "--", "true"), signal.SIGTERM),
        (("db", "dump", *YEASTCOAST), signal.SIGTERM),
    ],
    ids=["tunnel SIGINT", "tunnel SIGHUP", "shell SIGTERM", "exec SIGTERM", "dump SIGTERM"],
)
def test_a_signal_while_a_tunnel_is_being_opened_leaves_nothing(daemon, lab, words, number):
    """The SSH host takes the connection and then says nothing."""
    before = temporary_roles(lab.pool_admin_url)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        silent.settimeout(20)
        process = subprocess.Popen(
            [command("flux"), *words],
            env={**daemon.environment, **lab.env, "FLUX_DB_TUNNEL_SSH_PORT": str(silent.getsockname()[1])},
            cwd=daemon.home,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        dialled, _ = silent.accept()
        with dialled:
            os.kill(process.pid, number)
            out, err = process.communicate(timeout=20)
            done = subprocess.CompletedProcess(process.args, process.returncode, out, err)
            provoked("interrupted", done, says="Interrupted", exit_code=128 + number)
            wait_until(lambda: not daemon.listening(), "no port is left open")
            wait_until(lambda: daemon.flux_json("tunnel", "list")["tunnels"] == [], "no tunnel is left")
    assert temporary_roles(lab.pool_admin_url) == before


# --------------------------------------------------------------- what the client refuses

ACKNOWLEDGED = "--yes-i-know-this-can-overwrite-data"


@pytest.fixture
def not_an_archive(tmp_path: Path) -> str:
    path = tmp_path / "backup.dump"
    path.write_text("this is no archive")
    return str(path)


def test_a_pooled_project_has_no_password_to_reveal(refused):
    way_out = "Run `flux db tunnel foundry --hash 5774112`"
    assert "pooled" in provoked("pooled_password_refused", refused("db", "password", *FOUNDRY), hint=way_out)


def test_a_restore_is_acknowledged_first(refused, not_an_archive):
    assert "overwrite" in provoked(
        "restore_not_acknowledged", refused("db", "restore", *YEASTCOAST, "--input", not_an_archive)
    )


def test_a_pooled_project_is_not_restored_into(refused, not_an_archive):
    words = ("db", "restore", *FOUNDRY, "--input", not_an_archive, ACKNOWLEDGED)
    assert "not supported" in provoked("restore_pooled", refused(*words))


def test_a_restore_under_the_wrong_name_is_refused(refused, not_an_archive):
    words = ("db", "restore", "neighbour", "--hash", "ffca33f", "--input", not_an_archive, ACKNOWLEDGED)
    assert "yeastcoast" in provoked("slug_mismatch", refused(*words), says="not neighbour")


def test_what_is_no_archive_is_not_restored(refused, not_an_archive):
    words = ("db", "restore", *YEASTCOAST, "--input", not_an_archive, ACKNOWLEDGED, "--skip-backup-check")
    provoked("archive_invalid", refused(*words), says="is not an archive")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere", "does not exist"),
        ("n" * 300, "File name too long"),
        ("backup.dump/inside", "Not a directory"),
        ("pipe", "neither a file nor a directory"),
    ],
    ids=["nowhere", "too long", "in a file", "pipe"],
)
def test_what_cannot_be_read_is_not_restored(refused, not_an_archive, name, says):
    os.mkfifo(Path(not_an_archive).with_name("pipe"))
    done = refused("db", "restore", *YEASTCOAST, "--input", f"{Path(not_an_archive).parent}/{name}", ACKNOWLEDGED)
    provoked("archive_invalid", done, says=says)


def test_a_word_of_the_platforms_own_cli_that_is_not_there(refused, tmp_path):
    assert "init" in provoked("next_flux_missing", refused("init", PATH=str(tmp_path)), says="`flux init`")


def test_a_command_line_that_is_not_understood(refused):
    provoked("usage", refused("tunnel", "opne"), says="unknown command `tunnel opne`")
    error = provoked(
        "usage", refused("db", "tunnel", *FOUNDRY, "--local-port", "80abc"), says="80abc", hint="See `flux"
    )
    assert "flux db tunnel --help" in error
    done = refused("db", "tunnel", *FOUNDRY, "--readonly", "--readwrite")
    assert "flux db tunnel --help" in provoked("usage", done, says="exclude each other", hint="See `flux")


def test_no_project_is_named(refused):
    provoked("project_missing", refused("db", "tunnel"))


def test_a_flux_json_that_is_none(refused, daemon):
    (daemon.home / "flux.json").write_text("{")
    assert "flux.json" in provoked("flux_json_invalid", refused("db", "tunnel"))


def test_an_ssh_host_that_could_be_an_option(refused):
    provoked("ssh_target_invalid", refused("db", "tunnel", *FOUNDRY, "--ssh-host=-oProxyCommand=id"), says="--ssh-host")


def test_an_identity_file_that_is_no_key(refused, daemon):
    (daemon.home / "key").write_text("this is no key")
    provoked("ssh_key_unusable", refused("db", "tunnel", *FOUNDRY, "--identity-file", "key"))


def test_an_address_that_others_can_reach(refused):
    provoked("local_host_forbidden", refused("db", "tunnel", *FOUNDRY, "--host", "0.0.0.0"), says="0.0.0.0")


def test_an_output_that_cannot_be_written(refused):
    provoked("output_unusable", refused("db", "dump", *YEASTCOAST, "--output", "no/such/place"), says="no/such/place")
    provoked("output_unusable", refused("db", "dump", *YEASTCOAST, "--output", ""), says="is a directory")


def test_an_output_that_is_a_pipe_stays_one(refused, daemon):
    pipe = daemon.home / "pipe"
    os.mkfifo(pipe)
    for words, hint in (
        (("db", "dump"), "Give --output the name of a file."),
        (("dump",), "Give --output the name of a file, or leave it out: the dump then goes to stdout."),
    ):
        done = refused(*words, *YEASTCOAST, "--output", "pipe")
        provoked("output_unusable", done, says=f"{pipe} is a device, a pipe", hint=hint)
        assert pipe.is_fifo()


@pytest.mark.parametrize(
    "words",
    [("list",), ("list", "--json"), ("dump", *YEASTCOAST), ("--help",)],
    ids=["list", "list --json", "dump", "--help"],
)
def test_a_full_disk_behind_stdout(daemon, lab, words):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [command("flux"), *words],
            env=daemon.environment | dict(lab.env),
            cwd=daemon.home,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    provoked("output_unusable", done, says="No space left on device", hint="Make room where it goes")


def test_what_exec_cannot_run_is_told_before_anything_is_opened(refused, tmp_path):
    """No SSH host is asked: there is none."""
    (script := tmp_path / "script").write_text("#!/bin/sh\n")
    for program in (tmp_path, script):
        done = refused("exec", *FOUNDRY, "--", str(program), FLUX_DB_TUNNEL_SSH_PORT=str(unused_port()))
        provoked("program_failed", done, says=f"{program}: not a program", hint="It must be a program", exit_code=126)


def test_a_database_that_the_host_cannot_reach(refused, daemon):
    """getent knows the name, sshd itself does not."""
    with answering(daemon.home, 'echo "127.0.0.1 x"\n') as there:
        provoked("upstream_unreachable", refused("db", "tunnel", *FOUNDRY, **there), says="flux-postgres-v2:5432")


def test_psql_that_fails_is_told_in_json_s_place(refused):
    words = ("db", "shell", *YEASTCOAST, "-c", "SELECT nope", "--json")
    provoked("program_failed", refused(*words), says='column "nope" does not exist', exit_code=1)


def test_a_tunnel_whose_credential_has_ended(daemon, lab):
    with daemon.hold("db", "tunnel", *FOUNDRY, "--ttl", "2", env=lab.env) as held:
        wait_until(lambda: held.process.poll() is not None, "the command ended")
    provoked("lease_over", subprocess.CompletedProcess("flux", held.process.returncode, "", held.err))
