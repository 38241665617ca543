"""
Which local port does a tunnel listen on?

Ports are *sticky*: once a project had one, it is its own until forgotten, and no other project ever gets it (user and
database are the same on every v1 project, so a silently reused port opens the wrong database). This module only
proposes: it knows who *owns* which port (a mapping that others persist) and which were found busy, not what is free on
this machine. Bind the proposal; on EADDRINUSE add it to *busy* and ask again.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from typing import Final, TypeVar

from .errors import NoPortLeft, PortTaken

K = TypeVar("K", bound=Hashable)

FIRST_PORT: Final = 15432
LAST_PORT: Final = 65535
# An explicit --local-port that is busy is tried, with those after it, as often as this.
EXPLICIT_TRIES: Final = 100


def is_port(number: object) -> bool:
    """Whether *number* can be listened on: an int (not a bool) from 1 to 65535."""
    return isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= LAST_PORT


def owner_of(port: int, owned: Mapping[K, int]) -> K | None:
    """Whose sticky port this is, or None."""
    return next((key for key, theirs in owned.items() if theirs == port), None)


def next_port(taken: Collection[int], *, first: int = FIRST_PORT, strict: bool = False) -> int:
    """
    The lowest port from *first* upwards that is not in *taken*.

    Only a proposal: another process may hold it. Bind it; on EADDRINUSE add it to *taken* and ask again.

    Raises:
        PortTaken: *strict*, and *first* is in *taken*.
        NoPortLeft: every port up to 65535 is taken.
    """
    if strict:
        return _exactly(first, taken)
    found = _lowest(taken, first, LAST_PORT)
    if found is None:
        raise NoPortLeft(f"No local port from {first} to {LAST_PORT} is free.")
    return found


def propose_port(
    key: K,
    *,
    owned: Mapping[K, int],
    busy: Collection[int] = (),
    requested: int | None = None,
    strict: bool = False,
    first: int = FIRST_PORT,
) -> int:
    """
    The port to bind next for the tunnel *key*.

    An explicit *requested* port wins over the sticky one; when it is taken, the 99 after it are tried. Else the sticky
    port of *key* in *owned*; when that is *busy*, the next above it, for this time only (do not record it as owned).
    Else the lowest from *first*. What another key owns is never proposed.

    Raises:
        PortTaken: *strict*, and the port is busy or another's; or the *requested* one and the 99 after it are.
        NoPortLeft: every port up to 65535 is taken.
    """
    foreign = {port for other, port in owned.items() if other != key}
    taken = foreign.union(busy)
    wanted = first
    if requested is not None:
        wanted = requested
    elif key in owned and owned[key] not in foreign:
        wanted = owned[key]
    if strict:
        return _exactly(wanted, taken, foreign)
    if requested is not None:
        return _near(requested, taken)
    return next_port(taken, first=wanted)


def _lowest(taken: Collection[int], first: int, last: int) -> int | None:
    return next((port for port in range(first, min(last, LAST_PORT) + 1) if port not in taken), None)


def _exactly(port: int, taken: Collection[int], foreign: Collection[int] = ()) -> int:
    if port in foreign:
        raise PortTaken(
            f"Local port {port} is kept for another project.",
            hint="Pass another --local-port, or give that one up with `fluxctl tunnel forget PROJECT`.",
        )
    if port in taken:
        raise PortTaken(f"Local port {port} is in use.")
    return port


def _near(requested: int, taken: Collection[int]) -> int:
    last = min(requested + EXPLICIT_TRIES - 1, LAST_PORT)
    found = _lowest(taken, requested, last)
    if found is None:
        raise PortTaken(f"Local ports {requested} to {last} are all in use or kept for other projects.")
    return found
