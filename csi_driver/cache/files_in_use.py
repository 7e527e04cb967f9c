"""The object files that are open: shared by their readers, and not to be evicted."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import KeysView
from typing import Any

from csi_driver.cache.object_file import ObjectFile
from csi_driver.cache.open_file_cache import IdlePause, OpenFileCache


class FilesInUse:
    """Open object files by digest. Methods may be called from any thread.

    ``_lock`` guards changes of ``_open_file_caches``. ``_files`` needs none: its changes are single steps. A file takes
    only a place that is free, and is removed only by the thread that ``ObjectFile.leave_table`` chooses; so what that
    one removes is this file and no other.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: dict[str, ObjectFile] = {}
        self._open_file_caches: tuple[OpenFileCache[Any], ...] = ()
        """Of all mounts. Replaced as a whole, so that it may be read without the lock."""
        self._pause = IdlePause()

    @property
    def digests(self) -> KeysView[str]:
        """A live view: ``in`` needs no lock, and is out of date as soon as it has an answer. A file may only be removed
        after a look at it under the lock of its directory (``LinkGuard``)."""
        return self._files.keys()

    def find(self, digest: str) -> ObjectFile | None:
        """The file if it is open. Counts no user: the file may be closed at any time."""
        return self._files.get(digest)

    def acquire(self, digest: str) -> ObjectFile | None:
        """The file if it is open, with one user counted."""
        while True:
            file = self._files.get(digest)  # one step, so without the lock: the file itself knows whether it is closed
            if file is None or file.acquire():
                return file
            # The last user is closing it. Its chunk map is in the index when it leaves the table; a file opened anew
            # before that would start from an older map.
            time.sleep(0)

    def enter(self, file: ObjectFile) -> ObjectFile:
        """Shares a file that was just opened; if another thread was faster, closes it and returns the other's, with
        one user counted."""
        while True:
            other = self._files.setdefault(file.digest, file)
            if other is file:
                return file
            if other.acquire():
                os.close(file.descriptor)
                return other
            time.sleep(0)  # as in ``acquire``

    def remove(self, file: ObjectFile) -> None:
        """For a file that has no user left. Another file that has taken its place stays."""
        if file.leave_table():
            del self._files[file.digest]

    def detach(self, digest: str) -> None:
        """Readers that have the file open keep it; from now on it is opened anew. For a file that is damaged."""
        file = self._files.get(digest)
        if file is not None:
            self.remove(file)

    def incomplete(self) -> list[ObjectFile]:
        """The files with chunks missing."""
        return [file for file in list(self._files.values()) if not file.complete]

    # -- idle opens --

    def add_open_file_cache(self) -> OpenFileCache[Any]:
        """An open-file cache for one mount, until it is closed."""
        cache: OpenFileCache[Any] = OpenFileCache(self._pause)
        with self._lock:
            self._open_file_caches = (*(known for known in self._open_file_caches if not known.closed), cache)
        return cache

    def release_idle(self) -> int:
        """Releases the complete files that only open-file caches hold; the number of their opens."""
        return sum(cache.release_files() for cache in self._open_file_caches)

    def pause_idle(self, duration_s: float) -> int:
        """Like ``release_idle``, and for so long no open stays idle: with that, a file is in use only while it has a
        reader. What a cache cannot release by itself goes with the next ``OpenFileCache.take_expired``."""
        # The pause first: an open that becomes idle after it is not cached, one that did before is released here.
        self._pause.until = time.monotonic() + duration_s
        return self.release_idle()
