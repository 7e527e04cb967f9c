"""The port of the web page: who is answered, and with which headers."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any, cast

import pytest

from csi_driver.model.errors import InvalidParameter, VolumeConflict, VolumeNotFound
from csi_driver.model.read_counts import ReadNumbers
from csi_driver.wiring.web_page import FILES, listen_locally, serving_web

pytestmark = pytest.mark.promise("S650")

API = ("/api/node", "/api/directory", "/api/count")
OWN = tuple(sorted("/" if path.name == "index.html" else f"/{path.name}" for path in FILES.iterdir()))


STRANGERS = (
    *(
        "evil.example",
        "evil.example:9811",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil.example, localhost",
    ),
    *("", ":80", "localhost:", "localhost:x", "[::1", "::1", "0.0.0.0", "127.0.0.2", "10.0.0.1", "localhost:80:80"),
)


class Operations:
    """Fails in the way that a test says."""

    error: Exception = VolumeNotFound("volume <b>v</b>: not mounted")

    def status(self) -> Any:
        raise self.error

    def list_directory(self, *_: object) -> Any:
        raise self.error

    def count_cached(self, *_: object) -> Any:
        raise self.error


@pytest.fixture
def operations() -> Operations:
    return Operations()


@pytest.fixture
def port(operations: Operations) -> Iterator[int]:
    listener = listen_locally(0)
    number = int(listener.getsockname()[1])
    with serving_web(listener, cast(Any, operations), ReadNumbers):
        yield number


def ask(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, answer.headers, body


def test_it_listens_on_loopback_alone(port: int) -> None:
    listener = listen_locally(0)
    with listener:
        assert listener.getsockname()[0] in ("127.0.0.1", "::1")
    with pytest.raises(InvalidParameter, match=r"--web-port: .* no other process"):
        listen_locally(port)


@pytest.mark.parametrize("path", OWN + API)
def test_every_answer_has_the_policy_that_keeps_strangers_text_from_being_markup(port: int, path: str) -> None:
    _, headers, body = ask(port, path)
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "require-trusted-types-for 'script'" in policy
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert "Access-Control-Allow-Origin" not in headers
    if path == "/":
        for word in (b"<style", b" style=", b" onclick", b"javascript:", b"http://", b"https://"):
            assert word not in body
        assert body.count(b"<script") == body.count(b'<script type="module" src="main.js">') == 1


def test_scripts_make_no_markup_of_text() -> None:
    for file in FILES.glob("*.js"):
        text = file.read_text()
        for word in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "http:",
        ):
            assert word not in text.replace('"http://www.w3.org/2000/svg"', ""), f"{file.name}: {word}"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:9811", "[::1]", "[::1]:80"])
def test_names_of_this_machine_are_answered(port: int, host: str) -> None:
    assert ask(port, "/", Host=host)[0] == 200


@pytest.mark.parametrize("host", STRANGERS)
@pytest.mark.parametrize("path", ["/", "/main.js", *API])
def test_a_name_that_was_made_to_resolve_to_this_machine_is_refused(port: int, path: str, host: str) -> None:
    status, _, body = ask(port, path, Host=host)
    assert status == 421
    assert body == b"Open the page by the name localhost, or by the address 127.0.0.1 or [::1].\n"


def test_a_request_without_a_host_or_with_two_is_refused(port: int) -> None:
    for lines in (b"", b"Host: localhost\r\nHost: evil.example\r\n"):
        with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
            client.sendall(b"GET / HTTP/1.1\r\n" + lines + b"\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 421 ")


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_another_page_can_make_the_daemon_do_nothing(port: int, operations: Operations, site: str) -> None:
    operations.error = AssertionError("was asked")
    for path in API:
        assert ask(port, path, Sec_Fetch_Site=site)[0] == 403
    assert ask(port, "/", Sec_Fetch_Site=site)[0] == 200, "a link may lead to the page"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_it_changes_nothing(port: int, method: str) -> None:
    for path in ("/", *API):
        assert ask(port, path, method)[0] == 405


def test_what_is_wrong_with_a_request_is_said_in_json(port: int, operations: Operations) -> None:
    status, headers, body = ask(port, "/api/directory?volume=v")
    assert (status, headers["Content-Type"]) == (404, "application/json")
    assert json.loads(body) == {"error": "volume <b>v</b>: not mounted"}
    operations.error = VolumeConflict("shows another snapshot by now")
    assert ask(port, "/api/count?volume=v&start=0&stop=9&cell=1")[0] == 409
    status, _, body = ask(port, "/api/count?start=0&stop=%00")
    assert status == 400
    assert json.loads(body)["error"].startswith("stop: ")
    for query in ("%", "&" * 2000, "%ff=%fe", "start=1&start=2;x"):
        assert ask(port, f"/api/count?{query}")[0] == 400


def test_files_of_the_machine_are_not_served(port: int) -> None:
    for path in ("/../web_page.py", "/..%2fweb_page.py", "//etc/passwd", "/index.html", "/main.js/", "/api/", "*"):
        assert ask(port, path)[0] == 404
