"""Servers of an attacker and of a victim on the loopback interface, and a resolver that lies."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from typing import Any, Self

import pytest

from tests.support.secrets_of_stores import private_key_pem


class _Server:
    """A thread for each connection, until the end of the block."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.port: int = listener.getsockname()[1]
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve_quietly, args=(connection,), daemon=True).start()

    def _serve_quietly(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        """Owns the connection."""
        raise NotImplementedError


class Listener(_Server):
    """Counts connections, and answers every request with an empty 200: a service that no tenant may reach."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__(socket.create_server((host, port), family=family, backlog=64))

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(5)
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


class RedirectingStore(_Server):
    """A store of the attacker: answers every request with a redirect."""

    def __init__(self, status: int, target: str, tls: ssl.SSLContext | None = None) -> None:
        self._status, self._target, self._tls = status, target, tls
        self.targets: list[str] = []
        """What the requests asked for."""
        super().__init__(socket.create_server(("127.0.0.1", 0), backlog=64))
        self.address = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"

    def _serve(self, connection: socket.socket) -> None:
        if self._tls is not None:
            connection = self._tls.wrap_socket(connection, server_side=True)
        with connection:
            request = connection.recv(65536)
            self.targets.append(request.split(b" ")[1].decode())
            target = self._target or f"{self.address}/followed"
            connection.sendall(
                f"HTTP/1.1 {self._status} Moved\r\nLocation: {target}\r\nContent-Length: 0\r\n"
                "x-amz-bucket-region: eu-west-1\r\nConnection: close\r\n\r\n".encode()
            )


class Resolver:
    """Replaces ``socket.getaddrinfo`` for names that end in ``.test``: each has a list of answers, one for a question,
    the last of which stays."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers: dict[str, list[list[str]]] = {}
        self.questions: list[str] = []
        self._real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._resolve)

    def _resolve(self, host: Any, port: Any, *arguments: Any, **more: Any) -> list[Any]:
        name = host.decode() if isinstance(host, bytes) else str(host)
        if not name.endswith(".test"):
            return self._real(host, port, *arguments, **more)
        self.questions.append(name)
        answers = self.answers.get(name)
        if answers is None:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        addresses = answers.pop(0) if len(answers) > 1 else answers[0]
        found: list[Any] = []
        for address in addresses:
            found += self._real(address, port, type=socket.SOCK_STREAM)
        return found


def service_account() -> str:
    """The JSON key of a Google service account, with a key that signs."""
    return json.dumps(
        {
            "type": "service_account",
            "client_email": "team@project.iam.gserviceaccount.com",
            "private_key_id": "1",
            "private_key": private_key_pem(),
        }
    )


@contextlib.contextmanager
def without_proxies(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No proxy of this machine takes part."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    yield
