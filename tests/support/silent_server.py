"""A server that accepts connections and hangs: a store that is down behind a load balancer, or one of an attacker."""

from __future__ import annotations

import socket
import threading
from typing import Self


class SilentServer:
    """Sends ``answer`` as soon as a request is received, and nothing more."""

    def __init__(self, answer: bytes = b"") -> None:
        self._answer = answer
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._connections: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    @property
    def connections(self) -> int:
        """Accepted so far."""
        return len(self._connections)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()
        for connection in self._connections:
            connection.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self._connections.append(connection)
            if self._answer:
                connection.recv(1 << 16)
                connection.sendall(self._answer)
