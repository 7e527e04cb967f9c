"""Checksums of complete objects: parsed from headers, and combined from chunks."""

from __future__ import annotations

import base64
import hashlib
import zlib

import crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.objects.checksums import (
    Checksum,
    StoredChecksum,
    combined_crc32c,
    from_google_hash,
    from_s3_headers,
    md5_of_etag,
    new_checksum,
)

CHECK = b"123456789"
MD5_TAG = "25f9e794323b453885f5181f1b624d0b"


@given(st.binary(max_size=5000), st.integers(min_value=1, max_value=700))
def test_the_crc_of_an_object_is_combined_from_those_of_its_parts(content: bytes, part_bytes: int) -> None:
    parts = [content[start : start + part_bytes] for start in range(0, len(content), part_bytes)]
    assert combined_crc32c([crc32c.crc32c(part) for part in parts], part_bytes, len(content)) == crc32c.crc32c(content)


@given(st.binary(min_size=2, max_size=2000), st.data())
def test_parts_in_another_order_have_another_crc(content: bytes, data: st.DataObject) -> None:
    part_bytes = data.draw(st.integers(min_value=1, max_value=len(content) // 2))
    parts = [content[start : start + part_bytes] for start in range(0, len(content), part_bytes)]
    if parts[0] == parts[1] or len(parts[1]) != part_bytes:
        return
    swapped = [parts[1], parts[0], *parts[2:]]
    checksums = [crc32c.crc32c(part) for part in swapped]
    assert combined_crc32c(checksums, part_bytes, len(content)) != crc32c.crc32c(content)


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        # Check values of the CRC catalogue; those of MD5, SHA-1 and SHA-256 by hashlib.
        ("crc32c", "e3069283"),
        ("crc32", "cbf43926"),
        ("crc64nvme", "ae8b14860a799888"),
        ("md5", hashlib.md5(CHECK, usedforsecurity=False).hexdigest()),
        ("sha256", hashlib.sha256(CHECK).hexdigest()),
        ("sha1", hashlib.sha1(CHECK, usedforsecurity=False).hexdigest()),
    ],
)
def test_every_algorithm_gives_its_check_value_for_any_pieces(algorithm: str, expected: str) -> None:
    for cut in range(len(CHECK) + 1):
        checksum = new_checksum(algorithm)
        checksum.update(memoryview(CHECK)[:cut])
        checksum.update(memoryview(CHECK)[cut:])
        assert checksum.digest().hex() == expected


def test_an_unknown_algorithm_is_refused() -> None:
    with pytest.raises(ValueError, match="xxhash"):
        new_checksum("xxhash")


def _text(number: int, count_bytes: int) -> str:
    return base64.b64encode(number.to_bytes(count_bytes, "big")).decode()


def test_the_cheapest_of_several_checksums_is_taken() -> None:
    headers = {
        "etag": f'"{MD5_TAG}"',
        "x-amz-checksum-sha256": base64.b64encode(hashlib.sha256(CHECK).digest()).decode(),
        "x-amz-checksum-crc32c": _text(crc32c.crc32c(CHECK), 4),
    }
    assert from_s3_headers(headers) == StoredChecksum(Checksum("crc32c", crc32c.crc32c(CHECK).to_bytes(4, "big")), True)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-amz-checksum-crc32": _text(zlib.crc32(CHECK), 4) + "-3"},
        {"x-amz-checksum-crc32": _text(zlib.crc32(CHECK), 4), "x-amz-checksum-type": "COMPOSITE"},
        {"x-amz-checksum-crc32": "not base64"},
        {"x-amz-checksum-crc32": _text(1, 3)},
        {"x-amz-checksum-crc64nvme": ""},
    ],
    ids=["none", "of parts", "composite", "no base64", "too short", "empty"],
)
def test_a_checksum_of_parts_or_of_invalid_form_is_ignored(headers: dict[str, str]) -> None:
    assert from_s3_headers({"etag": MD5_TAG, **headers}).checksum is None


@pytest.mark.promise("S212")
@pytest.mark.parametrize(
    ("etag", "kind", "is_of_the_object"),
    [
        (MD5_TAG, None, True),
        (MD5_TAG.upper(), None, True),
        (f"{MD5_TAG}-3", None, False),
        (f"{MD5_TAG}-1", None, False),
        ("an-opaque-one", None, False),
        (None, None, False),
        (f"{MD5_TAG}-3", "FULL_OBJECT", True),
        ("an-opaque-one", "full_object", True),
        (MD5_TAG, "COMPOSITE", False),
        (MD5_TAG, "SOMETHING_ELSE", False),
    ],
)
@pytest.mark.parametrize(
    ("algorithm", "count_bytes"), [("crc32c", 4), ("crc32", 4), ("crc64nvme", 8), ("sha1", 20), ("sha256", 32)]
)
def test_a_checksum_is_of_the_object_only_if_it_says_so_or_the_etag_shows_one_part(
    algorithm: str, count_bytes: int, etag: str | None, kind: str | None, is_of_the_object: bool
) -> None:
    headers = {f"x-amz-checksum-{algorithm}": _text(7, count_bytes)}
    headers |= {} if etag is None else {"etag": f'"{etag}"'}
    headers |= {} if kind is None else {"x-amz-checksum-type": kind}
    assert (from_s3_headers(headers).checksum is not None) == is_of_the_object


@pytest.mark.parametrize(
    "headers",
    [
        {"x-amz-server-side-encryption": "aws:kms"},
        {"x-amz-server-side-encryption": "aws:kms:dsse"},
        {"x-amz-server-side-encryption-customer-algorithm": "AES256"},
    ],
)
def test_the_etag_of_an_object_encrypted_with_its_own_key_is_no_md5(headers: dict[str, str]) -> None:
    assert not from_s3_headers(headers).etag_may_be_md5
    assert from_s3_headers({"x-amz-server-side-encryption": "AES256"}).etag_may_be_md5


def test_the_hash_of_google_is_parsed() -> None:
    value = _text(crc32c.crc32c(CHECK), 4)
    assert from_google_hash(f"crc32c={value},md5=Ojk9c3dhfxgoKVVHYwFbHQ==").checksum == Checksum(
        "crc32c", crc32c.crc32c(CHECK).to_bytes(4, "big")
    )
    assert from_google_hash(None).checksum is None


@pytest.mark.parametrize(
    ("etag", "is_one"),
    [
        (hashlib.md5(CHECK, usedforsecurity=False).hexdigest(), True),
        (hashlib.md5(CHECK, usedforsecurity=False).hexdigest().upper(), True),
        (hashlib.md5(CHECK, usedforsecurity=False).hexdigest() + "-2", False),
        ("W/25f9e794323b453885f5181f1b624d0b", False),
        ("0x8D9", False),
        ("CIHV+7Gj1u8CEAE=", False),
        (None, False),
    ],
)
def test_only_32_hexadecimal_digits_may_be_an_md5(etag: str | None, is_one: bool) -> None:
    assert (md5_of_etag(etag) is not None) == is_one
