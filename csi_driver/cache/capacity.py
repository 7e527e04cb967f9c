"""The capacity of the cache: its byte limit, the free space that it leaves on the disk, and eviction.

Eviction runs in the background, from a high mark down to a low one, so that a write seldom has to wait for it. What is
reserved for a dataset is not evicted for another. After the disk refused a write, nothing is written for a while.

The file system may run out of inodes before bytes, and others write to it too. So both are read again after some
writes, and every second, and objects are evicted for either.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Iterable
from dataclasses import replace

from csi_driver import telemetry
from csi_driver.cache.disk import DiskSpace
from csi_driver.cache.eviction import EVERYTHING, NEVER, UNUSED, Amount, EvictionRow, choose_victims
from csi_driver.cache.files_in_use import FilesInUse
from csi_driver.cache.free_floor import INODE_SHARE, FreeFloor, free_floor
from csi_driver.cache.hard_links import is_linked
from csi_driver.cache.object_directory import ObjectDirectory
from csi_driver.cache.reservations import Reservations
from csi_driver.model.conditions import CACHE_DISK_FULL, CACHE_INODES_EXHAUSTED, Condition
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

_INODE_LOG_S = 3600.0

_IDLE_PAUSE_S = 1.5
"""Longer than the second between two checks of the open-file caches, which close what eviction cannot release."""

_EVICT_SHARE = 0.02
"""When a writer waits for space, this share of the limit is evicted at least, so that the index is scanned seldom."""

_NOTHING = Amount(0)

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

    ``_lock`` guards ``used_bytes`` and ``written_bytes``. ``_evicting`` is held by the one thread that evicts, while it
    scans the index and unlinks; under it the locks of directories (``LinkGuard``) and ``_lock`` are taken, one at a
    time. Other fields are single values that a thread may read late without harm.
    """

    def __init__(self, objects: ObjectDirectory, settings: ChunkStoreSettings, in_use: FilesInUse) -> None:
        """Starts the thread that evicts."""
        self._objects = objects
        self._in_use = in_use
        self._path = objects.cache_directory.objects
        self.space = objects.disk.space(self._path)
        """Of the file system, as it was a second ago."""
        disk_bytes = self.space.total_bytes
        self.floor = free_floor(objects.cache_directory.path, settings.free_floor_bytes, settings.kubelet_directory)
        self.limit_bytes = settings.limit_bytes or max(
            1, min(disk_bytes * 9 // 10, disk_bytes - self.floor.count_bytes)
        )
        self._marks_of_bytes = min(self.limit_bytes, disk_bytes)
        self._high_gap_share, self._low_gap_share = 1 - settings.high_watermark, 1 - settings.low_watermark
        self._high_bytes = self.limit_bytes - int(self._marks_of_bytes * self._high_gap_share)
        self._touch_from_bytes = int(self.limit_bytes * _TOUCH_FROM_SHARE)
        self.reservations = Reservations(self.limit_bytes)
        self.dataset_bytes: dict[int, int] = {}
        """Total sizes of datasets, as far as they are known."""
        self.dataset_last_use: dict[int, int] = {}
        """By the clock, of datasets that were opened since the start: the rows of objects in use lag behind."""
        self._lock = threading.Lock()
        self._evicting = threading.Lock()
        self.used_bytes = objects.index.total_present_bytes()
        """Bytes of objects in the cache."""
        self.written_bytes = 0
        """Of objects, since the start."""
        self.evicted_objects = self.evicted_bytes = 0
        """Since the start. Changed by the one thread that evicts."""
        self._until_free_check = 0
        self._refused_until = 0.0
        self._oversize_from = 0.0
        self._low_on_disk = False
        self._exhausted = False
        self._poll_from = 0.0
        self._inode_log_from = 0.0
        self.shortage: Condition | None = None
        """Set while too little is free and nothing more can be evicted."""
        self._requested_by = 0
        self.last_refusal: CacheError | None = None
        """Why a write was refused last; None if none ever was."""
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._log_limits()
        self._thread = threading.Thread(target=self._evict_in_background, name="evict", daemon=True)
        self._thread.start()

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
            with self._evicting:
                # Again under the lock: another thread may have evicted enough meanwhile.
                missing = Amount(self.used_bytes + count_bytes - self._high_bytes)
                if not missing.is_none and not self._evict(self._batch(missing), dataset, UNUSED).covers(missing):
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
        with self._evicting:
            missing = self._above_mark(count_bytes)
            if not missing.is_none:
                self._evict(self._batch(missing), dataset, UNUSED, mounted)
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

    def evict(self, digests: Iterable[str]) -> tuple[Amount, Amount]:
        """Evicts these objects, as far as they are cached; what was evicted, and what was kept because it is open or
        linked. Blocks on the disk, and while another thread evicts. Raises CacheDiskFailed."""
        gone = kept = _NOTHING
        # Before the lock: files that are open without a reader are not in use.
        self._in_use.release_idle()
        with self._evicting:
            for digest in digests:
                row = self._objects.index.find(digest)
                if row is None:
                    continue
                amount = Amount(row.present_bytes, 1)
                if self._drop(
                    EvictionRow(digest, row.present_bytes, row.dataset, row.first_use, row.last_use, row.gap)
                ):
                    gone = gone.plus(amount)
                else:
                    kept = kept.plus(amount)
        return gone, kept

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
            self.space = space = self._objects.disk.space(self._path)
        except CacheError:
            return  # the health of the disk is watched elsewhere
        self._note_space(space)
        if self._missing(space, self._high_gap_share).is_none:
            self._exhausted = False
        elif not self._exhausted or time.monotonic() >= self._poll_from:
            self._poll_from = time.monotonic() + _POLL_RETRY_S
            self._wake_for(0)
        short = self._exhausted and not self._missing(space, 0.0, _AHEAD).is_none
        if short and self.shortage is None:
            self.shortage, text = self._shortage(space)
            logger.warning("%s", text)
        elif not short:
            self.shortage = None

    def _note_space(self, space: DiskSpace) -> None:
        few_inodes = space.free_inodes < space.total_inodes * _TOUCH_INODE_SHARE
        self._low_on_disk = few_inodes or not self._missing(space, self._low_gap_share, _AHEAD).is_none

    def _missing(self, space: DiskSpace, gap_share: float, need: Amount = _NOTHING) -> Amount:
        """What is to be freed so that as much as needed fits above the floor and a gap; 0 or less: it does."""
        gap_bytes = int(self._marks_of_bytes * gap_share)
        files = 0
        if space.total_inodes:
            floor = FreeFloor.inodes(space) + int(space.total_inodes * gap_share)
            files = floor + need.files - space.free_inodes
        return Amount(self.floor.count_bytes + gap_bytes + need.count_bytes - space.free_bytes, files)

    def _log_limits(self) -> None:
        floor = self.floor
        facts = telemetry.fields(
            limit_bytes=self.limit_bytes, free_floor_bytes=floor.count_bytes, shared_with=floor.shared_with
        )
        if floor.is_below_kubelets:
            logger.warning(
                "the cache shares its disk with %s and may fill it until kubelet evicts pods (imagefs.available < 15 "
                "%%); leave out --free-floor, raise it to 20%%, or give the cache a disk of its own",
                floor.shared_with,
                extra=facts,
            )
        else:
            logger.info("limits of the cache", extra=facts)

    def _shortage(self, space: DiskSpace) -> tuple[Condition, str]:
        """What is missing, and a sentence for the log."""
        directory = self._objects.cache_directory.path
        if self._missing(space, 0.0, _AHEAD).files > 0:
            return CACHE_INODES_EXHAUSTED, (
                f"the file system of the cache {directory} has no inodes left for more objects ({INODE_SHARE:.0%} of "
                "them stay free), and nothing more may be evicted; reads go straight to the store. Make the file "
                "system with more inodes (mkfs.ext4 -i 8192), or remove files of others from it"
            )
        reason = f"shared with {self.floor.shared_with}" if self.floor.shared_with else "--free-floor"
        return CACHE_DISK_FULL, (
            f"the file system of the cache {directory} has less free space than the cache leaves "
            f"({self.floor.count_bytes} bytes: {reason}), and nothing more may be evicted; reads go straight to the "
            "store. Free the disk, or give the cache one of its own"
        )

    # -- eviction --

    def _above_mark(self, count_bytes: int) -> Amount:
        """By how much another file of so many bytes would be above the high mark; 0 or less: it fits."""
        space = self._objects.disk.space(self._path)
        missing = self._missing(space, self._high_gap_share, Amount(count_bytes, 1))
        return Amount(max(self.used_bytes + count_bytes - self._high_bytes, missing.count_bytes), missing.files)

    def _evict_for_writer(self, count_bytes: int, dataset: int) -> None:
        """Evicts until so many bytes fit under the limit. Raises CacheDiskFull if they cannot."""
        while not self._evicting.acquire(timeout=0.02):
            # Another thread evicts down to its own goal, which may take long after there is enough for this write.
            if self.used_bytes + count_bytes <= self.limit_bytes:
                return
        try:
            need = Amount(self.used_bytes + count_bytes - self.limit_bytes)
            if need.is_none or self._evict(self._batch(need), dataset).covers(need):
                return
        finally:
            self._evicting.release()
        # Read again: bytes may have been dropped otherwise, by a scrub for instance.
        if self.used_bytes + count_bytes > self.limit_bytes:
            self._raise_full(f"all of its {self.limit_bytes} bytes are in use")

    def _check_free_space(self, need: Amount, dataset: int) -> None:
        space = self._objects.disk.space(self._path)
        self._until_free_check = _FREE_CHECK_BYTES
        self._note_space(space)
        ahead = need.plus(_AHEAD)
        if not self._missing(space, self._high_gap_share, ahead).is_none:
            self._wake_for(dataset)
        missing = self._missing(space, 0.0, ahead)
        if missing.is_none:
            return
        self._until_free_check = 0
        with self._evicting:
            freed = self._evict(self._batch(missing), dataset)
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

    def _evict(
        self, need: Amount, dataset: int, last_class: int = EVERYTHING, mounted: Collection[int] | None = None
    ) -> Amount:
        """Frees so much for a dataset, or as much as may be evicted; returns how much. Under ``_evicting``.

        What is reserved for others stays; what is reserved for the dataset itself goes when nothing else is left. With
        ``mounted`` all of the dataset itself stays, and datasets that are not mounted count as unused.
        """
        self._in_use.release_idle()
        freed = self._evict_once(need, dataset, last_class, mounted)
        # Readers may have closed files again while the index was scanned, which stay open, idle. Unused objects (of
        # the classes up to UNUSED) are not among them; but a write must not be refused for files without a reader.
        if not freed.covers(need) and last_class == EVERYTHING and self._in_use.pause_idle(_IDLE_PAUSE_S):
            freed = freed.plus(self._evict_once(need.minus(freed), dataset, last_class, mounted))
        return freed

    def _evict_once(self, need: Amount, dataset: int, last_class: int, mounted: Collection[int] | None) -> Amount:
        index, in_use = self._objects.index, self._in_use.digests
        freed = _NOTHING
        for reserved in self.reservations.protected_from(dataset):
            index.flush(with_touches=True)
            uses = index.dataset_uses()
            for key, use in uses.items():
                use.total_bytes = self.dataset_bytes.get(key, 0)
                use.last_use = max(use.last_use, self.dataset_last_use.get(key, 0))
            if mounted is not None:
                uses = {key: use if key in mounted else replace(use, last_use=NEVER) for key, use in uses.items()}
            need_bytes, need_files = need.minus(freed)
            victims = choose_victims(
                (
                    row
                    for row in index.eviction_rows()
                    if row.digest not in in_use and (mounted is None or row.dataset != dataset)
                ),
                need_bytes,
                self._objects.clock,
                uses,
                need_files=need_files,
                reserved=reserved,
                pinned=self._is_pinned,
                last_class=last_class,
            )
            for victim in victims:
                if self._drop(victim):
                    freed = Amount(freed.count_bytes + victim.present_bytes, freed.files + 1)
            if freed.covers(need):
                break
        return freed

    def _is_pinned(self, row: EvictionRow) -> bool:
        try:
            return is_linked(self._objects.complete_path(row.digest))
        except OSError:
            return True  # a file that cannot be looked at cannot be removed either

    def _drop(self, row: EvictionRow) -> bool:
        """False if the object is in use by now."""
        with self._objects.link_guard.of(row.digest):
            # Looked at again under the lock of the directory: since the index was scanned, a reader may have opened
            # the file, or a view may have linked it. A reader that opens it without the lock, between this look and
            # the unlink, keeps the bytes that it has; ``ChunkStore.open_partial`` looks whether its file still exists.
            if row.digest in self._in_use.digests or self._is_pinned(row):
                return False
            self._objects.drop(row.digest)
        self.add_used(-row.present_bytes)
        self.evicted_objects += 1
        self.evicted_bytes += row.present_bytes
        return True

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
        space = self._objects.disk.space(self._path)
        over = self.used_bytes - self._high_bytes
        short = self._missing(space, self._high_gap_share)
        need = Amount(max(over, short.count_bytes), short.files)
        if need.is_none:
            return True  # the write that woke this thread is not counted yet: the next one wakes it again
        if need.files > 0:
            self._log_inodes(space)
        # From the high mark down to the low one, of what is above the high one.
        further_share = self._low_gap_share - self._high_gap_share
        further_bytes = int(self._marks_of_bytes * further_share)
        further_files = int(space.total_inodes * further_share)
        need = Amount(
            need.count_bytes + further_bytes if need.count_bytes > 0 else 0,
            need.files + further_files if need.files > 0 else 0,
        )
        with self._evicting:
            return self._evict(need, self._requested_by).covers(need)

    def _log_inodes(self, space: DiskSpace) -> None:
        if time.monotonic() < self._inode_log_from:
            return
        self._inode_log_from = time.monotonic() + _INODE_LOG_S
        logger.warning(
            "the file system of the cache %s runs out of inodes before bytes: objects are evicted although there is "
            "space for more. Make it with more inodes (mkfs.ext4 -i 8192)",
            self._objects.cache_directory.path,
            extra=telemetry.fields(
                inodes=space.total_inodes, free_inodes=space.free_inodes, free_bytes=space.free_bytes
            ),
        )
