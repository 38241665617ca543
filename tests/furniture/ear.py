"""The receiving end of sd_notify: what systemd is to a service."""

import array
import socket


class Ear:
    """A datagram socket at *address*, which may be abstract (`@…`)."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.settimeout(5)

    def heard(self) -> tuple[list[str], list[int]]:
        """The next message: its assignments, and the descriptors that came along."""
        data, ancillary, _, _ = self._socket.recvmsg(4096, socket.CMSG_SPACE(16 * 4))
        fds = array.array("i")
        for level, kind, content in ancillary:
            assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            fds.frombytes(content)
        return data.decode().splitlines(), list(fds)

    def silent(self) -> bool:
        self._socket.setblocking(False)
        try:
            self._socket.recv(1)
        except BlockingIOError:
            return True
        return False

    def close(self) -> None:
        self._socket.close()
