"""Checksums that stores keep of complete objects, and how to verify bytes against them.

Reading a checksum takes a request of its own (``ChecksumProvider.checksum``): obstore does not expose these headers of
a response to GET. An ETag that may be an MD5 is known already, and no proof: the ETags of other services are 32
hexadecimal digits that are no MD5, and so are those of S3 for objects encrypted with a key of KMS or of the customer.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, cast, runtime_checkable

import crc32c
from isal import isal_zlib

from csi_driver.model.entity_tags import plain_etag

CRC32C = "crc32c"
MD5 = "md5"

_DIGEST_BYTES = {"crc32c": 4, "crc64nvme": 8, "crc32": 4, "sha256": 32, "sha1": 20, "md5": 16}
"""Every supported algorithm, cheapest first: the CRC32C of an object is combined from those of its chunks; the others
need its bytes. Measured on one core: CRC64NVME 47 GB/s, CRC32 55 (4.3 by zlib), SHA-256 1.8, MD5 0.76."""

MD5_WORTHWHILE_BYTES = 4 << 20
"""An MD5 takes 146 microseconds for a file of 110 kB, and fetching it from a store on the same machine 590; that of a
large object takes longer than its fetch. Over TLS it is not needed: the connection verifies every byte."""

ANY_SIZE = 1 << 62

_MD5_TAG = re.compile(r"[0-9a-fA-F]{32}\Z")
_OWN_KEYS = ("aws:kms", "aws:kms:dsse")
_S3_HEADERS = tuple((f"x-amz-checksum-{name}", name) for name in _DIGEST_BYTES)


@dataclass(frozen=True, slots=True)
class Checksum:
    """A checksum of a complete object. ``value`` is big-endian, as it is written."""

    algorithm: str
    value: bytes


@dataclass(frozen=True, slots=True)
class StoredChecksum:
    """The store's checksum of an object, if it has one, and whether the object's ETag can be an MD5 at all."""

    checksum: Checksum | None
    etag_may_be_md5: bool
    every: tuple[Checksum, ...] = field(default=(), compare=False)
    """All that the store keeps, the cheapest first, to compare with those of another store."""


@runtime_checkable
class ChecksumProvider(Protocol):
    """A store with checksums of its objects."""

    @property
    def md5_up_to_bytes(self) -> int:
        """The MD5 of objects up to this size is verified if their ETag may be one; 0 if ETags never are."""

    def checksum(self, key: str, *, if_match: str | None) -> StoredChecksum:
        """One request. Raises ObjectChanged, ObjectNotFound and what ``ObjectStore.stat`` raises."""


def checksum_provider(store: object) -> ChecksumProvider | None:
    """The store if it has checksums. An isinstance of the protocol gives the same answer and takes 15 microseconds, for
    each small object that is fetched."""
    return cast(ChecksumProvider, store) if hasattr(store, "checksum") else None


def md5_worthwhile_bytes(endpoint: str) -> int:
    """``ChecksumProvider.md5_up_to_bytes`` of a service with ETags that may be MD5s."""
    return 0 if endpoint.startswith("https:") else MD5_WORTHWHILE_BYTES


class RunningChecksum(Protocol):
    """A checksum that is updated piece by piece."""

    def update(self, piece: memoryview) -> None:
        """Adds the next bytes."""

    def digest(self) -> bytes:
        """Of all bytes so far, big-endian."""


class _Crc:
    """A CRC by a function ``(bytes, checksum so far) -> checksum``."""

    def __init__(self, function: Callable[[memoryview, int], int], count_bytes: int) -> None:
        self._function, self._count_bytes, self._value = function, count_bytes, 0

    def update(self, piece: memoryview) -> None:
        self._value = self._function(piece, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(self._count_bytes, "big")


class _Hash:
    def __init__(self, name: str) -> None:
        self._hash = hashlib.new(name, usedforsecurity=False)

    def update(self, piece: memoryview) -> None:
        self._hash.update(piece)

    def digest(self) -> bytes:
        return self._hash.digest()


def new_checksum(algorithm: str) -> RunningChecksum:
    """A checksum of no bytes yet. Raises ValueError for an algorithm that is not supported."""
    if algorithm == "crc32c":
        return _Crc(crc32c.crc32c, 4)
    if algorithm == "crc32":
        return _Crc(isal_zlib.crc32, 4)  # 2 microseconds for 110 kB, where zlib takes 26
    if algorithm == "crc64nvme":
        # Imported here, because the import takes 60 ms and few stores keep a CRC64NVME.
        from awscrt.checksums import crc64nvme  # type: ignore[import-untyped]

        return _Crc(crc64nvme, 8)
    if algorithm in ("md5", "sha1", "sha256", "sha512"):
        return _Hash(algorithm)
    raise ValueError(f"{algorithm} is not supported")


def from_s3_headers(headers: Mapping[str, str]) -> StoredChecksum:
    """From a response to a request with ``x-amz-checksum-mode: ENABLED``. Checksums of parts (COMPOSITE) are ignored:
    the sizes of the parts are unknown. One without a type is that of the object only if the ETag shows one part: some
    servers send that of the parts' checksums without a type and without the number of parts."""
    encryption = headers.get("x-amz-server-side-encryption", "")
    encrypted = encryption in _OWN_KEYS or "x-amz-server-side-encryption-customer-algorithm" in headers
    kept = [(name, headers[header]) for header, name in _S3_HEADERS if header in headers]
    if not kept:  # nearly always, and this is done for each small object
        return StoredChecksum(None, not encrypted)
    kind = headers.get("x-amz-checksum-type")
    if kind is None:
        one_part = _MD5_TAG.match(plain_etag(headers.get("etag")) or "") is not None
        found = _valid(kept) if one_part else ()
    else:
        found = _valid(kept) if kind.upper() == "FULL_OBJECT" else ()
    return StoredChecksum(found[0] if found else None, not encrypted, found)


def from_google_hash(header: str | None, *, etag_may_be_md5: bool = True) -> StoredChecksum:
    """From ``x-goog-hash: crc32c=n03x6A==,md5=Ojk9c3dhfxgoKVVHYwFbHQ==``."""
    values = dict(part.strip().partition("=")[::2] for part in (header or "").split(","))
    found = _valid((name, values.get(name)) for name in _DIGEST_BYTES)
    return StoredChecksum(next(iter(found), None), etag_may_be_md5, found)


def md5_of_etag(etag: str | None) -> Checksum | None:
    """None if it does not have the form of an MD5. That of a multipart upload has a dash and a number of parts."""
    if etag is None or not _MD5_TAG.match(etag):
        return None
    return Checksum(MD5, bytes.fromhex(etag))


def _valid(candidates: Iterable[tuple[str, str | None]]) -> tuple[Checksum, ...]:
    """In their order."""
    values = ((name, _decoded(text)) for name, text in candidates)
    return tuple(Checksum(name, value) for name, value in values if value and len(value) == _DIGEST_BYTES[name])


def _decoded(text: str | None) -> bytes | None:
    """None for text that is not base64, such as a checksum of parts, ``xxxx-5``."""
    if text is None:
        return None
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


# -- combining CRCs ---------------------------------------------------------------------------------------------------

_POLYNOMIAL = 0x82F63B78
"""CRC-32C (Castagnoli), bits reversed."""


def _times(matrix: list[int], vector: int) -> int:
    total, row = 0, 0
    while vector:
        if vector & 1:
            total ^= matrix[row]
        vector >>= 1
        row += 1
    return total


def _squared(matrix: list[int]) -> list[int]:
    return [_times(matrix, row) for row in matrix]


def _zeros_operator(count_bytes: int) -> list[int]:
    """The linear map that appending so many zero bytes is for the register of the CRC."""
    power = [_POLYNOMIAL, *(1 << bit for bit in range(31))]  # one zero bit
    for _ in range(3):
        power = _squared(power)  # one zero byte
    operator = [1 << bit for bit in range(32)]
    while count_bytes:
        if count_bytes & 1:
            operator = [_times(power, row) for row in operator]
        count_bytes >>= 1
        if count_bytes:
            power = _squared(power)
    return operator


def combined_crc32c(checksums: list[int], part_bytes: int, size_bytes: int) -> int:
    """The CRC32C of an object from those of its parts, all of ``part_bytes`` except the last, which may be shorter.

    A CRC is linear: appending a part multiplies the CRC so far by a matrix that depends on the part's length alone, so
    one matrix serves all parts but the last. 32 exclusive-ors a part: 100 GiB in parts of 1 MiB take about 0.3 s.
    """
    if not checksums:
        return 0
    last_bytes = size_bytes - part_bytes * (len(checksums) - 1)
    full_part = _zeros_operator(part_bytes) if len(checksums) > 2 else []
    total = checksums[0]
    for checksum in checksums[1:-1]:
        total = _times(full_part, total) ^ checksum
    if len(checksums) > 1:
        total = _times(_zeros_operator(last_bytes), total) ^ checksums[-1]
    return total
