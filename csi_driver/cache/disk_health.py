"""The health of the cache disk. A disk that keeps failing is taken out of use: reads go straight to the store, the
volumes' conditions say so, and from time to time a small file is written and read back to try whether it works again.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from csi_driver.cache.disk import Disk
from csi_driver.model.conditions import CACHE_DISK_FAILING, VIEW_DAMAGED, Condition
from csi_driver.model.errors import CacheDiskFailed, CacheError, DescriptorsExhausted

logger = logging.getLogger(__name__)

MOST_FAILURES = 8
WINDOW_S = 60.0
"""After so many failures within so long the disk is taken out of use. A bad sector fails a few reads of the object on
it; a disk that is gone fails everything at once."""

FIRST_PAUSE_S = 30.0
LONGEST_PAUSE_S = 600.0
"""Between two trials; doubled after each that fails."""

_TRIAL_BYTES = 64 << 10


class DiskHealth:
    """Counts failures of the cache disk. Methods may be called from any thread.

    ``_lock`` guards ``failures`` and the private fields; ``in_use`` may be read without it. The disk is not touched
    under it.
    """

    def __init__(self, disk: Disk, directory: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._disk = disk
        self._directory = directory
        self._clock = clock
        self._lock = threading.Lock()
        self._recent: deque[float] = deque(maxlen=MOST_FAILURES)
        self._pause_s = FIRST_PAUSE_S
        self._try_at = 0.0
        self._last_failure = ""
        self.in_use = True
        self.failures = 0
        """Reads, writes and checks of object files that failed."""
        self.bad_chunks = 0
        """Damaged or unreadable chunks, which were dropped."""
        self.damaged_views: dict[int, int] = {}
        """Objects with bad chunks that a materialised view holds, by dataset."""

    @property
    def message(self) -> str:
        """For the log and for errors; empty while the disk is in use."""
        if self.in_use:
            return ""
        return (
            f"the cache disk {self._directory} keeps failing ({self._last_failure}) and is not used; reads go "
            "straight to the store. Look at the kernel's log and replace the disk"
        )

    def conditions(self, dataset: int | None = None) -> Iterator[Condition]:
        """Of the volumes of a dataset: the disk's failures and damaged views. Without one those of the node."""
        if not self.in_use:
            yield CACHE_DISK_FAILING
        if dataset is not None and self.damaged_views.get(dataset):
            yield VIEW_DAMAGED

    def note(self, error: CacheError) -> None:
        """Counts an error if it is the disk's: a disk that is full works, and so does one for whose files the process
        has no descriptor left."""
        if isinstance(error, CacheDiskFailed):
            self.failed(str(error))

    def failed(self, what: str) -> None:
        """Counts a read, a write or a check of an object file that failed."""
        with self._lock:
            now = self._clock()
            self.failures += 1
            self._last_failure = what
            self._recent.append(now)
            too_many = len(self._recent) == MOST_FAILURES and now - self._recent[0] <= WINDOW_S
            if not (too_many and self.in_use):
                return
            self.in_use = False
            self._try_at = now + self._pause_s
        logger.error("%s", self.message)

    def require(self) -> None:
        """Raises CacheDiskFailed while the disk is out of use."""
        if not self.in_use:
            raise CacheDiskFailed(self.message)

    def poll(self) -> None:
        """Tries a disk that is out of use when a trial is due; blocks on the disk then. Called every second or so."""
        if self.in_use or self._clock() < self._try_at:
            return
        # Without the lock: the trial may hang as long as the disk does, and ``failed`` is called by readers.
        try:
            self._try_disk()
        except DescriptorsExhausted:
            return  # tried again at the next call
        except CacheError as error:
            with self._lock:
                self._last_failure = str(error)
                self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)
                self._try_at = self._clock() + self._pause_s
            return
        with self._lock:
            self._recent.clear()
            self._pause_s = FIRST_PAUSE_S
            self.in_use = True
        logger.warning("the cache disk %s works again and is in use", self._directory)

    def _try_disk(self) -> None:
        path = f"{self._directory}/trial"
        written = os.urandom(_TRIAL_BYTES)
        descriptor = self._disk.create("trial.create", path)
        try:
            self._disk.write("trial.write", descriptor, [memoryview(written)], 0)
            self._disk.sync("trial.sync", descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            read_back = bytearray(_TRIAL_BYTES)
            self._disk.read("trial.read", descriptor, [read_back], 0)
        finally:
            os.close(descriptor)
            self._disk.unlink("trial.drop", path)
        if read_back != written:
            raise CacheDiskFailed("cache disk failed (trial.read: other bytes than were written)")
