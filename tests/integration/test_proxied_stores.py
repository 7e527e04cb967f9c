"""Every kind of store through a proxy of the environment, or past it: one rule for listings, small and large objects,
and the registry."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from csi_driver.model.addresses import AddressRules
from csi_driver.model.chunk import ByteRange
from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import EndpointUnreachable, HayloftError, InvalidParameter, RegistryUnavailable
from csi_driver.objects.blobs.blob_factory import open_blobs
from csi_driver.objects.http.connection_pool import IdentityServices
from csi_driver.objects.store import ObjectStore, read_whole
from csi_driver.objects.store_factory import open_store
from tests.support.attacker import service_account, without_proxies
from tests.support.forward_proxy import ForwardProxy
from tests.support.hostile_clouds import HostileAzure, HostileGoogle
from tests.support.hostile_s3 import HostileS3
from tests.support.random_bytes import random_bytes
from tests.support.tls import trusted_tls
from tests.support.web_server import web_server

OBJECTS = {"dir/small": random_bytes(1, 3_000), "dir/large": random_bytes(2, 6 << 20)}
KEYS = Credentials({"access_key_id": "AKIDEXAMPLE", "secret_access_key": "x"})
CREDENTIALS = {
    "gs": Credentials({"service_account_json": service_account()}),
    "az": Credentials({"account_name": "acct", "account_key": "eA=="}),
    "http": Credentials(),
}
KINDS = ["s3", "s3-tls", "s3fs", "s3fs-tls", "gs", "gs-tls", "az", "az-tls", "http"]


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with without_proxies(monkeypatch):
        yield


class Server:
    """A store of one kind with the objects; ``place`` is its host and port."""

    def __init__(self, kind: str, stack: contextlib.ExitStack) -> None:
        self.scheme, _, tls = kind.partition("-")
        self.ca: str | None = None
        context = None
        if tls:
            context, self.ca = stack.enter_context(trusted_tls())
        if self.scheme == "http":
            self.endpoint = stack.enter_context(web_server(dict(OBJECTS))).url
        else:
            server_class = {"gs": HostileGoogle, "az": HostileAzure}.get(self.scheme, HostileS3)
            self.endpoint = stack.enter_context(server_class(OBJECTS, tls=context)).endpoint
        self.place = self.endpoint.partition("://")[2]

    def open(self, rules: AddressRules = AddressRules()) -> ObjectStore:  # noqa: B008 - frozen
        scheme = "s3" if self.scheme == "s3fs" else self.scheme
        url = f"{self.endpoint}/dir" if scheme == "http" else f"{scheme}://data/dir"
        options = StoreOptions(
            endpoint=None if scheme == "http" else self.endpoint,
            backend="s3fs" if self.scheme == "s3fs" else "auto",
            deadline_s=3,
            request_timeout_s=3,
            ca_bundle_pem=self.ca,
            address_rules=rules,
        )
        return open_store(DatasetUrl.parse(url), options, CREDENTIALS.get(scheme, KEYS))


@contextlib.contextmanager
def server_of(kind: str) -> Iterator[Server]:
    with contextlib.ExitStack() as stack:
        yield Server(kind, stack)


def reads_everything(store: ObjectStore, keys: str = "dir/") -> None:
    with contextlib.closing(store):
        infos = {key: etag for page in store.list(keys) for key, etag in zip(page.keys, page.etags, strict=True)}
        (small,) = (key for key in infos if key.endswith("small"))
        (large,) = (key for key in infos if key.endswith("large"))
        whole = read_whole(store, small, 3_000, if_match=infos[small])
        assert b"".join(whole.parts) == OBJECTS["dir/small"]
        part = store.read_range(large, ByteRange(1 << 20, 5 << 20), if_match=infos[large])
        assert b"".join(part) == OBJECTS["dir/large"][1 << 20 : 5 << 20]


@pytest.mark.promise("S265")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variable", ["{}_proxy", "{}_PROXY", "ALL_PROXY", "all_proxy"])
def test_listing_small_and_large_objects_go_through_the_proxy(
    kind: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server_of(kind) as server, ForwardProxy(user="node", password="p@ss") as proxy:
        scheme = server.endpoint.partition(":")[0]
        name = variable.format(scheme.upper() if "PROXY" in variable else scheme)
        monkeypatch.setenv(name, f"http://node:p%40ss@127.0.0.1:{proxy.port}")
        reads_everything(server.open(), "" if server.scheme == "http" else "dir/")
        assert len(proxy.targets) >= (1 if "tls" in kind else 3)
        assert set(proxy.targets) == {server.place}


@pytest.mark.promise("S265")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("excluded", ["127.0.0.0/8", "*", "other.example,127.0.0.1"])
def test_what_no_proxy_lists_goes_past_the_proxy(kind: str, excluded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with server_of(kind) as server, ForwardProxy() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", excluded)
        reads_everything(server.open(), "" if server.scheme == "http" else "dir/")
        assert proxy.targets == []


def refused(kind: str) -> HayloftError:
    with server_of(kind) as server, pytest.raises(HayloftError) as caught:
        reads_everything(server.open())
    return caught.value


@pytest.mark.promise("S266")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("answers", "why"), [(407, "asks for a user and a password"), (403, "HTTP 403"), (503, "HTTP 503"), (0, "")]
)
def test_an_error_names_the_proxy_and_not_its_credentials(
    kind: str, answers: int, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ForwardProxy(refuses=answers) as proxy:
        port = proxy.port
        if not answers:
            with socket.create_server(("127.0.0.1", 0)) as closed:
                port = closed.getsockname()[1]
        monkeypatch.setenv("ALL_PROXY", f"http://node:hush@127.0.0.1:{port}")
        error = refused(kind)
    # A web server's messages are of its URL; those of a 403 speak of what the server itself would have to permit.
    if not (kind == "http" and answers == 403):
        assert f"http://127.0.0.1:{port}" in str(error)
    assert "hush" not in str(error)
    assert why in str(error)
    if answers in (0, 407) or (answers and "tls" in kind):
        assert isinstance(error, EndpointUnreachable)


@pytest.mark.promise("S266")
def test_a_proxy_of_another_protocol_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://node:hush@127.0.0.1:1080")
    for kind in ("s3", "s3fs", "gs", "az", "http"):
        error = refused(kind)
        assert isinstance(error, InvalidParameter)
        assert "ALL_PROXY: 'socks5://127.0.0.1'" in str(error)
        assert "hush" not in str(error)


@pytest.mark.promise("S265")
@pytest.mark.parametrize("excluded", [None, "127.0.0.0/8", "*"])
@pytest.mark.parametrize("tls", [False, True])
def test_the_registry_follows_the_same_rule(excluded: str | None, tls: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with server_of("s3-tls" if tls else "s3") as server, ForwardProxy(user="node", password="p") as proxy:
        monkeypatch.setenv("ALL_PROXY", f"http://node:p@127.0.0.1:{proxy.port}")
        if excluded is not None:
            monkeypatch.setenv("NO_PROXY", excluded)
        options = StoreOptions(endpoint=server.endpoint, deadline_s=5, ca_bundle_pem=server.ca)
        blobs = open_blobs("s3://data/registry", options, KEYS)
        assert blobs.put_if_absent("volumes/a", b"x")
        found = blobs.get("volumes/a")
        assert found is not None
        assert found[0] == b"x"
        assert set(proxy.targets) == (set() if excluded else {server.place})


@pytest.mark.promise("S266")
def test_a_registry_behind_a_dead_proxy_is_an_error_that_names_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://node:hush@127.0.0.1:1")
    options = StoreOptions(endpoint="http://127.0.0.1:9", deadline_s=1)
    with pytest.raises(RegistryUnavailable, match=r"http://127\.0\.0\.1:1\b") as caught:
        open_blobs("s3://data/registry", options, KEYS).get("volumes/a")
    assert "hush" not in str(caught.value)


@pytest.mark.promise("S265")
def test_identity_services_go_through_the_proxy_and_metadata_services_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with server_of("s3") as server, ForwardProxy() as proxy, ForwardProxy(refuses=403) as refusing:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        services = IdentityServices()
        services.request("GET", f"{server.endpoint}/data", timeout=5)
        assert proxy.targets == []
        monkeypatch.setenv("HTTPS_PROXY", refusing.url)
        with pytest.raises(Exception, match="403"):
            services.request("GET", "https://oauth2.googleapis.com/token", timeout=5)
        assert refusing.targets == ["oauth2.googleapis.com:443"]
