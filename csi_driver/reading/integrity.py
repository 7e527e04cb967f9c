"""Checks whole objects against the checksums that their store keeps, before they are complete in the cache.

Two kinds of evidence. A checksum that the store gives is proof. An ETag of the form of an MD5 is a guess that is right
for most services: what does not match it is fetched again, the store is asked, and an object is refused only where
other ETags of the same bucket were MD5s, or where two fetches gave different bytes. A wrong guess must not make a good
object unreadable.
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
    combined_crc32c,
    keeper_of,
    md5_of_etag,
    running,
)
from csi_driver.objects.store import Whole
from csi_driver.reading.services import ObjectSource

logger = logging.getLogger(__name__)

REFUSED_S = 60.0
"""An object that came damaged twice is not asked for again for so long."""

FOREIGN_TAGS = 3
"""After so many ETags in a row that were no MD5, those of a bucket are not looked at any more."""

Parts = Sequence[memoryview]


@dataclass(slots=True)
class _Tags:
    """What is known of the ETags of a bucket."""

    matched: int = 0
    foreign: int = 0

    @property
    def worth_a_look(self) -> bool:
        return self.foreign < FOREIGN_TAGS or self.matched > self.foreign


@dataclass(slots=True)
class IntegrityCounts:
    """For reports. Counts may miss a step when two threads count at once."""

    verified: int = 0
    unverified: int = 0
    """Objects that became complete though nothing said what they should be."""
    mismatches: int = 0
    """Fetched objects that were not what the store said."""


class IntegrityChecker:
    """One for all volumes of a daemon. Methods may be called from any thread.

    ``_lock`` guards ``_tags``, ``_strikes`` and ``_busy``; nothing is asked or read while it is held.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._tags: dict[tuple[str, str], _Tags] = {}
        self._strikes: dict[str, int] = {}
        self._busy: set[str] = set()
        self._refused: dict[str, float] = {}
        self.tally = IntegrityCounts()

    # -- refused objects --

    def refuses(self, source: ObjectSource) -> bool:
        """Whether ``refuse_damaged`` has something to say of the object. One look at an empty dictionary in the usual
        case."""
        return bool(self._refused) and source.version.digest(CHUNK_BYTES) in self._refused

    def refuse_damaged(self, source: ObjectSource) -> None:
        """Raises ChecksumMismatch for an object that came damaged twice, a moment ago."""
        if not self.refuses(source):
            return
        digest = source.version.digest(CHUNK_BYTES)
        until = self._refused.get(digest)
        if until is None:
            return
        if self._clock() < until:
            raise _mismatch(source)
        self._refused.pop(digest, None)

    # -- small objects, fetched with one request --

    def checked(self, source: ObjectSource, whole: Whole, fetch: Callable[[], Whole]) -> Parts:
        """The bytes of a whole object: those given, or those of a second ``fetch`` if these match neither the checksum
        that came with them nor, without one, its ETag. Raises ChecksumMismatch, and what ``fetch`` raises."""
        keeper, version, parts = keeper_of(source.store), source.version, whole.parts
        if keeper is not None and whole.checksum is not None:
            return self._proven(source, whole, fetch)
        if keeper is None or version.size_bytes > keeper.md5_up_to_bytes:
            self.tally.unverified += 1
            return parts
        expected, tags = md5_of_etag(version.etag), self._tags_of(source)
        if expected is None or not tags.worth_a_look:
            self.tally.unverified += 1
            return parts
        if _digest_of(expected, parts) == expected.value:
            return self._good(tags, parts)
        again = fetch().parts
        if _digest_of(expected, again) == expected.value:
            self._note_damage(source, "was damaged on its way and fetched again")
            return self._good(tags, again)
        return self._decide(source, tags, parts, again)

    def _proven(self, source: ObjectSource, whole: Whole, fetch: Callable[[], Whole]) -> Parts:
        """Against the checksum that the store said with the bytes."""
        expected = whole.checksum
        if expected is None or _digest_of(expected, whole.parts) == expected.value:
            return self._good(None, whole.parts)
        again = fetch()
        if _digest_of(again.checksum or expected, again.parts) == (again.checksum or expected).value:
            self._note_damage(source, "was damaged on its way and fetched again")
            return self._good(None, again.parts)
        self._refuse(source)
        raise _mismatch(source)

    def _decide(self, source: ObjectSource, tags: _Tags, first: Parts, second: Parts) -> Parts:
        """Neither of two fetches matches the ETag: the object is damaged, or the ETag is no MD5."""
        stored = self._ask(source)
        if stored.checksum is not None:
            if _digest_of(stored.checksum, second) == stored.checksum.value:
                tags.foreign += 1
                return self._good(None, second)
        elif b"".join(first) == b"".join(second) and not (stored.etag_may_be_md5 and tags.matched):
            tags.foreign += 1
            self.tally.unverified += 1
            return second
        self._refuse(source)
        raise _mismatch(source)

    # -- large objects, put together from chunks --

    def finish(self, source: ObjectSource, file: ObjectFile) -> None:
        """Makes a file complete whose chunks are all there, if it is what the store says; else drops its chunks.
        Blocks on the store and the disk, once for each object. Raises CacheDiskFull or CacheDiskFailed."""
        with self._lock:
            if file.digest in self._busy:
                return
            self._busy.add(file.digest)
        try:
            if file.whole:
                self._finish(source, file)
        finally:
            with self._lock:
                self._busy.discard(file.digest)

    def _finish(self, source: ObjectSource, file: ObjectFile) -> None:
        stored, tags = self._ask(source), self._tags_of(source)
        expected, guess = stored.checksum, None
        if expected is None and stored.etag_may_be_md5 and tags.worth_a_look:
            expected = guess = self._guess(source)
        if expected is None:
            self.tally.unverified += 1
        elif _digest_of_file(expected, file) == expected.value:
            self._good(tags if guess is not None else None, ())
        elif guess is not None and not tags.matched:
            tags.foreign += 1
            self.tally.unverified += 1
        else:
            self._drop(source, file)
            return
        self._strikes.pop(file.digest, None)
        file.publish()

    def _drop(self, source: ObjectSource, file: ObjectFile) -> None:
        file.drop_chunks()
        with self._lock:
            strikes = self._strikes[file.digest] = self._strikes.get(file.digest, 0) + 1
        if strikes > 1:
            self._strikes.pop(file.digest, None)
            self._refuse(source)
        else:
            self._note_damage(source, "does not match its checksum; it is dropped and fetched again")

    @staticmethod
    def _guess(source: ObjectSource) -> Checksum | None:
        keeper = keeper_of(source.store)
        if keeper is not None and source.version.size_bytes <= keeper.md5_up_to_bytes:
            return md5_of_etag(source.version.etag)
        return None

    # -- what is known --

    def _ask(self, source: ObjectSource) -> StoredChecksum:
        """A store that cannot be asked gives no reason to refuse what it gave."""
        keeper = keeper_of(source.store)
        if keeper is None:
            return StoredChecksum(None, etag_may_be_md5=False)
        try:
            return keeper.checksum(source.version.key, if_match=source.version.etag)
        except HayloftError as error:
            logger.debug("%s: no checksum: %s", source.version.key, error)
            return StoredChecksum(None, etag_may_be_md5=True)

    def _tags_of(self, source: ObjectSource) -> _Tags:
        place = source.version.endpoint, source.version.bucket
        with self._lock:
            return self._tags.setdefault(place, _Tags())

    def _good(self, tags: _Tags | None, parts: Parts) -> Parts:
        self.tally.verified += 1
        if tags is not None:
            tags.matched += 1
        return parts

    def _note_damage(self, source: ObjectSource, what: str) -> None:
        self.tally.mismatches += 1
        logger.warning("%s/%s: %s", source.version.bucket, source.version.key, what)

    def _refuse(self, source: ObjectSource) -> None:
        self._note_damage(source, "does not match its checksum for the second time; readers get EIO for a minute")
        self._refused[source.version.digest(CHUNK_BYTES)] = self._clock() + REFUSED_S


def _mismatch(source: ObjectSource) -> ChecksumMismatch:
    return ChecksumMismatch(
        f"{source.version.bucket}/{source.version.key}: what the store sends does not match the checksum that it "
        "keeps; look at the store, or set verifyChecksums to off"
    )


def _digest_of(expected: Checksum, parts: Parts) -> bytes:
    checksum = running(expected.algorithm)
    for part in parts:
        checksum.update(part)
    return checksum.digest()


def _digest_of_file(expected: Checksum, file: ObjectFile) -> bytes:
    """From the CRCs of its chunks where that is enough; else reads it, from the page cache mostly."""
    chunks, size_bytes = file.chunks, file.size_bytes
    if expected.algorithm == CRC32C and chunks is not None:
        return combined_crc32c(list(chunks.checksums), CHUNK_BYTES, size_bytes).to_bytes(4, "big")
    checksum = running(expected.algorithm)
    buffer = memoryview(bytearray(CHUNK_BYTES))
    for chunk in range(-(-size_bytes // CHUNK_BYTES)):
        byte_range = chunk_range(chunk, size_bytes)
        if file.read(byte_range, buffer) != len(byte_range):
            raise CacheDiskFailed(f"object file {file.digest} is shorter than its object")
        checksum.update(buffer[: len(byte_range)])
    return checksum.digest()
