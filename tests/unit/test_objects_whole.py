"""Whole small objects over plain HTTP: the signature, and every answer that is not the plain one."""

from __future__ import annotations

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
from csi_driver.model.errors import HayloftError, ObjectChanged, StoreUnavailable, TransientStoreError
from csi_driver.objects.credentials import S3Identity
from csi_driver.objects.endpoints import S3Address
from csi_driver.objects.mapping import Place
from csi_driver.objects.obstore_opening import open_s3
from csi_driver.objects.obstore_store import S3Store
from csi_driver.objects.opening import open_store
from csi_driver.objects.s3_whole import MOST_UNUSABLE, WholeObjects, speaks_plain_http
from csi_driver.objects.store import ReadsWhole
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

KEYS = {"access_key_id": "AKIDEXAMPLE", "secret_access_key": "secret"}
CONTENT = bytes(range(256)) * 500
PLACE = Place("http://store:9000", "bucket")


@pytest.fixture
def server() -> Iterator[HostileS3]:
    with HostileS3({"dir/small": CONTENT, "dir/other": CONTENT[::-1]}) as server:
        yield server


def options(server: HostileS3, **changes: object) -> StoreOptions:
    found = {"endpoint": server.endpoint, "region": "us-east-1", "request_timeout_s": 1.0, "deadline_s": 5.0}
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


def test_without_an_identity_nothing_is_signed() -> None:
    whole = WholeObjects(PLACE, S3Address("http://store/bucket", "r", False), None, timeout_s=1)
    request = whole._request("a b", None)
    assert request is not None
    path, headers = headers_of(request)
    assert path == "/bucket/a%20b"
    assert "authorization" not in headers


@pytest.mark.parametrize("etag", ['x"\r\nx-amz-acl: public', "ü", "a\nb"])
def test_what_no_header_can_hold_is_left_to_others(etag: str) -> None:
    whole = WholeObjects(PLACE, S3Address("http://store/bucket", "r", False), None, timeout_s=1)
    assert whole._request("key", etag) is None


def test_it_is_for_plain_http_without_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert speaks_plain_http("http://store:9000/bucket")
    assert not speaks_plain_http("https://store:9000/bucket")
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    assert not speaks_plain_http("http://store:9000/bucket")
    monkeypatch.setenv("no_proxy", "store")
    assert speaks_plain_http("http://store:9000/bucket")


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
    assert isinstance(store, ReadsWhole)
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
    assert isinstance(store, ReadsWhole)
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


def test_an_object_is_begun_over_a_connection_that_is_idle_and_never_waited_for(
    store: S3Store, server: HostileS3
) -> None:
    assert store.begin_whole("dir/small", len(CONTENT), if_match=None) is None, "nothing is connected yet"
    store.read_whole("dir/small", len(CONTENT), if_match=None)
    server.fail_next(Hang(30))
    coming = store.begin_whole("dir/other", len(CONTENT), if_match=None)
    assert coming is not None
    assert coming.advance() is None
    assert store.begin_whole("dir/small", len(CONTENT), if_match=None) is None, "the connection is in use"
    coming.give_up()
