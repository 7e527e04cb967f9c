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
    digest = base64.b64encode(crc32c.crc32c(body).to_bytes(4, "big")).decode()
    kept = f"x-amz-checksum-crc32c: {digest}\r\nx-amz-checksum-type: FULL_OBJECT\r\n" if checksum else ""
    head = (
        "HTTP/1.1 200 OK\r\nAccept-Ranges: bytes\r\n"
        f"Content-Length: {size_bytes}\r\nContent-Type: application/octet-stream\r\n"
        f'ETag: "{hashlib.md5(body).hexdigest()}"\r\nLast-Modified: Fri, 02 Jan 2026 03:04:05 GMT\r\n{kept}'
        "Server: canned\r\nx-amz-request-id: 17C3B9B1C4F4E0F5\r\nDate: Fri, 02 Jan 2026 03:04:05 GMT\r\n\r\n"
    )
    return head.encode() + body


def serve(response: bytes) -> None:
    """Prints the port; returns at the end of standard input. One thread: what it sends last waits in its buffers."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    print(listener.getsockname()[1], flush=True)
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    poll.register(sys.stdin, select.EPOLLIN)
    open_sockets: dict[int, socket.socket] = {}
    unsent: dict[int, memoryview] = {}
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == sys.stdin.fileno():
                if not os.read(descriptor, 1):
                    return
                continue
            if descriptor == listener.fileno():
                accepted, _ = listener.accept()
                accepted.setblocking(False)
                open_sockets[accepted.fileno()] = accepted
                poll.register(accepted, select.EPOLLIN)
                continue
            connection = open_sockets[descriptor]
            try:
                if descriptor not in unsent:
                    if not connection.recv(65536).endswith(_END):  # the client has closed it
                        raise ConnectionResetError
                    unsent[descriptor] = memoryview(response)
                    poll.modify(connection, select.EPOLLOUT)
                unsent[descriptor] = unsent[descriptor][connection.send(unsent[descriptor]) :]
                if not unsent[descriptor]:
                    del unsent[descriptor]
                    poll.modify(connection, select.EPOLLIN)
            except BlockingIOError:
                continue
            except OSError:
                unsent.pop(descriptor, None)
                poll.unregister(connection)
                open_sockets.pop(descriptor).close()


def main() -> None:
    """Serves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=int, default=110_000)
    parser.add_argument("--checksum", action="store_true")
    arguments = parser.parse_args()
    serve(answer(arguments.bytes, checksum=arguments.checksum))


if __name__ == "__main__":
    main()
