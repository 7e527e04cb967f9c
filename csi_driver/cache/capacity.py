"""Room on the disk: the byte limit, the floor of free space, who has to go, and a while without writes after the disk
refused one.

Room is made in the background, from a high mark down to a low one, so that a write seldom has to wait for it. What is
reserved for a dataset stays when others need room.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Protocol

from csi_driver.cache.eviction import EVERYTHING, NEVER, UNUSED, EvictionRow, choose_victims
from csi_driver.cache.hard_links import is_linked
from csi_driver.cache.object_files import ObjectFiles
from csi_driver.cache.reservations import Reservations
from csi_driver.model.errors import CacheDiskFull, CacheError
from csi_driver.settings import MIB, ChunkStoreSettings

logger = logging.getLogger(__name__)

_FREE_CHECK_BYTES = 16 * MIB
"""Free space of the file system is asked for again after so many bytes written."""

_FAILURE_PAUSE_S = 5.0
"""After the disk refused a write, so long nothing is written: reads go straight from the store meanwhile."""

_TRY_AGAIN_S = 5.0
"""When too little may be evicted, the index is not gone through again for so long."""

_EVICT_SHARE = 0.02
"""When room is needed at once, this share of the limit is freed, so that the index is scanned seldom."""

OVERSIZE_SHARE = 0.5
"""An object of more than this share of the limit gets the room that is free or that nobody uses any more; what does
not fit is read past the cache. Otherwise one pass over a large file would cost every other dataset all it has."""

_TOUCH_FROM_SHARE = 0.8
"""Below this share of the limit no use is noted: nothing has to go, and a warm epoch touches every object."""


class InUse(Protocol):
    """What is in use and must not be evicted."""

    def __contains__(self, digest: object, /) -> bool: ...


class Capacity:
    """How many bytes the cache holds and may hold. Methods may be called from any thread.

    ``_lock`` guards ``used_bytes``; ``_evicting`` is held by the one thread that frees room.
    """

    def __init__(self, shelf: ObjectFiles, settings: ChunkStoreSettings, in_use: InUse) -> None:
        """Starts the thread that makes room."""
        self._shelf = shelf
        self._in_use = in_use
        self._objects = shelf.home.objects
        disk_bytes = shelf.home.total_bytes()
        self.limit_bytes = settings.limit_bytes or disk_bytes * 9 // 10
        self._free_floor_bytes = settings.free_floor_bytes
        marks_of = min(self.limit_bytes, disk_bytes)
        self._high_gap_bytes = int(marks_of * (1 - settings.high_watermark))
        self._low_gap_bytes = int(marks_of * (1 - settings.low_watermark))
        self._high_bytes = self.limit_bytes - self._high_gap_bytes
        self._touch_from_bytes = int(self.limit_bytes * _TOUCH_FROM_SHARE)
        self.reservations = Reservations(self.limit_bytes)
        self.dataset_bytes: dict[int, int] = {}
        """Whole sizes of datasets, as far as they were told."""
        self.dataset_last_use: dict[int, int] = {}
        """By the clock, of datasets that were opened since the start: the rows of objects in use lag behind."""
        self._lock = threading.Lock()
        self._evicting = threading.Lock()
        self.used_bytes = shelf.index.total_present_bytes()
        """Bytes of objects in the cache."""
        self.evicted_objects = 0
        self._until_free_check = 0
        self._refused_until = 0.0
        self._oversize_from = 0.0
        self._low_on_disk = False
        self._asked_by = 0
        self.trouble: CacheError | None = None
        """Why the last write was refused; None while the disk works."""
        self.let_go: Callable[[], None] = lambda: None
        """Called before anything is evicted: whoever keeps files open without need closes them."""
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._keep_below, name="evict", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._closing.set()
        self._wake.set()
        self._thread.join()

    # -- what writers ask --

    def ensure(self, count_bytes: int, dataset: int) -> None:
        """Makes sure that so many bytes may be written for a dataset. Raises CacheDiskFull."""
        if self._refused_until and time.monotonic() < self._refused_until:
            raise CacheDiskFull(str(self.trouble))
        if self.used_bytes + count_bytes > self._high_bytes:
            self._wake_for(dataset)
            if self.used_bytes + count_bytes > self.limit_bytes:
                self._make(count_bytes, dataset)
        self._until_free_check -= count_bytes
        if self._until_free_check < 0:
            self._check_free_space(count_bytes, dataset)

    def ensure_oversize(self, count_bytes: int, dataset: int) -> bool:
        """The same for an object that is large beside the whole cache: takes what is free or no longer used, and is
        False without that. Raises CacheDiskFull."""
        if time.monotonic() < self._oversize_from:
            return False
        if self.used_bytes + count_bytes > self._high_bytes:
            with self._evicting:
                missing = self.used_bytes + count_bytes - self._high_bytes
                if missing > 0 and self._evict(self._at_once(missing), dataset, UNUSED) < missing:
                    self._oversize_from = time.monotonic() + _TRY_AGAIN_S
                    return False
        self.ensure(count_bytes, dataset)
        return True

    def is_oversize(self, size_bytes: int) -> bool:
        """Whether an object is large beside the whole cache."""
        return size_bytes > self.limit_bytes * OVERSIZE_SHARE

    def has_for_warmup(self, count_bytes: int, dataset: int, mounted: Collection[int]) -> bool:
        """Whether so many bytes fit below the high mark, beyond which objects would have to go again. Makes room among
        what nobody is going to read, where datasets that are not ``mounted`` count as left; never in ``dataset``
        itself. Blocks on the disk. Raises CacheError while that refuses writes."""
        if not self.accepts_writes and self.trouble is not None:
            raise self.trouble
        if self._above_mark(count_bytes) <= 0:
            return True
        with self._evicting:
            missing = self._above_mark(count_bytes)
            if missing > 0:
                self._evict(self._at_once(missing), dataset, UNUSED, mounted)
        return self._above_mark(count_bytes) <= 0

    def taken(self, count_bytes: int) -> None:
        """Bytes were added, or, with a negative number, are gone."""
        with self._lock:
            self.used_bytes += count_bytes

    @property
    def is_tight(self) -> bool:
        """Whether it may matter soon when an object was used last."""
        return self.used_bytes > self._touch_from_bytes or self._low_on_disk

    @property
    def accepts_writes(self) -> bool:
        """False for a while after the disk refused a write: fetching ahead would then be in vain."""
        return not self._refused_until or time.monotonic() >= self._refused_until

    def refuse(self, error: CacheError) -> None:
        """The disk refused: nothing is written for a while."""
        self.trouble = error
        self._refused_until = time.monotonic() + _FAILURE_PAUSE_S

    # -- freeing --

    def _above_mark(self, count_bytes: int) -> int:
        """How far so many bytes more would be above the high mark; not above 0: they fit."""
        free = self._shelf.disk.free_bytes(self._objects)
        floor = self._free_floor_bytes + self._high_gap_bytes
        return max(self.used_bytes + count_bytes - self._high_bytes, floor + count_bytes - free)

    def _make(self, count_bytes: int, dataset: int) -> None:
        """Evicts until so many bytes fit under the limit. Raises CacheDiskFull if they cannot."""
        while not self._evicting.acquire(timeout=0.02):
            if self.used_bytes + count_bytes <= self.limit_bytes:
                return  # somebody else has made room enough, and goes on
        try:
            need = self.used_bytes + count_bytes - self.limit_bytes
            if need <= 0 or self._evict(self._at_once(need), dataset) >= need:
                return
        finally:
            self._evicting.release()
        if self.used_bytes + count_bytes > self.limit_bytes:
            self._say_full(f"{self.used_bytes} of {self.limit_bytes} bytes are in use")

    def _check_free_space(self, count_bytes: int, dataset: int) -> None:
        free = self._shelf.disk.free_bytes(self._objects)
        self._until_free_check = _FREE_CHECK_BYTES
        spare = free - self._free_floor_bytes - count_bytes - _FREE_CHECK_BYTES
        self._low_on_disk = spare < self._low_gap_bytes
        if spare < self._high_gap_bytes:
            self._wake_for(dataset)
        if spare >= 0:
            return
        self._until_free_check = 0
        with self._evicting:
            freed = self._evict(self._at_once(-spare), dataset)
        if freed < -spare:
            self._say_full(f"the disk has {free} bytes left, of which {self._free_floor_bytes} are to stay free")

    def _say_full(self, why: str) -> None:
        error = CacheDiskFull(
            f"cache {self._shelf.home.path} is full: {why}, and nothing more may be evicted; reads go on straight from "
            "the store. Raise --cache-limit or free the disk"
        )
        self.refuse(error)
        raise error

    def _at_once(self, need_bytes: int) -> int:
        return max(need_bytes, int(self.limit_bytes * _EVICT_SHARE))

    def _evict(
        self, need_bytes: int, dataset: int, last_class: int = EVERYTHING, mounted: Collection[int] | None = None
    ) -> int:
        """Frees so many bytes for a dataset, or as many as may go; how many that were. Under ``_evicting``.

        What is reserved for others stays; what is reserved for the dataset itself goes when nothing else is left. With
        ``mounted`` all of the dataset itself stays, and what is not mounted counts as left.
        """
        self.let_go()
        index = self._shelf.index
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
                    if row.digest not in self._in_use and (mounted is None or row.dataset != dataset)
                ),
                need_bytes - freed,
                self._shelf.clock,
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
            return is_linked(self._shelf.complete_path(row.digest))
        except OSError:
            return True  # what cannot be looked at cannot be removed either

    def _drop(self, row: EvictionRow) -> int:
        with self._shelf.links.of(row.digest):
            if row.digest in self._in_use or self._is_pinned(row):
                return 0
            self._shelf.drop(row.digest)
        self.taken(-row.present_bytes)
        self.evicted_objects += 1
        return row.present_bytes

    # -- in the background --

    def _wake_for(self, dataset: int) -> None:
        self._asked_by = dataset
        if not self._wake.is_set():
            self._wake.set()

    def _keep_below(self) -> None:
        while self._wake.wait() and not self._closing.is_set():
            try:
                enough = self._evict_to_low_mark()
            except CacheError as error:
                logger.warning("%s", error)
                self.refuse(error)
                enough = False
            if not enough:
                self._closing.wait(_TRY_AGAIN_S)
            self._wake.clear()
            if self._closing.is_set():
                return

    def _evict_to_low_mark(self) -> bool:
        """False if less than that may be evicted."""
        free = self._shelf.disk.free_bytes(self._objects)
        over = self.used_bytes - self._high_bytes
        short = self._free_floor_bytes + self._high_gap_bytes - free
        if max(over, short) <= 0:
            return True  # the write that woke this thread is not counted yet: the next one wakes it again
        with self._evicting:
            need = max(over, short) + self._low_gap_bytes - self._high_gap_bytes
            return self._evict(need, self._asked_by) >= need
