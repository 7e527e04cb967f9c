"""The region of a bucket: asked for, named by the node's environment, or by a store that redirects."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import boto3
import pytest

from csi_driver.model.chunk import ByteRange
from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import InvalidParameter
from csi_driver.objects.s3.region import bucket_region, find_region
from csi_driver.objects.store import ObjectStore, read_whole
from csi_driver.objects.store_factory import open_store
from tests.support.attacker import without_proxies
from tests.support.forward_proxy import ForwardProxy
from tests.support.hostile_s3 import Fault, HostileS3, Request, S3Handler, Status, closed_port
from tests.support.moto_s3 import moto_endpoint
from tests.support.random_bytes import random_bytes
from tests.support.tls import trusted_tls

__all__ = ["moto_endpoint"]

OBJECTS = {"small": random_bytes(1, 3_000), "large": random_bytes(2, 6 << 20)}
KEYS = Credentials({"access_key_id": "AKIDEXAMPLE", "secret_access_key": "x"})


def test_the_region_of_a_bucket_is_found_without_credentials(moto_endpoint: str) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=moto_endpoint,
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
        region_name="eu-central-1",
    )
    client.create_bucket(Bucket="far-away", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    assert find_region("far-away", 5, moto_endpoint) == "eu-central-1"
    assert find_region("no-such-bucket", 5, moto_endpoint) is None
    assert find_region("far-away", 5, f"http://127.0.0.1:{closed_port()}") is None


class RegionalHandler(S3Handler):
    """Every error names a region, as those of AWS do. The bucket may be in the host's name."""

    hostile: RegionalS3

    def _parse(self) -> Request:
        if self.headers["Host"].startswith("data."):
            self.path = f"/data{self.path}"
        return super()._parse()

    def _error(self, fault: Status, more_headers: Mapping[str, str] | None = None) -> None:
        region = self.hostile.named
        body = f"<Error><Code>{fault.code}</Code><Region>{region}</Region></Error>".encode()
        header = {"x-amz-bucket-region": region} if fault.status == 301 else {}
        self._answer(fault.status, body, {**header, **(more_headers or {})})


class RegionalS3(HostileS3):
    """A bucket that is in one region, and refuses requests that are signed for another one."""

    handler = RegionalHandler

    def __init__(self, region: str, named: str, tls: ssl.SSLContext | None = None) -> None:
        """``named``: the region that its errors name."""
        super().__init__(OBJECTS, tls=tls)
        self.region, self.named = region, named

    def log(self, request: Request) -> Fault | None:
        fault = super().log(request)
        kinds = (request.kind,)
        if f"/{self.region}/s3/aws4_request" in request.headers.get("authorization", ""):
            return fault
        if "amazonaws" in request.headers["host"]:
            return Status(301, "PermanentRedirect", kinds=kinds)
        return Status(400, "AuthorizationHeaderMalformed", kinds=kinds)


def read_all(store: ObjectStore, first: str) -> None:
    """Begins with the operation ``first``."""
    with contextlib.closing(store):
        etag = store.stat("small").etag if first == "stat" else None
        if first == "list":
            assert [key for page in store.list("") for key in page.keys] == ["large", "small"]
        assert b"".join(read_whole(store, "small", 3_000, if_match=etag).parts) == OBJECTS["small"]
        assert b"".join(store.read_range("large", ByteRange(0, 5 << 20), if_match=None)) == OBJECTS["large"][: 5 << 20]
        assert [key for page in store.list("") for key in page.keys] == ["large", "small"]


def opened(region: str | None, **options: Any) -> ObjectStore:
    given = StoreOptions(region=region, deadline_s=5, request_timeout_s=5, **options)
    return open_store(DatasetUrl.parse("s3://data"), given, KEYS)


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[RegionalS3, ForwardProxy, str]]:
    """All hosts of AWS: a bucket in eu-west-1, reached through a proxy that resolves every name to it."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(without_proxies(monkeypatch))
        context, authority = stack.enter_context(
            trusted_tls("*.s3.us-west-2.amazonaws.com", "*.s3.eu-west-1.amazonaws.com")
        )
        server = stack.enter_context(RegionalS3("eu-west-1", "eu-west-1", context))
        proxy = stack.enter_context(ForwardProxy(upstream=f"127.0.0.1:{server.port}"))
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        yield server, proxy, authority


@pytest.mark.promise("S267")
@pytest.mark.parametrize("first", ["list", "stat", "read"])
def test_a_redirect_of_aws_that_names_the_region_is_followed_once(
    aws: tuple[RegionalS3, ForwardProxy, str], first: str
) -> None:
    server, _, authority = aws
    read_all(opened("us-west-2", ca_bundle_pem=authority), first)
    hosts = [request.headers["host"] for request in server.requests]
    assert hosts[0] == "data.s3.us-west-2.amazonaws.com"
    assert set(hosts[1:]) == {"data.s3.eu-west-1.amazonaws.com"}
    assert len(hosts) >= 4


@pytest.mark.promise("S267")
@pytest.mark.parametrize("named", ["us-west-2", "cn-north-1", "evil.example/", "", "eu-west-1"])
def test_a_region_that_does_not_help_is_an_error_that_says_so(
    aws: tuple[RegionalS3, ForwardProxy, str], named: str
) -> None:
    server, proxy, authority = aws
    server.region, server.named = "nowhere", named
    with pytest.raises(InvalidParameter, match="region") as caught:
        list(opened("us-west-2", ca_bundle_pem=authority).list(""))
    assert len(server.requests) == (2 if named == "eu-west-1" else 1)
    assert (repr(named) in str(caught.value)) == (named in ("us-west-2", "cn-north-1", "eu-west-1"))
    assert {target.rpartition(".")[2] for target in proxy.targets} == {"com:443"}


@pytest.mark.promise("S267")
@pytest.mark.parametrize("first", ["list", "stat", "read"])
def test_another_store_that_names_its_region_gets_signatures_for_it(first: str) -> None:
    with RegionalS3("garage", "garage") as server:
        read_all(opened(None, endpoint=server.endpoint), first)
        assert {request.headers["host"] for request in server.requests} == {f"127.0.0.1:{server.port}"}


@pytest.mark.promise("S267")
def test_threads_that_meet_the_redirect_together_all_go_on() -> None:
    with RegionalS3("garage", "garage") as server, ThreadPoolExecutor(8) as pool:
        store = opened(None, endpoint=server.endpoint)
        wanted = OBJECTS["large"][: 1 << 20]

        def read(_: int) -> bytes:
            return b"".join(store.read_range("large", ByteRange(0, 1 << 20), if_match=None))

        assert list(pool.map(read, range(16))) == [wanted] * 16


@pytest.mark.promise("S267")
@pytest.mark.parametrize("variable", ["AWS_REGION", "AWS_DEFAULT_REGION"])
def test_the_nodes_region_is_used_where_that_of_the_bucket_cannot_be_asked(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with without_proxies(monkeypatch), ForwardProxy(refuses=403) as proxy:
        monkeypatch.setenv("ALL_PROXY", proxy.url)
        monkeypatch.delenv("AWS_REGION", raising=False)
        monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
        assert bucket_region("data", StoreOptions()) == "us-east-1"
        monkeypatch.setenv(variable, "eu-west-1")
        assert bucket_region("data", StoreOptions()) == "eu-west-1"
        # The service of the node's region is asked: it knows all buckets, and a private network may have no other.
        assert proxy.targets == ["s3.amazonaws.com:443", "s3.eu-west-1.amazonaws.com:443"]
        assert bucket_region("data", StoreOptions(region="eu-north-1")) == "eu-north-1"
        monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
        assert bucket_region("data", StoreOptions()) == ("eu-west-1" if variable == "AWS_REGION" else "eu-central-1")


@pytest.mark.promise("S267")
@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("https://s3.eu-north-1.amazonaws.com", "eu-north-1"),
        ("https://s3.dualstack.eu-north-1.amazonaws.com", "eu-north-1"),
        ("https://s3-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ("https://bucket.vpce-1a2b-3c.s3.ap-southeast-2.vpce.amazonaws.com", "ap-southeast-2"),
        ("https://s3.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        ("https://s3.amazonaws.com", "eu-west-1"),
        ("https://s3.eu-north-1.example.com", "us-east-1"),
        ("http://minio:9000", "us-east-1"),
    ],
)
def test_an_endpoint_of_aws_has_the_region_of_its_name_and_those_of_others_the_default(
    endpoint: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert bucket_region("data", StoreOptions(endpoint=endpoint)) == expected


def test_a_region_of_the_environment_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu west")
    with pytest.raises(InvalidParameter, match="AWS_REGION: 'eu west'"):
        bucket_region("data", StoreOptions())
