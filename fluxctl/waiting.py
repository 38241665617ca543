"""What is said on a terminal while fluxd takes its time. Loaded only when it does: see `exchange.Connection`."""

from __future__ import annotations

from fluxctl.progress import Meter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# The first that fits, by method and the beginning of the path.
_WORDS = (
    ("POST", "/v1/tunnels/", "Prolonging the temporary roles"),
    ("POST", "/v1/tunnels", "Opening the tunnel"),
    ("DELETE", "/v1/tunnels", "Closing the tunnel"),
    ("PUT", "/v1/login", "Logging in"),
    ("DELETE", "/v1/login", "Logging out"),
    ("GET", "/v1/doctor", "Testing each step of the way"),
    ("GET", "/v1/hosts", "Asking the SSH host for its key"),
    ("GET", "/v1/tunnels", "Waiting for fluxd"),
    ("GET", "/v1/status", "Waiting for fluxd"),
    ("GET", "/v1/settings", "Waiting for fluxd"),
)


def until_read(read: Callable[[], bytes], method: str, target: str, within_s: float) -> bytes:
    """
    What *read* answers, which raises TimeoutError once a second until then.

    Raises:
        TimeoutError: nothing, for *within_s*.
    """
    words = next((said for verb, path, said in _WORDS if verb == method and target.startswith(path)), None)
    with Meter() as meter:
        while True:
            meter.show(f"{words or 'Waiting for the control plane'} … {meter.took_s + 1:.0f} s")
            try:
                return read()
            except TimeoutError:
                if meter.took_s >= within_s:
                    raise
