"""fluxd.launchd with the C functions that it calls, standing in for launchd's own: this is no Mac."""

import ctypes
import errno
import socket
import sys

import pytest

from fluxd import launchd

FDS = ctypes.POINTER(ctypes.c_int)
ACTIVATE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(FDS), ctypes.POINTER(ctypes.c_size_t))
FREE = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Launchd:
    """int launch_activate_socket(const char *name, int **fds, size_t *cnt), and free, called through the C ABI."""

    def __init__(self, **named: list[int]) -> None:
        self.named = named
        self.freed: list[int | None] = []
        self.launch_activate_socket = ACTIVATE(self._activate)
        self.free = FREE(self.freed.append)

    def _activate(self, name, fds, count) -> int:
        found = self.named.pop(name.decode(), None)
        if found is None:
            return errno.ENOENT
        self._array = (ctypes.c_int * len(found))(*found)
        fds[0] = ctypes.cast(self._array, FDS)
        count[0] = len(found)
        return 0


def test_every_socket_under_a_name_is_ours_and_the_list_is_freed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        system = Launchd(api=[one.dup().detach(), other.dup().detach()])
        found = launchd._activated(system, "api")
        try:
            assert [mine.getsockname() for mine in found] == [one.getsockname(), other.getsockname()]
            assert [mine.get_inheritable() for mine in found] == [False, False]
            assert system.freed == [ctypes.addressof(system._array)]
        finally:
            for mine in found:
                mine.close()


def test_an_unknown_name_has_none() -> None:
    system = Launchd()
    assert (launchd._activated(system, "api"), system.freed) == ([], [])


@pytest.mark.skipif(sys.platform == "darwin", reason="the real one answers there")
def test_elsewhere_there_is_no_launchd_to_ask() -> None:
    assert launchd.activated("api") == []
