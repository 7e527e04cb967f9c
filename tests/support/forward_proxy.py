"""A forward proxy on loopback: CONNECT for TLS, and requests with a complete URL for plain HTTP."""

from __future__ import annotations

import base64
import select
import socket
import threading
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

_HEAD_BYTES = 64 << 10


class ForwardProxy:
    """``with ForwardProxy() as proxy``. Every name leads to ``upstream``, host and port, if that is set. One
    request for each connection."""

    def __init__(self, *, user: str = "", password: str = "", refuses: int = 0, upstream: str = "") -> None:
        """``refuses``: the status of every answer."""
        self._upstream = upstream
        self.refuses = refuses
        self.targets: list[str] = []
        """Host and port of each request, as they were named."""
        self._expected = f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}" if user else ""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                self._forward(client)
            except OSError:
                return

    def _forward(self, client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head and len(head) < _HEAD_BYTES:
            piece = client.recv(_HEAD_BYTES)
            if not piece:
                return
            head += piece
        head, _, rest = head.partition(b"\r\n\r\n")
        line, *headers = head.decode("latin-1").split("\r\n")
        method, target, _ = line.split(" ")
        place = target if method == "CONNECT" else urlsplit(target).netloc
        self.targets.append(place)
        sent = dict(header.split(": ", 1) for header in headers)
        credentials = next((value for name, value in sent.items() if name.lower() == "proxy-authorization"), "")
        status = 407 if self._expected and credentials != self._expected else self.refuses
        if status:
            client.sendall(f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
            return
        host, _, port = (self._upstream or place).rpartition(":")
        with socket.create_connection((host, int(port))) as server:
            if method == "CONNECT":
                client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                server.sendall(rest)
            else:
                path = target.partition("://")[2].partition("/")[2]
                hop = {"connection", "proxy-connection", "proxy-authorization"}
                kept = [f"{name}: {value}" for name, value in sent.items() if name.lower() not in hop]
                lines = [f"{method} /{path} HTTP/1.1", *kept, "Connection: close"]
                server.sendall("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + rest)
            _pump(client, server)


def _pump(first: socket.socket, second: socket.socket) -> None:
    """Copies both ways until one side ends."""
    while True:
        for ready in select.select([first, second], [], [])[0]:
            data = ready.recv(1 << 16)
            if not data:
                return
            (second if ready is first else first).sendall(data)
