"""The node's own identity in the environment of one process, and an attacker who runs a store: a listener that counts
connections and keeps what it receives."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.daemon.local_data_plane import LocalDataPlane
from csi_driver.daemon.mount_records import MountRecord
from csi_driver.daemon.volume_stores import open_volume_store, reopen_volume_store
from csi_driver.event_loop.event_loop import EventLoop
from csi_driver.model.chunk import ByteRange
from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import EndpointNotAllowed, HayloftError, IdentityNotAllowed, InvalidParameter
from csi_driver.model.tenant import ADMINISTRATOR, Tenant
from csi_driver.objects.credentials import access_domain, parse_secret
from csi_driver.objects.store_factory import open_store
from csi_driver.reading.read_through_cache import ReadThroughCache
from csi_driver.settings import CacheDaemonSettings, ChunkStoreSettings, PolicySettings, RegistrySettings
from csi_driver.volumes.data_plane import MountRequest
from csi_driver.volumes.dataset_snapshots import SnapshotService
from csi_driver.volumes.parameters import VolumeParameters
from csi_driver.volumes.registry import open_registry
from csi_driver.wiring.listing_store import open_listing_store
from tests.support.listers import LocalLister
from tests.support.secrets_of_stores import (
    AZURE_KEY_SECRET,
    AZURE_SAS_SECRET,
    S3_SECRET,
    google_secret,
    service_account,
)

POD = Tenant("team-a", inline=True)
MARK = "identity0of0the0node"
"""In every secret of the node."""


class Listener:
    """A store of the attacker, and a stand-in for the metadata services: counts connections, keeps request headers."""

    def __init__(self) -> None:
        self.connections = 0
        self.received: list[str] = []
        listener = self

        class Server(ThreadingHTTPServer):
            def get_request(self) -> Any:
                listener.connections += 1
                return super().get_request()

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                listener.received.append(f"{self.requestline}\n{self.headers}")
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_HEAD = do_POST = do_PUT = _answer

            def log_message(self, *_: object) -> None:
                """Silence."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def store() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.close()


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Listener]:
    """The node's identity, of every provider, with sources that count who asks them."""
    services = Listener()
    key_file = tmp_path / "google.json"
    key_file.write_text(json.dumps(service_account(private_key_id=MARK)))
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login {MARK} password {MARK}\n")
    netrc.chmod(0o600)
    for name, value in {
        "AWS_ACCESS_KEY_ID": MARK,
        "AWS_SECRET_ACCESS_KEY": MARK,
        "AWS_SESSION_TOKEN": MARK,
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": services.url,
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{services.url}/{MARK}",
        "GOOGLE_APPLICATION_CREDENTIALS": str(key_file),
        "AZURE_STORAGE_ACCOUNT_NAME": "nodesown",
        "AZURE_STORAGE_TOKEN": MARK,
        "AZURE_STORAGE_CLIENT_ID": MARK,
        "AZURE_STORAGE_CLIENT_SECRET": MARK,
        "AZURE_STORAGE_TENANT_ID": MARK,
        "AZURE_STORAGE_AUTHORITY_HOST": services.url,
        "AZURE_MSI_ENDPOINT": f"{services.url}/msi",
        "HF_TOKEN": MARK,
        "NETRC": str(netrc),
    }.items():
        monkeypatch.setenv(name, value)
    yield services
    services.close()


@contextmanager
def open_data_plane(directory: Path, policy: PolicySettings) -> Iterator[LocalDataPlane]:
    for name in ("cache", "mount", "registry", "state"):
        (directory / name).mkdir(exist_ok=True)
    settings = CacheDaemonSettings(
        socket=directory / "socket",
        state_directory=directory / "state",
        chunk_store=ChunkStoreSettings(directory=directory / "cache", free_floor_bytes=0, scrub_bytes_per_s=0),
        registry=RegistrySettings(location=str(directory / "registry")),
        policy=policy,
    )
    chunk_store = ChunkStore(settings.chunk_store)
    event_loop = EventLoop()
    read_through_cache = ReadThroughCache(chunk_store, settings.reading, event_loop)
    event_loop.start()
    snapshots = SnapshotService(
        open_registry(settings.registry), LocalLister(open_listing_store), settings.state_directory / "m"
    )
    data_plane = LocalDataPlane(settings, chunk_store, read_through_cache, event_loop, snapshots, None, "test")
    try:
        yield data_plane
    finally:
        data_plane.close()
        event_loop.close()
        read_through_cache.close()
        chunk_store.close()


POLICY = PolicySettings(trusted_namespaces=("team-b",), allow_file_urls=True)


@pytest.fixture
def data_plane(tmp_path: Path) -> Iterator[LocalDataPlane]:
    with open_data_plane(tmp_path, POLICY) as data_plane:
        yield data_plane


def refused(
    plane: LocalDataPlane, tmp_path: Path, attributes: dict[str, str], secrets: dict[str, str], who: Tenant
) -> str:
    """Mounts, which lists first. The message of the refusal."""
    request = MountRequest(
        "csi-1", str(tmp_path / "mount"), {"deadline": "2s", "requestTimeout": "1s", **attributes}, secrets, who
    )
    with pytest.raises((IdentityNotAllowed, InvalidParameter, EndpointNotAllowed)) as caught:
        plane.mount(request)
    return str(caught.value)


@pytest.mark.promise("S121", "S122")
@pytest.mark.parametrize(
    ("url", "secrets"),
    [
        ("s3://bucket/x", {}),
        ("gs://bucket/x", {}),
        ("gcs://bucket/x", {}),
        ("az://bucket/x", {}),
        ("az://bucket/x", {"account_name": "tenant1"}),
        ("webhdfs://{host}/x", {}),
        ("webhdfs://{host}/x", {"username": "u", "password": "p"}),
        ("hdfs://{host}/x", {}),
        ("hf://datasets/owner/name", {}),
    ],
)
@pytest.mark.parametrize("more", [{}, {"backend": "s3fs"}, {"verifyChecksums": "full"}])
@pytest.mark.parametrize("listed", [False, True])
def test_nothing_is_sent_with_the_nodes_identity_for_an_inline_volume(
    url: str,
    secrets: dict[str, str],
    more: dict[str, str],
    listed: bool,
    node: Listener,
    store: Listener,
    tmp_path: Path,
) -> None:
    """Neither where the operator lists the endpoint. Where it is not listed, a library that dials by itself is refused
    before the identity is asked for."""
    more = more if url.startswith("s3:") or "backend" not in more else {}
    attributes = {"url": url.format(host=store.url.removeprefix("http://")), "endpoint": store.url, **more}
    endpoints = (store.url, attributes["url"]) if listed else ()
    with open_data_plane(tmp_path, POLICY.model_copy(update={"allowed_endpoints": endpoints})) as data_plane:
        message = refused(data_plane, tmp_path, attributes, secrets, POD)
    dials_by_itself = "hdfs:" in url or "backend" in more
    assert ("--allowed-endpoint" if dials_by_itself and not listed else "--trusted-namespace=team-a") in message
    assert (store.connections, node.connections) == (0, 0)


@pytest.mark.promise("S122")
@pytest.mark.parametrize(
    ("url", "secrets"), [("gs://b/x", {}), ("az://b/x", {}), ("az://b/x", {"account_name": "other1"})]
)
@pytest.mark.parametrize("who", [ADMINISTRATOR, Tenant("team-b", inline=True)])
def test_a_token_of_the_node_is_sent_to_no_endpoint_that_a_volume_names(
    url: str,
    secrets: dict[str, str],
    who: Tenant,
    node: Listener,
    store: Listener,
    data_plane: LocalDataPlane,
    tmp_path: Path,
) -> None:
    message = refused(data_plane, tmp_path, {"url": url, "endpoint": store.url}, secrets, who)
    assert f"--identity-endpoint={store.url}" in message
    assert (store.connections, node.connections) == (0, 0)


@pytest.mark.promise("S120")
@pytest.mark.parametrize(
    ("url", "attributes", "secrets"),
    [
        ("gs://bucket/x", {}, google_secret(gcs_base_url="{store}")),
        ("gs://bucket/x", {}, google_secret(gcs_base_url="{store}", disable_oauth=True)),
        ("gs://bucket/x", {}, google_secret(token_uri="{store}")),
        ("gs://bucket/x", {}, google_secret(universe_domain="{store}")),
        (
            "gs://bucket/x",
            {},
            {"service_account_json": '{{"type":"external_account","credential_source":{{"url":"{store}"}}}}'},
        ),
        ("az://bucket/x", {}, AZURE_KEY_SECRET | {"account_name": "{host}/"}),
        ("az://bucket/x", {}, AZURE_SAS_SECRET | {"account_name": "{host}#"}),
        ("az://bucket/x", {}, AZURE_SAS_SECRET | {"sas_token": "{store}/?sig=x"}),
        ("s3://bucket/x", {"region": "{host}/"}, S3_SECRET),
        ("s3://bucket/x", {"region": "x@{host}/"}, S3_SECRET),
        ("s3://{host}#/x", {}, S3_SECRET),
        ("s3://x@{host}/x", {}, S3_SECRET),
        ("s3://bucket/x", {"endpoint": "http://s3.allowed.example\\@{host}"}, S3_SECRET),
        ("s3://bucket/x", {"endpoint": "http://s3.allowed.example@{host}"}, S3_SECRET),
        ("ftp://user:password@{host}/x", {}, {}),
        ("http://allowed.example@{host}/x", {}, {}),
        ("az://container@{host}/x", {}, AZURE_KEY_SECRET),
    ],
)
def test_no_field_of_a_secret_or_volume_smuggles_in_a_place(
    url: str,
    attributes: dict[str, str],
    secrets: dict[str, str],
    store: Listener,
    data_plane: LocalDataPlane,
    tmp_path: Path,
) -> None:
    host = store.url.removeprefix("http://")

    def filled(text: str) -> str:
        return text.replace("{store}", store.url).replace("{host}", host).replace("{{", "{").replace("}}", "}")

    texts = {name: filled(text) for name, text in {"url": url, **attributes}.items()}
    message = refused(data_plane, tmp_path, texts, {name: filled(text) for name, text in secrets.items()}, POD)
    assert "password" not in message
    assert store.connections == 0


@pytest.mark.promise("S121")
@pytest.mark.parametrize(
    ("url", "secrets"),
    [
        ("az://container/x", AZURE_KEY_SECRET),
        ("az://container/x", AZURE_SAS_SECRET),
        ("gs://bucket/x", google_secret()),
        ("s3://bucket/x", S3_SECRET),
        ("s3://bucket/x", {name: value for name, value in S3_SECRET.items() if name != "session_token"}),
        ("http://{host}/x", {}),
        ("http://{host}/x", {"username": "u", "password": "p"}),
    ],
)
@pytest.mark.parametrize("more", [{}, {"anonymous": "true"}, {"backend": "s3fs"}])
def test_requests_with_credentials_of_a_secret_carry_nothing_of_the_node(
    url: str, secrets: dict[str, str], more: dict[str, str], node: Listener, store: Listener
) -> None:
    attributes = {
        "url": url.format(host=store.url.removeprefix("http://")),
        "endpoint": store.url,
        "deadline": "2s",
        "requestTimeout": "1s",
    }
    more = more if url.startswith("s3:") or "backend" not in more else {}
    policy = PolicySettings(allowed_endpoints=(store.url,))  # and so their host, that of the node's services too
    parameters = VolumeParameters.parse(attributes | more, policy, POD)
    opened = open_volume_store(parameters, secrets).store
    for attempt in (
        lambda: list(opened.list("x/")),
        lambda: opened.stat("x/key"),
        lambda: list(opened.read_range("x/key", ByteRange(0, 1), if_match=None)),
        lambda: opened.checksum("x/key", if_match=None),  # type: ignore[attr-defined]  # of some stores
    ):
        try:
            attempt()
        except (HayloftError, AttributeError):
            continue
    opened.close()
    assert store.connections > 0
    assert node.connections == 0
    assert not [request for request in store.received if MARK in request]


def test_a_mount_is_adopted_without_permission_and_with_a_secret_that_is_refused_by_now(store: Listener) -> None:
    """What was mounted before a stricter version, or with other flags, stays readable as far as it is cached."""
    attributes = {"url": "gs://bucket/x", "endpoint": store.url, "deadline": "2s", "requestTimeout": "1s"}
    parameters = VolumeParameters.parse(attributes)
    record = MountRecord("m-1", "csi-1", "/mnt", attributes, "snapshot", inline=True)
    reopened = reopen_volume_store(record, parameters, google_secret(gcs_base_url=store.url), open_volume_store)
    assert reopened.store.endpoint == store.url
    assert reopened.access_domain == access_domain(parameters.url, parameters.store_options, Credentials())
    with pytest.raises(InvalidParameter, match="gcs_base_url"):
        list(reopened.store.read_range("x/key", ByteRange(0, 1), if_match=None))
    assert store.connections == 0


@pytest.mark.promise("S123")
def test_no_volume_mounts_the_registry_or_the_cache(data_plane: LocalDataPlane, tmp_path: Path) -> None:
    for name in ("", "registry", "registry/volumes", "cache", "state"):
        assert "of this driver" in refused(
            data_plane, tmp_path, {"url": f"file://{tmp_path}/{name}"}, {}, ADMINISTRATOR
        )


@pytest.mark.parametrize("style", ["auto", "path"])
def test_s3fs_dials_the_endpoint_itself_and_no_host_made_of_the_bucket(
    style: Any, store: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """botocore's own default puts the bucket before the host of an endpoint that has a name."""
    monkeypatch.setenv("NO_PROXY", "*")
    endpoint = store.url.replace("127.0.0.1", "localhost")
    options = StoreOptions(endpoint=endpoint, backend="s3fs", addressing_style=style, deadline_s=2)
    opened = open_store(DatasetUrl.parse("s3://metadata/x"), options, parse_secret(S3_SECRET))
    with pytest.raises(HayloftError):
        opened.stat("x/key")
    (first, *_) = store.received
    assert "/metadata/x/key" in first
    assert "Host: metadata." not in first
