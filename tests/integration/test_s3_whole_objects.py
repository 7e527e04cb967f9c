"""Whole small objects over HTTP and TLS: the signature, connections, and answers that are not the plain one."""

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
from urllib.parse import urlsplit

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotoCredentials
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import (
    EndpointUnreachable,
    HayloftError,
    ObjectChanged,
    StoreUnavailable,
    TransientStoreError,
)
from csi_driver.objects.credentials import S3Identity, S3Keys
from csi_driver.objects.endpoints import S3Address
from csi_driver.objects.error_mapping import Place
from csi_driver.objects.factory import open_store
from csi_driver.objects.http.connections import Connection
from csi_driver.objects.obstore.obstore_factory import open_s3
from csi_driver.objects.obstore.obstore_store import S3Store
from csi_driver.objects.retrying import Retrying
from csi_driver.objects.s3.whole_objects import IDLE_LINKS, MOST_UNUSABLE, WholeObjects, goes_straight
from csi_driver.objects.store import InFlightObject, Whole
from tests.support.hostile_s3 import (
    CloseAfter,
    Fault,
    Garbage,
    Hang,
    HostileS3,
    IgnoreIfMatch,
    ResetAfter,
    Slow,
    Status,
    WrongLength,
)
from tests.support.one_answer import OK, answering
from tests.support.tls import trusted_tls

KEYS = {"access_key_id": "AKIDEXAMPLE", "secret_access_key": "secret"}
CONTENT = bytes(range(256)) * 500
PLACE = Place("http://store:9000", "bucket")


@pytest.fixture(scope="module")
def authority() -> Iterator[tuple[ssl.SSLContext, str]]:
    with trusted_tls() as found:
        yield found


@pytest.fixture(params=["http", "https"])
def server(request: pytest.FixtureRequest, authority: tuple[ssl.SSLContext, str]) -> Iterator[HostileS3]:
    """Every test that has a server is made with both."""
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
    """Without retries: one attempt, and what is left to obstore."""
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
    whole = WholeObjects(PLACE, S3Address(base, "eu-west-3", False), identity, timeout_s=1, requester_pays=payer)

    request = whole._request(key, "abc")

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


def test_each_day_and_each_secret_has_a_signing_key_of_its_own() -> None:
    def signer() -> WholeObjects:
        return WholeObjects(PLACE, S3Address("http://store/bucket", "r", False), None, timeout_s=1)

    one = signer()
    first, second = "20261231T235959Z", "20270101T000000Z"
    for secret, now in (("a", first), ("a", second), ("b", second), ("b", first)):
        keys = S3Keys("id", secret, None, rotates=True)
        signed = {"host": "store", "x-amz-date": now}
        assert one._authorization(keys, "/key", now, signed) == signer()._authorization(keys, "/key", now, signed)


def test_without_an_identity_nothing_is_signed() -> None:
    whole = WholeObjects(PLACE, S3Address("http://store/bucket", "r", False), None, timeout_s=1)
    request = whole._request("a b", None)
    assert request is not None
    path, headers = headers_of(request)
    assert path == "/bucket/a%20b"
    assert "authorization" not in headers


def test_a_weak_etag_is_no_condition() -> None:
    """If-Match compares strongly: a weak tag matches nothing, not even itself (RFC 9110, 13.1.1)."""
    whole = WholeObjects(PLACE, S3Address("http://store/bucket", "r", False), None, timeout_s=1)
    request = whole._request("key", 'W/"tag"')
    assert request is not None
    assert "if-match" not in headers_of(request)[1]


@pytest.mark.parametrize("etag", ['x"\r\nx-amz-acl: public', "ü", "a\nb"])
def test_what_no_header_can_hold_is_left_to_others(etag: str) -> None:
    whole = WholeObjects(PLACE, S3Address("http://store/bucket", "r", False), None, timeout_s=1)
    assert whole._request("key", etag) is None


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_it_goes_straight_to_the_store_or_not_at_all(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    url = f"{scheme}://store:9000/bucket"
    assert goes_straight(url)
    monkeypatch.setenv(f"{scheme}_proxy", "http://proxy:3128")
    assert not goes_straight(url)
    monkeypatch.setenv("no_proxy", "store")
    assert goes_straight(url)


# -- the answer --------------------------------------------------------------------------------------------------------


def test_one_connection_serves_object_after_object(store: S3Store, server: HostileS3) -> None:
    etag = etag_of(store)
    before = len(server.requests)
    for _ in range(20):
        assert b"".join(store.read_whole("dir/small", len(CONTENT), if_match=etag).parts) == CONTENT
    assert len(server.requests) - before == 20, "nothing was asked for twice"
    assert "range" not in server.requests[-1].headers


def test_the_checksum_of_the_store_comes_with_the_bytes(store: S3Store, server: HostileS3) -> None:
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
@pytest.mark.parametrize("kept", [False, True], ids=["new", "kept"])
def test_whatever_one_answer_is_the_bytes_are_right(server: HostileS3, fault: Fault, kept: bool) -> None:
    store = open_store(DatasetUrl.parse("s3://data/dir"), options(server), Credentials(KEYS))
    assert isinstance(store, Retrying)
    etag = store.stat("dir/small").etag
    if kept:
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
def test_another_version_is_never_given_for_this_one(store: S3Store, server: HostileS3, fault: Fault | None) -> None:
    etag = etag_of(store)
    server.put("dir/small", CONTENT[::-1])
    server.fail_all(fault)
    for _ in range(2):
        with pytest.raises(ObjectChanged):
            store.read_whole("dir/small", len(CONTENT), if_match=etag)


def test_a_connection_that_the_store_closed_meanwhile_costs_no_error(store: S3Store, server: HostileS3) -> None:
    assert store.read_whole("dir/small", len(CONTENT), if_match=None).parts
    server.go_away()
    server.come_back()
    assert b"".join(store.read_whole("dir/small", len(CONTENT), if_match=None).parts) == CONTENT


def test_a_store_that_hangs_is_not_asked_again_within_one_try(store: S3Store, server: HostileS3) -> None:
    store.read_whole("dir/small", len(CONTENT), if_match=None)
    asked = len(server.requests)
    server.fail_all(Hang(30))
    with pytest.raises(TransientStoreError, match="no answer in time"):
        store.read_whole("dir/small", len(CONTENT), if_match=None)
    assert len(server.requests) - asked == 1
    server.fail_all(None)


def test_where_it_never_works_it_is_left_alone_for_a_while(store: S3Store, server: HostileS3) -> None:
    server.fail_all(WrongLength(1000))
    for _ in range(MOST_UNUSABLE):
        with pytest.raises(HayloftError):
            store.read_whole("dir/small", len(CONTENT), if_match=None)
    asked = len(server.requests)
    with pytest.raises(HayloftError):
        store.read_whole("dir/small", len(CONTENT), if_match=None)
    assert len(server.requests) - asked == 1, "obstore alone was asked"


def test_while_it_is_left_alone_nothing_is_begun_either() -> None:
    with answering(OK + b"\r\nhello") as (whole, _server):
        assert whole.get("key", 5, "tag") is not None
        for _ in range(MOST_UNUSABLE):
            whole.note(usable=False)
        assert whole.begin("key", 5, "tag") is None
        assert whole.get("key", 5, "tag") is None


def test_an_answer_that_can_be_used_ends_the_count_of_those_that_cannot(store: S3Store, server: HostileS3) -> None:
    for _ in range(2):
        server.fail_all(WrongLength(1000))
        for _ in range(MOST_UNUSABLE - 1):
            with pytest.raises(HayloftError):
                store.read_whole("dir/small", len(CONTENT), if_match=None)
        server.fail_all(None)
        store.read_whole("dir/small", len(CONTENT), if_match=None)
        coming = store.begin_whole("dir/small", len(CONTENT), if_match=None)
        assert coming is not None
        coming.give_up()


def waited_for(coming: InFlightObject) -> Whole:
    """As the thread does it that has many of them."""
    poll = select.poll()
    while (whole := coming.advance()) is None:
        poll.register(coming.fileno(), coming.events)
        assert poll.poll(5000)
    return whole


def test_an_object_is_begun_over_an_idle_connection_or_a_new_one_and_never_waited_for(
    store: S3Store, server: HostileS3
) -> None:
    assert store.begin_whole("dir/small", len(CONTENT), if_match=None) is None, "the address is not known yet"
    store.read_whole("dir/small", len(CONTENT), if_match=None)
    connections = server.connections
    server.fail_next(Hang(30))
    coming = store.begin_whole("dir/other", len(CONTENT), if_match=None)
    assert coming is not None
    assert coming.advance() is None
    others = [store.begin_whole("dir/small", len(CONTENT), if_match=None) for _ in range(3)]
    for other in others:
        assert other is not None
        assert b"".join(waited_for(other).parts) == CONTENT
    assert server.connections - connections == 3, "the idle one has the object that hangs"
    coming.give_up()
    again = store.begin_whole("dir/other", len(CONTENT), if_match=None)
    assert again is not None
    assert b"".join(waited_for(again).parts) == CONTENT[::-1]
    assert server.connections - connections == 3


def test_a_store_that_cannot_be_trusted_has_the_error_that_says_so(
    authority: tuple[ssl.SSLContext, str],
) -> None:
    with HostileS3({"dir/small": CONTENT}, tls=authority[0]) as server:
        store = open_s3(DatasetUrl.parse("s3://data/dir"), options(server), Credentials(KEYS))
        with pytest.raises(EndpointUnreachable, match="cannot be trusted"):
            store.read_whole("dir/small", len(CONTENT), if_match=None)
        coming = store.begin_whole("dir/small", len(CONTENT), if_match=None)
        assert coming is not None, "the address is known"
        with pytest.raises(ssl.SSLError):
            waited_for(coming)
        coming.give_up()
        store.close()


@contextlib.contextmanager
def silent_address() -> Iterator[tuple[str, int]]:
    """Where connections are neither made nor refused: a listener whose queue is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, contextlib.ExitStack() as stack:
        address = listener.getsockname()
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(address)
        yield address


def test_an_address_that_does_not_answer_any_more_is_looked_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store has moved: its name leads elsewhere, and nothing refuses what goes to the place where it was."""
    monkeypatch.setattr("csi_driver.objects.http.in_flight_response.CONNECT_TIMEOUT_S", 0.2)
    with answering(OK + b"\r\nhello") as (whole, server), silent_address() as gone:
        for _ in range(2):
            whole._dialer._known = (socket.AF_INET, gone, math.inf)
            got = whole.get("key", 5, "tag")
            assert got is not None
            assert b"".join(got.parts) == b"hello"
            whole._idle.pop().close()
        begun = whole.begin("key", 5, "tag")
        assert begun is not None, "the address that answered is known now"
        begun.give_up()
        assert whole.begin("key", 5, "tag") is None, "it was given up before it was there"
        assert server.requests == 2


def test_a_store_that_was_closed_keeps_no_connection_that_comes_back_later() -> None:
    with answering(OK + b"\r\nhello") as (whole, _server):
        assert whole.get("key", 5, "tag") is not None
        coming = whole.begin("key", 5, "tag")
        assert coming is not None
        whole.close()
        assert b"".join(waited_for(coming).parts) == b"hello"
        assert coming.fileno() < 0
        assert not whole._idle


def test_idle_connections_are_bounded() -> None:
    with answering() as (whole, _server):
        pairs = [socket.socketpair() for _ in range(IDLE_LINKS + 1)]
        for mine, _ in pairs:
            whole.keep(Connection(mine, None, "store", connecting=False))
        assert [mine.fileno() < 0 for mine, _ in pairs] == [False] * IDLE_LINKS + [True]
        for _, theirs in pairs:
            theirs.close()


class Asked(S3Identity):
    """An identity that somebody has to be asked for."""

    def __init__(self, rotates: bool) -> None:
        self.asked, self._rotates = 0, rotates

    def keys(self) -> S3Keys:
        self.asked += 1
        return S3Keys("id", "secret", None, rotates=self._rotates)


@pytest.mark.parametrize("rotates", [False, True])
def test_who_must_not_wait_never_asks_for_keys(rotates: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(OK + b"\r\nhello") as (whole, _server):
        whole._identity = identity = Asked(rotates)
        assert whole.begin("key", 5, "tag") is None
        assert identity.asked == 0
        for _ in range(3):
            assert whole.get("key", 5, "tag") is not None
        assert identity.asked == 1
        coming = whole.begin("key", 5, "tag")
        assert coming is not None
        coming.give_up()
        assert whole.get("key", 5, "tag") is not None
        monkeypatch.setattr("csi_driver.objects.s3.whole_objects.time.monotonic", lambda: time.perf_counter() + 1e6)
        late = whole.begin("key", 5, "tag")
        assert (late is None) == rotates
        assert identity.asked == 1
        if late is not None:
            late.give_up()


def test_keys_that_are_no_path_of_their_own_take_another_way(store: S3Store, server: HostileS3) -> None:
    store.read_whole("dir/small", len(CONTENT), if_match=None)
    for key in ("dir//small", "dir/../small", "/dir/small", "dir/small/"):
        assert store.begin_whole(key, 5, if_match=None) is None
