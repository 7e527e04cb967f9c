"""GET of complete small objects over HTTP and TLS: signature, connections, and unexpected responses."""

from __future__ import annotations

import contextlib
import math
import select
import socket
import ssl
import time
import zlib
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import urlsplit

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotoCredentials
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.model.chunk import ByteRange
from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import (
    EndpointUnreachable,
    HayloftError,
    ObjectChanged,
    StoreUnavailable,
    TransientStoreError,
)
from csi_driver.objects.http.connection_pool import proxy_name
from csi_driver.objects.http.connections import Connection
from csi_driver.objects.http.socket_client import IDLE_S, MAX_IDLE_CONNECTIONS, MAX_UNUSABLE
from csi_driver.objects.retrying import Retrying
from csi_driver.objects.s3.addressing import S3Address
from csi_driver.objects.s3.identity import S3Identity, S3Keys
from csi_driver.objects.s3.rest_client import RestClient
from csi_driver.objects.s3.s3_clients import S3SmallObjectClient
from csi_driver.objects.s3.s3_factory import open_s3
from csi_driver.objects.s3.s3_store import S3Store
from csi_driver.objects.s3.signing import RequestSigner
from csi_driver.objects.store import InFlightObject, UnusableResponse, WholeObject
from csi_driver.objects.store_factory import open_store
from csi_driver.objects.store_location import StoreLocation
from tests.support.hostile_s3 import (
    Chunked,
    CloseAfter,
    Fault,
    Garbage,
    Hang,
    HostileS3,
    IgnoreIfMatch,
    IgnoreRange,
    ResetAfter,
    Slow,
    Status,
    WrongLength,
)
from tests.support.mounts import wait_until
from tests.support.one_answer import OK, answering
from tests.support.tls import trusted_tls

KEYS = {"access_key_id": "AKIDEXAMPLE", "secret_access_key": "secret"}
CONTENT = bytes(range(256)) * 500
LOCATION = StoreLocation("http://store:9000", "bucket")


@pytest.fixture(scope="module")
def authority() -> Iterator[tuple[ssl.SSLContext, str]]:
    with trusted_tls() as found:
        yield found


@pytest.fixture(params=["http", "https"])
def server(request: pytest.FixtureRequest, authority: tuple[ssl.SSLContext, str]) -> Iterator[HostileS3]:
    """Every test with a server runs with both."""
    tls = authority[0] if request.param == "https" else None
    with HostileS3({"dir/small": CONTENT, "dir/other": CONTENT[::-1]}, tls=tls) as server:
        server.trust = authority[1] if tls else None
        yield server


def options(server: HostileS3, **changes: object) -> StoreOptions:
    found = {"endpoint": server.endpoint, "region": "us-east-1", "request_timeout_s": 1.0, "deadline_s": 5.0}
    found["ca_bundle_pem"] = server.trust
    return StoreOptions(**(found | changes))  # type: ignore[arg-type]


@pytest.fixture
def store(server: HostileS3) -> Iterator[S3Store]:
    """Without retries: one attempt, and the fallback path."""
    store = open_s3(DatasetUrl.parse("s3://data/dir"), options(server), Credentials(KEYS))
    yield store
    store.close()


def etag_of(store: S3Store, key: str = "dir/small") -> str | None:
    return store.stat(key).etag


# -- the request -------------------------------------------------------------------------------------------------------


def headers_of(request: bytes) -> tuple[str, dict[str, str]]:
    first, *lines = request.decode().rstrip("\r\n").split("\r\n")
    return first.split(" ")[1], {name: value for name, _, value in (line.partition(": ") for line in lines)}


@given(
    key=st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=40),
    token=st.none() | st.text("abcXYZ019/+=", min_size=1, max_size=60),
    payer=st.booleans(),
    base=st.sampled_from(["http://store:9000/bucket", "http://bucket.s3.example", "http://[::1]:80/bucket"]),
)
def test_a_request_is_signed_as_botocore_signs_it(key: str, token: str | None, payer: bool, base: str) -> None:
    values = KEYS | ({"session_token": token} if token else {})
    identity = S3Identity(Credentials(values))
    client = S3SmallObjectClient(
        LOCATION, S3Address(base, "eu-west-3", False), identity, timeout_s=1, requester_pays=payer
    )

    request = client._build_request(key, "abc")

    assert request is not None
    path, headers = headers_of(request)
    theirs = AWSRequest("GET", f"http://{urlsplit(base).netloc}{path}")
    signed = headers["authorization"].split("SignedHeaders=")[1].split(",")[0].split(";")
    for name in signed:
        theirs.headers[name] = headers[name]
    theirs.context["timestamp"] = headers["x-amz-date"]
    signer = S3SigV4Auth(BotoCredentials("AKIDEXAMPLE", "secret", token), "s3", "eu-west-3")
    text = signer.string_to_sign(theirs, signer.canonical_request(theirs))
    signature = signer.signature(text, theirs)

    assert headers["authorization"].endswith(f"Signature={signature}")
    assert {"host", "if-match", "x-amz-date", "x-amz-content-sha256"} <= set(signed)
    assert ("x-amz-request-payer" in signed) == payer
    assert ("x-amz-security-token" in signed) == (token is not None)


@given(
    key=st.none() | st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=40),
    query=st.dictionaries(st.sampled_from(["prefix", "list-type", "versionId", "max-keys"]), st.text(max_size=20)),
    etag=st.text("abc/+=- ", max_size=8),
    token=st.none() | st.text("abcXYZ019/+=", min_size=1, max_size=60),
    base=st.sampled_from(["http://store:9000/bucket", "https://bucket.s3.example", "http://[::1]:80/bucket"]),
    method=st.sampled_from(["GET", "HEAD"]),
)
def test_other_requests_are_signed_as_botocore_signs_them(
    key: str | None, query: dict[str, str], etag: str, token: str | None, base: str, method: str
) -> None:
    values = KEYS | ({"session_token": token} if token else {})
    identity = S3Identity(Credentials(values))
    client = RestClient(LOCATION, S3Address(base, "eu-west-3", False), identity, timeout_s=1, requester_pays=True)
    url = client._url(key, query)

    headers = client._signed(method, url, {"If-Match": f'"{etag}"'})

    assert client._target(url) == url[len(url) - len(client._target(url)) :]
    assert all(f"{name}=" in client._target(url) for name in query)
    theirs = AWSRequest(method, url)
    signed = headers["authorization"].split("SignedHeaders=")[1].split(",")[0].split(";")
    for name in signed:
        theirs.headers[name] = headers[name]
    theirs.context["timestamp"] = headers["x-amz-date"]
    signer = S3SigV4Auth(BotoCredentials("AKIDEXAMPLE", "secret", token), "s3", "eu-west-3")
    text = signer.string_to_sign(theirs, signer.canonical_request(theirs))
    assert headers["authorization"].endswith(f"Signature={signer.signature(text, theirs)}")
    assert {"host", "if-match", "x-amz-date", "x-amz-content-sha256", "x-amz-request-payer"} <= set(signed)


def test_the_signing_key_depends_on_day_and_secret() -> None:
    one = RequestSigner("r")
    first, second = "20261231T235959Z", "20270101T000000Z"
    for secret, now in (("a", first), ("a", second), ("b", second), ("b", first)):
        keys = S3Keys("id", secret, None, rotates=True)
        signed = {"host": "store", "x-amz-date": now}
        assert one.authorization(keys, "/key", now, signed) == RequestSigner("r").authorization(
            keys, "/key", now, signed
        )


def test_a_request_without_identity_is_not_signed() -> None:
    client = S3SmallObjectClient(LOCATION, S3Address("http://store/bucket", "r", False), None, timeout_s=1)
    request = client._build_request("a b", None)
    assert request is not None
    path, headers = headers_of(request)
    assert path == "/bucket/a%20b"
    assert "authorization" not in headers


def test_a_weak_etag_is_not_sent_as_condition() -> None:
    """If-Match compares strongly: a weak ETag matches nothing, not even itself (RFC 9110, 13.1.1)."""
    client = S3SmallObjectClient(LOCATION, S3Address("http://store/bucket", "r", False), None, timeout_s=1)
    request = client._build_request("key", 'W/"tag"')
    assert request is not None
    assert "if-match" not in headers_of(request)[1]


@pytest.mark.parametrize("etag", ['x"\r\nx-amz-acl: public', "ü", "a\nb"])
def test_a_value_that_no_header_can_hold_takes_the_fallback_path(etag: str) -> None:
    client = S3SmallObjectClient(LOCATION, S3Address("http://store/bucket", "r", False), None, timeout_s=1)
    assert client._build_request("key", etag) is None


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_in_the_environment_is_detected(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    url = f"{scheme}://store:9000/bucket"
    assert proxy_name(url) == ""
    monkeypatch.setenv(f"{scheme}_proxy", "http://proxy:3128")
    assert proxy_name(url) == "http://proxy:3128"
    monkeypatch.setenv("no_proxy", "store")
    assert proxy_name(url) == ""


# -- the response ------------------------------------------------------------------------------------------------------


def test_a_connection_is_reused_for_the_next_object(store: S3Store, server: HostileS3) -> None:
    etag = etag_of(store)
    before = len(server.requests)
    for _ in range(20):
        assert b"".join(store.read_whole("dir/small", len(CONTENT), if_match=etag).parts) == CONTENT
    assert len(server.requests) - before == 20, "no object was requested twice"
    assert "range" not in server.requests[-1].headers


def test_the_response_holds_the_checksum_of_the_store(store: S3Store, server: HostileS3) -> None:
    value = zlib.crc32(CONTENT).to_bytes(4, "big")
    server.object_headers["dir/small"] = {"x-amz-checksum-crc32": b64encode(value).decode()}
    whole = store.read_whole("dir/small", len(CONTENT), if_match=None)
    assert whole.checksum is not None
    assert (whole.checksum.algorithm, whole.checksum.value) == ("crc32", value)
    assert server.requests[-1].headers["x-amz-checksum-mode"] == "ENABLED"


@pytest.mark.parametrize(
    "fault",
    [
        Slow(0.01),
        Status(503, "SlowDown"),
        Status(403, "AccessDenied"),
        Status(404, "NoSuchKey"),
        ResetAfter(0),
        ResetAfter(50_000),
        CloseAfter(0),
        CloseAfter(50_000),
        Hang(30),
        Hang(30, body_bytes=50_000),
        WrongLength(1000),
        WrongLength(-1000),
        Garbage(),
    ],
    ids=repr,
)
@pytest.mark.parametrize("reused", [False, True], ids=["new connection", "reused connection"])
def test_the_bytes_are_right_after_any_single_fault(server: HostileS3, fault: Fault, reused: bool) -> None:
    store = open_store(DatasetUrl.parse("s3://data/dir"), options(server), Credentials(KEYS))
    assert isinstance(store, Retrying)
    etag = store.stat("dir/small").etag
    if reused:
        store.read_whole("dir/other", len(CONTENT), if_match=None)
    server.fail_next(fault)
    assert b"".join(store.read_whole("dir/small", len(CONTENT), if_match=etag).parts) == CONTENT
    assert b"".join(store.read_whole("dir/other", len(CONTENT), if_match=None).parts) == CONTENT[::-1]
    store.close()


def test_a_store_that_always_hangs_is_unavailable_within_the_deadline(server: HostileS3) -> None:
    store = open_store(DatasetUrl.parse("s3://data/dir"), options(server, deadline_s=1.5), Credentials(KEYS))
    server.fail_all(Hang(30))
    assert isinstance(store, Retrying)
    with pytest.raises(StoreUnavailable):
        store.read_whole("dir/small", len(CONTENT), if_match=None)
    server.fail_all(None)
    store.close()


@pytest.mark.parametrize("fault", [IgnoreIfMatch(), None], ids=repr)
def test_another_version_is_never_returned(store: S3Store, server: HostileS3, fault: Fault | None) -> None:
    etag = etag_of(store)
    server.put("dir/small", CONTENT[::-1])
    server.fail_all(fault)
    for _ in range(2):
        with pytest.raises(ObjectChanged):
            store.read_whole("dir/small", len(CONTENT), if_match=etag)


def test_an_idle_connection_closed_by_the_store_is_replaced(store: S3Store, server: HostileS3) -> None:
    assert store.read_whole("dir/small", len(CONTENT), if_match=None).parts
    server.go_away()
    server.come_back()
    assert b"".join(store.read_whole("dir/small", len(CONTENT), if_match=None).parts) == CONTENT


def test_a_timeout_is_not_retried_within_one_try(store: S3Store, server: HostileS3) -> None:
    store.read_whole("dir/small", len(CONTENT), if_match=None)
    sent = len(server.requests)
    server.fail_all(Hang(30))
    with pytest.raises(TransientStoreError, match="no answer in time"):
        store.read_whole("dir/small", len(CONTENT), if_match=None)
    assert len(server.requests) - sent == 1
    server.fail_all(None)


def test_repeated_unusable_responses_start_a_cooldown(store: S3Store, server: HostileS3) -> None:
    server.fail_all(Chunked(ranges=False))
    for _ in range(MAX_UNUSABLE):
        assert read(store) == CONTENT
    sent = len(server.requests)
    assert read(store) == CONTENT
    assert len(server.requests) - sent == 1, "only the fallback path sent a request"


@pytest.mark.promise("S206")
@pytest.mark.parametrize("fault", [Status(501, ranges=True), IgnoreRange(ranges=True)], ids=["refused", "ignored"])
def test_the_fallback_path_is_taken_alone_only_where_it_works(store: S3Store, server: HostileS3, fault: Fault) -> None:
    """A store that answers no ranges. Three odd answers do not turn its small objects into errors."""
    for _ in range(2 * MAX_UNUSABLE):
        server.fail_next(Chunked(ranges=False), fault)
        with suppress(HayloftError):
            read(store)
    server.fail_all(fault)
    for _ in range(3):
        assert read(store) == CONTENT


@pytest.mark.promise("S206")
def test_a_fallback_path_that_stops_working_is_left_at_once(store: S3Store, server: HostileS3) -> None:
    server.fail_all(Chunked(ranges=False))
    for _ in range(MAX_UNUSABLE):
        assert read(store) == CONTENT
    server.fail_all(Status(400, "InvalidRequest", ranges=True))
    for _ in range(3):
        assert read(store) == CONTENT


@pytest.mark.promise("S206")
def test_errors_of_the_store_start_no_cooldown(store: S3Store, server: HostileS3) -> None:
    server.fail_all(Status(503, "SlowDown"))
    for _ in range(MAX_UNUSABLE):
        with pytest.raises(TransientStoreError):
            read(store)
    server.fail_all(None)
    sent = len(server.requests)
    assert read(store) == CONTENT
    assert [request.headers.get("range") for request in server.requests[sent:]] == [None]


@pytest.mark.promise("S204")
def test_a_pause_that_the_store_asks_for_is_kept_by_the_fallback_path(store: S3Store, server: HostileS3) -> None:
    """By one of the loop too, whose answer is not mapped to an error."""
    server.fail_all(Status(503, "SlowDown", retry_after_s=300))
    with pytest.raises(TransientStoreError) as caught:
        read(store)
    assert 290 < (caught.value.retry_after_s or 0) <= 300
    assert len(server.requests) == 1
    started = store.begin_whole("dir/small", len(CONTENT), if_match=None)
    assert started is not None
    with pytest.raises(UnusableResponse):
        complete(started)
    started.abort()
    with pytest.raises(TransientStoreError) as caught:
        read(store)
    assert 290 < (caught.value.retry_after_s or 0) <= 300
    assert len(server.requests) == 2


def read(store: S3Store) -> bytes:
    return b"".join(store.read_whole("dir/small", len(CONTENT), if_match=None).parts)


def test_no_request_is_sent_during_the_cooldown() -> None:
    with answering(OK + b"\r\nhello") as (client, _server):
        assert client.get("key", 5, "tag") is not None
        for _ in range(MAX_UNUSABLE):
            client.record(usable=False)
        client.record_fallback(worked=True)
        assert client.begin("key", 5, "tag") is None
        assert client.get("key", 5, "tag") is None


def test_a_usable_response_resets_the_count_of_unusable_ones(store: S3Store, server: HostileS3) -> None:
    for _ in range(2):
        server.fail_all(WrongLength(1000))
        for _ in range(MAX_UNUSABLE - 1):
            with pytest.raises(HayloftError):
                store.read_whole("dir/small", len(CONTENT), if_match=None)
        server.fail_all(None)
        store.read_whole("dir/small", len(CONTENT), if_match=None)
        response = store.begin_whole("dir/small", len(CONTENT), if_match=None)
        assert response is not None
        response.abort()


def complete(response: InFlightObject) -> WholeObject:
    """Polls it as the event loop does."""
    poll = select.poll()
    while (whole := response.advance()) is None:
        poll.register(response.fileno(), response.events)
        assert poll.poll(30_000)
    return whole


def test_begin_uses_an_idle_connection_or_a_new_one_and_never_blocks(store: S3Store, server: HostileS3) -> None:
    assert store.begin_whole("dir/small", len(CONTENT), if_match=None) is None, "no address is cached yet"
    store.read_whole("dir/small", len(CONTENT), if_match=None)
    connections = server.connections
    server.fail_next(Hang(30))
    response = store.begin_whole("dir/other", len(CONTENT), if_match=None)
    assert response is not None
    assert response.advance() is None
    wait_until(lambda: server.faults_left == 0)  # else another request might get the fault
    others = [store.begin_whole("dir/small", len(CONTENT), if_match=None) for _ in range(3)]
    for other in others:
        assert other is not None
        assert b"".join(complete(other).parts) == CONTENT
    assert server.connections - connections == 3, "the idle connection is used by the request that hangs"
    response.abort()
    again = store.begin_whole("dir/other", len(CONTENT), if_match=None)
    assert again is not None
    assert b"".join(complete(again).parts) == CONTENT[::-1]
    assert server.connections - connections == 3


def test_an_untrusted_certificate_is_endpoint_unreachable(
    authority: tuple[ssl.SSLContext, str],
) -> None:
    with HostileS3({"dir/small": CONTENT}, tls=authority[0]) as server:
        store = open_s3(DatasetUrl.parse("s3://data/dir"), options(server), Credentials(KEYS))
        with pytest.raises(EndpointUnreachable, match="cannot be trusted"):
            store.read_whole("dir/small", len(CONTENT), if_match=None)
        response = store.begin_whole("dir/small", len(CONTENT), if_match=None)
        assert response is not None, "the address is cached"
        with pytest.raises(ssl.SSLError):
            complete(response)
        response.abort()
        store.close()


@contextlib.contextmanager
def silent_address() -> Iterator[tuple[str, int]]:
    """An address that neither accepts nor refuses connections: a listener with a full queue."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, contextlib.ExitStack() as stack:
        address = listener.getsockname()
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(address)
        yield address


def test_an_address_that_stops_answering_is_resolved_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store has moved: its name has a new address, and the old one neither accepts nor refuses connections."""
    monkeypatch.setattr("csi_driver.objects.http.in_flight_response.CONNECT_TIMEOUT_S", 0.2)
    with answering(OK + b"\r\nhello") as (client, server), silent_address() as gone:
        for _ in range(2):
            client._dialer._cached_address = (socket.AF_INET, gone, math.inf)
            got = client.get("key", 5, "tag")
            assert got is not None
            assert b"".join(got.parts) == b"hello"
            client._idle.pop().close()
        begun = client.begin("key", 5, "tag")
        assert begun is not None, "the address that answered is cached now"
        begun.abort()
        assert client.begin("key", 5, "tag") is None, "it was aborted before it was established"
        assert server.requests == 2


def test_a_connection_released_after_close_is_closed() -> None:
    with answering(OK + b"\r\nhello") as (client, _server):
        assert client.get("key", 5, "tag") is not None
        response = client.begin("key", 5, "tag")
        assert response is not None
        client.close()
        assert b"".join(complete(response).parts) == b"hello"
        assert response.fileno() < 0
        assert not client._idle


def test_a_connection_that_was_idle_for_long_is_not_used(store: S3Store, server: HostileS3) -> None:
    """A firewall forgets it without a word, and a request over it would time out."""
    store.read_whole("dir/small", len(CONTENT), if_match=None)
    for client in (store._small, store._ranges):
        assert client is not None
        for connection in client._idle:
            connection.idle_since -= IDLE_S + 1
    connections = server.connections
    store.read_whole("dir/small", len(CONTENT), if_match=None)
    assert server.connections - connections == 1


def test_idle_connections_are_bounded() -> None:
    with answering() as (client, _server):
        pairs = [socket.socketpair() for _ in range(MAX_IDLE_CONNECTIONS + 1)]
        for mine, _ in pairs:
            client.release(Connection(mine, None, "store", connecting=False))
        assert [mine.fileno() < 0 for mine, _ in pairs] == [False] * MAX_IDLE_CONNECTIONS + [True]
        for _, theirs in pairs:
            theirs.close()


class CountingIdentity(S3Identity):
    """Counts the requests for keys."""

    def __init__(self, rotates: bool) -> None:
        self.requests, self._rotates = 0, rotates

    def keys(self) -> S3Keys:
        self.requests += 1
        return S3Keys("id", "secret", None, rotates=self._rotates)


@pytest.mark.parametrize("rotates", [False, True])
def test_begin_never_requests_keys(rotates: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(OK + b"\r\nhello") as (client, _server):
        client._identity = identity = CountingIdentity(rotates)
        assert client.begin("key", 5, "tag") is None
        assert identity.requests == 0
        for _ in range(3):
            assert client.get("key", 5, "tag") is not None
        assert identity.requests == 1
        response = client.begin("key", 5, "tag")
        assert response is not None
        response.abort()
        assert client.get("key", 5, "tag") is not None
        monkeypatch.setattr("csi_driver.objects.http.socket_client.time.monotonic", lambda: time.perf_counter() + 1e6)
        for connection in client._idle:
            connection.idle_since += 2e6
        late = client.begin("key", 5, "tag")
        assert (late is None) == rotates
        assert identity.requests == 1
        if late is not None:
            late.abort()


def test_keys_that_look_like_other_paths_are_read_as_they_are(store: S3Store, server: HostileS3) -> None:
    for key in ("dir//small", "dir/../small", "/dir/small", "dir/small/"):
        server.put(key, key.encode())
        whole = store.read_whole(key, len(key), if_match=None)
        assert b"".join(whole.parts) == b"".join(store.read_range(key, ByteRange(0, len(key)), if_match=None))
        assert b"".join(whole.parts) == key.encode()
