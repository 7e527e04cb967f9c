"""Nothing is sent to an address that the policy refuses: redirects, names, rebinding, proxies. Counted at listeners."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable, Iterator
from typing import ClassVar

import pytest

from csi_driver.model.addresses import AddressRules, parse_network
from csi_driver.model.chunk import ByteRange
from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import AddressNotAllowed, EndpointUnreachable, HayloftError
from csi_driver.model.tenant import Tenant
from csi_driver.objects.checksums import ChecksumProvider
from csi_driver.objects.s3.region import find_region
from csi_driver.objects.store import ObjectStore, read_whole
from csi_driver.objects.store_factory import open_store, open_store_late
from csi_driver.settings import PolicySettings
from csi_driver.volumes.data_plane import MountRequest
from csi_driver.volumes.parameters import VolumeParameters
from csi_driver.wiring.listing_store import open_listing_store
from tests.support.attacker import Listener, RedirectingStore, Resolver, service_account, without_proxies
from tests.support.daemons import DaemonBench
from tests.support.hostile_s3 import CloseAfter, HostileS3, ResetAfter
from tests.support.tls import trusted_tls

KEYS = Credentials({"access_key_id": "AKIDEXAMPLE", "secret_access_key": "x", "session_token": "the-token"})
GOOGLE = Credentials({"service_account_json": service_account()})
AZURE = Credentials({"account_name": "acct", "account_key": "eA=="})
PUBLIC_ONLY = AddressRules(public_only=True)
TEAM = Tenant("team-a", inline=True)

OPERATIONS: dict[str, Callable[[ObjectStore], object]] = {
    "list": lambda store: list(store.list("dir/")),
    "stat": lambda store: store.stat("dir/key"),
    "range": lambda store: list(store.read_range("dir/key", ByteRange(0, 4 << 20), if_match="tag")),
    "whole": lambda store: read_whole(store, "dir/key", 100, if_match="tag"),
    "checksum": lambda store: store.checksum("dir/key", if_match="tag") if isinstance(store, ChecksumProvider) else 0,
}
CLIENTS = {
    "s3": ("s3://data/dir", KEYS, "auto"),
    "s3fs": ("s3://data/dir", KEYS, "s3fs"),
    "gs": ("gs://data/dir", GOOGLE, "auto"),
    "gs-anonymous": ("gs://data/dir", Credentials(), "auto"),
    "az": ("az://data/dir", AZURE, "auto"),
    "http": ("", Credentials(), "auto"),
}
REDIRECTS = [301, 302, 303, 307, 308]


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with without_proxies(monkeypatch):
        yield


@pytest.fixture
def victim() -> Iterator[Listener]:
    with Listener() as listener:
        yield listener


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    return Resolver(monkeypatch)


def options_of(client: str, endpoint: str, rules: AddressRules, **more: object) -> StoreOptions:
    _, credentials, backend = CLIENTS[client]
    wait_s = 5.0 if backend == "s3fs" else 1.5  # botocore reads its data at the first use
    return StoreOptions(
        endpoint=None if client == "http" else endpoint,
        backend=backend,  # type: ignore[arg-type]
        anonymous=not credentials,
        deadline_s=wait_s,
        request_timeout_s=wait_s,
        address_rules=rules,
        **more,  # type: ignore[arg-type]
    )


def open_client(client: str, endpoint: str, rules: AddressRules, **more: object) -> ObjectStore:
    url, credentials, _ = CLIENTS[client]
    parsed = DatasetUrl.parse(url or f"{endpoint}/dir")
    return open_store(parsed, options_of(client, endpoint, rules, **more), credentials)


def attempt(client: str, operation: str, endpoint: str, rules: AddressRules, **more: object) -> HayloftError:
    """The error of the operation. A store that does not have the operation does another one."""

    def act() -> None:
        store = open_client(client, endpoint, rules, **more)
        with contextlib.closing(store):
            OPERATIONS[operation](store)
            store.stat("dir/key")  # for stores that need no request for the operation

    with pytest.raises(HayloftError) as caught:
        act()
    return caught.value


@pytest.mark.promise("S131")
@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("status", REDIRECTS)
def test_no_client_follows_a_redirect(client: str, operation: str, status: int, victim: Listener) -> None:
    with RedirectingStore(status, f"http://127.0.0.1:{victim.port}/latest/meta-data/") as store:
        attempt(client, operation, store.address, AddressRules())
        assert victim.connections == 0
        assert store.targets


@pytest.mark.promise("S131")
@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("operation", ["stat", "range"])
@pytest.mark.parametrize("status", REDIRECTS)
def test_no_client_follows_a_redirect_to_another_path_of_the_same_server(
    client: str, operation: str, status: int
) -> None:
    with RedirectingStore(status, "") as store:
        attempt(client, operation, store.address, AddressRules())
        assert not [target for target in store.targets if "followed" in target]


@pytest.mark.promise("S131")
@pytest.mark.parametrize("client", ["s3", "gs", "az", "http"])
def test_no_client_follows_a_redirect_of_a_server_with_tls(client: str, victim: Listener) -> None:
    with (
        trusted_tls() as (context, authority),
        RedirectingStore(302, f"http://127.0.0.1:{victim.port}/", context) as store,
    ):
        attempt(client, "range", store.address, AddressRules(), ca_bundle_pem=authority)
        assert victim.connections == 0
        assert store.targets


def test_the_region_lookup_follows_no_redirect(victim: Listener) -> None:
    with RedirectingStore(301, f"http://127.0.0.1:{victim.port}/") as store:
        assert find_region("data", 2, store.address) == "eu-west-1"
        assert victim.connections == 0


PRIVATE = ["127.0.0.1", "::ffff:127.0.0.1", "127.1", "2130706433", "0x7f000001", "0.0.0.0", "localhost"]
"""Spellings of the address that the victim listens on."""


@pytest.mark.promise("S130")
@pytest.mark.parametrize("client", [name for name in CLIENTS if name != "s3fs"])
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("named", ["store.test", "127.0.0.1"])
def test_nothing_is_sent_to_a_refused_address(
    client: str, operation: str, named: str, victim: Listener, resolver: Resolver
) -> None:
    resolver.answers["store.test"] = [["127.0.0.1"]]
    error = attempt(client, operation, f"http://{named}:{victim.port}", PUBLIC_ONLY)
    assert isinstance(error, AddressNotAllowed)
    assert {named, "127.0.0.1"} <= set(str(error).replace("'", " ").replace(",", " ").split())
    assert "--allowed-address=127.0.0.1" in str(error)
    assert "--allowed-endpoint" in str(error)
    assert victim.connections == 0


@pytest.mark.promise("S130")
@pytest.mark.parametrize("client", ["s3", "gs", "az", "http"])
@pytest.mark.parametrize("spelling", PRIVATE)
def test_no_spelling_of_an_address_passes(client: str, spelling: str, victim: Listener, resolver: Resolver) -> None:
    host = f"[{spelling}]" if ":" in spelling else spelling
    assert isinstance(attempt(client, "range", f"http://{host}:{victim.port}", PUBLIC_ONLY), AddressNotAllowed)
    assert victim.connections == 0


@pytest.mark.promise("S130")
@pytest.mark.parametrize("client", ["s3", "gs", "az", "http"])
@pytest.mark.parametrize(
    "address", ["169.254.169.254", "::1", "fd00::1", "10.0.0.1", "fe80::1", "100.64.0.1", "fd00:ec2::254"]
)
def test_a_name_that_leads_to_the_node_or_the_cluster_is_refused(client: str, address: str, resolver: Resolver) -> None:
    resolver.answers["store.test"] = [[address]]
    error = attempt(client, "range", "http://store.test:80", PUBLIC_ONLY)
    assert isinstance(error, AddressNotAllowed)
    assert address in str(error)


@pytest.mark.promise("S130")
@pytest.mark.parametrize("client", CLIENTS)
def test_a_metadata_service_is_refused_to_administrators_too(client: str, resolver: Resolver) -> None:
    resolver.answers["store.test"] = [["169.254.169.254"]]
    for host in ("store.test", "169.254.169.254", "[fd00:ec2::254]"):
        error = attempt(client, "range", f"http://{host}:80", AddressRules())
        assert isinstance(error, AddressNotAllowed), host
        assert "--allowed-endpoint" not in str(error)


@pytest.mark.promise("S133")
@pytest.mark.parametrize("client", ["s3", "gs", "az", "http"])
def test_a_name_is_dialled_where_it_was_judged(client: str, victim: Listener, resolver: Resolver) -> None:
    """DNS rebinding: 127.0.0.2 stands for a public address, and the next answer is the victim."""
    rules = AddressRules(public_only=True, allowed=(parse_network("127.0.0.2"),))
    with Listener("127.0.0.2", victim.port) as outside:
        resolver.answers["store.test"] = [["127.0.0.2"], ["127.0.0.1"]]
        store = open_client(client, f"http://store.test:{victim.port}", rules)
        for _ in range(4):
            with pytest.raises(HayloftError):
                list(store.read_range("dir/key", ByteRange(0, 4 << 20), if_match="tag"))
        store.close()
        assert outside.connections == 1
        assert victim.connections == 0


@pytest.mark.promise("S133")
def test_of_several_addresses_only_the_allowed_ones_are_dialled(victim: Listener, resolver: Resolver) -> None:
    rules = AddressRules(public_only=True, allowed=(parse_network("127.0.0.2"),))
    resolver.answers["store.test"] = [["127.0.0.1", "::1", "127.0.0.2"]]
    with Listener("127.0.0.2", victim.port) as outside:
        attempt("s3", "range", f"http://store.test:{victim.port}", rules)
        assert outside.connections >= 1
    assert not isinstance(attempt("s3", "range", f"http://store.test:{victim.port}", rules), AddressNotAllowed)
    assert victim.connections == 0, "an allowed address that does not answer leads to no refused one"


@pytest.mark.promise("S134")
@pytest.mark.parametrize("listed", [(), ("store.test",)])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_bucket_in_virtual_hosted_style_reaches_no_other_server(
    listed: tuple[str, ...], operation: str, victim: Listener, resolver: Resolver
) -> None:
    rules = AddressRules(public_only=True, allowed=(parse_network("127.0.0.3"),), listed_hosts=frozenset(listed))
    resolver.answers = {"store.test": [["127.0.0.2"]], "data.store.test": [["127.0.0.1"]]}
    endpoint = f"http://store.test:{victim.port}"
    assert isinstance(attempt("s3", operation, endpoint, rules, addressing_style="virtual"), AddressNotAllowed)
    assert victim.connections == 0


@pytest.mark.promise("S130")
def test_a_listed_endpoint_and_an_allowed_network_are_dialled(resolver: Resolver) -> None:
    with HostileS3({"dir/key": b"0123456789"}) as server:
        resolver.answers["store.test"] = [["127.0.0.1"]]
        for rules in (
            AddressRules(public_only=True, listed_hosts=frozenset({"store.test"})),
            AddressRules(public_only=True, allowed=(parse_network("127.0.0.0/8"),)),
            AddressRules(),
        ):
            store = open_client("s3", f"http://store.test:{server.port}", rules)
            assert b"".join(store.read_range("dir/key", ByteRange(0, 4), if_match=None)) == b"0123"
            store.close()


def test_an_address_of_this_node_is_refused_although_it_is_public(
    victim: Listener, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """127.0.0.1 is taken for public here, as the address of a node may be."""
    monkeypatch.setattr("csi_driver.model.addresses.is_public", lambda address: True)
    resolver.answers["store.test"] = [["127.0.0.1"]]
    error = attempt("s3", "range", f"http://store.test:{victim.port}", PUBLIC_ONLY)
    assert isinstance(error, AddressNotAllowed)
    assert "an address of this node" in str(error)
    assert victim.connections == 0


@pytest.mark.promise("S135")
@pytest.mark.parametrize("client", [name for name in CLIENTS if name != "s3fs"])
def test_the_proxy_of_the_node_is_not_for_an_endpoint_of_a_tenant(
    client: str, victim: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{victim.port}")
    for endpoint in ("http://10.0.0.1", "http://store.invalid", "http://127.0.0.1:1"):
        attempt(client, "range", endpoint, PUBLIC_ONLY)
        assert victim.connections == 0
    attempt(client, "range", "http://store.invalid", AddressRules())
    assert victim.connections > 0, "for a trusted volume it is used as before"


@pytest.mark.parametrize("client", CLIENTS)
def test_the_proxy_of_the_node_is_not_asked_for_a_metadata_service(
    client: str, victim: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{victim.port}")
    assert isinstance(attempt(client, "range", "http://169.254.169.254", AddressRules()), AddressNotAllowed)
    assert victim.connections == 0


@pytest.mark.parametrize("client", [name for name in CLIENTS if name != "s3fs"])
def test_a_refused_address_is_not_retried(client: str, resolver: Resolver) -> None:
    resolver.answers["store.test"] = [["10.0.0.1"]]
    store = open_client(client, "http://store.test", PUBLIC_ONLY)
    with pytest.raises(AddressNotAllowed):
        list(store.read_range("dir/key", ByteRange(0, 4 << 20), if_match="tag"))
    store.close()
    assert len(resolver.questions) == 1


class TestVolumes:
    """The way from a volume's attributes to the dial."""

    def parameters(self, endpoint: str, tenant: Tenant, **policy: object) -> VolumeParameters:
        attributes = {"url": "s3://data/dir", "endpoint": endpoint, "deadline": "2s", "requestTimeout": "1s"}
        return VolumeParameters.parse(attributes, PolicySettings(**policy), tenant)  # type: ignore[arg-type]

    @pytest.mark.promise("S130")
    def test_an_inline_volume_lists_no_store_of_the_node(self, victim: Listener) -> None:
        parameters = self.parameters(f"http://127.0.0.1:{victim.port}", TEAM)
        store = open_listing_store(parameters, KEYS.values)
        with pytest.raises(AddressNotAllowed):
            list(store.list("dir/"))
        store.close()
        late = open_store_late(parameters.url, parameters.store_options, lambda: KEYS)
        with pytest.raises(AddressNotAllowed):
            late.stat("dir/key")
        late.close()
        assert victim.connections == 0

    @pytest.mark.parametrize(
        ("tenant", "policy"),
        [
            (Tenant("team-a"), {}),
            (TEAM, {"trusted_namespaces": ("team-a",)}),
            (TEAM, {"trusted_namespaces": ("*",)}),
            (TEAM, {"allowed_addresses": ("127.0.0.0/8",)}),
            (TEAM, {"allowed_endpoints": ("http://127.0.0.1",)}),
        ],
    )
    def test_what_the_operator_trusts_is_read_as_before(self, tenant: Tenant, policy: dict[str, object]) -> None:
        with HostileS3({"dir/key": b"0123456789"}) as server:
            if "allowed_endpoints" in policy:
                policy = {"allowed_endpoints": (server.endpoint,)}
            store = open_listing_store(self.parameters(server.endpoint, tenant, **policy), KEYS.values)
            assert [key for page in store.list("dir/") for key in page.keys] == ["dir/key"]
            store.close()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonBench]:
    """With the settings that it has without flags."""
    daemon = DaemonBench(tmp_path_factory.mktemp("daemon"), keep=False)
    daemon.start()
    yield daemon
    daemon.close()


class TestDaemon:
    """Attackers and an administrator at one daemon."""

    SECRETS: ClassVar = {
        "s3": {"access_key_id": "AKIDEXAMPLE", "secret_access_key": "x", "session_token": "the-token"},
        "gs": {"service_account_json": service_account()},
        "az": {"account_name": "acct", "account_key": "eA=="},
        "http": {},
    }

    def mount(self, daemon: DaemonBench, scheme: str, host: str, tenant: Tenant) -> HayloftError:
        """The error of a mount of a store that has no objects."""
        place = (
            {"url": f"http://{host}/dir"}
            if scheme == "http"
            else {"url": f"{scheme}://data", "endpoint": f"http://{host}"}
        )
        attributes = {**place, "deadline": "2s", "requestTimeout": "1s"}
        mount_point = daemon.directory / "mount"
        mount_point.mkdir(exist_ok=True)
        request = MountRequest("csi-attack", str(mount_point), attributes, self.SECRETS[scheme], tenant)
        with daemon.client() as client, pytest.raises(HayloftError) as caught:
            client.mount(request)
        return caught.value

    @pytest.mark.promise("S130")
    @pytest.mark.parametrize("scheme", SECRETS)
    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0"])
    def test_an_inline_volume_reaches_nothing_on_the_node(
        self, daemon: DaemonBench, scheme: str, host: str, victim: Listener
    ) -> None:
        error = self.mount(daemon, scheme, f"{host}:{victim.port}", TEAM)
        assert "--allowed-address" in str(error)
        assert victim.connections == 0

    @pytest.mark.parametrize("scheme", SECRETS)
    def test_a_volume_of_an_administrator_does(self, daemon: DaemonBench, scheme: str, victim: Listener) -> None:
        assert "--allowed-address" not in str(self.mount(daemon, scheme, f"127.0.0.1:{victim.port}", Tenant()))
        assert victim.connections > 0


def test_tls_is_verified_for_the_name_and_not_the_address(resolver: Resolver) -> None:
    with trusted_tls() as (context, authority), HostileS3({"dir/key": b"0123456789"}, tls=context) as server:
        resolver.answers["store.test"] = [["127.0.0.1"]]
        assert isinstance(context, ssl.SSLContext)
        error = attempt("s3", "range", f"https://store.test:{server.port}", AddressRules(), ca_bundle_pem=authority)
        assert "cannot be trusted" in str(error)
        store = open_client("s3", server.endpoint, AddressRules(), ca_bundle_pem=authority)
        assert b"".join(store.read_range("dir/key", ByteRange(0, 10), if_match=None)) == b"0123456789"
        store.close()


def test_a_body_that_breaks_off_is_resumed() -> None:
    content = bytes(range(256)) * 8192
    with HostileS3({"dir/key": content}) as server:
        options = StoreOptions(deadline_s=1.5, request_timeout_s=1.5)
        store = open_store(DatasetUrl.parse(f"{server.endpoint}/data/dir"), options, Credentials())
        server.fail_next(CloseAfter(700_000), ResetAfter(100_000))
        assert b"".join(store.read_range("data/dir/key", ByteRange(0, len(content)), if_match=None)) == content
        assert server.faults_left == 0
        store.close()


def test_errors_of_the_connection_are_those_of_the_store() -> None:
    with trusted_tls() as (context, _), HostileS3({"dir/key": b""}, tls=context) as server:
        assert "cannot be trusted" in str(attempt("gs-anonymous", "range", server.endpoint, AddressRules()))
    assert isinstance(attempt("http", "range", "http://127.0.0.1:1", AddressRules()), EndpointUnreachable)
    assert "cannot be resolved" in str(attempt("az", "range", "http://store.invalid", AddressRules()))
