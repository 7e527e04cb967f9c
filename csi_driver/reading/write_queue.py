"""Writes of fetched bytes to the cache disk, so that no reader waits for a slow one.

Who waits for bytes gets them from memory. Chunks of large objects are written after that, by threads of their own: a
thread that fetches goes on fetching. What does not fit into the queue is not written: it was served, and is not cached.

A small object is written by the thread that fetched it, because whoever opens it wants a file that the kernel can read
by itself. While the disk is behind it is served from memory instead, and waits in the queue like the others.
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


class _Write(NamedTuple):
    count_bytes: int
    work: Callable[[], None]
    done: Callable[[bool], None]


class WriteQueue:
    """See the module. Methods may be called from any thread.

    ``_changed`` guards all fields but the settings. It is not held during a write.
    """

    def __init__(self, most_bytes: int, fetch_threads: int) -> None:
        """``most_bytes`` may wait in the queue. Of the threads that fetch a quarter may be in a write that takes long,
        and three quarters in any. Starts the threads that write."""
        self._most_bytes = most_bytes
        self._few = max(1, fetch_threads // 4)
        self._many = max(1, fetch_threads * 3 // 4)
        self._changed = threading.Condition()
        self._tickets = itertools.count()
        self._writing: dict[int, float] = {}
        """When each write on a thread that fetches began; the oldest first."""
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
        for thread in self._threads:
            thread.start()

    # -- on a thread that fetches --

    def enter(self) -> int | None:
        """A ticket for one write on the calling thread, to be given to ``leave``; None while the disk is behind."""
        with self._changed:
            return self._enter()

    def leave(self, ticket: int) -> None:
        """The write is done."""
        with self._changed:
            del self._writing[ticket]

    def _enter(self) -> int | None:
        writing = self._writing
        if len(writing) >= self._many:
            return None
        now = time.monotonic()
        if any(now - since > LONG_S for since in self._busy_since.values()):
            return None
        if len(writing) >= self._few and now - next(iter(writing.values())) > LONG_S:
            return None
        ticket = next(self._tickets)
        writing[ticket] = now
        return ticket

    # -- later --

    def submit(
        self, count_bytes: int, work: Callable[[], None], done: Callable[[bool], None], *, patient: bool = False
    ) -> None:
        """Has the work done on another thread, or not at all if the disk is too far behind; then calls ``done``, with
        True if it was on the other thread. ``patient``: on this thread whatever the disk does, for a warm-up, which
        has nobody waiting."""
        if patient:
            try:
                work()
            finally:
                done(False)
            return
        with self._changed:
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
        with self._changed:
            if self.waiting_bytes + count_bytes > self._most_bytes:
                return False
            self.waiting_bytes += count_bytes
        return True

    def let_go(self, count_bytes: int) -> None:
        """These bytes are no longer held."""
        with self._changed:
            self.waiting_bytes -= count_bytes

    def close(self) -> None:
        """Writes what waits, unless the disk takes too long, and ends the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        until = time.monotonic() + CLOSE_S
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _pass_by(self, count_bytes: int) -> None:
        with self._changed:
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
            with self._changed:
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
            with self._changed:
                del self._busy_since[number]
                self.waiting_bytes -= write.count_bytes
