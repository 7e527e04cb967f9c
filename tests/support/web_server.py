"""Web servers on loopback: that of Python's library, and one that imitates the habits of others."""

from __future__ import annotations

import gzip
import hashlib
import html
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate, parsedate_to_datetime
from functools import lru_cache, partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

MODIFIED_S = 1_700_000_000


@contextmanager
def python_server(directory: Path) -> Iterator[str]:
    """``python -m http.server`` for a directory; its URL, without a slash at the end."""
    with _running(partial(_Quiet, directory=str(directory))) as url:
        yield url


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


# -- indexes as they are served ---------------------------------------------------------------------------------------

Index = Callable[[str, list[str], "WebServer"], tuple[str, str]]
"""Of path, names (those of directories with a slash) and server: media type and text."""


def nginx(path: str, names: list[str], server: WebServer) -> tuple[str, str]:
    rows = "".join(
        f'<a href="{quote(name)}">{html.escape(name)[:47]}..&gt;</a>  14-Nov-2023 22:13  -\r\n' for name in names
    )
    return "text/html", (
        f"<html>\r\n<head><title>Index of {path}</title></head>\r\n<body>\r\n<h1>Index of {path}</h1><hr><pre>"
        f'<a href="../">../</a>\r\n{rows}</pre><hr></body>\r\n</html>\r\n'
    )


def nginx_json(path: str, names: list[str], server: WebServer) -> tuple[str, str]:
    rows: list[dict[str, Any]] = []
    for name in names:
        if name.endswith("/"):
            rows.append({"name": name[:-1], "type": "directory", "mtime": formatdate(MODIFIED_S, usegmt=True)})
        else:
            size = len(server.objects[path[1:] + name])
            rows.append({"name": name, "type": "file", "mtime": formatdate(MODIFIED_S, usegmt=True), "size": size})
    return "application/json", json.dumps(rows)


def apache(path: str, names: list[str], server: WebServer) -> tuple[str, str]:
    up = path.rstrip("/").rpartition("/")[0] + "/"
    rows = "".join(
        f'<tr><td valign="top"><img src="/icons/unknown.gif" alt="[   ]"></td><td><a href="{quote(name)}">'
        f'{html.escape(name)}</a></td><td align="right">2023-11-14 22:13  </td><td align="right">1.2M</td></tr>\n'
        for name in names
    )
    columns = "".join(f'<th><a href="?C={letter};O=A">{letter}</a></th>' for letter in "NMSD")
    return "text/html;charset=UTF-8", (
        '<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 3.2 Final//EN">\n<html>\n <head><title>Index of /</title></head>'
        f"<body><h1>Index of {path}</h1><table><tr>{columns}</tr>"
        f'<tr><td><a href="{up}">Parent Directory</a></td></tr>\n{rows}</table>\n<address>Apache/2.4</address></body>'
    )


def caddy(path: str, names: list[str], server: WebServer) -> tuple[str, str]:
    rows = "".join(
        f'<tr class="file"><td><a href="./{quote(name)}"><span>{name}</span></a></td></tr>' for name in names
    )
    return "text/html; charset=utf-8", (
        f'<!DOCTYPE html><html><head><link rel="canonical" href="{path}"  /></head><body><h1><a href="../">up</a></h1>'
        f'<main><table><thead><tr><th><a href="?sort=name&order=asc">Name</a></th></tr></thead>{rows}'
        '</table></main><footer>Served with <a href="https://caddyserver.com">Caddy</a></footer></body></html>'
    )


def caddy_json(path: str, names: list[str], server: WebServer) -> tuple[str, str]:
    rows = []
    for name in names:
        entry = {"name": name, "url": f"./{quote(name)}", "mod_time": "2023-11-14T22:13:20.123456789Z", "mode": 420}
        is_dir = name.endswith("/")
        size = 4096 if is_dir else len(server.objects[path[1:] + name])
        rows.append({**entry, "size": size, "is_dir": is_dir, "is_symlink": False})
    return "application/json; charset=utf-8", json.dumps(rows)


def absolute(path: str, names: list[str], server: WebServer) -> tuple[str, str]:
    """As IIS and others: with complete paths, no quotes, capitals."""
    rows = "".join(f"<A HREF={path}{quote(name)}>{html.escape(name)}</A><br>" for name in names)
    return "text/html", f"<html><body><pre><A HREF=/>[To Parent Directory]</A><br>{rows}</pre></body></html>"


def slashless(path: str, names: list[str], server: WebServer) -> tuple[str, str]:
    """Directories look like files, and are redirected to."""
    rows = "".join(f"<li><a href='{quote(name.rstrip('/'))}'>{html.escape(name)}</a></li>" for name in names)
    return "text/html", f"<html><body><ul>{rows}</ul></body></html>"


INDEXES = (nginx, nginx_json, apache, caddy, caddy_json, absolute, slashless)


# -- a server ---------------------------------------------------------------------------------------------------------


@dataclass
class WebServer:
    """``with web_server(objects) as server``. Fields may be changed at any time."""

    objects: dict[str, bytes]
    """By decoded path without the leading slash."""
    index: Index | None = nginx
    """None: 404 for directories."""
    webdav: bool = False
    etag: str = '"{}"'
    """Around the MD5 of the content; empty: none is sent."""
    sends_modified: bool = True
    modified_s: int = MODIFIED_S
    knows_ranges: bool = True
    refuses_head: int = 0
    """A status."""
    protocol: str = "HTTP/1.1"
    tls: ssl.SSLContext | None = None
    closes_connections: bool = False
    """After each answer, without saying so before."""
    connections: int = 0
    knows_conditions: bool = True
    sends_length: bool = True
    compresses: bool = False
    authorization: str = ""
    """What requests have to send."""
    answers: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)
    """By decoded path with the leading slash: what is answered to every method."""
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    """Method, target and headers, with their names in lower case."""
    url: str = ""

    def names(self, directory: str) -> list[str]:
        """Entries of a directory, which is empty or ends in a slash."""
        rests = [key[len(directory) :] for key in self.objects if key.startswith(directory) and key != directory]
        return sorted({rest.partition("/")[0] + ("/" if "/" in rest else "") for rest in rests})

    def of(self, method: str) -> list[str]:
        """The targets that were requested by a method."""
        return [target for used, target, _ in self.requests if used == method]


@contextmanager
def web_server(objects: dict[str, bytes], **habits: Any) -> Iterator[WebServer]:
    server = WebServer(objects, **habits)
    handler = type("_Bound", (_Handler,), {"web": server, "protocol_version": server.protocol})
    with _running(handler, server.tls) as url:
        server.url = url
        yield server


@contextmanager
def _running(handler: Any, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    server = _Server(("127.0.0.1", 0), handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"{'http' if tls is None else 'https'}://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that break off are not reported."""


class _Handler(BaseHTTPRequestHandler):
    web: WebServer

    def setup(self) -> None:
        super().setup()
        self.web.connections += 1

    def do_GET(self) -> None:
        web, path = self.web, unquote(self.path.partition("?")[0], errors="surrogateescape")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        web.requests.append((self.command, self.path, {name.lower(): value for name, value in self.headers.items()}))
        key = path[1:]
        if web.authorization and self.headers.get("Authorization") != web.authorization:
            self._answer(401, {"WWW-Authenticate": 'Basic realm="x"'}, b"who?")
        elif path in web.answers:
            self._answer(*web.answers[path])
        elif self.command == "PROPFIND":
            self._propfind(path, body)
        elif self.command == "HEAD" and web.refuses_head:
            self._answer(web.refuses_head, {}, b"")
        elif key in web.objects:
            self._object(web.objects[key])
        elif not web.names(key if key.endswith("/") or not key else f"{key}/"):
            self._answer(404, {}, b"<html>not found</html>")
        elif key and not key.endswith("/"):
            self._answer(301, {"Location": f"{quote(path, errors='surrogateescape')}/"}, b"")
        elif web.index is None:
            self._answer(403, {}, b"<html>forbidden</html>")
        else:
            media_type, text = web.index(path, web.names(key), web)
            self._answer(200, {"Content-Type": media_type}, text.encode("utf-8", "surrogateescape"))

    do_HEAD = do_PROPFIND = do_GET

    def _object(self, content: bytes) -> None:
        web = self.web
        headers = {"Content-Type": "application/octet-stream"}
        if web.etag:
            headers["ETag"] = web.etag.format(etag_of(content))
        if web.sends_modified:
            headers["Last-Modified"] = formatdate(web.modified_s, usegmt=True)
        if web.knows_conditions and not self._matches(headers):
            self._answer(412, {}, b"")
            return
        status, body = 200, content
        wanted = self.headers.get("Range")
        if web.compresses:
            headers["Content-Encoding"] = "gzip"
            body = gzip.compress(content, 1)
        elif web.knows_ranges and wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            if int(first) >= len(content):
                self._answer(416, {"Content-Range": f"bytes */{len(content)}"}, b"")
                return
            stop = min(int(last) + 1, len(content))
            headers["Content-Range"] = f"bytes {first}-{stop - 1}/{len(content)}"
            status, body = 206, content[int(first) : stop]
        self._answer(status, headers, body, sends_length=web.sends_length)

    def _matches(self, headers: dict[str, str]) -> bool:
        if "If-Match" in self.headers:
            return not headers.get("ETag", "").startswith("W/") and self.headers["If-Match"] == headers.get("ETag")
        since = self.headers.get("If-Unmodified-Since")
        return since is None or parsedate_to_datetime(since) >= parsedate_to_datetime(headers["Last-Modified"])

    def _propfind(self, path: str, body: bytes) -> None:
        web, key = self.web, path[1:]
        if not web.webdav:
            self._answer(405, {}, b"")
        elif self.headers.get("Depth", "infinity") not in ("0", "1"):
            self._answer(403, {}, b"<error><propfind-finite-depth/></error>")
        elif key and not web.names(key):
            self._answer(404, {}, b"")
        else:
            parts = [_response(path, None)]
            parts += [_response(path + name, web.objects.get(key + name)) for name in web.names(key)]
            text = f'<?xml version="1.0"?>\n<D:multistatus xmlns:D="DAV:">{"".join(parts)}</D:multistatus>'
            self._answer(207, {"Content-Type": "application/xml"}, text.encode("utf-8", "surrogateescape"))

    def _answer(self, status: int, headers: dict[str, str], body: bytes, *, sends_length: bool = True) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        chunked = not sends_length
        self.send_header(*(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(len(body)))))
        self.end_headers()
        if self.command == "HEAD":
            return
        if not chunked:
            self.wfile.write(body)
            return
        for start in range(0, len(body), 50_000):
            piece = body[start : start + 50_000]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def handle_one_request(self) -> None:
        super().handle_one_request()
        self.close_connection = self.close_connection or self.web.closes_connections

    def log_message(self, format: str, *args: object) -> None:
        """Requests are recorded, not logged."""


@lru_cache(maxsize=16)  # of large contents, which are those of many tests and requests: 50 ms each time
def etag_of(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _response(path: str, content: bytes | None) -> str:
    shown = quote(path, errors="surrogateescape")
    if content is None:
        properties = "<D:resourcetype><D:collection/></D:resourcetype>"
    else:
        properties = (
            f"<D:resourcetype/><D:getcontentlength>{len(content)}</D:getcontentlength>"
            f'<D:getetag>"{etag_of(content)}"</D:getetag>'
            f"<D:getlastmodified>{formatdate(MODIFIED_S, usegmt=True)}</D:getlastmodified>"
        )
    return (
        f"<D:response><D:href>{shown}</D:href><D:propstat><D:prop>{properties}</D:prop>"
        "<D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response>"
    )
