"""Requests that a replica of the cluster's cache sends to a store in the name of a volume."""

from __future__ import annotations

import re

import pytest

from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.snapshot import VersionedKey
from csi_driver.objects.origin_requests import OriginRequest, request_signer
from csi_driver.objects.store_factory import open_store, open_store_late

S3 = DatasetUrl("s3", "bucket", "")
KEYS = Credentials({"access_key_id": "AKIDEXAMPLE", "secret_access_key": "secret", "session_token": "token"})
OPTIONS = StoreOptions(endpoint="https://s3.example.com", region="eu-west-1")
AZURE_KEY = "a2V5"


def request_of(
    url: DatasetUrl, options: StoreOptions, credentials: Credentials, key: str = "set/a b", etag: str = "1234567890"
) -> OriginRequest | None:
    signer = request_signer(open_store(url, options, credentials))
    return None if signer is None else signer.origin_request(key, etag, whole=True, may_block=True)


@pytest.mark.promise("S568")
def test_s3_signs_neither_range_nor_condition_and_the_url_holds_no_secret() -> None:
    found = request_of(S3, OPTIONS, KEYS)
    assert found is not None
    assert found.url == "https://s3.example.com/bucket/set/a%20b"
    assert found.if_match == '"1234567890"'
    signed = re.search(r"SignedHeaders=([^,]+),", found.headers["authorization"])
    assert signed is not None
    names = signed[1].split(";")
    assert names == sorted({"host", *found.headers} - {"authorization"}), "every header of Amazon is signed"
    assert not {"range", "if-match"} & set(names)
    assert found.headers["x-amz-security-token"] == "token"
    assert found.headers["x-amz-checksum-mode"] == "ENABLED"


def test_a_version_is_named_and_an_anonymous_request_has_no_signature() -> None:
    found = request_of(S3, OPTIONS, KEYS, VersionedKey("a", "v/1"))
    assert found is not None
    assert found.url == "https://s3.example.com/bucket/a?versionId=v%2F1"
    anonymous = request_of(S3, StoreOptions(endpoint="https://s3.example.com", anonymous=True), Credentials())
    assert anonymous is not None
    assert "authorization" not in anonymous.headers


def test_a_part_of_an_object_has_no_checksum() -> None:
    signer = request_signer(open_store(S3, OPTIONS, KEYS))
    assert signer is not None
    found = signer.origin_request("a", "1", whole=False, may_block=True)
    assert found is not None
    assert "x-amz-checksum-mode" not in found.headers


def test_google_has_the_generation_in_the_url_and_the_stored_bytes() -> None:
    url = DatasetUrl("gs", "bucket", "")
    found = request_of(url, StoreOptions(endpoint="https://gcs.example.com", anonymous=True), Credentials())
    assert found is not None
    expected = "https://gcs.example.com/storage/v1/b/bucket/o/set%2Fa%20b?alt=media&ifGenerationMatch=1234567890"
    assert found == OriginRequest(expected, {"accept-encoding": "gzip"}, "", found.answers)
    assert found.answers.version({"x-goog-generation": "1234567890"}) == "1234567890"


@pytest.mark.promise("S568")
@pytest.mark.parametrize(
    ("secret", "sent"),
    [
        ({"access_token": "bearer"}, True),
        ({"account_key": AZURE_KEY}, False),
        ({"sas_token": "sv=1&sig=secret"}, False),
    ],
)
def test_azure_signs_for_others_with_a_token_alone(secret: dict[str, str], sent: bool) -> None:
    """A key signs the range; a shared access signature would be in URLs, which nginx logs where something fails."""
    url, options = DatasetUrl("az", "container", ""), StoreOptions(endpoint="https://blobs.example.com")
    found = request_of(url, options, Credentials({"account_name": "account", **secret}))
    assert (found is not None) == sent
    if found is not None:
        assert found.url == "https://blobs.example.com/container/set/a%20b"
        assert found.headers["authorization"] == "Bearer bearer"


def test_a_store_through_a_proxy_and_one_without_requests_sign_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert request_signer(open_store(DatasetUrl("file", "", "srv/"), StoreOptions(), Credentials())) is None
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.com:3128")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert request_of(S3, OPTIONS, KEYS) is None


def test_a_store_that_is_opened_late_signs_once_it_is_open() -> None:
    store = open_store_late(S3, OPTIONS, lambda: KEYS)
    assert request_signer(store) is None
    assert store.origin_request("a", "1", whole=True, may_block=True) is not None  # type: ignore[attr-defined]
    assert request_signer(store) is not None
