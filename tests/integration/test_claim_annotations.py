"""Annotations of a claim from an API server, which checks the request, and misbehaves."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi_driver.model.errors import InvalidParameter, KubernetesUnavailable
from csi_driver.settings import PolicySettings
from csi_driver.wiring.claim_annotations import claim_annotations
from tests.support.csi_calls import CsiClient, VolumesInMemory, refused, serving
from tests.support.data_planes import InMemoryDataPlane
from tests.support.tls import trusted_tls

TOKEN = "the-token-of-the-controller"
CLAIM = "/api/v1/namespaces/team-a/persistentvolumeclaims/images"
NAMES = {
    "csi.storage.k8s.io/pvc/name": "images",
    "csi.storage.k8s.io/pvc/namespace": "team-a",
    "csi.storage.k8s.io/pv/name": "pvc-123",
}
PARAMETERS = {"url": "s3://data/${pvc.metadata.annotations['set']}/", **NAMES}


class ApiServer:
    """``answer``: status and body, of requests that carry the token; None: no answer at all."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.answer: tuple[int, bytes] | None = None
        self.paths: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.paths.append(self.path)
                allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
                status, body = (401, b"{}") if not allowed else server.answer or (0, b"")
                if status:
                    self.send_response(status)
                    self.send_header("Location", "https://elsewhere.example.com/")
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Silence."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def has(self, annotations: object) -> None:
        self.answer = (200, json.dumps({"metadata": {"name": "images", "annotations": annotations}}).encode())

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ApiServer, Path]]:
    account = tmp_path_factory.mktemp("account")
    (account / "token").write_text(f"{TOKEN}\n")
    with trusted_tls() as (context, authority):
        (account / "ca.crt").write_text(authority)
        server = ApiServer(context)
        yield server, account
        server.close()


@pytest.fixture
def api(cluster: tuple[ApiServer, Path], monkeypatch: pytest.MonkeyPatch) -> ApiServer:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(cluster[0].port))
    cluster[0].paths.clear()
    return cluster[0]


@pytest.fixture
def driver(api: ApiServer, cluster: tuple[ApiServer, Path], tmp_path: Path) -> Iterator[CsiClient]:
    annotations = claim_annotations(cluster[1])
    assert annotations is not None
    with serving(
        tmp_path / "csi.sock", InMemoryDataPlane(), VolumesInMemory(), policy=PolicySettings(), annotations=annotations
    ) as client:
        yield client


@pytest.mark.promise("S400")
def test_a_volume_is_made_with_the_annotation_of_its_claim(driver: CsiClient, api: ApiServer) -> None:
    api.has({"set": "coco"})
    volume = driver.create("pvc-123", parameters=PARAMETERS)
    assert volume.volume_context["url"] == "s3://data/coco/"
    assert api.paths == [CLAIM]


@pytest.mark.promise("S400")
def test_a_class_without_such_a_template_asks_nothing(driver: CsiClient, api: ApiServer) -> None:
    driver.create("pvc-123", parameters={"url": "s3://data/${pvc.name}/", **NAMES})
    assert api.paths == []


@pytest.mark.promise("S400")
@pytest.mark.parametrize("annotations", [{}, None, {"other": "x"}, {"set": ""}])
def test_a_claim_without_the_annotation_is_an_error_of_the_claim(
    driver: CsiClient, api: ApiServer, annotations: object
) -> None:
    api.has(annotations)
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as found:
        driver.create("pvc-123", parameters=PARAMETERS)
    assert "kubectl -n team-a annotate pvc images set=VALUE" in found[0].message


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((403, b"{}"), "get on persistentvolumeclaims"),
        ((500, b"{}"), "HTTP 500"),
        ((301, b""), "HTTP 301"),
        ((200, b"no json"), "HTTP 200"),
        ((200, b"[]"), "HTTP 200"),
        ((200, b'{"metadata": {"annotations": [1]}}'), "HTTP 200"),
        ((200, b" " * (3 << 20)), "HTTP 200"),
        (None, "ProtocolError"),
    ],
)
def test_an_api_server_that_gives_no_claim_is_worth_a_retry(
    driver: CsiClient, api: ApiServer, answer: tuple[int, bytes] | None, words: str
) -> None:
    api.answer = answer
    with refused(grpc.StatusCode.UNAVAILABLE) as found:
        driver.create("pvc-123", parameters=PARAMETERS)
    assert words in found[0].message
    assert "team-a/images" in found[0].message
    assert TOKEN not in found[0].message


def test_a_claim_that_is_gone_is_refused(cluster: tuple[ApiServer, Path], api: ApiServer) -> None:
    api.answer = (404, b"{}")
    read = claim_annotations(cluster[1])
    assert read is not None
    with pytest.raises(InvalidParameter, match="team-a/images"):
        read("team-a", "images")


def test_a_server_that_another_authority_vouches_for_gets_no_token(
    cluster: tuple[ApiServer, Path], api: ApiServer, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(TOKEN)
    with trusted_tls() as (_, authority):
        (tmp_path / "ca.crt").write_text(authority)
    read = claim_annotations(tmp_path)
    assert read is not None
    with pytest.raises(KubernetesUnavailable, match="SSLError"):
        read("team-a", "images")
    assert api.paths == []


def test_there_are_no_claims_outside_of_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert claim_annotations(tmp_path) is None
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    assert claim_annotations(tmp_path) is None
