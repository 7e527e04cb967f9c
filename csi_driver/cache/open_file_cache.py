"""The open-file cache: files of a mount that stay open for a moment, because training opens the same small files again.

An open without a user is *idle*. The chunk store knows the idle opens of all mounts (``files_in_use.py``) and releases
their object files itself when it evicts, so that no eviction has to wait for, or call, the code that opened them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from csi_driver.cache.object_file import ObjectFile

MOST_IDLE = 4096
IDLE_S = 5.0
IDLE_BYTES = 4 << 20
"""A complete file of up to ``IDLE_BYTES`` stays open for ``IDLE_S`` after its last close, up to ``MOST_IDLE`` of them:
finding, opening and closing the object file are about a third of the daemon's work for a warm open (53 to 35
microseconds with four readers)."""

Open = TypeVar("Open")


class IdlePause:
    """A value that eviction sets and all open-file caches read: ``until``, by time.monotonic(), no open stays idle."""

    def __init__(self) -> None:
        self.until = 0.0


class OpenFileCache(Generic[Open]):
    """The idle opens of one mount, by node. Methods may be called from any thread and do not block.

    Each open in here is owned by the thread that gets its entry out of ``_opens``: a reader, the eviction thread, or
    the periodic check. ``dict.pop`` is atomic, so ``take`` needs no lock. ``_lock`` guards ``closed`` and the
    insertion of entries: nothing is inserted after ``close``, and no entry is replaced while it is held.
    """

    def __init__(self, pause: IdlePause | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._pause = pause or IdlePause()
        self._clock = clock
        self._opens: dict[int, tuple[float, ObjectFile | None, Open]] = {}
        self._lock = threading.Lock()
        self.closed = False

    def __len__(self) -> int:
        return len(self._opens)

    def take(self, node: int) -> Open | None:
        """An idle open of the node, which the caller owns from now on; None: there is none."""
        found = self._opens.pop(node, None)
        return None if found is None else found[2]

    def put(self, node: int, file: ObjectFile | None, opened: Open) -> Open | None:
        """Caches an open; returns the open that the caller has to close: the one that it replaces, or itself if it is
        not cached.

        ``file`` is given if closing the open means to release one use of this complete object file and nothing else:
        the cache may then do that at any time. Without it the open counts as in use until ``take_expired`` returns it.
        """
        now = self._clock()
        with self._lock:
            if self.closed or len(self._opens) >= MOST_IDLE or now < self._pause.until:
                return opened
            # Out and in again, not replaced in place: the order of insertion has to be the order of time.
            replaced = self._opens.pop(node, None)
            self._opens[node] = (now, file, opened)
        return None if replaced is None else replaced[2]

    def release_files(self) -> int:
        """Drops the opens that were cached with a file, and releases it; the number of these. For eviction."""
        released = 0
        with self._lock:
            # Under the lock: a ``put`` that has looked at the pause before it was set has inserted its open by now.
            nodes = list(self._opens)
        for node in nodes:
            found = self._opens.get(node)
            if found is None or found[1] is None:
                continue
            with self._lock:
                # Under the lock the entry may be taken by a reader, but not replaced by one that must stay.
                mine = self._opens.get(node) is found and self._opens.pop(node, None) is not None
            if mine:
                found[1].release()
                released += 1
        return released

    def take_expired(self, age_s: float = IDLE_S) -> list[Open]:
        """The opens that were idle for longer than this, which the caller has to close; all of them while evictions
        fall short."""
        now = self._clock()
        before = now if now < self._pause.until else now - age_s
        expired = []
        for node in list(self._opens):  # copied in one step: readers insert and take entries meanwhile
            found = self._opens.get(node)
            if found is None:
                continue
            if found[0] > before:
                break  # in the order of time: all that follow are younger
            opened = self.take(node)
            if opened is not None:
                expired.append(opened)
        return expired

    def close(self) -> list[Open]:
        """Ends the cache: nothing is cached from now on, since reads are still answered after a mount has ended.
        Returns the opens that the caller has to close."""
        with self._lock:
            self.closed = True
        return self.take_expired(-1.0)
