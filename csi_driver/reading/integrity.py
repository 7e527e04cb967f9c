"""Verifies objects against the checksums that their store keeps, before they are complete in the cache.

There are two kinds of evidence. A checksum of the store is proof. An ETag of the form of an MD5 is a guess that is
right for most services: an object that does not match it is fetched again, the store is asked for a checksum, and the
object is refused only where other ETags of the same bucket were MD5s, or where two fetches returned different bytes. A
wrong guess must not make a good object unreadable.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from csi_driver.cache.object_file import ObjectFile
from csi_driver.model.chunk import CHUNK_BYTES, chunk_range
from csi_driver.model.errors import CacheDiskFailed, ChecksumMismatch, HayloftError
from csi_driver.objects.checksums import (
    CRC32C,
    Checksum,
    StoredChecksum,
    checksum_provider,
    combined_crc32c,
    md5_of_etag,
    new_checksum,
)
from csi_driver.objects.store import WholeObject
from csi_driver.objects.tier.tiered_hooks import distrust_tier
from csi_driver.reading.services import ObjectSource

logger = logging.getLogger(__name__)

REFUSED_S = 60.0
"""An object that was received damaged twice is not requested again for so long."""

MAX_FOREIGN_ETAGS = 3
"""After so many ETags in a row that were no MD5, those of a bucket are ignored."""

Parts = Sequence[memoryview]


@dataclass(slots=True)
class _BucketEtags:
    """What is known of the ETags of a bucket."""

    md5s: int = 0
    foreign: int = 0

    @property
    def may_be_md5(self) -> bool:
        return self.foreign < MAX_FOREIGN_ETAGS or self.md5s > self.foreign


@dataclass(slots=True)
class IntegrityCounts:
    """For reports. Not exact: two threads that count at the same time may count once."""

    verified: int = 0
    unverified: int = 0
    """Objects that became complete without a checksum or MD5 to compare them with."""
    mismatches: int = 0
    """Fetched objects that did not match."""


class IntegrityChecker:
    """One for all volumes of a daemon. Methods may be called from any thread.

    ``_lock`` guards ``_bucket_etags``, ``_mismatches`` and ``_being_verified``; neither a store nor the disk is used
    while it is held. ``_refused_until`` needs no lock: its operations are single steps of a dictionary.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._bucket_etags: dict[tuple[str, str, str], _BucketEtags] = {}
        """By access domain too: another server under the same name says nothing about the ETags of this one."""
        self._mismatches: dict[str, int] = {}
        """Of large objects, by digest, until one matches."""
        self._being_verified: set[str] = set()
        self._refused_until: dict[str, float] = {}
        self.counts = IntegrityCounts()

    # -- refused objects --

    def is_refused(self, source: ObjectSource) -> bool:
        """True if ``raise_if_refused`` may raise. Usually one look at an empty dictionary."""
        return bool(self._refused_until) and source.version.digest(CHUNK_BYTES) in self._refused_until

    def raise_if_refused(self, source: ObjectSource) -> None:
        """Raises ChecksumMismatch for an object that was received damaged twice, a moment ago."""
        if not self.is_refused(source):
            return
        digest = source.version.digest(CHUNK_BYTES)
        until = self._refused_until.get(digest)
        if until is None:
            return
        if self._clock() < until:
            raise _mismatch(source)
        self._refused_until.pop(digest, None)

    # -- small objects, fetched with one request --

    def verified(self, source: ObjectSource, whole: WholeObject, fetch: Callable[[], WholeObject]) -> Parts:
        """The bytes of a complete object: those given, or those of a second ``fetch`` if these match neither the
        checksum that came with them nor, without one, the ETag. Raises ChecksumMismatch, and what ``fetch`` raises."""
        provider, version, parts = checksum_provider(source.store), source.version, whole.parts
        if provider is not None and whole.checksum is not None:
            return self._verified_by_checksum(source, whole, whole.checksum, fetch)
        if provider is None or version.size_bytes > provider.md5_up_to_bytes:
            self.counts.unverified += 1
            return parts
        expected, etags = md5_of_etag(version.etag), self._etags_of(source)
        if expected is None or not etags.may_be_md5:
            self.counts.unverified += 1
            return parts
        if _digest_of(expected, parts) == expected.value:
            return self._count_verified(etags, parts)
        _distrust_tier(source)
        again = fetch().parts
        if _digest_of(expected, again) == expected.value:
            self._log_mismatch(source, "was damaged in transit and fetched again")
            return self._count_verified(etags, again)
        return self._verified_despite_etag(source, etags, parts, again)

    def _verified_by_checksum(
        self, source: ObjectSource, whole: WholeObject, expected: Checksum, fetch: Callable[[], WholeObject]
    ) -> Parts:
        if _digest_of(expected, whole.parts) == expected.value:
            return self._count_verified(None, whole.parts)
        _distrust_tier(source)
        again = fetch()
        expected = again.checksum or expected
        if _digest_of(expected, again.parts) == expected.value:
            self._log_mismatch(source, "was damaged in transit and fetched again")
            return self._count_verified(None, again.parts)
        self._refuse(source)
        raise _mismatch(source)

    def _verified_despite_etag(self, source: ObjectSource, etags: _BucketEtags, first: Parts, second: Parts) -> Parts:
        """Neither of two fetches matches the ETag: the object is damaged, or the ETag is no MD5."""
        stored = self._stored_checksum(source)
        if stored.checksum is not None:
            if _digest_of(stored.checksum, second) == stored.checksum.value:
                etags.foreign += 1
                return self._count_verified(None, second)
        elif b"".join(first) == b"".join(second) and not (stored.etag_may_be_md5 and etags.md5s):
            etags.foreign += 1
            self.counts.unverified += 1
            return second
        self._refuse(source)
        raise _mismatch(source)

    # -- large objects, put together from chunks --

    def verify_and_publish(self, source: ObjectSource, file: ObjectFile) -> None:
        """Publishes a file with all chunks present if it matches the store's checksum; else drops the chunks.
        Blocks on the store and the disk, once for each object. Raises CacheDiskFull or CacheDiskFailed."""
        with self._lock:
            if file.digest in self._being_verified:
                return
            self._being_verified.add(file.digest)
        try:
            if file.whole:
                self._verify_and_publish(source, file)
        finally:
            with self._lock:
                self._being_verified.discard(file.digest)

    def _verify_and_publish(self, source: ObjectSource, file: ObjectFile) -> None:
        stored, etags = self._stored_checksum(source), self._etags_of(source)
        expected, guess = stored.checksum, None
        if expected is None and stored.etag_may_be_md5 and etags.may_be_md5:
            provider = checksum_provider(source.store)
            if provider is not None and source.version.size_bytes <= provider.md5_up_to_bytes:
                expected = guess = md5_of_etag(source.version.etag)
        if expected is None:
            self.counts.unverified += 1
        elif _digest_of_file(expected, file) == expected.value:
            self._count_verified(etags if guess is not None else None, ())
        elif guess is not None and not etags.md5s:
            etags.foreign += 1
            self.counts.unverified += 1
        else:
            self._drop(source, file)
            return
        self._mismatches.pop(file.digest, None)
        file.publish()

    def _drop(self, source: ObjectSource, file: ObjectFile) -> None:
        _distrust_tier(source)
        file.drop_chunks()
        with self._lock:
            mismatches = self._mismatches[file.digest] = self._mismatches.get(file.digest, 0) + 1
        if mismatches > 1:
            self._mismatches.pop(file.digest, None)
            self._refuse(source)
        else:
            self._log_mismatch(source, "does not match its checksum; it is dropped and fetched again")

    # -- what is known --

    def _stored_checksum(self, source: ObjectSource) -> StoredChecksum:
        """Asks the store. An error is no reason to refuse the bytes that it sent."""
        provider = checksum_provider(source.store)
        if provider is None:
            return StoredChecksum(None, etag_may_be_md5=False)
        try:
            version = source.version
            return provider.checksum(version.key, if_match=version.etag if version.has_strong_etag else None)
        except HayloftError as error:
            logger.debug("%s: no checksum: %s", source.version.key, error)
            return StoredChecksum(None, etag_may_be_md5=True)

    def _etags_of(self, source: ObjectSource) -> _BucketEtags:
        version = source.version
        bucket = version.access_domain, version.endpoint, version.bucket
        known = self._bucket_etags.get(bucket)  # one step, so without the lock: none is ever replaced
        if known is not None:
            return known
        with self._lock:
            return self._bucket_etags.setdefault(bucket, _BucketEtags())

    def _count_verified(self, etags: _BucketEtags | None, parts: Parts) -> Parts:
        self.counts.verified += 1
        if etags is not None:
            etags.md5s += 1
        return parts

    def _log_mismatch(self, source: ObjectSource, what: str) -> None:
        self.counts.mismatches += 1
        logger.warning("%s/%s: %s", source.version.bucket, source.version.key, what)

    def _refuse(self, source: ObjectSource) -> None:
        self._log_mismatch(source, "does not match its checksum for the second time; readers get EIO for a minute")
        self._refused_until[source.version.digest(CHUNK_BYTES)] = self._clock() + REFUSED_S


def _mismatch(source: ObjectSource) -> ChecksumMismatch:
    return ChecksumMismatch(
        f"{source.version.bucket}/{source.version.key}: the bytes that the store sends do not match the checksum that "
        "it keeps; check the object in the store, or set verifyChecksums to off"
    )


def _distrust_tier(source: ObjectSource) -> None:
    """Or a second fetch would get the same damaged bytes from a cache."""
    distrust_tier(source.store, source.version.key, source.version.etag)


def _digest_of(expected: Checksum, parts: Parts) -> bytes:
    checksum = new_checksum(expected.algorithm)
    for part in parts:
        checksum.update(part)
    return checksum.digest()


def _digest_of_file(expected: Checksum, file: ObjectFile) -> bytes:
    """From the CRCs of its chunks where that suffices; else reads the file, as far as possible from memory."""
    chunks, size_bytes = file.chunks, file.size_bytes
    if expected.algorithm == CRC32C and chunks is not None:
        return combined_crc32c(list(chunks.checksums), CHUNK_BYTES, size_bytes).to_bytes(4, "big")
    checksum = new_checksum(expected.algorithm)
    buffer = memoryview(bytearray(CHUNK_BYTES))
    for chunk in range(-(-size_bytes // CHUNK_BYTES)):
        byte_range = chunk_range(chunk, size_bytes)
        if file.read_once(byte_range, buffer) != len(byte_range):
            raise CacheDiskFailed(f"object file {file.digest} is shorter than its object")
        checksum.update(buffer[: len(byte_range)])
    return checksum.digest()
