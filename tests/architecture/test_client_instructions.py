"""What a command costs before it does anything, in instructions of a bare interpreter's start: no clock, no mood."""

import os
import sys

import pytest

from bench import instructions
from tests.furniture.daemon import Daemon
from tests.furniture.lab import Lab
from tests.furniture.needs import needs_program
from tests.furniture.processes import command

FAST = [
    ("tunnel", "list"),
    ("status",),
    ("tunnel", "show", "yeastcoast"),
    ("tunnel", "open", "yeastcoast", "--hash", "ffca33f"),
    ("list",),
]
ANY = [
    ("--help",),
    ("db", "access-plan", "yeastcoast", "--hash", "ffca33f"),
    ("db", "password", "yeastcoast", "--hash", "ffca33f"),
    ("config", "show"),
    ("service", "status"),
    ("completion", "bash"),
    ("doctor",),
]


@pytest.fixture(scope="module")
def bare() -> int:
    needs_program("valgrind")
    return instructions.counted([sys.executable, "-c", "pass"], written_bytecode(os.environ))


def written_bytecode(environ: object) -> dict[str, str]:
    """As an installed client has it, whatever this shell says of bytecode."""
    return {name: value for name, value in dict(environ).items() if name != "PYTHONDONTWRITEBYTECODE"}  # type: ignore[call-overload]


def shown(value: object) -> str:
    return " ".join(value) if isinstance(value, tuple) else str(value)


@pytest.mark.parametrize(
    ("words", "most"), [*((words, 2.0) for words in FAST), *((words, 4.0) for words in ANY)], ids=shown
)
def test_a_command_starts_within_its_bound(words: tuple[str, ...], most: float, bare: int, lab: Lab, daemon: Daemon):
    if "show" in words and "tunnel" in words:
        daemon.flux_json("tunnel", "open", "yeastcoast", "--hash", "ffca33f", env=lab.env)
    environment = written_bytecode(daemon.environment | dict(lab.env))
    assert daemon.flux(*words, env=lab.env).returncode == 0
    assert instructions.counted([command("flux"), *words], environment) / bare <= most
