"""The node's cache: object files on a local disk, found by digest.

    <directory>/format.json           version and chunk size
    <directory>/lock                  held by the one daemon that uses the directory
    <directory>/index.sqlite          chunk maps, sizes, last use
    <directory>/partial/<aa>/<digest> object files with chunks missing
    <directory>/objects/<aa>/<digest> complete object files

A file lies under ``objects`` if and only if it is complete: the rename is the commit. So an OPEN needs one open(2)
and no look-up in the index, and a daemon that was killed cannot be wrong about it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence

import crc32c

from csi_driver.chunks.chunk_map import ChunkMap
from csi_driver.chunks.directory import CacheDirectory
from csi_driver.chunks.disk import Disk, LocalDisk
from csi_driver.chunks.eviction import choose_victims
from csi_driver.chunks.index import Index, IndexRow
from csi_driver.chunks.object_file import ObjectFile
from csi_driver.chunks.recovery import reconcile
from csi_driver.chunks.verification import bad_chunks
from csi_driver.model.chunk import CHUNK_BYTES, chunk_count
from csi_driver.model.errors import CacheDiskFailed, CacheDiskFull, CacheError, ManifestInvalid
from csi_driver.model.snapshot import ObjectVersion
from csi_driver.settings import MIB, ChunkStoreSettings

_TOUCH_FROM_SHARE = 0.8
"""Below this share of the limit no use is noted: nothing has to go, and a warm epoch touches every object."""

logger = logging.getLogger(__name__)

_FREE_CHECK_BYTES = 16 * MIB
"""Free space of the file system is asked for again after so many bytes written."""

_FAILURE_PAUSE_S = 5.0
"""After the disk refused a write, so long nothing is written: reads go straight from the store meanwhile."""

_EVICT_SHARE = 0.02
"""When room is needed, this share of the limit is freed at once, so that the index is scanned seldom."""


class ChunkStore:
    """The object files of one cache directory. Methods may be called from any thread.

    ``_lock`` guards ``_in_use`` and ``_used_bytes``; ``_evicting`` is held by the one thread that frees room. Neither
    is held across a write of an object's bytes.
    """

    def __init__(self, settings: ChunkStoreSettings, disk: Disk | None = None) -> None:
        """Takes the directory. Raises CacheDirectoryMissing, CacheDirectoryUnusable, CacheDirectoryInUse."""
        self._disk = disk or LocalDisk()
        self._home = CacheDirectory.take(settings.directory)
        self._objects = os.fspath(self._home.objects)
        self._partial = os.fspath(self._home.partial)
        self.limit_bytes = settings.limit_bytes or self._home.total_bytes() * 9 // 10
        self._free_floor_bytes = settings.free_floor_bytes
        self._index = Index(self._home.index)
        self._beginning = self._home.begin(self._index)
        self._generation = self._beginning.generation
        oldest = self._index.oldest_generation()
        self._in_doubt = not self._beginning.strays_are_trusted or (oldest or self._generation) < self._generation
        """Whether there may be object files that a crash of the machine has damaged. Without doubt an OPEN does not
        ask the index."""
        self._lock = threading.Lock()
        self._evicting = threading.Lock()
        self._in_use: dict[str, ObjectFile] = {}
        self._used_bytes = self._index.total_present_bytes()
        self._clock = self._index.latest_use()
        """Bytes opened since the cache was made: the time that eviction goes by. Not locked: a lost step is no harm."""
        self._touch_from_bytes = int(self.limit_bytes * _TOUCH_FROM_SHARE)
        self._until_free_check = 0
        self._refused_until = 0.0
        self.trouble: CacheError | None = None
        """Why the last write was refused; None while the disk works."""
        self.let_go: Callable[[], None] = lambda: None
        """Called before anything is evicted: whoever keeps files open without need closes them."""
        self._closing = False
        self._recovery = threading.Thread(target=self._reconcile, name="recovery", daemon=True)
        if self._beginning.unclean:
            self._recovery.start()

    # -- finding --

    def advance(self, count_bytes: int) -> None:
        """An object of this size is opened: the clock that eviction goes by moves on."""
        self._clock += count_bytes

    def find(self, version: ObjectVersion, dataset: int = 0) -> ObjectFile | None:
        """The file if it is complete, with one user counted. Two system calls at the most. ``dataset`` is who asks."""
        digest = version.digest(CHUNK_BYTES)
        file = self._used(digest)
        if file is not None:
            if file.complete:
                return file
            file.release()
            return None
        if self._in_doubt and not self._is_trusted(digest):
            return None
        descriptor = self._disk.open("object.open", f"{self._objects}/{digest[:2]}/{digest}")
        if descriptor is None:
            return None
        if os.fstat(descriptor).st_size != version.size_bytes:
            os.close(descriptor)
            self._drop(digest)
            return None
        self._index.touch(digest, time.time_ns() // 1_000_000)
        return self._enter(ObjectFile(self, self._disk, digest, version.size_bytes, descriptor, None))

    def is_complete(self, version: ObjectVersion) -> bool:
        """True if the object is complete in the cache."""
        digest = version.digest(CHUNK_BYTES)
        return os.path.exists(f"{self._objects}/{digest[:2]}/{digest}")

    def present_bytes(self, version: ObjectVersion) -> int:
        """Bytes of the object that are in the cache."""
        digest = version.digest(CHUNK_BYTES)
        with self._lock:
            file = self._in_use.get(digest)
        if file is not None:
            return file.present_bytes()
        if self.is_complete(version):
            return version.size_bytes
        row = self._index.find(digest)
        return 0 if row is None or row.complete else row.present_bytes

    def open_partial(self, version: ObjectVersion, dataset: int = 0) -> ObjectFile:
        """The file of an object, complete or not, with one user counted; made when there is none.

        Raises CacheDiskFull or CacheDiskFailed if it cannot be made.
        """
        while True:
            found = self.find(version, dataset) or self.recover(version, dataset)
            if found is not None:
                return found
            digest = version.digest(CHUNK_BYTES)
            file = self._used(digest) or self._enter(self._load_partial(digest, version.size_bytes))
            file.dataset = dataset
            if not file.complete or file.chunks is None or file.chunks.complete:
                return file
            file.release()

    def recover(self, version: ObjectVersion, dataset: int = 0) -> ObjectFile | None:
        """For what ``find`` did not find: the file if it is complete now. After a crash of the machine it is checked
        against its CRCs first, which blocks on the disk as long as reading the object takes, and chunks that fail are
        dropped. Without one, only what came into use since can have become complete."""
        digest = version.digest(CHUNK_BYTES)
        if not self._in_doubt:
            file = self._used(digest)
            if file is not None and not file.complete:
                file.release()
                return None
            return file
        row = self._index.find(digest)
        if row is None or row.size_bytes != version.size_bytes:
            self._drop(digest)
        elif row.generation != self._generation:
            self._check(digest, row)
        return self.find(version, dataset)

    # -- adding --

    def add_whole(self, version: ObjectVersion, parts: Sequence[memoryview], dataset: int = 0) -> ObjectFile:
        """Stores a complete object at once, with one user counted. Raises CacheDiskFull or CacheDiskFailed."""
        digest = version.digest(CHUNK_BYTES)
        self.room_for(version.size_bytes)
        path = f"{self._partial}/{digest[:2]}/{digest}"
        chunks = _checksums(parts, version.size_bytes)
        try:
            descriptor = self._disk.create("object.create", path)
            try:
                self._disk.write("chunk.write", descriptor, parts, 0)
                self._disk.rename("object.publish", path, f"{self._objects}/{digest[:2]}/{digest}")
            except BaseException:
                os.close(descriptor)
                self._disk.unlink("object.drop", path)
                raise
        except CacheError as error:
            self._refuse(error)
            raise
        self._record(digest, version.size_bytes, chunks, complete=True, dataset=dataset)
        with self._lock:
            self._used_bytes += version.size_bytes
        return self._enter(ObjectFile(self, self._disk, digest, version.size_bytes, descriptor, None))

    # -- what object files tell their owner --

    def room_for(self, count_bytes: int) -> None:
        """See ObjectFileOwner."""
        if self._refused_until and time.monotonic() < self._refused_until:
            raise CacheDiskFull(str(self.trouble))
        if self._used_bytes + count_bytes > self.limit_bytes:
            self._make_room(count_bytes)
        self._until_free_check -= count_bytes
        if self._until_free_check < 0:
            self._check_free_space(count_bytes)

    def grew(self, file: ObjectFile, count_bytes: int) -> None:
        """See ObjectFileOwner."""
        with self._lock:
            self._used_bytes += count_bytes

    def completed(self, file: ObjectFile) -> None:
        """See ObjectFileOwner."""
        name = f"{file.digest[:2]}/{file.digest}"
        self._disk.rename("object.publish", f"{self._partial}/{name}", f"{self._objects}/{name}")
        chunks = file.chunks
        if chunks is not None:
            self._record(file.digest, file.size_bytes, chunks, complete=True, dataset=file.dataset)

    def released(self, file: ObjectFile) -> None:
        """See ObjectFileOwner."""
        with self._lock:
            if self._in_use.get(file.digest) is file:
                del self._in_use[file.digest]
        chunks = file.chunks
        if not file.complete and chunks is not None:
            self._record(file.digest, file.size_bytes, chunks, complete=False, dataset=file.dataset)

    # -- the whole --

    @property
    def used_bytes(self) -> int:
        """Bytes of objects in the cache."""
        return self._used_bytes

    @property
    def accepts_writes(self) -> bool:
        """False for a while after the disk refused a write: fetching ahead would then be in vain."""
        return not self._refused_until or time.monotonic() >= self._refused_until

    def note_failure(self, error: CacheError) -> None:
        """Somebody saw the disk refuse: nothing is written for a while."""
        self._refuse(error)

    def checkpoint(self) -> None:
        """Records the chunk maps of partial files in use, so that a kill costs little. Called every second or so."""
        with self._lock:
            files = [file for file in self._in_use.values() if not file.complete]
        for file in files:
            chunks = file.chunks
            if chunks is not None:
                self._record(file.digest, file.size_bytes, chunks, complete=False, dataset=file.dataset)

    def close(self) -> None:
        """Writes the index and gives the directory back."""
        self._closing = True
        if self._recovery.is_alive():
            self._recovery.join()
        self.checkpoint()
        try:
            self._home.end(self._index)
        finally:
            self._index.close()
            self._home.release()

    # -- inside --

    def _reconcile(self) -> None:
        try:
            self._index.flush()
            found = reconcile(
                self._home,
                self._index,
                self._disk,
                self._generation,
                files_are_trusted=self._beginning.strays_are_trusted,
                in_use=self._in_use.__contains__,
                stopping=lambda: self._closing,
            )
        except CacheError as error:
            self._refuse(error)
            return
        with self._lock:
            self._used_bytes += found.adopted_bytes - found.dropped_row_bytes
        if not self._closing:
            self._home.strays_are_gone(self._index)
        if found.dropped_files or found.adopted_bytes:
            logger.info("%d bytes were found again, %d files dropped", found.adopted_bytes, found.dropped_files)

    def _used(self, digest: str) -> ObjectFile | None:
        with self._lock:
            file = self._in_use.get(digest)
        return file if file is not None and file.acquire() else None

    def _enter(self, file: ObjectFile) -> ObjectFile:
        """Shares the file, or the one that another thread entered first."""
        with self._lock:
            other = self._in_use.get(file.digest)
            if other is None or not other.acquire():
                self._in_use[file.digest] = file
                return file
        os.close(file.descriptor)
        return other

    def _load_partial(self, digest: str, size_bytes: int) -> ObjectFile:
        path = f"{self._partial}/{digest[:2]}/{digest}"
        row = self._index.find(digest)
        descriptor = None
        chunks = ChunkMap(chunk_count(size_bytes))
        known = row is not None and row.generation == self._generation and row.size_bytes == size_bytes
        if row is not None and known and not row.complete:
            descriptor = self._disk.open("object.open", path)
            try:
                chunks = chunks if descriptor is None else ChunkMap.decode(row.chunk_map, size_bytes)
            except ManifestInvalid:
                self._disk.unlink("object.drop", path)
                os.close(descriptor) if descriptor is not None else None
                descriptor = None
        if descriptor is None:
            self.room_for(0)
            try:
                descriptor = self._disk.create("object.create", path)
                os.ftruncate(descriptor, size_bytes)
            except CacheError as error:
                self._refuse(error)
                raise
            except OSError as error:
                raise CacheDiskFailed(f"cache disk failed (object.create: {error.strerror})") from error
        return ObjectFile(self, self._disk, digest, size_bytes, descriptor, chunks)

    def _is_trusted(self, digest: str) -> bool:
        row = self._index.find(digest)
        return row is not None and row.generation == self._generation

    def _check(self, digest: str, row: IndexRow) -> None:
        """Checks an object file of before the crash; what is left of it is of this generation."""
        name = f"{digest[:2]}/{digest}"
        if row.complete:
            self._disk.rename_if_exists("object.check", f"{self._objects}/{name}", f"{self._partial}/{name}")
        descriptor = self._disk.open("object.open", f"{self._partial}/{name}")
        if descriptor is None:
            self._drop(digest)
            return
        try:
            chunks = ChunkMap.decode(row.chunk_map, row.size_bytes)
            os.ftruncate(descriptor, row.size_bytes)
            for chunk in bad_chunks(self._disk, descriptor, chunks, row.size_bytes):
                chunks.remove(chunk)
        except ManifestInvalid:
            self._drop(digest)
            return
        finally:
            os.close(descriptor)
        if chunks.complete:
            self._disk.rename("object.publish", f"{self._partial}/{name}", f"{self._objects}/{name}")
        self._record(digest, row.size_bytes, chunks, complete=chunks.complete, dataset=row.dataset)
        with self._lock:
            self._used_bytes += _present_bytes(chunks, row.size_bytes) - row.present_bytes

    def _record(self, digest: str, size_bytes: int, chunks: ChunkMap, *, complete: bool, dataset: int) -> None:
        present = size_bytes if complete else _present_bytes(chunks, size_bytes)
        now, encoded = self._clock, chunks.encode()
        self._index.record(
            IndexRow(digest, size_bytes, present, complete, encoded, self._generation, dataset, now, now)
        )

    def _drop(self, digest: str) -> None:
        name = f"{digest[:2]}/{digest}"
        self._index.forget(digest)
        self._disk.unlink("object.drop", f"{self._objects}/{name}")
        self._disk.unlink("object.drop", f"{self._partial}/{name}")

    def _refuse(self, error: CacheError) -> None:
        self.trouble = error
        self._refused_until = time.monotonic() + _FAILURE_PAUSE_S

    def _check_free_space(self, count_bytes: int) -> None:
        free = self._disk.free_bytes(self._objects)
        self._until_free_check = _FREE_CHECK_BYTES
        short = self._free_floor_bytes + count_bytes + _FREE_CHECK_BYTES - free
        if short > 0:
            self._until_free_check = 0
            self._make_room(min(short, self.limit_bytes) + max(0, self.limit_bytes - self._used_bytes))

    def _make_room(self, count_bytes: int) -> None:
        """Evicts until so many bytes fit under the limit. Raises CacheDiskFull if they cannot."""
        with self._evicting:
            need = self._used_bytes + count_bytes - self.limit_bytes
            if need <= 0:
                return
            need = max(need, int(self.limit_bytes * _EVICT_SHARE))
            self.let_go()
            self._index.flush(with_touches=True)
            with self._lock:
                busy = set(self._in_use)
            idle = [row for row in self._index.eviction_rows() if row.digest not in busy]
            freed = 0
            for row in choose_victims(idle, need, self._clock):
                self._drop(row.digest)
                freed += row.present_bytes
            with self._lock:
                self._used_bytes -= freed
            if self._used_bytes + count_bytes > self.limit_bytes:
                error = CacheDiskFull(
                    f"cache {self._home.path} is full: {self._used_bytes} of {self.limit_bytes} bytes are in use and "
                    "nothing may be evicted; reads go on straight from the store. Raise --cache-limit or free the disk"
                )
                self._refuse(error)
                raise error


def _checksums(parts: Sequence[memoryview], size_bytes: int) -> ChunkMap:
    chunks = ChunkMap(chunk_count(size_bytes))
    chunk, filled, checksum = 0, 0, 0
    for part in parts:
        view = part
        while len(view):
            take = min(CHUNK_BYTES - filled, len(view))
            checksum = crc32c.crc32c(view[:take], checksum)
            filled += take
            view = view[take:]
            if filled == CHUNK_BYTES:
                chunks.add(chunk, checksum)
                chunk, filled, checksum = chunk + 1, 0, 0
    if filled:
        chunks.add(chunk, checksum)
    return chunks


def _present_bytes(chunks: ChunkMap, size_bytes: int) -> int:
    count = sum(chunks.present) * CHUNK_BYTES
    return count - (-size_bytes % CHUNK_BYTES if chunks.present and chunks.present[-1] else 0)
