"""Completions in the real shells: words and options of the command tree, and what lives in the daemon just now."""

import os
import pty
import select
import subprocess
import time
from collections.abc import Mapping

import pytest

from tests.furniture.daemon import Daemon
from tests.furniture.lab import Lab
from tests.furniture.needs import needs_program

pytestmark = pytest.mark.journey

Env = Mapping[str, str]


def bash(line: list[str], env: Env) -> set[str]:
    """What bash's completion function leaves in COMPREPLY."""
    script = (
        'eval "$(fluxctl completion bash)"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
        '$(complete -p flux | sed "s/.*-F \\([^ ]*\\).*/\\1/") flux; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    return output(["bash", "--norc", "-c", script, "bash", *line], env)


def fish(line: list[str], env: Env) -> set[str]:
    script = "fluxctl completion fish | source; complete -C (string join ' ' -- $argv)"
    found = output(["fish", "--no-config", "-c", script, *line], env)
    return {one.partition("\t")[0] for one in found}


ZSH_SETUP = b"""LISTMAX=1000; setopt no_beep; autoload -Uz compinit; compinit -u -D; \
eval "$(fluxctl completion zsh)"; bindkey "^I" list-choices; print SET UP
"""


def zsh(line: list[str], env: Env) -> set[str]:
    """zsh completes in its line editor only: type at a terminal, press Tab, and read the list it shows."""
    master, slave = pty.openpty()
    at_terminal = {"stdin": slave, "stdout": slave, "stderr": slave, "start_new_session": True}
    with subprocess.Popen(["zsh", "-f", "-i"], env={**env, "TERM": "dumb"}, **at_terminal) as shell:
        os.close(slave)
        try:
            setup = "PS1=READY; LISTMAX=1000; setopt no_beep; autoload -Uz compinit; compinit -u -D"
            os.write(
                master, f'{setup}; eval "$(fluxctl completion zsh)"; bindkey "^I" list-choices; print SET UP\n'.encode()
            )
            until(master, "SET UP\r\n")
            os.write(master, " ".join(line).encode() + b"\t")
            shown = until(master, "--") + until(master, "", quiet_s=1.0)
        finally:
            shell.kill()
            os.close(master)
    return {row.split(" -- ")[0].strip() for row in shown.splitlines() if " -- " in row}


def until(terminal: int, words: str, *, quiet_s: float = 30.0) -> str:
    """What *terminal* shows, up to *words*; without words until it is quiet for *quiet_s*."""
    shown = ""
    give_up_at = time.monotonic() + 30
    while not words or words not in shown:
        ready, _, _ = select.select([terminal], [], [], quiet_s)
        if not ready:
            assert not words, shown
            break
        shown += os.read(terminal, 65536).decode(errors="replace")
        assert time.monotonic() < give_up_at, shown
    return shown


def output(argv: list[str], env: Env) -> set[str]:
    done = subprocess.run(argv, env=dict(env), capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    return set(done.stdout.splitlines()) - {""}


SHELLS = {"bash": bash, "zsh": zsh, "fish": fish}


@pytest.fixture(params=SHELLS)
def completed(request: pytest.FixtureRequest, lab: Lab, daemon: Daemon):
    """A function from a line, its last word being typed, to what the shell offers."""
    needs_program(request.param)
    env = daemon.environment | dict(lab.env)
    return lambda *line: SHELLS[request.param](list(line), env)


def test_words_and_options_are_those_of_the_command_tree(completed) -> None:
    assert completed("flux", "tunnel", "") >= {"close", "list", "open"}
    assert completed("flux", "db", "tunnel", "--read") == {"--readonly", "--readwrite"}


def test_projects_and_tunnels_are_live(completed, lab: Lab, daemon: Daemon) -> None:
    assert completed("flux", "tunnel", "open", "") >= {"foundry", "yeastcoast"}
    opened = daemon.flux_json("tunnel", "open", "yeastcoast", "--hash", "ffca33f", env=lab.env)["tunnel"]
    names = {opened["id"], "yeastcoast", "ffca33f", str(opened["port"])}
    assert completed("flux", "tunnel", "show", "") >= names


def test_a_hash_is_completed_for_the_name_that_stands_there(lab: Lab, daemon: Daemon) -> None:
    env = daemon.environment | dict(lab.env)
    assert bash(["flux", "db", "tunnel", "foundry", "--hash", ""], env) == {"5774112"}
    assert bash(["flux", "project", "credentials", "yeastcoast", "--field", "postgres.pa"], env) == {
        "postgres.password"
    }


def test_without_a_daemon_nothing_is_started_and_words_still_complete(daemon: Daemon) -> None:
    daemon.stop()
    assert bash(["flux", "tunnel", "show", ""], daemon.environment) == set()
    assert bash(["flux", "ser"], daemon.environment) == {"service"}
    assert not daemon.answers()


def test_another_shell_is_named(daemon: Daemon) -> None:
    done = daemon.flux("completion", "tcsh")
    assert (done.returncode, "bash, zsh and fish" in done.stderr) == (2, True)
