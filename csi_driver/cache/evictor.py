"""Eviction carried out: the index is scanned, victims are chosen (``eviction.py``), their files are unlinked.

What is reserved for a dataset is not evicted for another.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace

from csi_driver.cache.eviction import EVERYTHING, NEVER, NO_AMOUNT, Amount, EvictionRow, choose_victims
from csi_driver.cache.files_in_use import FilesInUse
from csi_driver.cache.hard_links import is_linked
from csi_driver.cache.object_directory import ObjectDirectory
from csi_driver.cache.reservations import Reservations

_IDLE_PAUSE_S = 1.5
"""Longer than the second between two checks of the open-file caches, which close what eviction cannot release."""


class Evictor:
    """Removes objects from the cache. Methods block on the disk; callers hold ``lock`` where it says so.

    Its fields are single values that a thread may read late without harm.
    """

    def __init__(
        self,
        objects: ObjectDirectory,
        in_use: FilesInUse,
        reservations: Reservations,
        count_removed: Callable[[int], None],
    ) -> None:
        """``count_removed`` is told the bytes of each object that was removed."""
        self._objects = objects
        self._in_use = in_use
        self._reservations = reservations
        self._count_removed = count_removed
        # Guards: evicted_objects, evicted_bytes. Held by the one thread that evicts, while it scans the index and
        # unlinks; under it the locks of directories (``LinkGuard``) and that of ``count_removed``, one at a time.
        self.lock = threading.Lock()
        self.dataset_bytes: dict[int, int] = {}
        """Total sizes of datasets, as far as they are known."""
        self.dataset_last_use: dict[int, int] = {}
        """By the clock, of datasets that were opened since the start: the rows of objects in use lag behind."""
        self.evicted_objects = self.evicted_bytes = 0
        """Since the start. Changed under ``lock``."""

    def evict_objects(self, digests: Iterable[str]) -> tuple[Amount, Amount]:
        """Evicts these objects, as far as they are cached; what was evicted, and what was kept because it is open or
        linked. Blocks on the disk, and while another thread evicts. Raises CacheDiskFailed."""
        gone = kept = NO_AMOUNT
        # Before the lock: files that are open without a reader are not in use.
        self._in_use.release_idle()
        with self.lock:
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

    def evict(
        self, need: Amount, dataset: int, last_class: int = EVERYTHING, mounted: Collection[int] | None = None
    ) -> Amount:
        """Frees so much for a dataset, or as much as may be evicted; returns how much. Under ``lock``.

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
        freed = NO_AMOUNT
        for reserved in self._reservations.protected_from(dataset):
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
        self._count_removed(row.present_bytes)
        self.evicted_objects += 1
        self.evicted_bytes += row.present_bytes
        return True
