"""
fluxd under the user's service manager: systemd, launchd, or none.

`manager()` answers which; each has the same few acts, and tells what it did line by line. Nothing here needs root, and
everything may be repeated.
"""

from __future__ import annotations

import sys

from fluxctl.service.base import Manager


def manager() -> Manager:
    """The service manager of this login; where there is none, the one that starts a detached daemon."""
    if sys.platform == "darwin":
        from fluxctl.service.launchd import Launchd  # noqa: PLC0415 - one of three

        return Launchd()
    from fluxctl.service import systemd  # noqa: PLC0415 - one of three

    if systemd.answers():
        return systemd.Systemd()
    from fluxctl.service.detached import Detached  # noqa: PLC0415 - one of three

    return Detached()
