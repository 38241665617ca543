"""
A daemon's tunnels in a process of their own, which dies at the write it is told to: `os._exit`, as kill -9 would.

Each line of its input, `{"history": "close", "at": 3, "after": true, …}`, is lived through by a child of its own, and
answered with that child's exit code. Every write of a state file is counted; the one numbered `at` is not made (`after`
false), or is the last thing that happens. 0: the history ended before that write came; 9: it died of it.
"""

import asyncio
import json
import os
import sys
from pathlib import Path

from fluxd import wire
from fluxd.clock import Clock
from fluxd.plane import Caller, ControlPlane, Tokens
from fluxd.settings import TunnelSettings
from fluxd.statefile import StateFile
from fluxd.tunnels.supervisor import Supervisor
from fluxplane.wire import Secret
from tests.furniture.contract import TOKEN, NoKeyring

DIED = 9


def die_at(number: int, *, after: bool) -> None:
    """Arrange it."""
    writes, replace = iter(range(sys.maxsize)), StateFile.replace

    def counted(self, data):
        if next(writes) != number:
            return replace(self, data)
        if after:
            replace(self, data)
        os._exit(DIED)

    StateFile.replace = counted


async def live(told) -> None:
    control = ControlPlane()
    state_dir = Path(told["state_dir"])
    supervisor = Supervisor(
        control=control,
        tokens=Tokens(control=control, keychain=NoKeyring(), state_dir=state_dir, environ={}),
        state_dir=state_dir,
        settings=TunnelSettings(first_port=told["first_port"]),
        clock=Clock(),
    )
    await supervisor.start()
    caller = Caller(told["api_base"], Secret(TOKEN), "ada@example.com")
    request = wire.OpenTunnel(hash=told["hash"], ttl_s=told["ttl_s"], ssh=wire.SSH(**told["ssh"]))
    await supervisor.open(request, caller)
    if told["history"] == "expiry":
        while supervisor.list() or supervisor.pending_revocations():
            await asyncio.sleep(0.05)
    else:
        await supervisor.renew("foundry", wire.RenewTunnel(ttl_s=1200), caller)
        await supervisor.open(wire.OpenTunnel(hash=told["hash"], credential="new", ssh=request.ssh), caller)
        await supervisor.close("foundry")
    await supervisor.aclose()
    await control.aclose()


def lived(told) -> int:
    """The exit code of a child that lives through it."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        die_at(told["at"], after=told["after"])
        asyncio.run(live(told))
        code = 0
    finally:
        os._exit(code)


if __name__ == "__main__":
    for line in sys.stdin:
        sys.stdout.write(f"{lived(json.loads(line))}\n")
        sys.stdout.flush()
