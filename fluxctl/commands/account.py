"""
`fluxctl login` and `fluxctl logout`: a control plane's token into and out of the system keyring, by the daemon.

The token comes from stdin or a prompt, never from the command line, where every process list would show it.
"""

from __future__ import annotations

import sys

from fluxctl import environment, opening, screen
from fluxctl.client import Client
from fluxctl.options import Command, Option
from fluxctl.problem import usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fluxctl.options import Arguments

_LONGEST_TOKEN = 4096


def login(arguments: Arguments) -> int:
    env = environment.of_shell(arguments.values)
    found = Client(env).login(_token(env.api_base, from_stdin=arguments.token_stdin))
    if arguments.json:
        screen.json(found)
        return 0
    about = ", ".join(filter(None, (found["plan"], found["cli_role"])))
    screen.line(f"Logged in to {found['api_base']} as {found['user']}{f' ({about})' if about else ''}.")
    place = "the daemon's token file" if found["stored_in"] == "file" else "the system keyring"
    screen.line(f"The token is in {place}.")
    return 0


def logout(arguments: Arguments) -> int:
    """Ends the temporary roles made with this login, then forgets its token."""
    found = Client(environment.of_shell(arguments.values)).logout()
    if arguments.json:
        screen.json(found)
    else:
        screen.line(f"Logged out of {found['api_base']}.")
    return 0


def _token(api_base: str, *, from_stdin: bool) -> str:
    if from_stdin or not sys.stdin.isatty():
        text = sys.stdin.read(_LONGEST_TOKEN)
    else:
        from getpass import getpass  # noqa: PLC0415 - only where a person is asked

        text = getpass(f"Token for {api_base}: ")
    if not (token := text.strip()):
        raise usage("No token was given.", hint="Paste it at the prompt, or: fluxctl login --token-stdin < FILE")
    return token


COMMANDS = {
    "login": Command(
        login,
        options=(
            opening.API_BASE_FLAG,
            Option("--token-stdin", says="read the token from stdin"),
            opening.JSON_FLAG,
        ),
    ),
    "logout": Command(logout, options=(opening.API_BASE_FLAG, opening.JSON_FLAG)),
}
