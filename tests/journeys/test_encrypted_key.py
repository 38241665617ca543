"""An encrypted identity file: the person at the terminal is asked once, and what was typed is nowhere afterwards."""

from pathlib import Path

import asyncssh
import pytest

from fluxctl.problems import PROBLEMS
from tests.furniture.processes import command
from tests.furniture.terminal import at_a_terminal

pytestmark = pytest.mark.journey

FOUNDRY = ("foundry", "--hash", "5774112")
PASSPHRASE = "correct horse bättery staple"
SUMMARY, _, EXIT_CODE = PROBLEMS["ssh_key_encrypted"]


@pytest.fixture
def env(each_lab, daemon):
    """The shell's, with the lab's key encrypted."""
    key = asyncssh.read_private_key(each_lab.env["FLUX_DB_TUNNEL_IDENTITY_FILE"])
    few = {"rounds": 16, "ignore_few_rounds": True}  # ssh-keygen's own number
    key.write_private_key(locked := daemon.home / "locked", passphrase=PASSPHRASE, **few)
    return {**each_lab.env, "FLUX_DB_TUNNEL_IDENTITY_FILE": str(locked)}


def opening(daemon, env, *words: str):
    argv = ["sh", "-c", '"$@" > stdout', "sh", command("flux"), "tunnel", "open", *FOUNDRY, *words]
    return at_a_terminal(argv, {**daemon.environment, **env, "TERM": "dumb"}, daemon.home)


def test_it_is_asked_once_and_again_after_a_mistake(daemon, env):
    with opening(daemon, env) as terminal:
        terminal.read_until(f"Passphrase for {env['FLUX_DB_TUNNEL_IDENTITY_FILE']}: ")
        terminal.type("mistaken")
        terminal.read_until("That is not the passphrase")
        terminal.read_until("Passphrase for", times=2)
        terminal.type(PASSPHRASE)
        assert terminal.end() == 0, terminal.shown
    out = (daemon.home / "stdout").read_text()
    assert "Port" in out
    assert "assphrase" not in out, "stdout is the result alone"
    assert daemon.flux("tunnel", "close", "foundry", env=env).returncode == 0
    again = daemon.flux("tunnel", "open", *FOUNDRY, env=env)
    assert again.returncode == 0, "it is in the daemon's memory: " + again.stderr
    files = [path for path in daemon.home.rglob("*") if path.is_file()]
    assert daemon.log in files
    assert [path for path in files if "bättery" in path.read_text(errors="replace")] == []
    assert "bättery" not in terminal.shown + again.stdout + again.stderr + daemon.said()


def test_three_mistakes_are_enough(daemon, env):
    with opening(daemon, env) as terminal:
        for time in range(3):
            terminal.read_until("Passphrase for", times=time + 1)
            terminal.type("mistaken")
        assert terminal.end() == EXIT_CODE, terminal.shown
    assert terminal.shown.count("Passphrase for") == 3
    assert "Error: That is not the passphrase" in terminal.shown
    assert daemon.listening() == []


def test_without_an_answer_the_problem_is_told(daemon, env):
    with opening(daemon, env) as terminal:
        terminal.read_until("Passphrase for")
        terminal.type("")
        assert terminal.end() == EXIT_CODE, terminal.shown
    assert f"Error: {SUMMARY}" in terminal.shown


def test_what_is_no_utf_8_is_told_and_not_shown(daemon, env):
    with opening(daemon, env) as terminal:
        terminal.read_until("Passphrase for")
        terminal.type("bätter", encoding="latin-1")
        assert terminal.end() == EXIT_CODE, terminal.shown
    assert "Error: What was typed is not UTF-8" in terminal.shown
    assert "tter" not in terminal.shown


def test_the_usual_key_in_a_home_is_asked_for_by_its_path(daemon, env):
    usual = daemon.home / ".ssh" / "id_ed25519"
    usual.parent.mkdir(mode=0o700, exist_ok=True)
    Path(env.pop("FLUX_DB_TUNNEL_IDENTITY_FILE")).rename(usual)
    with opening(daemon, env) as terminal:
        terminal.read_until(f"Passphrase for {usual}: ")
        terminal.type(PASSPHRASE)
        assert terminal.end() == 0, terminal.shown
    assert daemon.flux("tunnel", "close", "foundry", env=env).returncode == 0
    assert daemon.flux("tunnel", "open", *FOUNDRY, env=env).returncode == 0, "it is in the daemon's memory"
