"""When an object of a mirror is the same: by ETag, by checksum, or not."""

from __future__ import annotations

import hashlib

import crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.objects.checksums import Checksum, StoredChecksum, from_google_hash, from_s3_headers
from csi_driver.objects.mirrors.same_object import ObjectEvidence, SameBy, differ, is_of_content, same_by

pytestmark = pytest.mark.promise("S640")

ONE, OTHER = hashlib.md5(b"one").hexdigest(), hashlib.md5(b"other").hexdigest()  # noqa: S324


def _stored(*checksums: Checksum) -> StoredChecksum:
    return StoredChecksum(next(iter(checksums), None), True, checksums)


def test_equal_etags_of_content_are_the_same_object() -> None:
    assert same_by(ObjectEvidence(ONE), ObjectEvidence(ONE)) is SameBy.ETAG
    assert same_by(ObjectEvidence(f"{ONE}-12"), ObjectEvidence(f"{ONE}-12")) is SameBy.ETAG
    assert same_by(ObjectEvidence(f"{ONE}-12"), ObjectEvidence(f"{ONE}-6")) is None
    assert same_by(ObjectEvidence(ONE), ObjectEvidence(OTHER)) is None


@pytest.mark.parametrize("etag", ["1700000000000000", "0x8DC0FFEE", f"W/{ONE}", "5f3a-1c", "", None])
def test_equal_etags_that_are_not_made_of_the_bytes_show_nothing(etag: str | None) -> None:
    assert not is_of_content(etag)
    assert same_by(ObjectEvidence(etag), ObjectEvidence(etag)) is None


def test_checksums_of_one_kind_decide_whatever_the_etags_are() -> None:
    same = Checksum("crc32c", crc32c.crc32c(b"one").to_bytes(4, "big"))
    other = Checksum("crc32c", crc32c.crc32c(b"other").to_bytes(4, "big"))
    listed = ObjectEvidence(f"{ONE}-2", _stored(same))
    assert same_by(listed, ObjectEvidence("1700000000000000", _stored(same))) is SameBy.CHECKSUM
    assert same_by(listed, ObjectEvidence("1700000000000000", _stored(other))) is None
    assert differ(listed, ObjectEvidence("1700000000000000", _stored(other)))
    foreign = ObjectEvidence("1700000000000000", _stored(Checksum("crc64nvme", bytes(8))))
    assert same_by(listed, foreign) is None
    assert not differ(listed, foreign)


def test_one_checksum_that_differs_outweighs_one_that_is_equal() -> None:
    crc, sha = Checksum("crc32c", bytes(4)), Checksum("sha1", bytes(20))
    listed = ObjectEvidence(None, _stored(crc, sha))
    assert same_by(listed, ObjectEvidence(None, _stored(crc, Checksum("sha1", bytes(range(20)))))) is None


def test_an_etag_that_is_an_md5_equals_the_md5_of_another_service() -> None:
    google = from_google_hash(f"crc32c=AAAAAA==,md5={_base64(ONE)}", etag_may_be_md5=False)
    assert same_by(ObjectEvidence(ONE), ObjectEvidence("1700000000000000", google)) is SameBy.CHECKSUM
    assert same_by(ObjectEvidence(OTHER), ObjectEvidence("1700000000000000", google)) is None
    assert same_by(ObjectEvidence(f"{ONE}-2"), ObjectEvidence("1700000000000000", google)) is None


def test_a_checksum_of_parts_is_none() -> None:
    headers = {"etag": f'"{ONE}-2"', "x-amz-checksum-crc32c": "AAAAAA==-2", "x-amz-checksum-type": "COMPOSITE"}
    stored = from_s3_headers(headers)
    assert same_by(ObjectEvidence(f"{ONE}-2", stored), ObjectEvidence(f"{OTHER}-2", stored)) is None


@given(st.binary(max_size=64), st.binary(max_size=64), st.integers(0, 2))
def test_two_contents_are_the_same_only_if_their_bytes_are(one: bytes, other: bytes, form: int) -> None:
    def evidence(content: bytes) -> ObjectEvidence:
        digest = hashlib.md5(content)  # noqa: S324
        etag = (digest.hexdigest(), f"{digest.hexdigest()}-1", "17")[form]
        return ObjectEvidence(etag, _stored(Checksum("md5", digest.digest())))

    assert (same_by(evidence(one), evidence(other)) is not None) == (one == other)


def _base64(digits: str) -> str:
    import base64

    return base64.b64encode(bytes.fromhex(digits)).decode()
