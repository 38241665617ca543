"""What becomes of a forward's listeners when the daemon is not the only one that holds them."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fluxd.systemd import Manager
from fluxd.tunnels import forward
from fluxd.tunnels.listeners import Listeners
from tests.furniture.ear import Ear


@pytest.fixture
def ear(tmp_path: Path) -> Iterator[Ear]:
    ear = Ear(str(tmp_path / "notify"))
    yield ear
    ear.close()


@pytest.fixture
def manager(ear: Ear, tmp_path: Path) -> Manager:
    return Manager(address=str(tmp_path / "notify"))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def close(sockets: list[socket.socket]) -> None:
    for one in sockets:
        one.close()


def test_what_is_bound_is_kept_until_it_is_freed(ear: Ear, manager: Manager) -> None:
    port, listeners = free_port(), Listeners(manager)
    sockets = listeners.bind("127.0.0.1", port)
    assignments, fds = ear.heard()
    assert assignments == ["FDSTORE=1", f"FDNAME=forward-127.0.0.1-{port}"]
    assert len(fds) == len(sockets)
    for fd in fds:
        os.close(fd)
    close(sockets)
    listeners.free("127.0.0.1", port)
    assert ear.heard() == (["FDSTOREREMOVE=1", f"FDNAME=forward-127.0.0.1-{port}"], [])


def test_an_ipv6_listener_has_a_name_without_colons(ear: Ear, manager: Manager) -> None:
    port = free_port()
    close(Listeners(manager).bind("::1", port))
    assignments, fds = ear.heard()
    assert assignments[1] == f"FDNAME=forward-__1-{port}"
    for fd in fds:
        os.close(fd)


def test_what_is_closed_for_a_restart_stays_kept(ear: Ear, manager: Manager) -> None:
    listeners = Listeners(manager)
    listeners.hand_over()
    listeners.free("127.0.0.1", 15432)
    assert ear.silent()


def test_the_next_daemon_takes_over_the_very_sockets_and_a_client_that_waited_is_accepted(manager: Manager) -> None:
    port = free_port()
    left = forward.bind("127.0.0.1", port)
    manager.handed[f"forward-127.0.0.1-{port}"] = left
    with socket.create_connection(("127.0.0.1", port)) as client:  # nobody accepts yet
        taken = Listeners(manager).bind("127.0.0.1", port)
        assert taken == left
        accepted, address = taken[0].accept()
        accepted.close()
        assert address == client.getsockname()
    close(taken)


def test_what_listens_elsewhere_than_its_name_says_is_not_taken_over(manager: Manager) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        manager.handed[f"forward-127.0.0.1-{port}"] = [mine := stranger.dup()]
        taken = Listeners(manager).bind("127.0.0.1", port)
        assert [one.getsockname()[1] for one in taken] == [port] * len(taken)
        assert mine.fileno() == -1
        close(taken)


async def test_what_no_tunnel_takes_over_in_time_comes_free(manager: Manager) -> None:
    port = free_port()
    manager.handed[f"forward-127.0.0.1-{port}"] = forward.bind("127.0.0.1", port)
    await Listeners(manager).discard_untaken(after_s=0)
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", port)) != 0


def test_without_a_service_manager_it_only_binds() -> None:
    port, listeners = free_port(), Listeners(Manager())
    sockets = listeners.bind("127.0.0.1", port)
    assert sockets[0].getsockname() == ("127.0.0.1", port)
    close(sockets)
    listeners.free("127.0.0.1", port)
