"""fluxd dies at each write of its state, during open, renew, close and expiry: what is left is put in order after."""

import asyncio
import json
import shutil
import sys

import pytest

from tests.fluxd.tunnels.crashing import DIED
from tests.fluxd.tunnels.rig import V2_HASH, until

MOST_WRITES = 40


@pytest.fixture
async def mortal():
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "tests.fluxd.tunnels.crashing"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    yield process
    process.stdin.close()
    await process.wait()


async def died(mortal, rig, history: str, at: int, *, after: bool) -> bool:
    """Live through the history in a process of its own; whether it came to write number *at*."""
    told = {
        "history": history,
        "at": at,
        "after": after,
        "state_dir": str(rig.state_dir),
        "first_port": rig.settings.first_port,
        "api_base": rig.plane.api_base,
        "hash": V2_HASH,
        "ttl_s": 1 if history == "expiry" else 600,
        "ssh": {"identity_file": rig.ssh.identity_file, "known_hosts": rig.ssh.known_hosts},
    }
    mortal.stdin.write(json.dumps(told).encode() + b"\n")
    async with asyncio.timeout(60):
        code = int(await mortal.stdout.readline())
    assert code in (0, DIED)
    return code == DIED


@pytest.mark.timeout(600)
@pytest.mark.parametrize("after", [False, True], ids=["before-the-write", "after-the-write"])
@pytest.mark.parametrize("history", ["close", "expiry"])
async def test_dying_at_each_write_leaves_no_role_unrevoked_and_the_ports_unchanged(small_rig, mortal, history, after):
    rig, port = small_rig, small_rig.settings.first_port
    for at in range(MOST_WRITES):
        shutil.rmtree(rig.state_dir, ignore_errors=True)
        rig.plane.made.clear()
        if not await died(mortal, rig, history, at, after=after):
            break
        await rig.up.start()
        back = rig.up.list()
        assert [tunnel.port for tunnel in back] in ([], [port]), at
        usable = {record.username for tunnel in back for record in rig.up._grants.live(tunnel.id)}
        await until(lambda: rig.up.pending_revocations() == 0, f"revocations after write {at}")
        await until(lambda: rig.roles() <= usable, f"roles that nobody can use to end, after write {at}")  # noqa: B023
        assert (await rig.open()).tunnel.port == port, at
        await rig.up.aclose()
        rig.supervisor = None
        assert rig.roles() == set(), at
    assert 4 <= at < MOST_WRITES, "every write of the history was died at"
