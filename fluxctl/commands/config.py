"""`fluxctl config show|check|example`: the daemon's settings, where each comes from, and whether the file is right."""

from __future__ import annotations

from fluxctl import environment, opening, screen
from fluxctl.client import Client
from fluxctl.options import Command
from fluxctl.problem import Problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fluxctl.options import Arguments

_CHECKED_WITHIN_S = 30.0


def show(arguments: Arguments) -> int:
    found = Client(environment.of_shell(arguments.values)).settings()
    if arguments.json:
        screen.json(found)
        return 0
    screen.line(f"File: {found['file']}")
    screen.line()
    screen.table(
        ("SETTING", "VALUE", "FROM"), [(one["name"], one["value"], one["source"]) for one in found["settings"]]
    )
    if found["declared"]:
        screen.section("Declared tunnels")
        for name in found["declared"]:
            screen.line(name)
    return 0


def check(_arguments: Arguments) -> int:
    """Reads the file as fluxd does, with this shell's FLUXD_* variables; asks no running daemon."""
    import subprocess  # noqa: PLC0415 - `config show` does without

    from fluxctl.service import files  # noqa: PLC0415

    argv = [str(files.program()), "--check-config"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=_CHECKED_WITHIN_S, check=False)
    if done.returncode:
        raise Problem("settings_invalid", done.stderr.strip().removeprefix("fluxd: ").partition("\n")[0] or None)
    screen.line(done.stdout.strip())
    return 0


def example(_arguments: Arguments) -> int:
    from fluxctl.service import files  # noqa: PLC0415 - `config show` does without

    print(files.shipped("docs/config.example.toml"), end="")
    return 0


COMMANDS = {
    "show": Command(show, options=(opening.JSON_FLAG,)),
    "check": Command(check),
    "example": Command(example),
}
