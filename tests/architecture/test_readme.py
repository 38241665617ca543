"""What the README shows is what the programs say: the demo's output, and every command it names."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.furniture.processes import command

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SHELL = "\n".join(re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL))
COMMANDS = [shlex.split(line, comments=True) for line in SHELL.splitlines() if line.startswith(("flux ", "fluxctl "))]


def test_every_file_it_links_to_exists():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("words", COMMANDS, ids=shlex.join)
def test_every_command_it_names_exists(words):
    verbs = [word for word in words[1:] if not word.startswith("-")][:2]
    options = [word for word in words if word.startswith("--")]
    done = subprocess.run(
        [command(words[0]), *verbs, "--help"], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [option for option in options if option not in done.stdout] == []


def test_the_two_commands_are_the_makefiles():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert {"demo", "test"} <= set(targets)
