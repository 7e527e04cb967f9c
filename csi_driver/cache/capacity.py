"""The capacity of the cache: its byte limit, the free space that it leaves on the disk, and when objects are evicted.

Eviction runs in the background, from a high mark down to a low one, so that a write seldom has to wait for it. After
the disk refused a write, nothing is written for a while.

The file system may run out of inodes before bytes, and others write to it too. So both are read again after some
writes, and every second, and objects are evicted for either.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection

from csi_driver.cache.disk import DiskSpace
from csi_driver.cache.eviction import NO_AMOUNT, UNUSED, Amount
from csi_driver.cache.evictor import Evictor
from csi_driver.cache.files_in_use import FilesInUse
from csi_driver.cache.free_floor import FreeFloor
from csi_driver.cache.free_space import FreeSpace
from csi_driver.cache.object_directory import ObjectDirectory
from csi_driver.cache.reservations import Reservations
from csi_driver.model.conditions import Condition
from csi_driver.model.errors import CacheDiskFull, CacheError, DescriptorsExhausted
from csi_driver.settings import MIB, ChunkStoreSettings

logger = logging.getLogger(__name__)

_FREE_CHECK_BYTES = 16 * MIB
_FREE_CHECK_FILES = 64
"""The free space of the file system is read again after so many bytes written, or files made."""

_FAILURE_PAUSE_S = 5.0
"""After the disk refused a write, nothing is written for so long: reads go straight to the store meanwhile."""

_RETRY_S = 5.0
"""When too little can be evicted, the index is not scanned again for so long."""

_POLL_RETRY_S = 60.0
"""The same, where nothing is written: only others can have changed what is free."""

_EVICT_SHARE = 0.02
"""When a writer waits for space, this share of the limit is evicted at least, so that the index is scanned seldom."""

_AHEAD = Amount(_FREE_CHECK_BYTES, _FREE_CHECK_FILES)
"""What may be written until what is free is read again."""

OVERSIZE_SHARE = 0.5
"""An object of more than this share of the limit gets only space that is free or held by unused objects; the rest of
it is read past the cache. Otherwise one pass over a large file would evict every other dataset."""

_ROOMY_BYTES = 1024 * MIB
_ROOMY_INODE_SHARE = 0.5
"""With so much free beyond the floor, and so many of the inodes, what was free a second ago suffices for a warmup."""

_TOUCH_FROM_SHARE = 0.8
"""Below this share of the limit no use is recorded: nothing is evicted soon, and a warm epoch touches every object."""

_TOUCH_INODE_SHARE = 0.25
"""The same for inodes: uses are recorded when less than this share of them is free."""


class Capacity:
    """How many bytes the cache holds and may hold. Methods may be called from any thread.

    ``_lock`` guards ``used_bytes`` and ``written_bytes``; it may be taken under that of the evictor. Other fields are
    single values that a thread may read late without harm.
    """

    def __init__(self, objects: ObjectDirectory, settings: ChunkStoreSettings, in_use: FilesInUse) -> None:
        """Starts the thread that evicts."""
        self._objects = objects
        self._free = FreeSpace(objects, settings.free_floor_bytes, settings.kubelet_directory)
        disk_bytes = self.space.total_bytes
        self.limit_bytes = settings.limit_bytes or max(
            1, min(disk_bytes * 9 // 10, disk_bytes - self.floor.count_bytes)
        )
        self._marks_of_bytes = min(self.limit_bytes, disk_bytes)
        self._high_gap_share, self._low_gap_share = 1 - settings.high_watermark, 1 - settings.low_watermark
        self._high_bytes = self.limit_bytes - int(self._marks_of_bytes * self._high_gap_share)
        self._touch_from_bytes = int(self.limit_bytes * _TOUCH_FROM_SHARE)
        self.reservations = Reservations(self.limit_bytes)
        self.evictor = Evictor(objects, in_use, self.reservations, lambda count_bytes: self.add_used(-count_bytes))
        self._lock = threading.Lock()
        self.used_bytes = objects.index.total_present_bytes()
        """Bytes of objects in the cache."""
        self.written_bytes = 0
        """Of objects, since the start."""
        self._until_free_check = 0
        self._refused_until = 0.0
        self._oversize_from = 0.0
        self._low_on_disk = False
        self._exhausted = False
        self._poll_from = 0.0
        self.shortage: Condition | None = None
        """Set while too little is free and nothing more can be evicted."""
        self._requested_by = 0
        self.last_refusal: CacheError | None = None
        """Why a write was refused last; None if none ever was."""
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._free.log_limits(self.limit_bytes)
        self._thread = threading.Thread(target=self._evict_in_background, name="evict", daemon=True)
        self._thread.start()

    @property
    def space(self) -> DiskSpace:
        """Of the file system, as it was a second ago."""
        return self._free.latest

    @property
    def floor(self) -> FreeFloor:
        """What stays free on it."""
        return self._free.floor

    def close(self) -> None:
        self._closing.set()
        self._wake.set()
        self._thread.join()

    # -- for writers --

    def ensure(self, count_bytes: int, dataset: int, *, files: int = 0) -> None:
        """Returns when so many bytes may be written for a dataset, and so many files made; evicts if it must. Raises
        CacheDiskFull."""
        if self._refused_until and time.monotonic() < self._refused_until:
            raise CacheDiskFull(str(self.last_refusal))
        # Read without the lock, and bytes are counted only when they are written: writers in parallel may exceed the
        # limit together, by no more than what they write at once.
        if self.used_bytes + count_bytes > self._high_bytes:
            self._wake_for(dataset)
            if self.used_bytes + count_bytes > self.limit_bytes:
                self._evict_for_writer(count_bytes, dataset)
        # Not locked: a lost step makes a check late by one write.
        self._until_free_check -= count_bytes + files * (_FREE_CHECK_BYTES // _FREE_CHECK_FILES)
        if self._until_free_check < 0:
            self._check_free_space(Amount(count_bytes, files), dataset)

    def ensure_oversize(self, count_bytes: int, dataset: int) -> bool:
        """Like ``ensure``, for an object that is large beside the cache: False if neither free space nor that of
        unused objects suffices. Raises CacheDiskFull."""
        if time.monotonic() < self._oversize_from:
            return False
        if self.used_bytes + count_bytes > self._high_bytes:
            with self.evictor.lock:
                # Again under the lock: another thread may have evicted enough meanwhile.
                missing = Amount(self.used_bytes + count_bytes - self._high_bytes)
                if not missing.is_none and not self.evictor.evict(self._batch(missing), dataset, UNUSED).covers(
                    missing
                ):
                    self._oversize_from = time.monotonic() + _RETRY_S
                    return False
        self.ensure(count_bytes, dataset)
        return True

    def is_oversize(self, size_bytes: int) -> bool:
        """Whether an object is large beside the cache."""
        return size_bytes > self.limit_bytes * OVERSIZE_SHARE

    def is_roomy(self, count_bytes: int) -> bool:
        """Whether far more than so many bytes is free, by what was known a second ago: for a warmup that asks before
        each object. False says nothing. Does not block."""
        space, gap_bytes = self.space, self.limit_bytes - self._high_bytes
        need_bytes = self.floor.count_bytes + gap_bytes + count_bytes + _ROOMY_BYTES
        return (
            self.accepts_writes
            and self.used_bytes + count_bytes <= self._high_bytes
            and space.free_bytes >= need_bytes
            and space.free_inodes >= space.total_inodes * _ROOMY_INODE_SHARE
        )

    def has_space_for_warmup(self, count_bytes: int, dataset: int, mounted: Collection[int]) -> bool:
        """Whether so many bytes fit below the high mark, above which objects would soon be evicted. Evicts unused
        objects for it, where datasets that are not ``mounted`` count as unused; never objects of ``dataset`` itself.
        Blocks on the disk. Raises CacheError while that refuses writes."""
        if not self.accepts_writes and self.last_refusal is not None:
            raise self.last_refusal
        if self._above_mark(count_bytes).is_none:
            return True
        with self.evictor.lock:
            missing = self._above_mark(count_bytes)
            if not missing.is_none:
                self.evictor.evict(self._batch(missing), dataset, UNUSED, mounted)
        return self._above_mark(count_bytes).is_none

    def add_used(self, count_bytes: int) -> None:
        """Bytes were written to object files or, with a negative number, dropped."""
        with self._lock:
            self.used_bytes += count_bytes

    def add_written(self, count_bytes: int) -> None:
        """Bytes were received and written to object files."""
        with self._lock:
            self.used_bytes += count_bytes
            self.written_bytes += count_bytes

    def drop(self, digest: str) -> None:
        """Drops a file that is no object's, with its row. Raises CacheDiskFailed."""
        row = self._objects.index.find(digest)
        self._objects.drop(digest)
        if row is not None:
            self.add_used(-row.present_bytes)

    @property
    def is_tight(self) -> bool:
        """Whether objects may be evicted soon, so that it matters when each was used last."""
        return self.used_bytes > self._touch_from_bytes or self._low_on_disk

    @property
    def accepts_writes(self) -> bool:
        """False for a while after the disk refused a write: fetching ahead would then be useless."""
        return not self._refused_until or time.monotonic() >= self._refused_until

    def refuse(self, error: CacheError) -> None:
        """The disk refused a write: nothing is written for a while."""
        if isinstance(error, DescriptorsExhausted):  # which is no fault of the disk, and may be over at once
            return
        self.last_refusal = error
        self._refused_until = time.monotonic() + _FAILURE_PAUSE_S
        self._until_free_check = 0  # the next write looks first whether the disk is full

    # -- the free space, which others use too --

    def poll(self) -> None:
        """Reads what is free, and evicts in the background if it is too little: others may have used it. Called every
        second or so. Blocks on the disk."""
        try:
            self._free.latest = space = self._free.read()
        except CacheError:
            return  # the health of the disk is watched elsewhere
        self._note_space(space)
        if self._missing(space, self._high_gap_share).is_none:
            self._exhausted = False
        elif not self._exhausted or time.monotonic() >= self._poll_from:
            self._poll_from = time.monotonic() + _POLL_RETRY_S
            self._wake_for(0)
        missing = self._missing(space, 0.0, _AHEAD)
        if not self._exhausted or missing.is_none:
            self.shortage = None
        elif self.shortage is None:
            self.shortage, text = self._free.shortage(missing)
            logger.warning("%s", text)

    def _note_space(self, space: DiskSpace) -> None:
        few_inodes = space.free_inodes < space.total_inodes * _TOUCH_INODE_SHARE
        self._low_on_disk = few_inodes or not self._missing(space, self._low_gap_share, _AHEAD).is_none

    def _missing(self, space: DiskSpace, gap_share: float, need: Amount = NO_AMOUNT) -> Amount:
        """What is to be freed so that as much as needed fits above the floor and a gap; 0 or less: it does."""
        return self._free.missing(space, self._gap(space, gap_share), need)

    def _gap(self, space: DiskSpace, share: float) -> Amount:
        return Amount(int(self._marks_of_bytes * share), int(space.total_inodes * share))

    # -- eviction --

    def _above_mark(self, count_bytes: int) -> Amount:
        """By how much another file of so many bytes would be above the high mark; 0 or less: it fits."""
        space = self._free.read()
        missing = self._missing(space, self._high_gap_share, Amount(count_bytes, 1))
        return Amount(max(self.used_bytes + count_bytes - self._high_bytes, missing.count_bytes), missing.files)

    def _evict_for_writer(self, count_bytes: int, dataset: int) -> None:
        """Evicts until so many bytes fit under the limit. Raises CacheDiskFull if they cannot."""
        while not self.evictor.lock.acquire(timeout=0.02):
            # Another thread evicts down to its own goal, which may take long after there is enough for this write.
            if self.used_bytes + count_bytes <= self.limit_bytes:
                return
        try:
            need = Amount(self.used_bytes + count_bytes - self.limit_bytes)
            if need.is_none or self.evictor.evict(self._batch(need), dataset).covers(need):
                return
        finally:
            self.evictor.lock.release()
        # Read again: bytes may have been dropped otherwise, by a scrub for instance.
        if self.used_bytes + count_bytes > self.limit_bytes:
            self._raise_full(f"all of its {self.limit_bytes} bytes are in use")

    def _check_free_space(self, need: Amount, dataset: int) -> None:
        space = self._free.read()
        self._until_free_check = _FREE_CHECK_BYTES
        self._note_space(space)
        ahead = need.plus(_AHEAD)
        if not self._missing(space, self._high_gap_share, ahead).is_none:
            self._wake_for(dataset)
        missing = self._missing(space, 0.0, ahead)
        if missing.is_none:
            return
        self._until_free_check = 0
        with self.evictor.lock:
            freed = self.evictor.evict(self._batch(missing), dataset)
        if freed.covers(missing):
            return
        if freed.files < missing.files:
            kept = FreeFloor.inodes(space)
            self._raise_full(f"the last {kept} inodes of its file system are to stay free")
        kept = self.floor.count_bytes
        self._raise_full(f"the last {kept} bytes of the disk are to stay free")

    def _raise_full(self, why: str) -> None:
        error = CacheDiskFull(
            f"cache {self._objects.cache_directory.path} is full: {why}, and nothing more may be evicted; reads go "
            "straight to the store. Raise --cache-limit or free the disk"
        )
        self.refuse(error)
        raise error

    def _batch(self, need: Amount) -> Amount:
        """More of what is needed, so that the index is scanned seldom."""
        return Amount(
            max(need.count_bytes, int(self.limit_bytes * _EVICT_SHARE)) if need.count_bytes > 0 else 0,
            max(need.files, int(self.space.total_inodes * _EVICT_SHARE)) if need.files > 0 else 0,
        )

    # -- in the background --

    def _wake_for(self, dataset: int) -> None:
        self._requested_by = dataset
        if not self._wake.is_set():
            self._wake.set()

    def _evict_in_background(self) -> None:
        while self._wake.wait() and not self._closing.is_set():
            try:
                enough = self._evict_to_low_mark()
            except CacheError as error:
                logger.warning("eviction failed, nothing is cached for %g s: %s", _FAILURE_PAUSE_S, error)
                self.refuse(error)
                enough = False
            except BaseException:  # whatever it is, the thread must not die
                logger.exception("unexpected error in an eviction; it is retried in %g s", _RETRY_S)
                enough = False
            self._exhausted = not enough
            if not enough:
                self._closing.wait(_RETRY_S)
            # Cleared after the work: requests that came meanwhile were for the same goal. One that still lacks space
            # sets the event again with its next write.
            self._wake.clear()
            if self._closing.is_set():
                return

    def _evict_to_low_mark(self) -> bool:
        """False if less than that may be evicted."""
        space = self._free.read()
        over = self.used_bytes - self._high_bytes
        short = self._missing(space, self._high_gap_share)
        need = Amount(max(over, short.count_bytes), short.files)
        if need.is_none:
            return True  # the write that woke this thread is not counted yet: the next one wakes it again
        if need.files > 0:
            self._free.log_inodes(space)
        # From the high mark down to the low one, of what is above the high one.
        further = self._gap(space, self._low_gap_share - self._high_gap_share)
        need = Amount(
            need.count_bytes + further.count_bytes if need.count_bytes > 0 else 0,
            need.files + further.files if need.files > 0 else 0,
        )
        with self.evictor.lock:
            return self.evictor.evict(need, self._requested_by).covers(need)
