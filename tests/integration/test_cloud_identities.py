"""The node's own identity at Google and Azure, from identity services on loopback."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from csi_driver.model.chunk import ByteRange
from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import CredentialsRejected
from csi_driver.objects.store import ObjectStore
from csi_driver.objects.store_factory import open_store
from tests.support.hostile_clouds import HostileAzure, HostileGoogle
from tests.support.hostile_s3 import HostileS3
from tests.support.secrets_of_stores import AZURE_KEY_SECRET, AZURE_SAS, AZURE_SAS_SECRET


class IdentityService:
    """Google's metadata service, and that of Azure's app service."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.status = 200
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                service.requests.append(self.path)
                needed = ("X-IDENTITY-HEADER", "x") if "/msi" in self.path else ("Metadata-Flavor", "Google")
                documented = self.headers.get(needed[0]) == needed[1]
                answer: Any = {"access_token": "the-token", "expires_in": 3600, "token_type": "Bearer"}
                if "/msi" in self.path:
                    answer |= {"expires_on": str(int(time.time()) + 3600), "resource": "https://storage.azure.com"}
                elif "service-accounts/default/?" in self.path:
                    answer = {"email": "node@example.com", "scopes": ["s"], "aliases": ["default"]}
                body = (
                    json.dumps(answer).encode()
                    if service.status == 200 and documented
                    else b"secret text of the service"
                )
                self.send_response(service.status if documented else 400)
                self.send_header("Metadata-Flavor", "Google")
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Silence."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_port}"
        Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[IdentityService]:
    service = IdentityService()
    for name, value in {
        "GCE_METADATA_HOST": service.host,
        "GCE_METADATA_IP": service.host,
        "CLOUDSDK_CONFIG": "/nonexistent",
        "AZURE_STORAGE_ACCOUNT": "nodesown",
        "IDENTITY_ENDPOINT": f"http://{service.host}/msi",
        "IDENTITY_HEADER": "x",
        "no_proxy": "*",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    yield service
    service.close()


SERVERS = {"gs": HostileGoogle, "az": HostileAzure}


@contextmanager
def opened(scheme: str, credentials: Credentials = Credentials()) -> Iterator[tuple[ObjectStore, HostileS3]]:  # noqa: B008
    with SERVERS[scheme]({"dir/a": b"0123456789"}) as server:
        options = StoreOptions(endpoint=server.endpoint, deadline_s=2, request_timeout_s=2)
        yield open_store(DatasetUrl.parse(f"{scheme}://data/dir"), options, credentials), server


@pytest.mark.promise("S409")
@pytest.mark.parametrize("scheme", SERVERS)
def test_the_token_of_the_node_is_requested_once_and_sent(scheme: str, service: IdentityService) -> None:
    with opened(scheme) as (store, server):
        for _ in range(3):
            assert b"".join(store.read_range("dir/a", ByteRange(2, 5), if_match=None)) == b"234"
        list(store.list("dir/"))
        asked = len(service.requests)
        list(store.list("dir/"))
        assert len(service.requests) == asked
        assert {request.headers["authorization"] for request in server.requests} == {"Bearer the-token"}


@pytest.mark.promise("S194")
@pytest.mark.parametrize("scheme", SERVERS)
@pytest.mark.parametrize("status", [403, 503])
def test_an_identity_service_that_fails_is_an_error_of_the_identity(
    scheme: str, status: int, service: IdentityService
) -> None:
    service.status = status
    with opened(scheme) as (store, server), pytest.raises(CredentialsRejected, match="the node's own") as caught:
        list(store.list("dir/"))
    assert "secret text" not in str(caught.value)
    assert server.requests == []


@pytest.mark.parametrize("scheme", SERVERS)
def test_a_node_without_an_identity_says_so(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("CLOUDSDK_CONFIG", "/nonexistent")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "nodesown")
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    with opened(scheme) as (store, _), pytest.raises(CredentialsRejected, match="the node's own credentials"):
        list(store.list("dir/"))


def test_a_key_or_a_signature_of_the_environment_is_for_its_own_account(
    monkeypatch: pytest.MonkeyPatch, service: IdentityService
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", AZURE_KEY_SECRET["account_key"])
    with opened("az") as (store, server):
        list(store.list("dir/"))
        assert server.requests[-1].headers["authorization"].startswith("SharedKey nodesown:")
    with opened("az", Credentials({"account_name": "another1"})) as (store, server):
        list(store.list("dir/"))
        assert server.requests[-1].headers["authorization"] == "Bearer the-token"


def test_requests_are_signed_with_the_shared_key() -> None:
    with opened("az", Credentials(AZURE_KEY_SECRET)) as (store, server):
        list(store.list("dir/"))
        list(store.read_range("dir/a", ByteRange(2, 5), if_match=server.etag("dir/a")))
        listing, get = server.requests
    query = "".join(f"\n{name}:{value}" for name, value in sorted(listing.query.items()))
    for request, places, resource in (
        (listing, "\n" * 11, f"/tenant1/data{query}"),
        (get, f'{chr(10) * 7}"{server.etag("dir/a")}"\n\n\nbytes=2-4\n', "/tenant1/data/dir/a"),
    ):
        named = f"x-ms-date:{request.headers['x-ms-date']}\nx-ms-version:{request.headers['x-ms-version']}\n"
        key = base64.b64decode(AZURE_KEY_SECRET["account_key"])
        digest = hmac.digest(key, f"GET\n{places}{named}{resource}".encode(), hashlib.sha256)
        expected = base64.b64encode(digest).decode()
        assert request.headers["authorization"] == f"SharedKey tenant1:{expected}"


def test_a_signature_of_the_secret_is_in_every_query_as_it_was_given() -> None:
    with opened("az", Credentials(AZURE_SAS_SECRET)) as (store, server):
        (page,) = store.list("dir/")
        list(store.read_range("dir/a", ByteRange(2, 5), if_match=page.etags[0]))
        store.stat("dir/a")
        assert len(server.requests) == 3
        for request in server.requests:
            assert request.query["sig"] == "aGFsbG8="
            assert set(request.query) >= {pair.partition("=")[0] for pair in AZURE_SAS.split("&")}
            assert "authorization" not in request.headers


def test_a_token_in_the_environment_does_not_replace_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", "sig=node")
    with opened("az", Credentials(AZURE_KEY_SECRET)) as (store, server):
        list(store.list("dir/"))
        assert "sig" not in server.requests[-1].query
