"""The chunk store, the node's cache: object files on a local disk, found by digest.

    <directory>/format.json           version and chunk size
    <directory>/lock                  held by the daemon that uses the directory
    <directory>/index.sqlite          chunk maps, sizes, last use
    <directory>/partial/<aa>/<digest> object files with chunks missing
    <directory>/objects/<aa>/<digest> complete object files

A file is below ``objects`` if and only if it is complete: the rename is the commit. So an OPEN needs one open(2) and no
look-up in the index, and a kill of the daemon cannot leave a file there that is not complete.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from csi_driver.cache.cache_directory import CacheDirectory
from csi_driver.cache.capacity import Capacity
from csi_driver.cache.chunk_map import ChunkMap, checksums_of_parts
from csi_driver.cache.chunk_writer import ChunkWriter
from csi_driver.cache.crash_recovery import CrashRecovery
from csi_driver.cache.direct_writes import DirectWrites, device_counters
from csi_driver.cache.disk import Disk, DiskSpace, LocalDisk, disk_error
from csi_driver.cache.disk_health import DiskHealth
from csi_driver.cache.eviction import Amount
from csi_driver.cache.files_in_use import FilesInUse
from csi_driver.cache.free_floor import FreeFloor
from csi_driver.cache.index import Index
from csi_driver.cache.object_directory import ObjectDirectory
from csi_driver.cache.object_file import ObjectFile
from csi_driver.cache.open_file_cache import OpenFileCache
from csi_driver.cache.proof_attribute import AccessProof, read_proof, write_proof
from csi_driver.cache.reservations import Reservations
from csi_driver.cache.scrubber import Checked, Scrubber
from csi_driver.cache.version_attribute import read_version
from csi_driver.cache.views import VIEWS, Views
from csi_driver.cache.write_path import keeps_whole
from csi_driver.model.chunk import CHUNK_BYTES, ByteRange, chunk_count
from csi_driver.model.conditions import Condition
from csi_driver.model.errors import CacheError, DescriptorsExhausted, ManifestInvalid
from csi_driver.model.snapshot import ObjectVersion
from csi_driver.settings import ChunkStoreSettings


class ChunkStore:
    """The object files of one cache directory. Methods may be called from any thread: the fields have locks of their
    own."""

    def __init__(self, settings: ChunkStoreSettings, disk: Disk | None = None, memory_bytes: int | None = None) -> None:
        """Locks the directory; in standby, waits for it. ``memory_bytes`` are those that pages of the cache may use;
        None: all of the machine. Raises CacheDirectoryMissing, CacheDirectoryUnusable, CacheDirectoryInUse."""
        self._disk = disk or LocalDisk()
        self._memory_bytes = memory_bytes or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        directory = self._directory = CacheDirectory.acquire(settings.directory, standby=settings.standby)
        self.credential_key = directory.credential_key()
        """See ``CacheDirectory.credential_key``; not to be logged."""
        self._direct_writes = DirectWrites(self._disk, directory.file_system, counters=device_counters(directory.path))
        removed = directory.free_full_disk()
        self._index = Index(directory.index)
        for digest in removed:
            self._index.forget(digest)
        self._index.flush()
        start_state = directory.begin(self._index)
        self._objects = ObjectDirectory(directory, self._index, self._disk, start_state.generation)
        self._opened_before = self._objects.clock
        self._in_use = FilesInUse()
        self._capacity = Capacity(self._objects, settings, self._in_use)
        self._crash_recovery = CrashRecovery(self._objects, self._capacity, start_state, self._in_use)
        self.views = Views(
            directory.path / VIEWS, directory.objects, self._objects.link_guard, self._crash_recovery.allows
        )
        """Trees of hard links to complete object files, which are not evicted while a view links them."""
        self.health = DiskHealth(self._disk, os.fspath(directory.path))
        self.scrubber = Scrubber(
            self._objects, self._capacity, self._crash_recovery, self.health, self._in_use, settings.scrub_bytes_per_s
        )
        self._crash_recovery.begin()
        self.scrubber.begin()

    # -- look-up --

    def advance(self, count_bytes: int, dataset: int = 0) -> None:
        """Records the open of an object of this size: moves the clock of eviction, and the dataset's last use."""
        self._objects.clock += count_bytes
        self._capacity.evictor.dataset_last_use[dataset] = self._objects.clock

    def find(self, version: ObjectVersion, dataset: int = 0) -> ObjectFile | None:
        """The file if it is complete, with one user counted. Two system calls at the most. ``dataset`` is that of the
        reader."""
        if not self.health.in_use:
            return None
        digest = version.digest(CHUNK_BYTES)
        file = self._in_use.acquire(digest)
        if file is not None:
            if file.complete:
                return file
            file.release()
            return None
        if self._crash_recovery.has_unverified and not self._crash_recovery.is_trusted(digest):
            return None
        # The file may be evicted between this open and ``enter``. It is complete, so the reader has all its bytes by
        # the descriptor, and only the next open fetches it again.
        descriptor = self._disk.open("object.open", self._objects.complete_path(digest))
        if descriptor is None:
            return None
        if os.fstat(descriptor).st_size != version.size_bytes:
            os.close(descriptor)
            self._capacity.drop(digest)
            return None
        if self._capacity.is_tight:
            self._index.touch(digest, self._objects.clock, dataset)
        return self._in_use.enter(ObjectFile(self, self._disk, digest, version.size_bytes, descriptor, None))

    def is_complete(self, version: ObjectVersion) -> bool:
        """True if the object is complete in the cache."""
        return os.path.exists(self._objects.complete_path(version.digest(CHUNK_BYTES)))

    def present_bytes(self, version: ObjectVersion) -> int:
        """Bytes of the object that are in the cache."""
        digest = version.digest(CHUNK_BYTES)
        file = self._in_use.find(digest)
        if file is not None:
            return file.present_bytes()
        if self.is_complete(version):
            return version.size_bytes
        row = self._index.find(digest)
        return 0 if row is None or row.complete else row.present_bytes

    def proven_at_s(self, version: ObjectVersion, credential: bytes) -> int:
        """When the store let the credential read the object, in seconds since 1970; 0: never, or nothing of the object
        is cached."""
        digest = version.digest(CHUNK_BYTES)
        complete, partial = self._objects.complete_path(digest), self._objects.partial_path(digest)
        return read_proof(self._disk, complete, credential) or read_proof(self._disk, partial, credential)

    def open_partial(self, version: ObjectVersion, dataset: int = 0) -> ObjectFile:
        """The file of an object, complete or not, with one user counted; created if there is none.

        Raises CacheDiskFull or CacheDiskFailed if it cannot be created.
        """
        while True:
            self.health.require()
            found = self.find(version, dataset) or self.recover(version, dataset)
            if found is not None:
                return found
            digest = version.digest(CHUNK_BYTES)
            file = self._in_use.acquire(digest)
            if file is None:
                file = self._in_use.enter(self._load_partial(version, dataset))
            file.dataset = dataset
            # A file that was evicted between its opening and ``enter`` has no name any more: it is opened anew.
            usable = not file.complete or file.chunks is None or file.chunks.complete
            if usable and self._has_name(file):
                return file
            file.release()

    def recover(self, version: ObjectVersion, dataset: int = 0) -> ObjectFile | None:
        """For an object that ``find`` did not find: the file if it is complete now. After a crash of the machine it is
        verified first, which blocks on the disk for as long as reading the object takes, and chunks that fail are
        dropped. Otherwise only a file that was opened since ``find`` can have become complete."""
        self.health.require()
        digest = version.digest(CHUNK_BYTES)
        if not self._crash_recovery.has_unverified:
            file = self._in_use.acquire(digest)
            if file is not None and not file.complete:
                file.release()
                return None
            return file
        self._crash_recovery.verify(digest, version.size_bytes)
        return self.find(version, dataset)

    @property
    def has_unverified_files(self) -> bool:
        """True after a crash of the machine, until every file of before it was verified."""
        return self._crash_recovery.has_unverified

    # -- additions --

    def add_whole(
        self,
        version: ObjectVersion,
        parts: Sequence[memoryview],
        dataset: int = 0,
        proof: AccessProof | None = None,
        *,
        for_warmup: bool = False,
    ) -> ObjectFile:
        """Stores a complete object at once, with one user counted, and the ``proof`` of the credential that fetched it.
        Raises CacheDiskFull or CacheDiskFailed."""
        digest = version.digest(CHUNK_BYTES)
        self._capacity.ensure(version.size_bytes, dataset, files=1)
        path = self._objects.partial_path(digest)
        chunks = checksums_of_parts(parts, version.size_bytes)
        # No lock is held while the bytes are written. If another thread creates a file of this object meanwhile, this
        # one loses its name: ``publish_file`` is then False, and the caller reads its bytes by the descriptor.
        try:
            descriptor = self._objects.create(digest)
            try:
                dataset_bytes = self._capacity.evictor.dataset_bytes.get(dataset, 0)
                cached = keeps_whole(
                    for_warmup=for_warmup, dataset_bytes=dataset_bytes, memory_bytes=self._memory_bytes
                )
                self._disk.write("chunk.write", descriptor, parts, 0, cached=cached)
                if proof is not None:
                    write_proof(self._disk, descriptor, proof, new_file=True)
                published = self._objects.publish_file(digest, descriptor)
            except BaseException:
                os.close(descriptor)
                self._disk.unlink("object.drop", path)
                raise
        except CacheError as error:
            self._capacity.refuse(error)
            raise
        if published:
            self._objects.record(digest, version.size_bytes, chunks, complete=True, dataset=dataset)
            self._capacity.add_written(version.size_bytes)
        added = ObjectFile(self, self._disk, digest, version.size_bytes, descriptor, None)
        file = self._in_use.enter(added)
        if proof is not None and file is not added:
            file.record_proof(proof)
        return file

    def chunk_writer(self, file: ObjectFile, part: ByteRange, *, for_warmup: bool) -> ChunkWriter:
        """For the chunks of one fetch, of that part of the file. To be closed."""
        return ChunkWriter(
            file,
            self._direct_writes,
            part,
            for_warmup=for_warmup,
            dataset_bytes=self._capacity.evictor.dataset_bytes.get(file.dataset, 0),
            memory_bytes=self._memory_bytes,
        )

    # -- ObjectFileOwner --

    def ensure_space(self, file: ObjectFile, count_bytes: int) -> bool:
        self.health.require()
        if self._capacity.is_oversize(file.size_bytes):
            return self._capacity.ensure_oversize(count_bytes, file.dataset)
        self._capacity.ensure(count_bytes, file.dataset)
        return True

    def grew(self, file: ObjectFile, count_bytes: int) -> None:
        if count_bytes > 0:
            self._capacity.add_written(count_bytes)
        else:
            self._capacity.add_used(count_bytes)

    def completed(self, file: ObjectFile) -> None:
        chunks = file.chunks
        # False for a file that was evicted while its last chunk was written: its readers keep the descriptor.
        if self._objects.publish_file(file.digest, file.descriptor) and chunks is not None:
            self._objects.record(file.digest, file.size_bytes, chunks, complete=True, dataset=file.dataset)

    def released(self, file: ObjectFile) -> None:
        # The chunk map is in the index before the file leaves the table: the next open starts from it.
        try:
            chunks = file.chunks
            if not file.complete and chunks is not None:
                self._objects.record(file.digest, file.size_bytes, chunks, complete=False, dataset=file.dataset)
        finally:
            self._in_use.remove(file)

    # -- for operators --

    @property
    def path(self) -> Path:
        """The cache directory."""
        return self._directory.path

    @property
    def file_system(self) -> str:
        """The type of its file system."""
        return self._directory.file_system

    @property
    def opened_bytes(self) -> int:
        """Sizes of the files that were opened since the daemon started, each time."""
        return self._objects.clock - self._opened_before

    def evict(self, versions: Iterable[ObjectVersion]) -> tuple[Amount, Amount]:
        """As ``Capacity.evict``."""
        return self._capacity.evictor.evict_objects([version.digest(CHUNK_BYTES) for version in versions])

    def verify(self, version: ObjectVersion) -> Checked:
        """As ``Scrubber.verify_now``."""
        return self.scrubber.verify_now(version.digest(CHUNK_BYTES))

    # -- capacity and health --

    @property
    def limit_bytes(self) -> int:
        return self._capacity.limit_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes of objects in the cache."""
        return self._capacity.used_bytes

    @property
    def evicted_objects(self) -> int:
        """Objects evicted since the daemon started."""
        return self._capacity.evictor.evicted_objects

    @property
    def evicted_bytes(self) -> int:
        """Their bytes."""
        return self._capacity.evictor.evicted_bytes

    @property
    def written_bytes(self) -> int:
        """Bytes of objects written to the cache since the daemon started."""
        return self._capacity.written_bytes

    @property
    def space(self) -> DiskSpace:
        """Of the file system, as it was a second ago."""
        return self._capacity.space

    @property
    def floor(self) -> FreeFloor:
        """What stays free on the file system."""
        return self._capacity.floor

    def conditions(self, dataset: int | None = None) -> list[Condition]:
        """What is wrong with the disk, for the volumes of a dataset; without one, for the node."""
        shortage = self._capacity.shortage
        return [*self.health.conditions(dataset), *([shortage] if shortage else [])]

    def note_dataset(self, dataset: int, total_bytes: int) -> None:
        """A dataset of this size is mounted: eviction takes it as the length of an epoch."""
        self._capacity.evictor.dataset_bytes[dataset] = total_bytes

    @property
    def reservations(self) -> Reservations:
        return self._capacity.reservations

    @property
    def last_refusal(self) -> CacheError | None:
        """Why the disk refused a write last; None if it never did."""
        return self._capacity.last_refusal

    def is_roomy(self, count_bytes: int) -> bool:
        """``Capacity.is_roomy``."""
        return self._capacity.is_roomy(count_bytes)

    def has_space_for_warmup(self, count_bytes: int, dataset: int, mounted: Collection[int]) -> bool:
        """``Capacity.has_space_for_warmup``."""
        return self._capacity.has_space_for_warmup(count_bytes, dataset, mounted)

    def add_open_file_cache(self) -> OpenFileCache[Any]:
        """An open-file cache for a mount. Eviction releases the complete files in it."""
        return self._in_use.add_open_file_cache()

    @property
    def accepts_writes(self) -> bool:
        """False for a while after the disk refused a write: fetching ahead would then be useless."""
        return self.health.in_use and self._capacity.accepts_writes

    def note_failure(self, error: CacheError) -> None:
        """Reports an error of the disk: nothing is written for a while. Without a descriptor, which is no error of it,
        files that are open without a reader are closed instead."""
        if isinstance(error, DescriptorsExhausted):
            self._in_use.release_idle()
            return
        if not self.health.in_use:
            return
        self._capacity.refuse(error)
        self.health.note(error)

    def read_failed(self, what: str) -> None:
        """Reports a read that failed: counts for the health of the disk, does not stop writes."""
        self.health.failed(what)

    @property
    def bad_chunks(self) -> int:
        """Damaged chunks that were dropped since the daemon started."""
        return self.health.bad_chunks + self._crash_recovery.dropped_chunks

    def checkpoint(self) -> None:
        """Records the chunk maps of partial files in use, so that a kill loses few chunks; tries a disk that is out of
        use; evicts where others have used the free space. Called every second or so."""
        self.health.poll()
        self._capacity.poll()
        for file in self._in_use.incomplete():
            chunks = file.chunks
            if chunks is not None:
                self._objects.record(file.digest, file.size_bytes, chunks, complete=False, dataset=file.dataset)

    @property
    def has_successor(self) -> bool:
        """Whether another daemon waits for the end of this one."""
        return self._directory.has_successor()

    def close(self) -> None:
        """Writes the index and releases the directory."""
        # All threads that change files or rows end before the index records a clean stop.
        self._capacity.close()
        self.scrubber.close()
        self._crash_recovery.close()
        self.checkpoint()
        try:
            self._directory.end(self._index)
        finally:
            self._index.close()
            self._directory.release()

    def _has_name(self, file: ObjectFile) -> bool:
        """False if the file was evicted between its opening and ``FilesInUse.enter``."""
        # Under the lock that ``Capacity._drop`` holds from its look at the files in use to its unlink.
        with self._objects.link_guard.of(file.digest):
            return os.fstat(file.descriptor).st_nlink > 0

    def _load_partial(self, version: ObjectVersion, dataset: int) -> ObjectFile:
        digest, size_bytes = version.digest(CHUNK_BYTES), version.size_bytes
        path = self._objects.partial_path(digest)
        row = self._index.find(digest)
        descriptor = None
        chunks = ChunkMap(chunk_count(size_bytes))
        known = row is not None and row.generation == self._objects.generation and row.size_bytes == size_bytes
        # Without a strong ETag, chunks are of the version that the file names: if it names none, of any.
        usable = version.has_strong_etag or read_version(self._disk, path) is not None
        if row is not None and known and usable and not row.complete:
            descriptor = self._disk.open("object.open", path)
            try:
                chunks = chunks if descriptor is None else ChunkMap.decode(row.chunk_map, size_bytes)
            except ManifestInvalid:
                self._disk.unlink("object.drop", path)
                os.close(descriptor) if descriptor is not None else None
                descriptor = None
        if descriptor is None:
            self._capacity.ensure(0, dataset, files=1)
            try:
                # The row first, and durably: after a kill in between, the chunk map of the older file would declare
                # the holes of the new one present.
                self._index.forget_now(digest)
                if row is not None:
                    self._capacity.add_used(-row.present_bytes)
                descriptor = self._objects.create(digest)
                try:
                    os.ftruncate(descriptor, size_bytes)
                except OSError as error:
                    os.close(descriptor)
                    raise disk_error("object.create", error) from error
            except CacheError as error:
                self._capacity.refuse(error)
                raise
        return ObjectFile(self, self._disk, digest, size_bytes, descriptor, chunks)
