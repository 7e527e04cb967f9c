"""A store that misbehaves on the wire, read by each of the three clients of S3."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from csi_driver.model.chunk import ByteRange
from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import (
    AccessDenied,
    BucketNotFound,
    CredentialsRejected,
    EndpointUnreachable,
    HayloftError,
    InvalidParameter,
    ObjectChanged,
    ObjectNotFound,
    StoreProtocolError,
    StoreUnavailable,
    TransientStoreError,
)
from csi_driver.objects.store import ObjectStore
from csi_driver.objects.store_factory import open_store
from tests.support.hostile_s3 import (
    CloseAfter,
    Fault,
    Hang,
    HostileS3,
    IgnoreIfMatch,
    IgnoreRange,
    ReplaceAfter,
    ResetAfter,
    ShortRange,
    Status,
    TooMany,
    WrongRange,
    closed_port,
)
from tests.support.tls import trusted_tls

SECRET = "SecretThatMustNeverBeSeen"
KEYS = Credentials({"access_key_id": "AKIDEXAMPLE", "secret_access_key": SECRET})
CONTENT = bytes(range(256)) * 12_000  # 3 MB: several pieces for each client
CLIENTS = {"obstore": ("auto", "dir/plain"), "rest": ("auto", "dir//odd"), "s3fs": ("s3fs", "dir/plain")}


@pytest.fixture
def server() -> Iterator[HostileS3]:
    with HostileS3({"dir/plain": CONTENT, "dir//odd": CONTENT}) as server:
        yield server


class S3Client:
    """One of the three clients, and a key that it reads."""

    def __init__(self, name: str, server: HostileS3) -> None:
        self.backend, self.key = CLIENTS[name]
        self.server = server

    def open(self, deadline_s: float = 20.0, timeout_s: float = 10.0) -> ObjectStore:
        options = StoreOptions(
            endpoint=self.server.endpoint,
            backend=self.backend,  # type: ignore[arg-type]
            request_timeout_s=timeout_s,
            deadline_s=deadline_s,
        )
        return open_store(DatasetUrl.parse(f"s3://{self.server.bucket}"), options, KEYS)

    def read(
        self, start: int = 0, stop: int = len(CONTENT), deadline_s: float = 20.0, timeout_s: float = 10.0
    ) -> bytes:
        store = self.open(deadline_s, timeout_s)
        etag = self.server.etag(self.key)
        return b"".join(store.read_range(self.key, ByteRange(start, stop), if_match=etag))


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest, server: HostileS3) -> S3Client:
    return S3Client(request.param, server)


@pytest.mark.parametrize(
    "fault",
    [
        Status(429, "TooManyRequests"),
        Status(500),
        Status(502, xml=False),
        Status(503, "SlowDown"),
        Status(503, xml=False),
        Status(504, xml=False),
        Status(408, "RequestTimeout"),
        Status(400, "RequestTimeout"),
        ResetAfter(0),
        ResetAfter(1_500_000),
        CloseAfter(0),
        CloseAfter(1_500_000),
        ShortRange(10),
    ],
    ids=str,
)
def test_a_transient_failure_is_retried(client: S3Client, fault: Fault) -> None:
    client.server.fail_next(fault)
    assert client.read() == CONTENT
    assert client.server.faults_left == 0
    assert len(client.server.seen("GET")) == 2


def test_a_small_range_survives_several_failures(client: S3Client) -> None:
    client.server.fail_next(Status(503, "SlowDown"), ResetAfter(100), CloseAfter(100), ShortRange(5))
    assert client.read(1000, 2000) == CONTENT[1000:2000]
    assert len(client.server.seen("GET")) == 5


def test_a_burst_of_503_is_retried(client: S3Client) -> None:
    client.server.fail_next(*(Status(503, "SlowDown") for _ in range(4)))
    assert client.read(0, 10) == CONTENT[:10]


def test_a_broken_read_resumes_with_the_rest_and_the_same_condition(client: S3Client) -> None:
    client.server.fail_next(ResetAfter(2_500_000))
    assert client.read() == CONTENT
    first, second = client.server.seen("GET")
    assert first.headers["range"] == f"bytes=0-{len(CONTENT) - 1}"
    start, _, last = second.headers["range"].removeprefix("bytes=").partition("-")
    assert 0 < int(start) <= 2_500_000
    assert int(last) == len(CONTENT) - 1
    assert first.headers["if-match"] == second.headers["if-match"] == f'"{client.server.etag(client.key)}"'


def test_a_request_that_hangs_times_out_and_is_retried(client: S3Client) -> None:
    client.server.fail_next(Hang(30), Hang(30, body_bytes=1_200_000))
    assert client.read(timeout_s=0.5) == CONTENT
    assert len(client.server.seen("GET")) == 3


def test_an_object_that_is_replaced_during_a_read_raises_object_changed(client: S3Client) -> None:
    etag = client.server.etag(client.key)
    client.server.fail_next(ReplaceAfter(2_000_000, bytes(len(CONTENT))))
    got: list[memoryview] = []
    with pytest.raises(ObjectChanged):
        got.extend(client.open().read_range(client.key, ByteRange(0, len(CONTENT)), if_match=etag))
    assert CONTENT.startswith(b"".join(got))


def test_a_store_that_ignores_if_match_is_detected(client: S3Client) -> None:
    etag = client.server.etag(client.key)
    client.server.put(client.key, bytes(len(CONTENT)))
    client.server.fail_next(IgnoreIfMatch())
    with pytest.raises(ObjectChanged):
        list(client.open().read_range(client.key, ByteRange(0, 10), if_match=etag))


@pytest.mark.parametrize("stop", [1000, len(CONTENT) - 100])
@pytest.mark.parametrize("fault", [IgnoreRange(), TooMany(50), WrongRange(50)], ids=str)
def test_bytes_outside_the_requested_range_are_never_returned(client: S3Client, fault: Fault, stop: int) -> None:
    client.server.fail_next(fault)
    with pytest.raises(StoreProtocolError):
        client.read(0, stop)


def test_a_body_longer_than_its_content_range_gives_no_wrong_byte(client: S3Client) -> None:
    client.server.fail_next(TooMany(50, honest=False))
    try:
        assert client.read(0, 2_000_000) == CONTENT[:2_000_000]
    except StoreProtocolError:
        return


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Status(403, "AccessDenied"), AccessDenied),
        (Status(403, "InvalidAccessKeyId"), CredentialsRejected),
        (Status(403, "SignatureDoesNotMatch"), CredentialsRejected),
        (Status(403, "RequestTimeTooSkewed"), CredentialsRejected),
        (Status(400, "ExpiredToken"), CredentialsRejected),
        (Status(401, "Unauthorized"), CredentialsRejected),
        (Status(404, "NoSuchKey"), ObjectNotFound),
        (Status(404, "NoSuchBucket"), BucketNotFound),
        (Status(412, "PreconditionFailed"), ObjectChanged),
        (Status(416, "InvalidRange"), ObjectChanged),
        (Status(400, "AuthorizationHeaderMalformed"), InvalidParameter),
        (Status(400, "InvalidRequest"), StoreProtocolError),
    ],
    ids=lambda value: value.code if isinstance(value, Status) else None,
)
def test_a_permanent_failure_is_mapped_and_not_retried(
    client: S3Client, fault: Status, error: type[HayloftError]
) -> None:
    client.server.fail_next(fault)
    with pytest.raises(error) as caught:
        client.read(0, 10)
    assert len(client.server.seen("GET")) == 1
    assert not isinstance(caught.value, TransientStoreError)
    assert SECRET not in str(caught.value)


def test_a_store_that_keeps_failing_is_unavailable_after_the_deadline(client: S3Client) -> None:
    client.server.fail_next(*(Status(503, "SlowDown") for _ in range(1000)))
    with pytest.raises(StoreUnavailable, match="SlowDown"):
        client.read(0, 10, deadline_s=2)


def test_retry_after_is_honoured_where_the_header_is_exposed(server: HostileS3) -> None:
    client = S3Client("rest", server)
    server.fail_next(Status(429, "TooManyRequests", retry_after_s=1))
    began = time.monotonic()
    client.read(0, 10)
    assert time.monotonic() - began >= 1


def test_every_page_of_a_listing_may_fail_once() -> None:
    keys = [f"k{number:03}" for number in range(25)]
    with HostileS3(dict.fromkeys(keys, b"x"), page_keys=10) as server:
        for fault in (Status(503, "SlowDown"), CloseAfter(20)):
            for _ in range(3):
                server.fail_next(fault.__class__(**_with_kind(fault, "LIST")))
        for name in ("obstore", "s3fs"):
            pages = S3Client(name, server).open().list("k")
            assert [key for page in pages for key in page.keys] == keys


def _with_kind(fault: Fault, kind: str) -> dict[str, Any]:
    return {name: getattr(fault, name) for name in fault.__dataclass_fields__} | {"kinds": (kind,)}


def test_a_response_that_is_not_a_listing_is_a_protocol_error(server: HostileS3) -> None:
    server.fail_next(Status(200, kinds=("LIST",)), Status(200, xml=False, kinds=("LIST",)))
    store = S3Client("obstore", server).open()
    with pytest.raises(StoreProtocolError, match="is this an S3 endpoint"):
        list(store.list(""))
    with pytest.raises(StoreProtocolError, match="no valid XML"):
        list(store.list(""))


@pytest.mark.parametrize("name", ["obstore", "s3fs"])
class TestFirstContact:
    """Errors for wrong configuration."""

    def test_a_missing_bucket_is_distinguished_from_a_missing_object(self, name: str, server: HostileS3) -> None:
        store = S3Client(name, server).open()
        with pytest.raises(ObjectNotFound, match="nothing"):
            store.stat("nothing")
        server.bucket = "renamed"
        for action in (lambda: list(store.list("")), lambda: store.stat("dir/plain")):
            with pytest.raises(BucketNotFound, match=r"'data'.*check its name"):
                action()

    def test_wrong_credentials_are_distinguished_from_missing_permission(self, name: str, server: HostileS3) -> None:
        store = S3Client(name, server).open()
        server.fail_next(Status(403, kinds=("HEAD",)), Status(403, "InvalidAccessKeyId", kinds=("LIST",)))
        with pytest.raises(CredentialsRejected, match="renew"):
            store.stat("dir/plain")
        server.fail_next(Status(403, kinds=("HEAD",)), Status(403, "AccessDenied", kinds=("LIST",)))
        with pytest.raises(AccessDenied, match="grant"):
            store.stat("dir/plain")

    def test_a_port_where_nothing_listens_is_unreachable(self, name: str, server: HostileS3) -> None:
        endpoint = f"http://127.0.0.1:{closed_port()}"
        options = StoreOptions(endpoint=endpoint, backend=CLIENTS[name][0])  # type: ignore[arg-type]
        store = open_store(DatasetUrl.parse("s3://data"), options, KEYS, deadline_s=0.5)
        for action in (
            lambda: list(store.list("")),
            lambda: store.stat("x"),
            lambda: list(store.read_range("x", ByteRange(0, 1), if_match=None)),
        ):
            with pytest.raises(EndpointUnreachable, match=endpoint):
                action()

    def test_a_host_that_does_not_exist_is_unreachable(self, name: str, server: HostileS3) -> None:
        options = StoreOptions(endpoint="http://nowhere.invalid", backend=CLIENTS[name][0])  # type: ignore[arg-type]
        store = open_store(DatasetUrl.parse("s3://data"), options, KEYS, deadline_s=0.5)
        with pytest.raises(EndpointUnreachable, match=r"nowhere\.invalid"):
            list(store.list(""))

    def test_a_private_authority_is_trusted_only_with_its_certificate(self, name: str, server: HostileS3) -> None:
        with trusted_tls() as (context, pem), HostileS3({"dir/plain": CONTENT}, tls=context) as secure:
            for bundle in (None, pem):
                options = StoreOptions(
                    endpoint=secure.endpoint,
                    backend=CLIENTS[name][0],  # type: ignore[arg-type]
                    ca_bundle_pem=bundle,
                )
                store = open_store(DatasetUrl.parse("s3://data"), options, KEYS, deadline_s=5)
                if bundle is None:
                    with pytest.raises(EndpointUnreachable, match="CA bundle"):
                        list(store.list(""))
                    with pytest.raises(EndpointUnreachable, match="CA bundle"):
                        list(store.read_range("dir/plain", ByteRange(0, 5), if_match=None))
                else:
                    assert [page.keys for page in store.list("")] == [["dir/plain"]]
                    pieces = store.read_range("dir/plain", ByteRange(0, len(CONTENT)), if_match=None)
                    assert b"".join(pieces) == CONTENT

    def test_requests_are_signed_unless_anonymous(self, name: str, server: HostileS3) -> None:
        for anonymous in (False, True):
            server.requests.clear()
            options = StoreOptions(
                endpoint=server.endpoint,
                backend=CLIENTS[name][0],  # type: ignore[arg-type]
                anonymous=anonymous,
            )
            store = open_store(DatasetUrl.parse("s3://data"), options, Credentials() if anonymous else KEYS)
            list(store.list(""))
            list(store.read_range("dir/plain", ByteRange(0, 5), if_match=None))
            assert all(("authorization" in request.headers) is not anonymous for request in server.requests)

    def test_requester_pays_is_sent_if_set(self, name: str, server: HostileS3) -> None:
        options = StoreOptions(endpoint=server.endpoint, backend=CLIENTS[name][0], requester_pays=True)  # type: ignore[arg-type]
        store = open_store(DatasetUrl.parse("s3://data"), options, KEYS)
        list(store.list(""))
        list(store.read_range("dir/plain", ByteRange(0, 5), if_match=None))
        assert [request.headers.get("x-amz-request-payer") for request in server.requests] == ["requester"] * 2
