"""Requests to an API server over TLS, as a pod makes them, and what becomes of them when it is not as it should be."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from csi_driver.kubernetes.api_server import ApiServer
from csi_driver.kubernetes.event_sender import EventSender
from csi_driver.kubernetes.events import Event, ObjectReference
from csi_driver.model.errors import KubernetesUnavailable
from tests.support.daemons import wait_until
from tests.support.fake_events import FakeEventApi
from tests.support.tls import issue, trusted_tls

EVENT = Event(ObjectReference("Pod", "team-a", "trainer-0", "1-2-3"), "WarmupComplete", "complete")


@pytest.fixture(scope="module")
def tls() -> Iterator[tuple[ssl.SSLContext, str]]:
    with trusted_tls() as made:
        yield made


class FakeApiServer:
    """Keeps events, and takes one token."""

    def __init__(self, tls: tuple[ssl.SSLContext, str], directory: Path) -> None:
        self.api, self.token = FakeEventApi(), "right"
        self.raw: bytes | None = None
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.headers["Authorization"] != f"Bearer {fake.token}":
                    return self._answer(401, b'{"reason": "Unauthorized"}')
                answer = fake.api.send(self.command, self.path, body, self.headers["Content-Type"])
                self._answer(answer.status, fake.raw if fake.raw is not None else json.dumps(answer.body).encode())

            do_PATCH = do_POST

            def do_GET(self) -> None:
                if self.headers["Authorization"] != f"Bearer {fake.token}":
                    return self._answer(401, b'{"message": "Unauthorized"}')
                self._answer(200, fake.raw if fake.raw is not None else json.dumps({"path": self.path}).encode())

            def _answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context, authority = tls
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        (directory / "ca.crt").write_text(authority)
        (directory / "token").write_text("right\n")
        self.environment = {
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(self._server.server_address[1]),
        }

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(tls: tuple[ssl.SSLContext, str], tmp_path: Path) -> Iterator[FakeApiServer]:
    server = FakeApiServer(tls, tmp_path)
    yield server
    server.close()


@pytest.fixture
def client(server: FakeApiServer, tmp_path: Path) -> ApiServer:
    client = ApiServer.of_this_pod(server.environment, tmp_path)
    assert client is not None
    return client


def post(client: ApiServer) -> tuple[int, str]:
    answer = client.send("POST", "/api/v1/namespaces/team-a/events", EVENT.body(time="t", host="h"))
    return answer.status, answer.problem


def test_there_is_no_client_outside_of_a_cluster_or_without_a_token(server: FakeApiServer, tmp_path: Path) -> None:
    assert ApiServer.of_this_pod({}, tmp_path) is None
    assert ApiServer.of_this_pod({**server.environment, "KUBERNETES_SERVICE_PORT": "tcp"}, tmp_path) is None
    (tmp_path / "token").unlink()
    assert ApiServer.of_this_pod(server.environment, tmp_path) is None


def test_an_event_is_made_and_counted_over_tls(server: FakeApiServer, client: ApiServer) -> None:
    for _ in range(2):
        sender = EventSender(client, "node-1")
        sender.start()
        sender.record(EVENT)
        wait_until(lambda: not sender._pending)  # noqa: B023
        sender.close()
    wait_until(lambda: server.api.described() == [("WarmupComplete", "complete", 2)])


def test_the_token_is_read_for_each_request_since_kubelet_replaces_it(
    server: FakeApiServer, client: ApiServer, tmp_path: Path
) -> None:
    server.token = "new"
    assert post(client) == (401, "")
    (tmp_path / "token").write_text("new")
    assert post(client) == (201, "")


@pytest.mark.promise("S387")
def test_a_server_that_is_away_or_is_not_the_clusters_is_an_answer_without_a_status(
    server: FakeApiServer, client: ApiServer, tmp_path: Path
) -> None:
    (tmp_path / "ca.crt").write_text(issue().authority)
    status, problem = post(client)
    assert status == 0
    assert "SSL" in problem
    assert server.api.events == {}
    (tmp_path / "ca.crt").unlink()
    assert post(client)[0] == 0
    closed = socket.socket()
    closed.bind(("127.0.0.1", 0))
    assert post(ApiServer("127.0.0.1", closed.getsockname()[1], tmp_path))[0] == 0
    closed.close()


@pytest.mark.parametrize("raw", [b"", b"[]", b"\xff", b"[" * 100_000])
def test_an_answer_that_is_no_object_is_an_empty_one(server: FakeApiServer, client: ApiServer, raw: bytes) -> None:
    server.raw = raw
    answer = client.send("POST", "/api/v1/namespaces/team-a/events", EVENT.body(time="t", host="h"))
    assert (answer.status, answer.body) == (201, {})


@pytest.mark.promise("S387")
def test_a_recorder_does_not_wait_for_a_server_that_does_not_answer(client: ApiServer, server: FakeApiServer) -> None:
    server.api.send = lambda *_: time.sleep(60)  # type: ignore[assignment,method-assign]
    sender = EventSender(client, "node-1")
    sender.start()
    for number in range(1000):
        sender.record(Event(EVENT.about, "Reason", str(number)))
    sender.close()
    assert len(sender._pending) <= 128


@pytest.mark.promise("S571")
def test_objects_are_listed_and_watched_over_tls(server: FakeApiServer, client: ApiServer) -> None:
    assert client.get("/apis/x?watch=0").body == {"path": "/apis/x?watch=0"}
    server.raw = b'{"type": "ADDED"}\n{"type": "DELETED"}\n[]\n'
    assert [event["type"] for event in client.watch("/apis/x?watch=1", 5.0)] == ["ADDED", "DELETED"]


@pytest.mark.promise("S571")
def test_a_watch_that_is_refused_or_cut_off_raises(server: FakeApiServer, client: ApiServer) -> None:
    server.raw = b'{"type": "ADDED"}\n{"type": "DEL'
    with pytest.raises(KubernetesUnavailable, match="cut off"):
        list(client.watch("/apis/x", 5.0))
    server.token = "new"
    with pytest.raises(KubernetesUnavailable, match="401"):
        list(client.watch("/apis/x", 5.0))
    server.close()
    with pytest.raises(KubernetesUnavailable, match=r"."):
        list(client.watch("/apis/x", 5.0))
