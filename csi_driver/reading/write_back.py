"""Writes of fetched bytes to the cache disk, so that no reader waits for a slow one.

Who waits for bytes gets them from memory. The thread that fetched them writes them then, so that a machine that is
short of processors fetches no faster than it writes. When a write takes long the disk is behind: what else comes waits
in a queue for threads of its own, and somebody else goes on with the fetch whose thread is stuck. What does not fit
into the queue is not written: it was served, and is not cached.

A small object is written before its OPEN is answered, because the kernel can then read its file by itself. While the
disk is behind it is served from memory instead, and waits in the queue like the others.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

logger = logging.getLogger(__name__)

LONG_S = 0.25
"""A write of 4 MiB into the page cache takes 0.001 s, and one to a disk of 100 MB/s 0.04 s. One that is not done after
this is one to a disk that is behind, or of a machine where nothing else gets on either."""

AHEAD_SHARE = 0.25
"""Nothing is fetched ahead while more than this share of the queue is taken: what is in flight then finds room."""

SAY_AGAIN_S = 60.0

CLOSE_S = 10.0
"""How long an orderly stop waits for the disk. Kubernetes grants 30 s for everything."""


class _Running(NamedTuple):
    """A write on a thread that fetches."""

    began: float
    rescue: Callable[[], None] | None


class _Write(NamedTuple):
    count_bytes: int
    work: Callable[[], None]
    done: Callable[[bool], None]


class WriteBack:
    """See the module. Methods may be called from any thread.

    ``_lock`` guards all fields but the settings, and is that of both conditions: something was queued, and a write on
    a thread that fetches began. It is not held during a write.
    """

    def __init__(self, most_bytes: int, fetch_threads: int) -> None:
        """``most_bytes`` may wait in the queue; three quarters of the threads that fetch may be in a write. Starts the
        threads of the queue."""
        self._most_bytes = most_bytes
        self._many = max(1, fetch_threads * 3 // 4)
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._began = threading.Condition(self._lock)
        self._tickets = itertools.count()
        self._writing: dict[int, _Running] = {}
        """On threads that fetch; the oldest first."""
        self._watched = False
        """Whether a thread of the queue looks at them soon."""
        self._queue: deque[_Write] = deque()
        self._busy_since: dict[int, float] = {}
        """When each thread of the queue began its write."""
        self.waiting_bytes = 0
        """Bytes in the queue, and those that somebody holds for readers."""
        self.passed_bytes = 0
        """Bytes that were served and not cached because the disk was behind."""
        self._say_from = 0.0
        self._closing = False
        self._threads = [
            threading.Thread(target=self._write_waiting, args=(number,), name=f"write-{number}", daemon=True)
            for number in range(max(1, fetch_threads // 8))
        ]
        self._threads.append(threading.Thread(target=self._watch, name="write-watch", daemon=True))
        for thread in self._threads:
            thread.start()

    # -- on a thread that fetches --

    def enter(self, rescue: Callable[[], None] | None = None) -> int | None:
        """A ticket for one write on the calling thread, to be given to ``leave``; None while the disk is behind.
        ``rescue`` is called on another thread, once, when the write takes long."""
        with self._lock:
            now = time.monotonic()
            if len(self._writing) >= self._many or self._is_behind(now):
                return None
            ticket = next(self._tickets)
            self._writing[ticket] = _Running(now, rescue)
            if not self._watched:
                self._began.notify()
        return ticket

    def leave(self, ticket: int) -> None:
        """The write is done."""
        with self._lock:
            del self._writing[ticket]

    def _is_behind(self, now: float) -> bool:
        oldest = next(iter(self._writing.values()), None)
        if oldest is not None and now - oldest.began > LONG_S:
            return True
        return any(now - since > LONG_S for since in self._busy_since.values())

    # -- later --

    def submit(self, count_bytes: int, work: Callable[[], None], done: Callable[[bool], None]) -> None:
        """Has the work done on another thread, or not at all if too much waits; then calls ``done``, with True if it
        was done."""
        with self._lock:
            room = self.waiting_bytes + count_bytes <= self._most_bytes and not self._closing
            if room:
                self.waiting_bytes += count_bytes
                self._queue.append(_Write(count_bytes, work, done))
                self._changed.notify()
        if not room:
            self._pass_by(count_bytes)
            done(False)

    @property
    def may_fetch_ahead(self) -> bool:
        """False while so much waits that what is fetched ahead might not be kept."""
        return self.waiting_bytes <= self._most_bytes * AHEAD_SHARE

    def hold(self, count_bytes: int) -> bool:
        """Counts bytes that somebody keeps in memory for readers, until ``let_go``; False if those are too many."""
        with self._lock:
            if self.waiting_bytes + count_bytes > self._most_bytes:
                return False
            self.waiting_bytes += count_bytes
        return True

    def let_go(self, count_bytes: int) -> None:
        """These bytes are no longer held."""
        with self._lock:
            self.waiting_bytes -= count_bytes

    def close(self) -> None:
        """Writes what waits, unless the disk takes too long, and ends the thread."""
        with self._lock:
            self._closing = True
            self._changed.notify_all()
            self._began.notify()
        until = time.monotonic() + CLOSE_S
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _pass_by(self, count_bytes: int) -> None:
        with self._lock:
            self.passed_bytes += count_bytes
            now = time.monotonic()
            say = now >= self._say_from
            if say:
                self._say_from = now + SAY_AGAIN_S
        if say:
            logger.warning(
                "the cache disk is slower than the store: %d MiB wait to be written, and what comes beyond that is "
                "served and not cached",
                self.waiting_bytes >> 20,
            )

    def _write_waiting(self, number: int) -> None:
        while True:
            with self._lock:
                while not self._queue:
                    if self._closing:
                        return
                    self._changed.wait()
                write = self._queue.popleft()
                self._busy_since[number] = time.monotonic()
            try:
                write.work()
            except Exception:
                logger.exception("a write to the cache failed in a way nobody foresaw")
            write.done(True)
            with self._lock:
                del self._busy_since[number]
                self.waiting_bytes -= write.count_bytes

    def _watch(self) -> None:
        """Has those rescued that are stuck in a write. Looks only while there are any."""
        with self._lock:
            while not self._closing:
                self._watched = bool(self._writing)
                self._began.wait(LONG_S if self._watched else None)
                before = time.monotonic() - LONG_S
                for ticket, running in list(self._writing.items()):
                    if running.began < before and running.rescue is not None:
                        self._writing[ticket] = running._replace(rescue=None)
                        running.rescue()
