"""The web page of a node: ``hayloft cache --web-port``. It shows what the commands show, to a browser on this machine.

The server is that of the metrics (``page_server.py``): one thread, bounded connections, time-outs, GET alone. It
listens on loopback and asks for no password, so that two things of browsers matter. A page of the internet whose name
is made to resolve to 127.0.0.1 (DNS rebinding) sends that name as Host, and is refused. A page of another origin cannot
read what it makes the browser request; it is refused by Sec-Fetch-Site, so that it cannot cause work either.
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from csi_driver import telemetry
from csi_driver.model.errors import HayloftError, RequestError, VolumeConflict, VolumeNotFound
from csi_driver.model.read_counts import ReadNumbers
from csi_driver.volumes.node_operations import NodeOperations
from csi_driver.wiring.page_server import HttpPage, Page, PageRequest, PageServer, listen
from csi_driver.wiring.web_documents import NodeView

logger = logging.getLogger(__name__)

FILES = Path(__file__).parent / "page"

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
"""With any port: kubectl port-forward and ssh have ports of their own."""

_OWN_SITES = frozenset({"", "same-origin", "none"})
"""Of Sec-Fetch-Site: this page, an address that was typed or followed, and a client that is no browser. A link on
another page opens the page itself, which shows it nothing."""

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
"""No other host, nothing inline, no frame; and no text can become markup, even by a mistake in the scripts."""

_HEADERS = (
    ("Content-Security-Policy", _POLICY),
    ("Cache-Control", "no-store"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
)

_STATUSES = (
    (VolumeNotFound, HTTPStatus.NOT_FOUND),
    (VolumeConflict, HTTPStatus.CONFLICT),
    (RequestError, HTTPStatus.BAD_REQUEST),
)

Document = Callable[[Mapping[str, str]], Mapping[str, Any]]


def listen_locally(port: int) -> socket.socket:
    """On IPv4's loopback address, or on that of IPv6 where there is no other. Raises InvalidParameter."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind(("127.0.0.1", 0))
    except OSError:
        return listen("::1", port, port_flag="--web-port", address_flag="--web-port")
    return listen("127.0.0.1", port, port_flag="--web-port", address_flag="--web-port")


@contextmanager
def serving_web(
    listener: socket.socket, operations: NodeOperations, reads: Callable[[], ReadNumbers]
) -> Iterator[None]:
    """Serves the page during the body, and closes the listener. ``reads`` are the counts of all volumes."""
    server = PageServer(listener, web_pages(NodeView(operations, reads)), name="web")
    server.start()
    logger.info("the web page is served", extra=telemetry.fields(url=f"http://localhost:{server.port}/"))
    try:
        yield
    finally:
        server.close()


def web_pages(view: NodeView) -> dict[str, Page]:
    """By path."""
    pages: dict[str, Page] = {f"/{path.name}": _file(path) for path in sorted(FILES.iterdir()) if path.suffix in _TYPES}
    pages["/"] = pages.pop("/index.html")
    documents: dict[str, Document] = {"node": view.node, "directory": view.directory, "count": view.count}
    pages |= {f"/api/{name}": _document(make) for name, make in documents.items()}
    return {path: _guarded(page, own_only=path.startswith("/api/")) for path, page in pages.items()}


def _file(path: Path) -> Page:
    body, content_type = path.read_bytes(), _TYPES[path.suffix]
    return lambda _: HttpPage(body, content_type=content_type)


def _document(make: Document) -> Page:
    def page(request: PageRequest) -> HttpPage:
        try:
            return _json(make(dict(parse_qsl(request.query, keep_blank_values=True, encoding="latin-1"))))
        except HayloftError as error:
            status = next((code for kind, code in _STATUSES if isinstance(error, kind)), HTTPStatus.SERVICE_UNAVAILABLE)
            return _json({"error": str(error)}, status)

    return page


def _json(document: Mapping[str, Any], status: HTTPStatus = HTTPStatus.OK) -> HttpPage:
    return HttpPage(json.dumps(document, separators=(",", ":")).encode("ascii"), status, "application/json")


def _guarded(page: Page, *, own_only: bool) -> Page:
    def guarded(request: PageRequest) -> HttpPage:
        if not _is_local(request.headers.get("host", "")):
            text = b"Open the page by the name localhost, or by the address 127.0.0.1 or [::1].\n"
            return HttpPage(text, HTTPStatus.MISDIRECTED_REQUEST, headers=_HEADERS)
        if own_only and request.headers.get("sec-fetch-site", "") not in _OWN_SITES:
            return HttpPage(b"Only the page itself may ask.\n", HTTPStatus.FORBIDDEN, headers=_HEADERS)
        return page(request)._replace(headers=_HEADERS)

    return guarded


def _is_local(host: str) -> bool:
    """Whether a Host header names this machine's loopback, whatever the port."""
    name, colon, port = host.rpartition(":")
    if not colon or name.startswith("[") != name.endswith("]"):  # no port; the colon is part of [::1]
        name, port = host, "0"
    return name.lower() in _HOSTS and port.isdigit()
