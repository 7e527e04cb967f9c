"""Room on the disk: the byte limit, the floor of free space, who has to go, and a while without writes after the disk
refused one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from csi_driver.chunks.eviction import choose_victims
from csi_driver.chunks.shelf import Shelf
from csi_driver.model.errors import CacheDiskFull, CacheError
from csi_driver.settings import MIB, ChunkStoreSettings

_FREE_CHECK_BYTES = 16 * MIB
"""Free space of the file system is asked for again after so many bytes written."""

_FAILURE_PAUSE_S = 5.0
"""After the disk refused a write, so long nothing is written: reads go straight from the store meanwhile."""

_EVICT_SHARE = 0.02
"""When room is needed, this share of the limit is freed at once, so that the index is scanned seldom."""


class Room:
    """How many bytes the cache holds and may hold. Methods may be called from any thread.

    ``_lock`` guards ``used_bytes``; ``_evicting`` is held by the one thread that frees room.
    """

    def __init__(self, shelf: Shelf, settings: ChunkStoreSettings, busy: Callable[[], set[str]]) -> None:
        """``busy`` names the objects in use, which are never evicted."""
        self._shelf = shelf
        self._busy = busy
        self._objects = shelf.home.objects
        self.limit_bytes = settings.limit_bytes or shelf.home.total_bytes() * 9 // 10
        self._free_floor_bytes = settings.free_floor_bytes
        self._lock = threading.Lock()
        self._evicting = threading.Lock()
        self.used_bytes = shelf.index.total_present_bytes()
        """Bytes of objects in the cache."""
        self._until_free_check = 0
        self._refused_until = 0.0
        self.trouble: CacheError | None = None
        """Why the last write was refused; None while the disk works."""
        self.let_go: Callable[[], None] = lambda: None
        """Called before anything is evicted: whoever keeps files open without need closes them."""

    def ensure(self, count_bytes: int) -> None:
        """Makes sure that so many bytes may be written. Raises CacheDiskFull."""
        if self._refused_until and time.monotonic() < self._refused_until:
            raise CacheDiskFull(str(self.trouble))
        if self.used_bytes + count_bytes > self.limit_bytes:
            self._make(count_bytes)
        self._until_free_check -= count_bytes
        if self._until_free_check < 0:
            self._check_free_space(count_bytes)

    def taken(self, count_bytes: int) -> None:
        """Bytes were added, or, with a negative number, are gone."""
        with self._lock:
            self.used_bytes += count_bytes

    @property
    def accepts_writes(self) -> bool:
        """False for a while after the disk refused a write: fetching ahead would then be in vain."""
        return not self._refused_until or time.monotonic() >= self._refused_until

    def refuse(self, error: CacheError) -> None:
        """The disk refused: nothing is written for a while."""
        self.trouble = error
        self._refused_until = time.monotonic() + _FAILURE_PAUSE_S

    def _check_free_space(self, count_bytes: int) -> None:
        free = self._shelf.disk.free_bytes(self._objects)
        self._until_free_check = _FREE_CHECK_BYTES
        short = self._free_floor_bytes + count_bytes + _FREE_CHECK_BYTES - free
        if short > 0:
            self._until_free_check = 0
            self._make(min(short, self.limit_bytes) + max(0, self.limit_bytes - self.used_bytes))

    def _make(self, count_bytes: int) -> None:
        """Evicts until so many bytes fit under the limit. Raises CacheDiskFull if they cannot."""
        with self._evicting:
            need = self.used_bytes + count_bytes - self.limit_bytes
            if need <= 0:
                return
            need = max(need, int(self.limit_bytes * _EVICT_SHARE))
            self.let_go()
            self._shelf.index.flush(with_touches=True)
            busy = self._busy()
            idle = [row for row in self._shelf.index.eviction_rows() if row.digest not in busy]
            for row in choose_victims(idle, need, self._shelf.clock):
                self._shelf.drop(row.digest)
                self.taken(-row.present_bytes)
            if self.used_bytes + count_bytes > self.limit_bytes:
                error = CacheDiskFull(
                    f"cache {self._shelf.home.path} is full: {self.used_bytes} of {self.limit_bytes} bytes are in use "
                    "and nothing may be evicted; reads go on straight from the store. Raise --cache-limit or free the "
                    "disk"
                )
                self.refuse(error)
                raise error
