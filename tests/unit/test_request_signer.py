"""What signatures of one second have in common is computed once, and no signature changes another."""

from __future__ import annotations

import pytest

from csi_driver.objects.s3.addressing import S3Address
from csi_driver.objects.s3.identity import S3Keys
from csi_driver.objects.s3.s3_clients import S3SmallObjectClient
from csi_driver.objects.s3.signing import RequestSigner
from csi_driver.objects.store_location import StoreLocation

KEYS = S3Keys("id", "secret", None, rotates=False)


def test_signatures_of_one_second_are_those_of_signers_of_their_own() -> None:
    signer = RequestSigner("r")
    for keys in (KEYS, S3Keys("other", "secret", None, rotates=False), S3Keys("id", "else", None, rotates=True), KEYS):
        for now in ("20261231T235959Z", "20270101T000000Z", "20270101T000001Z"):
            for path in ("/a", "/b", "/a"):
                headers = {"host": "store", "x-amz-date": now}
                found = signer.authorization(keys, path, now, headers)
                assert found == RequestSigner("r").authorization(keys, path, now, headers)


def test_the_signature_is_that_of_rfc_2104() -> None:
    """By ``hmac`` of the standard library, over the text that AWS documents."""
    import hashlib
    import hmac

    now, day = "20261231T235959Z", "20261231"
    key = b"AWS4secret"
    for part in (day, "r", "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    empty = hashlib.sha256(b"").hexdigest()
    canonical = f"GET\n/key\n\nhost:store\n\nhost\n{empty}"
    text = f"AWS4-HMAC-SHA256\n{now}\n{day}/r/s3/aws4_request\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    expected = hmac.new(key, text.encode(), "sha256").hexdigest()
    signed = RequestSigner("r").authorization(KEYS, "/key", now, {"host": "store"})
    assert signed.endswith(f"SignedHeaders=host, Signature={expected}")


def test_the_date_of_a_request_follows_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1_798_761_599.2
    monkeypatch.setattr("csi_driver.objects.s3.s3_clients.time.time", lambda: now_s)
    location = StoreLocation("http://store", "bucket")
    client = S3SmallObjectClient(location, S3Address("http://store/bucket", "r", False), None, timeout_s=1)
    dates = []
    for step_s in (0.0, 0.7, 0.2, -5.0):
        now_s += step_s
        request = client._build_request("key", None)
        assert request is not None
        dates.append(request.decode().split("x-amz-date: ")[1].split("\r\n")[0])
    assert dates == ["20261231T235959Z", "20261231T235959Z", "20270101T000000Z", "20261231T235955Z"]
