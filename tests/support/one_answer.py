"""A server that sends prepared bytes to each request, and a client of it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

from csi_driver.objects.s3.addressing import S3Address
from csi_driver.objects.s3.s3_clients import S3SmallObjectClient
from csi_driver.objects.store_location import StoreLocation

OK = b'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: "tag"\r\n'


class OneAnswer:
    """Sends the same pieces in response to each request. ``ends``: closes the connection after one response;
    ``falls_silent``: leaves it open after one response and reads no further request."""

    def __init__(self, *pieces: bytes, ends: bool = False, falls_silent: bool = False) -> None:
        self.pieces, self.ends, self.falls_silent = pieces, ends, falls_silent
        self._closed = threading.Event()
        self.paced = False
        """Every piece but the first of a response waits for ``send_next``."""
        self._next, self._sent = threading.Semaphore(0), threading.Semaphore(0)
        self.connections = self.requests = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while b"\r\n\r\n" in connection.recv(1 << 16):
                self.requests += 1
                for number, piece in enumerate(self.pieces):
                    if self.paced and number:
                        self._next.acquire()
                    connection.sendall(piece)
                    self._sent.release()
                    time.sleep(0.002)
                if self.falls_silent:
                    self._closed.wait()
                if self.ends or self.falls_silent:
                    return

    def send_next(self) -> None:
        """Sends the second piece of a ``paced`` response; returns when it is in the client's receive buffer."""
        self._sent.acquire()
        self._next.release()
        self._sent.acquire()

    def close(self) -> None:
        self._closed.set()
        # Wakes accept(2), which close(2) alone does not.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextlib.contextmanager
def answering(
    *pieces: bytes, ends: bool = False, falls_silent: bool = False
) -> Iterator[tuple[S3SmallObjectClient, OneAnswer]]:
    server = OneAnswer(*pieces, ends=ends, falls_silent=falls_silent)
    location = StoreLocation(server.address, "bucket")
    client = S3SmallObjectClient(location, S3Address(f"{server.address}/bucket", "r", False), None, timeout_s=2)
    try:
        yield client, server
    finally:
        client.close()
        server.close()
