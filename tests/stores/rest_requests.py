"""Requests that reach a server exactly as they are written: no client library tidies the path."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Mapping

from tests.stores.store_server import HOST, StoreServer


class RestError(Exception):
    """The server refused; the text has its status and the begin of its answer."""

    def __init__(self, status: int, body: bytes) -> None:
        self.status = status
        super().__init__(f"{status}: {body[:300]!r}")


def rest(
    server: StoreServer, method: str, target: str, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> bytes:
    """The body of the answer. ``target`` is percent-encoded. Raises RestError for a status from 300."""
    connection = http.client.HTTPConnection(HOST, server.port, timeout=30)
    if server.certificate is not None:
        context = ssl.create_default_context(cafile=str(server.certificate.authority))
        connection = http.client.HTTPSConnection(HOST, server.port, timeout=30, context=context)
    try:
        connection.putrequest(method, target, skip_accept_encoding=True)
        for name, value in {"content-length": str(len(body)), **(headers or {})}.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        content = answer.read()
    finally:
        connection.close()
    if answer.status >= 300:
        raise RestError(answer.status, content)
    return content
