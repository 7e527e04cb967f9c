"""Terminates TLS in front of a server of plain HTTP, and passes every byte on unchanged."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_PIECE_BYTES = 1 << 16


@contextmanager
def tls_front(host: str, port: int, context: ssl.SSLContext) -> Iterator[int]:
    """Gives the port of the front on ``host``. A signature that covers the Host header stays valid: the header is that
    of the front, for both sides."""
    with socket.create_server((host, 0), backlog=64) as listener:
        threading.Thread(target=_accept, args=(listener, (host, port), context), daemon=True).start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)


def _accept(listener: socket.socket, behind: tuple[str, int], context: ssl.SSLContext) -> None:
    with suppress(OSError):  # the listener was shut down
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_serve, args=(connection, behind, context), daemon=True).start()


def _serve(connection: socket.socket, behind: tuple[str, int], context: ssl.SSLContext) -> None:
    # OSError: a client that does not trust the certificate, and either side that closes the connection.
    with (
        suppress(OSError),
        connection,
        context.wrap_socket(connection, server_side=True) as client,
        socket.create_connection(behind) as server,
    ):
        upwards = threading.Thread(target=_pass_on, args=(client, server), daemon=True)
        upwards.start()
        _pass_on(server, client)
        # The client may keep its side open.
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)
        upwards.join()


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError, ValueError):
        while piece := source.recv(_PIECE_BYTES):
            sink.sendall(piece)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
