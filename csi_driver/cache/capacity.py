"""The capacity of the cache: its byte limit, the free space that it leaves on the disk, and eviction.

Eviction runs in the background, from a high mark down to a low one, so that a write seldom has to wait for it. What is
reserved for a dataset is not evicted for another. After the disk refused a write, nothing is written for a while.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection
from dataclasses import replace

from csi_driver.cache.eviction import EVERYTHING, NEVER, UNUSED, EvictionRow, choose_victims
from csi_driver.cache.files_in_use import FilesInUse
from csi_driver.cache.hard_links import is_linked
from csi_driver.cache.object_directory import ObjectDirectory
from csi_driver.cache.reservations import Reservations
from csi_driver.model.errors import CacheDiskFull, CacheError
from csi_driver.settings import MIB, ChunkStoreSettings

logger = logging.getLogger(__name__)

_FREE_CHECK_BYTES = 16 * MIB
"""The free space of the file system is read again after so many bytes written."""

_FAILURE_PAUSE_S = 5.0
"""After the disk refused a write, nothing is written for so long: reads go straight to the store meanwhile."""

_RETRY_S = 5.0
"""When too little can be evicted, the index is not scanned again for so long."""

_IDLE_PAUSE_S = 1.5
"""Longer than the second between two checks of the open-file caches, which close what eviction cannot release."""

_EVICT_SHARE = 0.02
"""When a writer waits for space, this share of the limit is evicted at least, so that the index is scanned seldom."""

OVERSIZE_SHARE = 0.5
"""An object of more than this share of the limit gets only space that is free or held by unused objects; the rest of
it is read past the cache. Otherwise one pass over a large file would evict every other dataset."""

_TOUCH_FROM_SHARE = 0.8
"""Below this share of the limit no use is recorded: nothing is evicted soon, and a warm epoch touches every object."""


class Capacity:
    """How many bytes the cache holds and may hold. Methods may be called from any thread.

    ``_lock`` guards ``used_bytes``. ``_evicting`` is held by the one thread that evicts, while it scans the index and
    unlinks; under it the locks of directories (``LinkGuard``), of ``FilesInUse`` and ``_lock`` are taken, one at a
    time. Other fields are single values that a thread may read late without harm.
    """

    def __init__(self, objects: ObjectDirectory, settings: ChunkStoreSettings, in_use: FilesInUse) -> None:
        """Starts the thread that evicts."""
        self._objects = objects
        self._in_use = in_use
        self._path = objects.cache_directory.objects
        disk_bytes = objects.cache_directory.total_bytes()
        self.limit_bytes = settings.limit_bytes or disk_bytes * 9 // 10
        self._free_floor_bytes = settings.free_floor_bytes
        marks_of = min(self.limit_bytes, disk_bytes)
        self._high_gap_bytes = int(marks_of * (1 - settings.high_watermark))
        self._low_gap_bytes = int(marks_of * (1 - settings.low_watermark))
        self._high_bytes = self.limit_bytes - self._high_gap_bytes
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
        self.evicted_objects = 0
        self._until_free_check = 0
        self._refused_until = 0.0
        self._oversize_from = 0.0
        self._low_on_disk = False
        self._requested_by = 0
        self.last_refusal: CacheError | None = None
        """Why a write was refused last; None if none ever was."""
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._evict_in_background, name="evict", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._wake.set()
        self._thread.join()

    # -- for writers --

    def ensure(self, count_bytes: int, dataset: int) -> None:
        """Returns when so many bytes may be written for a dataset; evicts if it must. Raises CacheDiskFull."""
        if self._refused_until and time.monotonic() < self._refused_until:
            raise CacheDiskFull(str(self.last_refusal))
        # Read without the lock, and bytes are counted only when they are written: writers in parallel may exceed the
        # limit together, by no more than what they write at once.
        if self.used_bytes + count_bytes > self._high_bytes:
            self._wake_for(dataset)
            if self.used_bytes + count_bytes > self.limit_bytes:
                self._evict_for_writer(count_bytes, dataset)
        self._until_free_check -= count_bytes  # not locked: a lost step makes a check late by one write
        if self._until_free_check < 0:
            self._check_free_space(count_bytes, dataset)

    def ensure_oversize(self, count_bytes: int, dataset: int) -> bool:
        """Like ``ensure``, for an object that is large beside the cache: False if neither free space nor that of
        unused objects suffices. Raises CacheDiskFull."""
        if time.monotonic() < self._oversize_from:
            return False
        if self.used_bytes + count_bytes > self._high_bytes:
            with self._evicting:
                # Again under the lock: another thread may have evicted enough meanwhile.
                missing = self.used_bytes + count_bytes - self._high_bytes
                if missing > 0 and self._evict(self._batch_bytes(missing), dataset, UNUSED) < missing:
                    self._oversize_from = time.monotonic() + _RETRY_S
                    return False
        self.ensure(count_bytes, dataset)
        return True

    def is_oversize(self, size_bytes: int) -> bool:
        """Whether an object is large beside the cache."""
        return size_bytes > self.limit_bytes * OVERSIZE_SHARE

    def has_space_for_warmup(self, count_bytes: int, dataset: int, mounted: Collection[int]) -> bool:
        """Whether so many bytes fit below the high mark, above which objects would soon be evicted. Evicts unused
        objects for it, where datasets that are not ``mounted`` count as unused; never objects of ``dataset`` itself.
        Blocks on the disk. Raises CacheError while that refuses writes."""
        if not self.accepts_writes and self.last_refusal is not None:
            raise self.last_refusal
        if self._above_mark(count_bytes) <= 0:
            return True
        with self._evicting:
            missing = self._above_mark(count_bytes)
            if missing > 0:
                self._evict(self._batch_bytes(missing), dataset, UNUSED, mounted)
        return self._above_mark(count_bytes) <= 0

    def add_used(self, count_bytes: int) -> None:
        """Bytes were written to object files or, with a negative number, dropped."""
        with self._lock:
            self.used_bytes += count_bytes

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
        self.last_refusal = error
        self._refused_until = time.monotonic() + _FAILURE_PAUSE_S

    # -- eviction --

    def _above_mark(self, count_bytes: int) -> int:
        """By how much so many bytes more would be above the high mark; 0 or less: they fit."""
        free = self._objects.disk.free_bytes(self._path)
        floor = self._free_floor_bytes + self._high_gap_bytes
        return max(self.used_bytes + count_bytes - self._high_bytes, floor + count_bytes - free)

    def _evict_for_writer(self, count_bytes: int, dataset: int) -> None:
        """Evicts until so many bytes fit under the limit. Raises CacheDiskFull if they cannot."""
        while not self._evicting.acquire(timeout=0.02):
            # Another thread evicts down to its own goal, which may take long after there is enough for this write.
            if self.used_bytes + count_bytes <= self.limit_bytes:
                return
        try:
            need = self.used_bytes + count_bytes - self.limit_bytes
            if need <= 0 or self._evict(self._batch_bytes(need), dataset) >= need:
                return
        finally:
            self._evicting.release()
        # Read again: bytes may have been dropped otherwise, by a scrub for instance.
        if self.used_bytes + count_bytes > self.limit_bytes:
            self._raise_full(f"{self.used_bytes} of {self.limit_bytes} bytes are in use")

    def _check_free_space(self, count_bytes: int, dataset: int) -> None:
        free = self._objects.disk.free_bytes(self._path)
        self._until_free_check = _FREE_CHECK_BYTES
        spare = free - self._free_floor_bytes - count_bytes - _FREE_CHECK_BYTES
        self._low_on_disk = spare < self._low_gap_bytes
        if spare < self._high_gap_bytes:
            self._wake_for(dataset)
        if spare >= 0:
            return
        self._until_free_check = 0
        with self._evicting:
            freed = self._evict(self._batch_bytes(-spare), dataset)
        if freed < -spare:
            self._raise_full(f"the disk has {free} bytes left, of which {self._free_floor_bytes} are to stay free")

    def _raise_full(self, why: str) -> None:
        error = CacheDiskFull(
            f"cache {self._objects.cache_directory.path} is full: {why}, and nothing more may be evicted; reads go "
            "straight to the store. Raise --cache-limit or free the disk"
        )
        self.refuse(error)
        raise error

    def _batch_bytes(self, need_bytes: int) -> int:
        return max(need_bytes, int(self.limit_bytes * _EVICT_SHARE))

    def _evict(
        self, need_bytes: int, dataset: int, last_class: int = EVERYTHING, mounted: Collection[int] | None = None
    ) -> int:
        """Frees so many bytes for a dataset, or as many as may be evicted; returns how many. Under ``_evicting``.

        What is reserved for others stays; what is reserved for the dataset itself goes when nothing else is left. With
        ``mounted`` all of the dataset itself stays, and datasets that are not mounted count as unused.
        """
        self._in_use.release_idle()
        freed = self._evict_once(need_bytes, dataset, last_class, mounted)
        # Readers may have closed files again while the index was scanned, which stay open, idle. Unused objects (of
        # the classes up to UNUSED) are not among them; but a write must not be refused for files without a reader.
        if freed < need_bytes and last_class == EVERYTHING and self._in_use.pause_idle(_IDLE_PAUSE_S):
            freed += self._evict_once(need_bytes - freed, dataset, last_class, mounted)
        return freed

    def _evict_once(self, need_bytes: int, dataset: int, last_class: int, mounted: Collection[int] | None) -> int:
        index, in_use = self._objects.index, self._in_use.digests
        freed = 0
        for reserved in self.reservations.protected_from(dataset):
            index.flush(with_touches=True)
            uses = index.dataset_uses()
            for key, use in uses.items():
                use.total_bytes = self.dataset_bytes.get(key, 0)
                use.last_use = max(use.last_use, self.dataset_last_use.get(key, 0))
            if mounted is not None:
                uses = {key: use if key in mounted else replace(use, last_use=NEVER) for key, use in uses.items()}
            victims = choose_victims(
                (
                    row
                    for row in index.eviction_rows()
                    if row.digest not in in_use and (mounted is None or row.dataset != dataset)
                ),
                need_bytes - freed,
                self._objects.clock,
                uses,
                reserved=reserved,
                pinned=self._is_pinned,
                last_class=last_class,
            )
            freed += sum(map(self._drop, victims))
            if freed >= need_bytes:
                break
        return freed

    def _is_pinned(self, row: EvictionRow) -> bool:
        try:
            return is_linked(self._objects.complete_path(row.digest))
        except OSError:
            return True  # a file that cannot be looked at cannot be removed either

    def _drop(self, row: EvictionRow) -> int:
        with self._objects.link_guard.of(row.digest):
            # Looked at again under the lock of the directory: since the index was scanned, a reader may have opened
            # the file, or a view may have linked it. A reader that opens it without the lock, between this look and
            # the unlink, keeps the bytes that it has; ``ChunkStore.open_partial`` looks whether its file still exists.
            if row.digest in self._in_use.digests or self._is_pinned(row):
                return 0
            self._objects.drop(row.digest)
        self.add_used(-row.present_bytes)
        self.evicted_objects += 1
        return row.present_bytes

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
            if not enough:
                self._closing.wait(_RETRY_S)
            # Cleared after the work: requests that came meanwhile were for the same goal. One that still lacks space
            # sets the event again with its next write.
            self._wake.clear()
            if self._closing.is_set():
                return

    def _evict_to_low_mark(self) -> bool:
        """False if less than that may be evicted."""
        free = self._objects.disk.free_bytes(self._path)
        over = self.used_bytes - self._high_bytes
        short = self._free_floor_bytes + self._high_gap_bytes - free
        if max(over, short) <= 0:
            return True  # the write that woke this thread is not counted yet: the next one wakes it again
        with self._evicting:
            need = max(over, short) + self._low_gap_bytes - self._high_gap_bytes
            return self._evict(need, self._requested_by) >= need
