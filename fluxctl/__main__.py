"""
`flux` and `fluxctl`: the command tree, and the one place where errors become exit codes.

Only the module of the command that runs is loaded. Nothing here, or in what it loads first, imports more than it needs:
`fluxctl tunnel list` starts in less than twice the time of `python -c pass` (tests/architecture holds it).
"""

from __future__ import annotations

import errno
import os
import sys

from fluxctl import options
from fluxctl.problem import Problem, interrupted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# word -> (module, summary), or a group of such. Words of a group that are not ours may be the platform CLI's.
TREE: dict[str, tuple[str, str] | dict[str, tuple[str, str]]] = {
    "db": {
        "tunnel": ("db", "open a tunnel and hold it until Ctrl+C"),
        "shell": ("shell", "psql through a tunnel of its own"),
        "password": ("db", "print the Postgres password, and only that (v1 dedicated)"),
        "gui-config": ("db", "what to type into Beekeeper, DBeaver, TablePlus, DataGrip"),
        "dump": ("dump", "pg_dump through a tunnel of its own, into a file"),
        "restore": ("restore", "pg_restore over a v1 project's database, behind the backup gate; or beside it"),
        "access-plan": ("db", "what database access this project has"),
    },
    "project": {
        "credentials": ("project", "user, password, host, port, URL and keys (v1); the gateway's secret (v2)"),
        "list": ("project", "your projects"),
        "activity": ("project", "what happened to a project"),
    },
    "tunnel": {
        "open": ("tunnel", "open a tunnel that stays until it is closed"),
        "close": ("tunnel", "close tunnels and end their temporary roles"),
        "list": ("tunnel", "the tunnels that are open"),
        "show": ("tunnel", "one tunnel, in full"),
        "renew": ("tunnel", "prolong a tunnel's temporary roles"),
        "watch": ("tunnel", "print what happens, as it happens"),
        "forget": ("tunnel", "give back the local port that is kept for a project"),
    },
    "service": {
        "install": ("service", "fluxd with the first command and at every login, for you alone"),
        "uninstall": ("service", "undo that, and leave nothing"),
        "status": ("service", "is it installed, does it run"),
        "logs": ("service", "what fluxd says"),
        "restart": ("service", "after an upgrade; ports and temporary roles are kept, clients wait"),
    },
    "host": {
        "trust": ("host", "an SSH host's key into known_hosts, after you compared its fingerprint"),
    },
    "config": {
        "show": ("config", "the daemon's settings, and where each comes from"),
        "check": ("config", "is config.toml right"),
        "example": ("config", "a commented config.toml"),
    },
    "backup": {
        "create": ("backup", "have the platform make a backup"),
        "list": ("backup", "the backups there are, and what they are good for"),
        "verify": ("backup", "prove by a restore that a backup is good"),
        "download": ("backup", "a backup's file, checked"),
    },
    "dump": ("plain", "a v1 project's database as SQL, from the control plane"),
    "list": ("project", "your projects"),
    "activity": ("project", "what happened to a project"),
    "status": ("tunnel", "the daemon, its SSH hosts and tunnels"),
    "login": ("account", "store a control plane's token in the system keyring"),
    "exec": ("exec_", "run a command with DATABASE_URL and PG* of a tunnel of its own"),
    "audit": ("audit", "what the control plane recorded about you and your projects"),
    "doctor": ("doctor", "test each step of the way, and say what to do"),
    "completion": ("completion", "a script that completes words, for bash, zsh or fish"),
    "logout": ("account", "end this login's temporary roles and forget its token"),
}
_OURS_ALONE = frozenset({"config", "host", "tunnel", "service"})
_HELP = frozenset({"-h", "--help", "help"})
# What a file says that cannot take what is printed into it.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


def main() -> int:
    """The installed commands' entry point; answers the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except Problem as problem:
        return _say(problem)
    except KeyboardInterrupt as ended:
        return _say_interrupted(ended)
    except BrokenPipeError:
        # Whoever read our output has gone (`| head`).
        _drop_stdout()
        return 141
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            _drop_stdout()
            return _say(_no_room(error))
        if os.environ.get("FLUX_DEBUG") == "1":
            raise
        return _say(_unexpected(error))
    return code


def _drop_stdout() -> None:
    """The interpreter must not trip over it again when it flushes."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def run(words: Sequence[str]) -> int:
    """
    Run one command line.

    Raises:
        Problem: what a person should know.
    """
    if not words or words[0] in _HELP:
        return _print(_overview())
    if words[0] in {"-V", "--version"}:
        return _print([f"flux {_version()}"])
    if words[0] == "__complete":
        return _complete(words[1:])
    node = TREE.get(words[0])
    if isinstance(node, dict):
        return _run_in_group(words, node)
    if node is None:
        return _hand_over(words)
    return _run_command(words[0], words[0], node, words[1:])


def _run_in_group(words: Sequence[str], group: Mapping[str, tuple[str, str]]) -> int:
    if len(words) == 1 or words[1] in _HELP:
        return _print(_group_overview(words[0], group))
    node = group.get(words[1])
    if node is None and words[0] in _OURS_ALONE:
        raise Problem("usage", f"unknown command `{words[0]} {words[1]}`")
    if node is None:
        return _hand_over(words, named=2)
    return _run_command(f"{words[0]} {words[1]}", words[1], node, words[2:])


def _run_command(path: str, word: str, node: tuple[str, str], words: Sequence[str]) -> int:
    module = __import__(f"fluxctl.commands.{node[0]}", fromlist=["COMMANDS"])
    command: options.Command = module.COMMANDS[word]
    try:
        return command.run(options.parse(command, words))
    except options.HelpWanted:
        return _print([*options.help_text(f"flux {path}", node[1], command), *_examples(path)])
    except Problem as problem:
        if problem.code == "usage" and not problem.hinted:
            problem.hint = f"See `flux {path} --help`."
        raise


def _hand_over(words: Sequence[str], *, named: int = 1) -> int:
    from fluxctl import handover  # noqa: PLC0415 - rarely

    handover.to_next_flux(words, named=named)


def _complete(words: Sequence[str]) -> int:
    """For the scripts of `completion` alone: whatever goes wrong, somebody is only typing."""
    from fluxctl import completing  # noqa: PLC0415 - never for a command

    found = completing.answer(words, TREE)
    return _print(found) if found else 0


def _overview() -> list[str]:
    lines = ["Usage: flux COMMAND [options]", "", "Private database access for Flux projects.", ""]
    for word, node in TREE.items():
        if isinstance(node, dict):
            lines += [*options.columns([(f"{word} {name}", says) for name, (_, says) in node.items()]), ""]
    lines += options.columns([(word, node[1]) for word, node in TREE.items() if not isinstance(node, dict)])
    lines += ["", "`flux COMMAND --help` says more. Every other word goes to the next `flux` on PATH."]
    return [*lines, *_examples("")]


def _group_overview(word: str, group: Mapping[str, tuple[str, str]]) -> list[str]:
    rows = [(f"{word} {name}", says) for name, (_, says) in group.items()]
    return [f"Usage: flux {word} COMMAND [options]", "", *options.columns(rows), *_examples(word)]


def _examples(path: str) -> list[str]:
    from fluxctl import examples  # noqa: PLC0415 - for help alone

    return examples.of(path)


def _print(lines: Sequence[str]) -> int:
    print("\n".join(lines))
    return 0


def _version() -> str:
    from importlib.metadata import version  # noqa: PLC0415 - rarely

    return version("flux-db-access")


def _no_room(error: OSError) -> Problem:
    return Problem(
        "output_unusable",
        f"The output cannot be written: {error.strerror}.",
        hint="Make room where it goes, and run the command again: what was printed is not whole.",
    )


def _unexpected(error: Exception) -> Problem:
    return Problem(
        "internal_error",
        f"flux failed in a way it did not expect ({type(error).__name__}).",
        hint="FLUX_DEBUG=1 shows where. Please report it.",
    )


def _say_interrupted(ended: KeyboardInterrupt) -> int:
    """Ctrl+C, or another signal that ends us."""
    if sys.stderr.isatty():
        print(file=sys.stderr)  # after the ^C that the terminal echoes, or a prompt
    return _say(interrupted(ended))


def _say(problem: Problem) -> int:
    if os.environ.get("FLUX_DEBUG") == "1":
        import traceback  # noqa: PLC0415 - only when asked for

        traceback.print_exc()
    for line in problem.lines():
        print(line, file=sys.stderr)
    return problem.exit_code


if __name__ == "__main__":
    sys.exit(main())
