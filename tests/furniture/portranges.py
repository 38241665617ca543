"""
Which loopback ports this test process may use: blocks that no other running test process has, in any checkout.

A block is a lock file (flock(2)), let go when the process ends, however it ends. All lie below the ports that the
kernel hands out to anybody.
"""

import fcntl
import os
import tempfile
from pathlib import Path

FIRST = 16000
END = 32768
PORTS_EACH = 120
RANGES_EACH = 8


def _claimed() -> int:
    """The first port of a block that is ours from now on."""
    place = Path(tempfile.gettempdir()) / f"flux-test-ports-{os.getuid()}"
    place.mkdir(mode=0o700, exist_ok=True)
    size = PORTS_EACH * RANGES_EACH
    for first in range(FIRST, END - size + 1, size):
        lock = os.open(place / str(first), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
        else:
            return first
    raise AssertionError("every block of ports is taken by some other run of these tests")


_block = _claimed()
_next = 0


def port_range() -> int:
    """The first of `PORTS_EACH` ports, the next range of our block each time; the oldest comes round again."""
    global _next  # noqa: PLW0603 - one counter for one process, as the block is
    first = _block + _next * PORTS_EACH
    _next = (_next + 1) % RANGES_EACH
    return first
