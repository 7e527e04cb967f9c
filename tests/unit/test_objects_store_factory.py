"""Opening a store by its URL; endpoints, addresses and regions."""

from __future__ import annotations

import google.auth.jwt
import pytest
from cryptography.hazmat.primitives import serialization

from csi_driver.model.chunk import ByteRange
from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import (
    BucketNotFound,
    InvalidParameter,
    MissingParameter,
    ObjectChanged,
    ObjectNotFound,
    UnsupportedUrl,
)
from csi_driver.objects.endpoints import parse_endpoint, service_endpoint
from csi_driver.objects.s3.addressing import s3_address
from csi_driver.objects.store_factory import open_store
from tests.support.hostile_clouds import HostileGoogle
from tests.support.hostile_s3 import HostileS3, IgnoreIfMatch
from tests.support.secrets_of_stores import google_secret, private_key_pem

KEYS = Credentials({"access_key_id": "AKIDEXAMPLE", "secret_access_key": "x"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://Host:9000/", "http://host:9000"),
        ("https://host:443", "https://host"),
        ("http://host:80/base/", "http://host/base"),
        ("https://[::1]:9000", "https://[::1]:9000"),
    ],
)
def test_an_endpoint_is_normalised(text: str, expected: str) -> None:
    assert parse_endpoint(text) == expected


@pytest.mark.parametrize("text", ["host:9000", "ftp://host", "http://", "http://host:port", "http://host?x=1", ""])
def test_an_invalid_endpoint_is_rejected(text: str) -> None:
    with pytest.raises(InvalidParameter, match="endpoint"):
        parse_endpoint(text)


def test_a_password_in_an_endpoint_is_rejected_and_not_shown() -> None:
    with pytest.raises(InvalidParameter) as caught:
        parse_endpoint("http://user:geheim@host")
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    ("bucket", "options", "expected"),
    [
        ("bkt", StoreOptions(), "https://bkt.s3.eu-west-1.amazonaws.com"),
        ("b.k.t", StoreOptions(), "https://s3.eu-west-1.amazonaws.com/b.k.t"),
        ("bkt", StoreOptions(addressing_style="path"), "https://s3.eu-west-1.amazonaws.com/bkt"),
        ("bkt", StoreOptions(endpoint="http://127.0.0.1:9000"), "http://127.0.0.1:9000/bkt"),
        ("bkt", StoreOptions(endpoint="http://store:9000"), "http://store:9000/bkt"),
        ("bkt", StoreOptions(endpoint="http://store:9000", addressing_style="virtual"), "http://bkt.store:9000"),
    ],
)
def test_a_bucket_is_addressed_in_path_or_virtual_style(bucket: str, options: StoreOptions, expected: str) -> None:
    assert s3_address(bucket, options, "eu-west-1").base_url == expected


def test_virtual_style_needs_a_name_and_not_an_address() -> None:
    options = StoreOptions(endpoint="http://127.0.0.1:9000", addressing_style="virtual")
    with pytest.raises(InvalidParameter, match="path"):
        s3_address("bkt", options, "us-east-1")


def test_virtual_style_puts_the_bucket_into_the_host_for_every_client(monkeypatch: pytest.MonkeyPatch) -> None:
    with HostileS3() as proxy:
        # Requests for any host go to the proxy, so no name has to resolve here.
        monkeypatch.setenv("http_proxy", proxy.endpoint)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        options = StoreOptions(endpoint="http://store.example:9000", addressing_style="virtual", deadline_s=2)
        store = open_store(DatasetUrl.parse("s3://data"), options, KEYS)
        for key in ("plain", "odd//key"):
            with pytest.raises(BucketNotFound):
                list(store.read_range(key, ByteRange(0, 10), if_match=None))
        assert [request.headers["host"] for request in proxy.requests] == ["data.store.example:9000"] * 2


def test_the_environment_does_not_redirect_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1"}
    for name, value in (elsewhere | {"AWS_SKIP_SIGNATURE": "true", "AWS_SESSION_TOKEN": "stray"}).items():
        monkeypatch.setenv(name, value)
    with HostileS3({"key": b"0123456789"}) as server:
        store = open_store(DatasetUrl.parse("s3://data"), StoreOptions(endpoint=server.endpoint, deadline_s=2), KEYS)
        assert b"".join(store.read_range("key", ByteRange(0, 10), if_match=None)) == b"0123456789"
        (request,) = server.requests
    assert "Credential=AKIDEXAMPLE/" in request.headers["authorization"]
    assert "x-amz-security-token" not in request.headers


def test_a_session_token_is_sent() -> None:
    credentials = Credentials({**KEYS.values, "session_token": "the-token"})
    with HostileS3({"key": b"0123456789", "odd//key": b"0123456789"}) as server:
        store = open_store(DatasetUrl.parse("s3://data"), StoreOptions(endpoint=server.endpoint), credentials)
        for key in ("key", "odd//key"):
            list(store.read_range(key, ByteRange(0, 10), if_match=None))
        assert [request.headers["x-amz-security-token"] for request in server.requests] == ["the-token"] * 2


def test_the_endpoint_identifies_the_service() -> None:
    options = StoreOptions()
    assert service_endpoint(DatasetUrl.parse("s3://b"), options, KEYS) == "https://s3.amazonaws.com"
    assert service_endpoint(DatasetUrl.parse("gs://b"), options, KEYS) == "https://storage.googleapis.com"
    azure = Credentials({"account_name": "acct"})
    assert service_endpoint(DatasetUrl.parse("az://b"), options, azure) == "https://acct.blob.core.windows.net"
    assert service_endpoint(DatasetUrl.parse("https://Host/x"), options, KEYS) == "https://host"


def test_an_azure_dataset_without_account_is_rejected_by_field(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(MissingParameter, match="account_name"):
        open_store(DatasetUrl.parse("az://container"), StoreOptions(), Credentials())


@pytest.mark.parametrize(
    ("url", "credentials", "options"),
    [
        ("gs://b", Credentials({"service_account_json": "no json geheim"}), StoreOptions()),
        ("az://b", Credentials({"account_name": "a", "account_key": "!! geheim !!"}), StoreOptions()),
    ],
)
def test_an_unusable_key_is_rejected_and_not_shown(url: str, credentials: Credentials, options: StoreOptions) -> None:
    with pytest.raises(InvalidParameter) as caught:
        open_store(DatasetUrl.parse(url), options, credentials)
    assert "geheim" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("scheme", ["nosuch", "local", "reference", "simplecache", "zip", "dir", "filecache", "git"])
def test_an_unknown_or_unsafe_scheme_is_rejected_with_the_supported_ones(scheme: str) -> None:
    with pytest.raises(UnsupportedUrl, match=r"s3://.*fsspec"):
        open_store(DatasetUrl.parse(f"{scheme}://bucket/x"), StoreOptions(), Credentials())


@pytest.mark.parametrize("url", ["s3://user@evil.example", "s3://a b/x", "gs://b%2f", "az://-x"])
def test_an_invalid_bucket_name_is_rejected(url: str) -> None:
    with pytest.raises(InvalidParameter, match="url"):
        open_store(DatasetUrl.parse(url), StoreOptions(anonymous=True), Credentials({"account_name": "a"}))


@pytest.mark.parametrize("backend", ["auto", "s3fs"])
@pytest.mark.parametrize("pem", ["", "/etc/ssl/ca.pem", "-----BEGIN CERTIFICATE-----\nno\n-----END CERTIFICATE-----"])
def test_an_invalid_ca_bundle_is_rejected(backend: str, pem: str) -> None:
    options = StoreOptions(endpoint="https://127.0.0.1:1", ca_bundle_pem=pem, backend=backend)  # type: ignore[arg-type]
    with pytest.raises(InvalidParameter, match="CA bundle"):
        open_store(DatasetUrl.parse("s3://data"), options, KEYS)


def test_a_chained_url_is_rejected() -> None:
    with pytest.raises(UnsupportedUrl):
        open_store(DatasetUrl("memory", "x::file:", "/etc/"), StoreOptions(), Credentials())


def test_a_missing_package_is_named() -> None:
    with pytest.raises(UnsupportedUrl, match="boxfs"):
        open_store(DatasetUrl.parse("box://x/y"), StoreOptions(), Credentials())


def test_s3fs_is_for_s3_only() -> None:
    with pytest.raises(InvalidParameter, match="backend"):
        open_store(DatasetUrl.parse("gs://b"), StoreOptions(backend="s3fs"), Credentials())


class TestGoogle:
    """GCS by its JSON API."""

    def test_objects_are_listed_and_read_with_their_generation(self) -> None:
        with HostileGoogle({"dir/a": b"0123456789"}, bucket="bkt") as server:
            options = StoreOptions(endpoint=server.endpoint, deadline_s=2)
            store = open_store(DatasetUrl.parse("gs://bkt/dir"), options, Credentials(google_secret()))
            (page,) = store.list("dir/")
            assert (page.keys, page.sizes_bytes, page.etags) == (["dir/a"], [10], [server.etag("dir/a")])
            assert b"".join(store.read_range("dir/a", ByteRange(2, 5), if_match=page.etags[0])) == b"234"
            assert server.requests[-1].query["ifGenerationMatch"] == server.etag("dir/a")
            server.put("dir/a", b"9876543210")
            server.fail_next(IgnoreIfMatch())
            for _ in range(2):  # by the generation of the answer, and by the condition
                with pytest.raises(ObjectChanged):
                    list(store.read_range("dir/a", ByteRange(2, 5), if_match=page.etags[0]))

    def test_a_token_is_signed_by_the_key_of_the_secret_and_used_until_it_expires(self) -> None:
        with HostileGoogle({"dir/a": b"0123456789"}) as server:
            options = StoreOptions(endpoint=server.endpoint, deadline_s=2)
            store = open_store(DatasetUrl.parse("gs://data/dir"), options, Credentials(google_secret()))
            for _ in range(3):
                list(store.read_range("dir/a", ByteRange(2, 5), if_match=None))
            list(store.list("dir/"))
            (sent,) = {request.headers["authorization"] for request in server.requests}
        key = serialization.load_pem_private_key(private_key_pem().encode(), None).public_key()
        pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        claims = google.auth.jwt.decode(sent.removeprefix("Bearer "), certs=pem)
        assert claims["iss"] == "trainer@project-1.iam.gserviceaccount.com"
        assert claims["scope"] == "https://www.googleapis.com/auth/devstorage.read_only"
        assert "aud" not in claims


class TestWeb:
    """A plain web server."""

    def test_an_object_is_read_by_name_with_its_etag(self) -> None:
        with HostileS3({"dir/a": b"0123456789"}, bucket="www") as server:
            url = DatasetUrl.parse(f"{server.endpoint}/www/dir/a")
            store = open_store(url, StoreOptions(deadline_s=2), Credentials())
            info = store.stat("www/dir/a")
            assert (info.size_bytes, info.etag) == (10, server.etag("dir/a"))
            assert b"".join(store.read_range("www/dir/a", ByteRange(2, 5), if_match=info.etag)) == b"234"
            with pytest.raises(ObjectNotFound):
                store.stat("www/dir/none")
            assert list(store.list("www/none/")) == []
