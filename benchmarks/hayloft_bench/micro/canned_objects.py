"""An S3 server on loopback that answers every GET with the same bytes, for measuring what a client costs.

``python -m hayloft_bench.micro.canned_objects --bytes 110000`` prints its port and serves until its standard input is
closed. With ``--checksum`` the answers hold a CRC32C, as a store sends it that keeps one.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import os
import random
import select
import socket
import sys

import crc32c

_END = b"\r\n\r\n"


def content(size_bytes: int) -> bytes:
    """The bytes of every object."""
    return random.Random(18).randbytes(size_bytes)


def answer(size_bytes: int, *, checksum: bool) -> bytes:
    """The complete response."""
    body = content(size_bytes)
    etag = hashlib.md5(body, usedforsecurity=False).hexdigest()
    digest = base64.b64encode(crc32c.crc32c(body).to_bytes(4, "big")).decode()
    kept = f"x-amz-checksum-crc32c: {digest}\r\nx-amz-checksum-type: FULL_OBJECT\r\n" if checksum else ""
    head = (
        "HTTP/1.1 200 OK\r\nAccept-Ranges: bytes\r\n"
        f"Content-Length: {size_bytes}\r\nContent-Type: application/octet-stream\r\n"
        f'ETag: "{etag}"\r\nLast-Modified: Fri, 02 Jan 2026 03:04:05 GMT\r\n{kept}'
        "Server: canned\r\nx-amz-request-id: 17C3B9B1C4F4E0F5\r\nDate: Fri, 02 Jan 2026 03:04:05 GMT\r\n\r\n"
    )
    return head.encode() + body


class _Server:
    """One thread; what is sent last waits in the buffers of its connection."""

    def __init__(self, response: bytes) -> None:
        self._response = response
        self._poll = select.epoll()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._poll.register(self._listener, select.EPOLLIN)
        self._connections: dict[int, socket.socket] = {}
        self._unsent: dict[int, memoryview] = {}
        self.port = self._listener.getsockname()[1]

    def serve(self) -> None:
        """Until the end of standard input."""
        self._poll.register(sys.stdin, select.EPOLLIN)
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor == self._listener.fileno():
                    self._accept()
                elif descriptor in self._connections:
                    self._continue(descriptor)
                elif not os.read(descriptor, 1):
                    return

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.setblocking(False)
        self._connections[connection.fileno()] = connection
        self._poll.register(connection, select.EPOLLIN)

    def _continue(self, descriptor: int) -> None:
        connection, unsent = self._connections[descriptor], self._unsent
        try:
            if descriptor not in unsent:
                if not connection.recv(65536).endswith(_END):  # the client has closed it
                    raise ConnectionResetError
                unsent[descriptor] = memoryview(self._response)
                self._poll.modify(connection, select.EPOLLOUT)
            unsent[descriptor] = unsent[descriptor][connection.send(unsent[descriptor]) :]
            if not unsent[descriptor]:
                del unsent[descriptor]
                self._poll.modify(connection, select.EPOLLIN)
        except BlockingIOError:
            return
        except OSError:
            unsent.pop(descriptor, None)
            self._poll.unregister(connection)
            self._connections.pop(descriptor).close()


def main() -> None:
    """Serves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=int, default=110_000)
    parser.add_argument("--checksum", action="store_true")
    arguments = parser.parse_args()
    server = _Server(answer(arguments.bytes, checksum=arguments.checksum))
    print(server.port, flush=True)
    server.serve()


if __name__ == "__main__":
    main()
