"""An open object file: sparse, one per object version; chunk N is at offset N times the chunk size."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from csi_driver.cache.chunk_map import ChunkMap
from csi_driver.cache.disk import Disk
from csi_driver.cache.proof_attribute import AccessProof, read_proof, write_proof
from csi_driver.cache.version_attribute import read_version, write_version
from csi_driver.model.chunk import CHUNK_BYTES, ByteRange, chunk_range

Write = Callable[[str, int, Sequence[memoryview], int], None]
"""``Disk.write``."""


class ObjectFileOwner(Protocol):
    """What an object file calls in the store that made it."""

    def ensure_space(self, file: ObjectFile, count_bytes: int) -> bool:
        """Returns when so many bytes may be written; False if they are not to be cached. Raises CacheDiskFull."""

    def grew(self, file: ObjectFile, count_bytes: int) -> None:
        """Bytes were added or, with a negative number, dropped."""

    def completed(self, file: ObjectFile) -> None:
        """The last missing chunk was added: gives the file its final name."""

    def released(self, file: ObjectFile) -> None:
        """The file has no user left; its descriptor is closed after this call."""


class ObjectFile:
    """An object file in use. Shared by all readers of the same object version; closed when the last one releases it.

    ``_lock`` guards ``_writing`` and changes of ``chunks``; the disk and the owner are not called under it.
    ``complete`` and ``chunks.present`` may be read without it: both change only after the bytes are in the file.

    Users are counted without a lock: ``append`` and ``pop`` of a list are atomic.
    """

    __slots__ = (
        *("_disk", "_in_table", "_lock", "_owner", "_users", "_writing"),
        *("chunks", "complete", "dataset", "descriptor", "digest", "drops", "passing", "size_bytes"),
        "unpublished_until_verified",
    )

    def __init__(
        self, owner: ObjectFileOwner, disk: Disk, digest: str, size_bytes: int, descriptor: int, chunks: ChunkMap | None
    ) -> None:
        """Takes over the descriptor. No chunk map: the file is complete."""
        self._owner = owner
        self._disk = disk
        self.digest = digest
        self.size_bytes = size_bytes
        self.descriptor = descriptor
        self.chunks = chunks
        self.complete = chunks is None
        self.dataset = 0
        """The dataset that read it last, for eviction."""
        self.drops = 0
        """How often ``drop_chunks`` found bytes that are not those of the object: copies in memory are not, either."""
        self.passing = False
        """Whether the last chunk was not cached, because the object is large beside the cache."""
        self.unpublished_until_verified = False
        """Whether the last chunk does not publish the file: its reader verifies it first and calls ``publish``."""
        self._lock = threading.Lock()
        self._users = [True]
        """One element for each user. The first one is True; it is removed by the last user, and never comes back."""
        self._in_table = [None]
        """Taken by the thread that removes the file from ``FilesInUse``."""
        self._writing: list[int] = []
        """Chunks that a thread is writing. Readers of two credentials may receive the same one."""

    def has(self, chunk_numbers: range) -> bool:
        if self.complete:
            return True
        chunks = self.chunks
        return chunks is None or all(chunks.present[chunk_numbers.start : chunk_numbers.stop])

    def is_present(self, chunk: int) -> bool:
        chunks = self.chunks
        return self.complete or chunks is None or bool(chunks.present[chunk])

    def present_bytes(self) -> int:
        """Bytes of the object that are in the file."""
        with self._lock:
            if self.complete or self.chunks is None:
                return self.size_bytes
            return self.chunks.present_bytes(self.size_bytes)

    @property
    def missing_count(self) -> int:
        chunks = self.chunks
        return 0 if self.complete or chunks is None else chunks.missing_count

    def write_chunk(self, chunk: int, parts: Sequence[memoryview], checksum: int, write: Write | None = None) -> None:
        """Stores one complete chunk, by ``write`` (default: that of the disk); publishes the file with the last one.
        Blocks on the disk. Stores nothing if the chunk is present or being written, and, with ``passing`` set, if it is
        not to be cached.

        Raises CacheDiskFull or CacheDiskFailed; the chunk then counts as missing.
        """
        length = len(chunk_range(chunk, self.size_bytes))
        self.passing = not self._owner.ensure_space(self, length)
        if self.passing:
            return
        chunks = self.chunks
        with self._lock:
            # In one step: nothing is written over a chunk that is present, and perhaps verified.
            if self.complete or chunks is None or chunks.present[chunk] or chunk in self._writing:
                return
            self._writing.append(chunk)
        try:
            (write or self._disk.write)("chunk.write", self.descriptor, parts, chunk * CHUNK_BYTES)
        except BaseException:
            with self._lock:
                self._writing.remove(chunk)
            raise
        # Present only after the write: a reader that sees the chunk present reads its bytes without any lock.
        with self._lock:
            self._writing.remove(chunk)
            chunks.add(chunk, checksum)
            last = chunks.complete
        # Exactly one writer sees the last chunk added, and publishes.
        self._owner.grew(self, length)
        if last and not self.unpublished_until_verified:
            self.publish()

    @property
    def whole(self) -> bool:
        """True if every chunk is present and the file waits for ``publish``."""
        chunks = self.chunks
        return not self.complete and chunks is not None and chunks.complete

    def publish(self) -> None:
        """Completes a file with all chunks present. Raises CacheDiskFull or CacheDiskFailed."""
        self._owner.completed(self)
        # After the rename: ``ChunkStore.find`` gives out a file as complete by this alone.
        self.complete = True

    def drop_chunks(self) -> None:
        """Drops all chunks of a file that is not complete: they are not the object's bytes."""
        with self._lock:
            chunks = self.chunks
            if self.complete or chunks is None:
                return
            self.drops += 1
            gone = chunks.present_bytes(self.size_bytes)
            for chunk in range(len(chunks.present)):
                chunks.remove(chunk)
        self._owner.grew(self, -gone)

    def read(self, byte_range: ByteRange, buffer: memoryview) -> int:
        """Copies a range that is present; the number of bytes. May block on the disk."""
        return self._disk.read("chunk.read", self.descriptor, [buffer[: len(byte_range)]], byte_range.start)

    def read_cached(self, byte_range: ByteRange, buffer: memoryview) -> bool:
        """Like ``read``, but only if all of it is in the page cache; else False. Does not block."""
        view = buffer[: len(byte_range)]
        return self._disk.read_cached("chunk.read", self.descriptor, [view], byte_range.start) == len(byte_range)

    def read_once(self, byte_range: ByteRange, buffer: memoryview) -> int:
        """Like ``read``. Bytes that were not in the page cache are not left in it."""
        if self.read_cached(byte_range, buffer):
            return len(byte_range)
        count = self.read(byte_range, buffer)
        os.posix_fadvise(self.descriptor, byte_range.start, len(byte_range), os.POSIX_FADV_DONTNEED)
        return count

    def proven_at_s(self, credential: bytes) -> int:
        """When the store let the credential read this object; 0: it was not asked. One system call."""
        return read_proof(self._disk, self.descriptor, credential)

    def record_proof(self, proof: AccessProof) -> None:
        """Records that the store let a credential read this object."""
        write_proof(self._disk, self.descriptor, proof)

    def pinned_etag(self) -> str | None:
        """The ETag of all bytes in the file, where the listing named none; None: not recorded. One system call."""
        return read_version(self._disk, self.descriptor)

    def pin_etag(self, etag: str) -> None:
        """Records it; to be called before the first chunk is written."""
        write_version(self._disk, self.descriptor, etag)

    def acquire(self) -> bool:
        """Counts one more user; False if the file is closed already."""
        # First the element, then the look: until this user is gone, too, the first element stays.
        self._users.append(False)
        return self._users[0]

    def release(self) -> None:
        """Counts one user less; the last one closes the file."""
        if not self._users.pop():
            return
        # No thread can acquire the file any more; one that finds it in ``FilesInUse`` waits there until ``released``
        # has removed it.
        self._owner.released(self)
        os.close(self.descriptor)

    def leave_table(self) -> bool:
        """True for the first caller, which then removes the file from ``FilesInUse``; nothing else may."""
        try:
            self._in_table.pop()
        except IndexError:
            return False
        return True
