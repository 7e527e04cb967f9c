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

import os
import threading
import time
from collections.abc import Callable, Collection, Sequence

from csi_driver.cache.cache_directory import CacheDirectory
from csi_driver.cache.capacity import Capacity
from csi_driver.cache.chunk_map import ChunkMap, checksums_of_parts
from csi_driver.cache.crash_recovery import CrashRecovery
from csi_driver.cache.disk import Disk, LocalDisk
from csi_driver.cache.disk_health import DiskHealth
from csi_driver.cache.index import Index
from csi_driver.cache.object_file import ObjectFile
from csi_driver.cache.object_files import ObjectFiles
from csi_driver.cache.reservations import Reservations
from csi_driver.cache.scrubber import Scrubber
from csi_driver.cache.views import VIEWS, Views
from csi_driver.model.chunk import CHUNK_BYTES, chunk_count
from csi_driver.model.errors import CacheDiskFailed, CacheError, ManifestInvalid
from csi_driver.model.snapshot import ObjectVersion
from csi_driver.settings import ChunkStoreSettings


class ChunkStore:
    """The object files of one cache directory. Methods may be called from any thread.

    ``_lock`` guards ``_in_use`` and is not held across a write of an object's bytes.
    """

    def __init__(self, settings: ChunkStoreSettings, disk: Disk | None = None) -> None:
        """Takes the directory. Raises CacheDirectoryMissing, CacheDirectoryUnusable, CacheDirectoryInUse."""
        self._disk = disk or LocalDisk()
        self._home = CacheDirectory.take(settings.directory)
        self._index = Index(self._home.index)
        beginning = self._home.begin(self._index)
        self._shelf = ObjectFiles(self._home, self._index, self._disk, beginning.generation)
        self._lock = threading.Lock()
        self._in_use: dict[str, ObjectFile] = {}
        self._room = Capacity(self._shelf, settings, self._in_use)
        self._doubt = CrashRecovery(self._shelf, self._room, beginning, self._in_use.__contains__)
        self.views = Views(self._home.path / VIEWS, self._home.objects, self._shelf.links, self._doubt.allows)
        """Trees of hard links to complete object files; what one holds is not evicted."""
        self.health = DiskHealth(self._disk, os.fspath(self._home.path))
        self.scrubber = Scrubber(self._shelf, self._room, self._doubt, self.health, self, settings.scrub_rate_bytes)
        self._doubt.begin()
        self.scrubber.begin()

    # -- finding --

    def advance(self, count_bytes: int, dataset: int = 0) -> None:
        """An object of this size is opened: the clock that eviction goes by moves on, and the dataset is in use."""
        self._shelf.clock += count_bytes
        self._room.dataset_last_use[dataset] = self._shelf.clock

    def find(self, version: ObjectVersion, dataset: int = 0) -> ObjectFile | None:
        """The file if it is complete, with one user counted. Two system calls at the most. ``dataset`` is who asks."""
        if not self.health.in_use:
            return None
        digest = version.digest(CHUNK_BYTES)
        file = self._used(digest)
        if file is not None:
            if file.complete:
                return file
            file.release()
            return None
        if self._doubt.exists and not self._doubt.is_trusted(digest):
            return None
        descriptor = self._disk.open("object.open", self._shelf.complete_path(digest))
        if descriptor is None:
            return None
        if os.fstat(descriptor).st_size != version.size_bytes:
            os.close(descriptor)
            self._shelf.drop(digest)
            return None
        if self._room.is_tight:
            self._index.touch(digest, self._shelf.clock, dataset)
        return self._enter(ObjectFile(self, self._disk, digest, version.size_bytes, descriptor, None))

    def is_complete(self, version: ObjectVersion) -> bool:
        """True if the object is complete in the cache."""
        digest = version.digest(CHUNK_BYTES)
        return os.path.exists(self._shelf.complete_path(digest))

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
            self.health.require()
            found = self.find(version, dataset) or self.recover(version, dataset)
            if found is not None:
                return found
            digest = version.digest(CHUNK_BYTES)
            file = self._used(digest) or self._enter(self._load_partial(digest, version.size_bytes, dataset))
            file.dataset = dataset
            unfinished = not file.complete or file.chunks is None or file.chunks.complete
            if unfinished and self._is_on_disk(file):
                return file
            file.release()

    def recover(self, version: ObjectVersion, dataset: int = 0) -> ObjectFile | None:
        """For what ``find`` did not find: the file if it is complete now. After a crash of the machine it is checked
        against its CRCs first, which blocks on the disk as long as reading the object takes, and chunks that fail are
        dropped. Without one, only what came into use since can have become complete."""
        self.health.require()
        digest = version.digest(CHUNK_BYTES)
        if not self._doubt.exists:
            file = self._used(digest)
            if file is not None and not file.complete:
                file.release()
                return None
            return file
        self._doubt.settle(digest, version.size_bytes)
        return self.find(version, dataset)

    @property
    def is_in_doubt(self) -> bool:
        """True after a crash of the machine, until every file of before it was checked."""
        return self._doubt.exists

    # -- adding --

    def add_whole(self, version: ObjectVersion, parts: Sequence[memoryview], dataset: int = 0) -> ObjectFile:
        """Stores a complete object at once, with one user counted. Raises CacheDiskFull or CacheDiskFailed."""
        digest = version.digest(CHUNK_BYTES)
        self._room.ensure(version.size_bytes, dataset)
        path = self._shelf.partial_path(digest)
        chunks = checksums_of_parts(parts, version.size_bytes)
        try:
            descriptor = self._shelf.create(digest)
            try:
                self._disk.write("chunk.write", descriptor, parts, 0)
                published = self._shelf.publish_file(digest, descriptor)
            except BaseException:
                os.close(descriptor)
                self._disk.unlink("object.drop", path)
                raise
        except CacheError as error:
            self._room.refuse(error)
            raise
        if published:
            self._shelf.record(digest, version.size_bytes, chunks, complete=True, dataset=dataset)
            self._room.taken(version.size_bytes)
        return self._enter(ObjectFile(self, self._disk, digest, version.size_bytes, descriptor, None))

    # -- what object files tell their owner --

    def room_for(self, file: ObjectFile, count_bytes: int) -> bool:
        """See ObjectFileOwner."""
        self.health.require()
        if self._room.is_oversize(file.size_bytes):
            return self._room.ensure_oversize(count_bytes, file.dataset)
        self._room.ensure(count_bytes, file.dataset)
        return True

    def grew(self, file: ObjectFile, count_bytes: int) -> None:
        """See ObjectFileOwner."""
        self._room.taken(count_bytes)

    def completed(self, file: ObjectFile) -> None:
        """See ObjectFileOwner."""
        chunks = file.chunks
        if self._shelf.publish_file(file.digest, file.descriptor) and chunks is not None:
            self._shelf.record(file.digest, file.size_bytes, chunks, complete=True, dataset=file.dataset)

    def released(self, file: ObjectFile) -> None:
        """See ObjectFileOwner. What is known of the chunks is in the index before anybody can open the file anew."""
        try:
            chunks = file.chunks
            if not file.complete and chunks is not None:
                self._shelf.record(file.digest, file.size_bytes, chunks, complete=False, dataset=file.dataset)
        finally:
            with self._lock:
                if self._in_use.get(file.digest) is file:
                    del self._in_use[file.digest]

    # -- the whole --

    @property
    def limit_bytes(self) -> int:
        """The hard limit."""
        return self._room.limit_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes of objects in the cache."""
        return self._room.used_bytes

    @property
    def evicted_objects(self) -> int:
        """Objects evicted since the daemon started."""
        return self._room.evicted_objects

    def note_dataset(self, dataset: int, total_bytes: int) -> None:
        """A dataset of this size is mounted: what eviction reckons an epoch by."""
        self._room.dataset_bytes[dataset] = total_bytes

    @property
    def reservations(self) -> Reservations:
        """What is kept for volumes."""
        return self._room.reservations

    @property
    def trouble(self) -> CacheError | None:
        """Why the last write was refused; None while the disk works."""
        return self._room.trouble

    def has_room_for_warmup(self, count_bytes: int, dataset: int, mounted: Collection[int]) -> bool:
        """See Room.has_for_warmup."""
        return self._room.has_for_warmup(count_bytes, dataset, mounted)

    def before_evicting(self, let_go: Callable[[], None]) -> None:
        """This is called before anything is evicted: whoever keeps files open without need closes them."""
        self._room.let_go = let_go

    @property
    def accepts_writes(self) -> bool:
        """False for a while after the disk refused a write: fetching ahead would then be in vain."""
        return self.health.in_use and self._room.accepts_writes

    def note_failure(self, error: CacheError) -> None:
        """Somebody saw the disk refuse: nothing is written for a while."""
        if not self.health.in_use:
            return
        self._room.refuse(error)
        if isinstance(error, CacheDiskFailed):
            self.health.failed(str(error))

    def read_failed(self, what: str) -> None:
        """The disk could not give bytes back: reason to doubt the disk, none to stop writing."""
        self.health.failed(what)

    @property
    def bad_chunks(self) -> int:
        """Chunks that were found not to be what was written, and dropped, since the daemon started."""
        return self.health.bad_chunks + self._doubt.dropped_chunks

    def is_open(self, digest: str) -> bool:
        """See Scrubber."""
        return digest in self._in_use

    def part_with(self, digest: str) -> None:
        """See Scrubber."""
        with self._lock:
            self._in_use.pop(digest, None)

    def checkpoint(self) -> None:
        """Records the chunk maps of partial files in use, so that a kill costs little; tries a disk that is out of
        use. Called every second or so."""
        self.health.look()
        with self._lock:
            files = [file for file in self._in_use.values() if not file.complete]
        for file in files:
            chunks = file.chunks
            if chunks is not None:
                self._shelf.record(file.digest, file.size_bytes, chunks, complete=False, dataset=file.dataset)

    def close(self) -> None:
        """Writes the index and gives the directory back."""
        self._room.close()
        self.scrubber.close()
        self._doubt.close()
        self.checkpoint()
        try:
            self._home.end(self._index)
        finally:
            self._index.close()
            self._home.release()

    # -- inside --

    def _is_on_disk(self, file: ObjectFile) -> bool:
        """False if the file was evicted between its opening and its entry among those in use."""
        with self._shelf.links.of(file.digest):
            return os.fstat(file.descriptor).st_nlink > 0

    def _used(self, digest: str) -> ObjectFile | None:
        while True:
            with self._lock:
                file = self._in_use.get(digest)
            if file is None or file.acquire():
                return file
            time.sleep(0)  # its last user is closing it, and in a moment what it holds is in the index

    def _enter(self, file: ObjectFile) -> ObjectFile:
        """Shares the file, or the one that another thread entered first."""
        with self._lock:
            other = self._in_use.get(file.digest)
            if other is None or not other.acquire():
                self._in_use[file.digest] = file
                return file
        os.close(file.descriptor)
        return other

    def _load_partial(self, digest: str, size_bytes: int, dataset: int) -> ObjectFile:
        path = self._shelf.partial_path(digest)
        row = self._index.find(digest)
        descriptor = None
        chunks = ChunkMap(chunk_count(size_bytes))
        known = row is not None and row.generation == self._shelf.generation and row.size_bytes == size_bytes
        if row is not None and known and not row.complete:
            descriptor = self._disk.open("object.open", path)
            try:
                chunks = chunks if descriptor is None else ChunkMap.decode(row.chunk_map, size_bytes)
            except ManifestInvalid:
                self._disk.unlink("object.drop", path)
                os.close(descriptor) if descriptor is not None else None
                descriptor = None
        if descriptor is None:
            self._room.ensure(0, dataset)
            try:
                self._index.forget_now(digest)
                descriptor = self._shelf.create(digest)
                os.ftruncate(descriptor, size_bytes)
            except CacheError as error:
                self._room.refuse(error)
                raise
            except OSError as error:
                raise CacheDiskFailed(f"cache disk failed (object.create: {error.strerror})") from error
        return ObjectFile(self, self._disk, digest, size_bytes, descriptor, chunks)
