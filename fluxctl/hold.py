"""
Holding a tunnel: it lives as long as this process keeps its events stream open.

Whatever ends the process (Ctrl+C, SIGTERM, `kill -9`, a crash) ends the stream, and the daemon then revokes this
caller's role and closes the tunnel, unless others use it. Nothing here has to run for that.
"""

from __future__ import annotations

import signal
import threading
import time

from fluxctl import screen
from fluxctl.client import Client
from fluxctl.problem import Problem, Stopped, from_body

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from fluxctl.client import Events
    from fluxd.shapes import Event, OpenTunnel, TunnelOpened

_WITHIN_S = 5.0
# A daemon that was restarted waits this long for the holds that it knew.
_BACK_WITHIN_S = 10.0
_ASK_AGAIN_AFTER_S = 0.1


class Held:
    """A tunnel that was opened with a hold, and the stream that keeps it."""

    def __init__(self, client: Client, body: OpenTunnel) -> None:
        """
        Raises:
            Problem: it cannot be opened; nothing is left of it then.
        """
        self._client = client
        self.leaving = False
        self.opened: TunnelOpened = client.open(body)
        self.tunnel = self.opened["tunnel"]
        self.events: Events = self._take_up(client)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.events.close()

    @property
    def username(self) -> str:
        credential = self.opened["credential"]
        return credential["username"] if credential else self.tunnel["username"] or "postgres"

    def take_up_again(self) -> None:
        """
        Keep the hold through a restart of the daemon.

        Raises:
            Problem: it didn't come back in time, or no longer knows the tunnel.
        """
        self.events.close()
        client = Client(self._client.env, starts=False)
        until = time.monotonic() + _BACK_WITHIN_S
        while not self.leaving:
            try:
                self.events = self._take_up(client)
            except Problem as problem:
                if problem.code != "fluxd_not_running" or time.monotonic() > until:
                    raise Problem(
                        "fluxd_not_running", "fluxd went away, and the tunnel with it.", hint="Run the command again."
                    ) from problem
                time.sleep(_ASK_AGAIN_AFTER_S)
            else:
                screen.note("fluxd is back, and so is the tunnel.")
                break
        if self.leaving:  # meanwhile, by the other thread
            self.events.close()

    def _take_up(self, client: Client) -> Events:
        return client.events(tunnel=self.tunnel["id"], hold=self.opened["hold"])

    def login(self) -> tuple[str, str]:
        """User and password: the new role's, or those of the v1 project, which are asked for."""
        credential = self.opened["credential"]
        if credential:
            return credential["username"], credential["password"]
        from fluxctl import url  # noqa: PLC0415 - v1 only

        found = self._client.credentials(self.tunnel["hash"])
        parts = url.parsed(found["postgresConnectionString"])
        return parts["user"], parts["password"]


def stop_on_signals() -> None:
    """Make SIGTERM and SIGHUP raise `Stopped`, as SIGINT raises KeyboardInterrupt; `nohup` is heeded."""

    def stop(number: int, _frame: object) -> None:
        raise Stopped(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)


def narrate(held: Held) -> None:
    """
    Say on stderr what happens to the tunnel; returns when it has closed.

    Raises:
        Problem: it failed, its lease is over, or the daemon went away.
    """
    while not _told_to_the_end(held) and not held.leaving:
        screen.note("fluxd went away; waiting for it to come back.")
        held.take_up_again()


def _told_to_the_end(held: Held) -> bool:
    """Say what one stream of events says; False when it broke off."""
    for event in held.events:
        if event["name"] == "closed":
            screen.note("The tunnel was closed.")
            return True
        if event["name"] == "failed":
            raise from_body(event.get("problem") or {"code": "internal_error"})
        if event["name"] == "lease_over":
            raise Problem("lease_over")
        if said := sentence(event, held.username):
            screen.note(said)
    return False


class Narrator:
    """`narrate` in a thread, beside a program that uses the tunnel. The end of the tunnel is said, never raised."""

    def __init__(self, held: Held) -> None:
        self._held = held
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        """Let go of the tunnel; says nothing more."""
        self._held.leaving = True
        self._held.events.hang_up()
        self._thread.join(_WITHIN_S)

    def _run(self) -> None:
        try:
            narrate(self._held)
        except Problem as problem:
            if not self._held.leaving:
                for line in problem.lines():
                    screen.note(line)


def sentence(event: Event, username: str) -> str | None:
    """What the holder of the role *username* is told of *event*; None for what is not worth a line."""
    problem = event.get("problem")
    why = f" ({problem['message']})" if problem else ""
    match event["name"]:
        case "reconnecting":
            return f"The SSH connection was lost; reconnecting …{why}"
        case "reconnected":
            return "Connected again."
        case "client_refused":
            return f"A client was refused{why}."
        case "lease_expiring":
            return _lease_warning(event, username)
        case "lease_renewed":
            return "The temporary credential was renewed."
    return None


def _lease_warning(event: Event, username: str) -> str | None:
    """Of one's own role only; the message says whose it is."""
    message = event.get("message") or ""
    if username not in message:
        return None
    tunnel = event.get("tunnel")
    lease = tunnel["lease"] if tunnel else None
    renew = f" `fluxctl tunnel renew {tunnel['id']}` prolongs it." if tunnel and lease and lease["renewable"] else ""
    return f"Warning: the temporary credential {message}{renew}"
