"""The kernel's side of /dev/fuse over a socket pair: requests go straight to the dispatcher, replies are packets."""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from csi_driver.filesystem.inodes import Filesystem
from csi_driver.filesystem.open_table import OpenTable
from csi_driver.fuse import protocol as p
from csi_driver.fuse.session import FuseSession
from csi_driver.settings import FuseSettings

_HEADER = struct.Struct("<IIQQIIIHH")


@dataclass(frozen=True)
class Reply:
    """``error`` is a positive errno, 0 for success."""

    unique: int
    error: int
    body: bytes


class FakeKernel:
    """Sends requests to a session that was not started."""

    def __init__(self, filesystem: Filesystem, table_path: Path, settings: FuseSettings | None = None) -> None:
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.setblocking(False)
        self.open_table = OpenTable.create(table_path, "snapshot")
        self.session = FuseSession(
            self._theirs.fileno(), filesystem, self.open_table, settings or FuseSettings(), adopted=False
        )
        self._unique = 0

    def close(self) -> None:
        """Closes both sides."""
        self.open_table.close()
        self._ours.close()
        self._theirs.close()

    def send(self, opcode: int, body: bytes = b"", *, node: int = 1, unique: int | None = None, pid: int = 0) -> int:
        """Sends a request and returns its unique number."""
        if unique is None:
            self._unique += 2
            unique = self._unique
        header = _HEADER.pack(p.HEADER_BYTES + len(body), opcode, unique, node, 0, 0, pid, 0, 0)
        self.send_bytes(header + body)
        return unique

    def send_bytes(self, request: bytes) -> None:
        """Sends any bytes, in a buffer that holds other bytes behind them."""
        buffer = bytearray(os.urandom(64) * (len(request) // 64 + 4))
        buffer[: len(request)] = request
        self.session._operations.dispatch(buffer, len(request))

    def replies(self) -> list[Reply]:
        """The replies since the last call. Asserts that each has the length that it states."""
        found: list[Reply] = []
        while True:
            try:
                packet = self._ours.recv(1 << 21)
            except BlockingIOError:
                return found
            length, error, unique = p.REPLY.unpack_from(packet)
            assert length == len(packet)
            assert -1000 < error <= 0 or unique == 0
            assert error == 0 or length == p.REPLY_HEADER_BYTES
            found.append(Reply(unique, -error, packet[p.REPLY_HEADER_BYTES :]))

    def ask(self, opcode: int, body: bytes = b"", *, node: int = 1) -> Reply:
        """Sends a request that is answered at once, and returns the answer."""
        unique = self.send(opcode, body, node=node)
        (reply,) = self.replies()
        assert reply.unique == unique
        return reply
