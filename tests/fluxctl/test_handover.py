"""A word that is not ours goes to the next `flux` on PATH, and never round in circles."""

import subprocess

import pytest

from tests.furniture.processes import clean_environment, command
from tests.furniture.provoked import provoked


@pytest.fixture
def run(home):
    """`flux …` with another flux later on PATH, a shell script of the given text."""

    def running(script, *words, program="flux", first=""):
        other = home / "bin" / "flux"
        other.parent.mkdir(exist_ok=True)
        if script is not None:
            other.write_text(script)
            other.chmod(0o755)
        env = clean_environment(home)
        env["PATH"] = f"{first}{env['PATH']}:{other.parent}"
        return subprocess.run(
            [command(program), *words], env=env, cwd=home, capture_output=True, text=True, timeout=30, check=False
        )

    return running


OTHER = '#!/bin/sh\necho "theirs: $*"\nexit 7\n'


@pytest.mark.parametrize("program", ["flux", "fluxctl"])
@pytest.mark.parametrize(
    "words", [["push"], ["project", "create", "--name", "a b"], ["db", "migrate"], ["push", "--help"]]
)
def test_words_that_are_not_ours_are_handed_over_with_their_exit_code(run, words, program):
    done = run(OTHER, *words, program=program)
    assert (done.stdout, done.returncode) == (f"theirs: {' '.join(words)}\n", 7)


def test_without_another_flux_the_word_is_named(run):
    done = run(None, "push")
    assert done.returncode == 12
    assert done.stderr.splitlines()[0].startswith("Error: `flux push` is not a command of this flux")
    assert done.stdout == ""


def test_a_typo_in_a_group_that_both_have_is_named_whole(run):
    provoked("next_flux_missing", run(None, "db", "tunel", "acme"), says="`flux db tunel` is not a command")


def test_it_is_never_ourselves(run, home):
    (home / "link").mkdir()
    (home / "link" / "flux").symlink_to(command("flux"))
    done = run(None, "push", first=f"{home}/link:")
    assert done.returncode == 12


def test_a_shim_that_leads_back_here_ends(run):
    done = run(f'#!/bin/sh\nexec "{command("flux")}" "$@"\n'.replace("fluxctl", "x"), "push")
    assert done.returncode == 12


def test_a_typo_in_a_group_that_is_ours_alone_is_told(run):
    done = run(OTHER, "tunnel", "oepn")
    assert (done.returncode, done.stdout) == (2, "")
    assert "unknown command `tunnel oepn`" in done.stderr
