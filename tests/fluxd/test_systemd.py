"""fluxd.systemd against a real notification socket, and in a real child process that was handed descriptors."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fluxd.systemd import Manager
from tests.furniture.ear import Ear


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "notify") if request.param == "path" else f"@fluxd-test-{os.getpid()}"


@pytest.fixture
def ear(address: str) -> Iterator[Ear]:
    ear = Ear(address)
    yield ear
    ear.close()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as one:
        yield one


def test_a_start_a_reload_and_a_stop_are_told(ear: Ear, address: str) -> None:
    manager = Manager.of({"NOTIFY_SOCKET": address})
    manager.ready("2 tunnels\nare open")
    manager.reloading()
    manager.status("3 tunnels")
    manager.stopping()
    assert ear.heard() == (["READY=1", "STATUS=2 tunnels are open"], [])
    assert ear.heard() == (["RELOADING=1"], [])
    assert ear.heard() == (["STATUS=3 tunnels"], [])
    assert ear.heard() == (["STOPPING=1"], [])


def test_a_kept_listener_arrives_and_is_the_same_socket(ear: Ear, address: str, listener: socket.socket) -> None:
    Manager.of({"NOTIFY_SOCKET": address}).keep("forward-15432", [listener])
    assignments, [fd] = ear.heard()
    with socket.socket(fileno=fd) as copy:
        assert (["FDSTORE=1", "FDNAME=forward-15432"], listener.getsockname()) == (assignments, copy.getsockname())


def test_a_dropped_listener_is_named(ear: Ear, address: str) -> None:
    Manager.of({"NOTIFY_SOCKET": address}).drop("forward-15432")
    assert ear.heard() == (["FDSTOREREMOVE=1", "FDNAME=forward-15432"], [])


def test_what_nobody_took_is_closed_and_forgotten(ear: Ear, address: str, listener: socket.socket) -> None:
    mine = listener.dup()
    manager = Manager(address=address, handed={"forward-1": [mine], "api": [listener]})
    assert manager.take("api") == [listener]
    assert manager.take("api") == []
    manager.discard_untaken()
    assert (mine.fileno(), manager.handed) == (-1, {})
    assert ear.heard() == (["FDSTOREREMOVE=1", "FDNAME=forward-1"], [])


async def test_the_watchdog_is_fed_twice_per_period_while_the_loop_runs(ear: Ear, address: str) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    feeding = asyncio.create_task(Manager(address=address, watchdog_s=0.2).feed_watchdog())
    for _ in range(4):
        assert await asyncio.to_thread(ear.heard) == (["WATCHDOG=1"], [])
    took = loop.time() - began
    feeding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await feeding
    assert took > 0.25  # the bounds of a loaded machine: never faster than its period
    await asyncio.get_running_loop().shutdown_default_executor()


async def test_without_a_watchdog_feeding_ends_at_once(ear: Ear, address: str) -> None:
    await Manager(address=address).feed_watchdog()
    assert ear.silent()


def test_without_a_service_manager_nothing_is_said_and_nothing_fails(listener: socket.socket) -> None:
    manager = Manager.of({})
    assert manager == Manager(address=None, watchdog_s=None, handed={})
    manager.ready()
    manager.keep("forward", [listener])
    manager.discard_untaken()


def test_a_service_manager_that_is_gone_is_no_reason_to_stop(tmp_path: Path) -> None:
    Manager(address=str(tmp_path / "nobody")).ready()


def test_the_variables_are_gone_afterwards_so_that_no_child_takes_them_for_its_own() -> None:
    environ = {
        "NOTIFY_SOCKET": "/run/x",
        "LISTEN_PID": "1",
        "LISTEN_FDS": "1",
        "LISTEN_FDNAMES": "api",
        "WATCHDOG_PID": "1",
        "WATCHDOG_USEC": "1000000",
        "HOME": "/home/mary",
    }
    Manager.of(environ)
    assert environ == {"HOME": "/home/mary"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({}, None),
    ],
)
def test_only_a_watchdog_meant_for_us_counts(environ: dict[str, str], expected: float | None) -> None:
    assert Manager.of(dict(environ)).watchdog_s == expected


@pytest.mark.parametrize("address", ["vsock:2:1234", "relative", ""])
def test_a_notification_address_that_is_no_unix_socket_counts_as_none(address: str) -> None:
    assert Manager.of({"NOTIFY_SOCKET": address}).address is None


def handed(names: str | None, *fds: int, pid: str = "") -> object:
    """What a child process finds that was handed *fds* from 3 upwards, as sockets' own names by the given names."""
    child = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(fds), json.dumps(names), pid],
        pass_fds=fds,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(child.stdout)


CHILD = """
import fcntl, json, os, sys
wanted, names, pid = json.loads(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd in wanted]
for place, fd in enumerate(high):
    os.dup2(fd, 3 + place)
os.environ.update(LISTEN_PID=pid or str(os.getpid()), LISTEN_FDS=str(len(wanted)))
if names is not None:
    os.environ["LISTEN_FDNAMES"] = names
from fluxd.systemd import Manager
from tests.furniture.ear import Ear
found = Manager.of(os.environ).handed
shown = {name: [(one.getsockname()[1], one.get_inheritable()) for one in found[name]] for name in found}
print(json.dumps(shown))
"""


def test_handed_sockets_come_by_name_and_are_not_inherited_further(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    with socket.create_server(("127.0.0.1", 0)) as other:
        found = handed("api:forward", listener.fileno(), other.fileno())
        assert found == {"api": [[port, False]], "forward": [[other.getsockname()[1], False]]}


def test_several_sockets_may_share_a_name_and_one_may_have_none(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    assert handed("a:a", *[listener.fileno()] * 3) == {"a": [[port, False]] * 2, "unknown": [[port, False]]}
    assert handed(None, listener.fileno()) == {"unknown": [[port, False]]}


def test_descriptors_for_another_process_are_not_touched(listener: socket.socket) -> None:
    assert handed("api", listener.fileno(), pid="1") == {}


def test_what_is_no_socket_is_not_handed_on(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        assert handed("api", file.fileno()) == {}
