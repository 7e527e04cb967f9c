"""Writes fetched bytes to the cache disk, so that no reader waits for a slow one.

Pending reads are answered from memory first. Then the fetch thread itself writes the bytes, so that a machine that is
short of processors fetches no faster than it writes. When a write takes long, the disk is *backlogged*: further writes
are queued for threads of their own, and another thread resumes the fetch of a thread that is stuck. What does not fit
into the queue is not written: it was served, and is not cached.

A small object is written before its OPEN is answered, because the kernel can then read its file by itself. While the
disk is backlogged it is served from memory instead, and its write is queued like the others.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from csi_driver import telemetry

logger = logging.getLogger(__name__)

SLOW_WRITE_S = 0.25
"""A write of 4 MiB into the page cache takes 0.001 s, and one to a disk of 100 MB/s 0.04 s. One that takes longer than
this goes to a backlogged disk, or the whole machine is overloaded."""

READAHEAD_SHARE = 0.25
"""No readahead while more than this share of the queue is taken: then what is in flight still fits."""

WARN_INTERVAL_S = 60.0

CLOSE_TIMEOUT_S = 10.0
"""How long an orderly stop waits for the disk. Kubernetes grants 30 s for everything."""


class _InlineWrite(NamedTuple):
    """A write on a fetch thread."""

    began: float
    take_over: Callable[[], None] | None


class _QueuedWrite(NamedTuple):
    count_bytes: int
    work: Callable[[], None]
    done: Callable[[bool], None]


class WriteBack:
    """Methods may be called from any thread.

    ``_lock`` guards all fields but the settings, and the writes in ``_inline`` that no thread may take over. It is not
    held during a write. Two conditions share it: ``_queue_changed`` wakes the threads of the queue,
    ``_inline_write_began`` the one that watches the fetch threads.
    """

    def __init__(self, queue_bytes: int, fetch_threads: int) -> None:
        """Starts the threads of the queue, which holds up to ``queue_bytes``. Of the fetch threads three quarters may
        be in a write at a time."""
        self._queue_bytes = queue_bytes
        self._max_inline = max(1, fetch_threads * 3 // 4)
        self._lock = threading.Lock()
        self._queue_changed = threading.Condition(self._lock)
        self._inline_write_began = threading.Condition(self._lock)
        self._tickets = itertools.count()
        self._inline: dict[int, _InlineWrite] = {}
        """By ticket, the oldest first."""
        self._watcher_is_timing = False
        """True while the watcher looks at ``_inline`` by itself; else a new write has to wake it."""
        self._queue: deque[_QueuedWrite] = deque()
        self._busy_since: dict[int, float] = {}
        """When each thread of the queue began its write."""
        self.pending_bytes = 0
        """Bytes in the queue, and those reserved for opens that are served from memory."""
        self._next_warning_s = 0.0
        self._closing = False
        self._threads = [
            threading.Thread(target=self._write_queued, args=(number,), name=f"write-{number}", daemon=True)
            for number in range(max(1, fetch_threads // 8))
        ]
        self._threads.append(threading.Thread(target=self._watch_inline_writes, name="write-watch", daemon=True))
        for thread in self._threads:
            thread.start()

    # -- on a fetch thread --

    def begin_write(self, take_over: Callable[[], None] | None = None) -> int | None:
        """A ticket for one write on the calling thread, to be passed to ``end_write``; None while the disk is
        backlogged. ``take_over`` is called once, on another thread and under the lock, when the write takes long."""
        now = time.monotonic()
        if len(self._inline) >= self._max_inline or self._is_backlogged(now):
            return None
        # Without the lock: two threads that begin at the same time may both find the last place.
        ticket = next(self._tickets)
        if take_over is None:
            self._inline[ticket] = _InlineWrite(now, None)
            return ticket
        with self._lock:  # or the watcher might find no write, and sleep, between the insertion and the look at it
            self._inline[ticket] = _InlineWrite(now, take_over)
            if not self._watcher_is_timing:
                self._inline_write_began.notify()
        return ticket

    def end_write(self, ticket: int) -> None:
        """The write has ended."""
        # Without the lock where nothing is taken over: the watcher then only looks at it, in a copy.
        if self._inline[ticket].take_over is None:
            del self._inline[ticket]
            return
        with self._lock:
            del self._inline[ticket]

    def _is_backlogged(self, now: float) -> bool:
        # Copies, in one step: ``begin_write`` and ``end_write`` take no lock.
        oldest = next(iter(list(self._inline.values())), None)
        if oldest is not None and now - oldest.began > SLOW_WRITE_S:
            return True
        return any(now - since > SLOW_WRITE_S for since in list(self._busy_since.values()))

    # -- later --

    def submit(self, count_bytes: int, work: Callable[[], None], done: Callable[[bool], None]) -> None:
        """Queues a write. Calls ``done`` afterwards with True, or at once with False if the queue is full."""
        with self._lock:
            fits = self.pending_bytes + count_bytes <= self._queue_bytes and not self._closing
            if fits:
                self.pending_bytes += count_bytes
                self._queue.append(_QueuedWrite(count_bytes, work, done))
                self._queue_changed.notify()
        if not fits:
            # Without the lock: ``done`` takes that of the read-through cache, under which ``reserve`` takes this one.
            self._warn_of_full_queue()
            done(False)

    @property
    def may_read_ahead(self) -> bool:
        """False while so much is pending that the bytes of a readahead might not be cached. Approximate: no lock."""
        return self.pending_bytes <= self._queue_bytes * READAHEAD_SHARE

    def reserve(self, count_bytes: int) -> bool:
        """Counts bytes that stay in memory for an open, until ``release``; False if there is no capacity for them."""
        with self._lock:
            if self.pending_bytes + count_bytes > self._queue_bytes:
                return False
            self.pending_bytes += count_bytes
        return True

    def release(self, count_bytes: int) -> None:
        """Ends what ``reserve`` began."""
        with self._lock:
            self.pending_bytes -= count_bytes

    def close(self) -> None:
        """Writes what is queued, unless that takes too long, and ends the threads."""
        with self._lock:
            self._closing = True
            self._queue_changed.notify_all()
            self._inline_write_began.notify()
        until = time.monotonic() + CLOSE_TIMEOUT_S
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _warn_of_full_queue(self) -> None:
        with self._lock:
            now = time.monotonic()
            warn = now >= self._next_warning_s
            if warn:
                self._next_warning_s = now + WARN_INTERVAL_S
        if warn:
            logger.warning(
                "the cache disk is slower than the store: the write queue (--write-queue) is full, and what is fetched "
                "beyond it is served and not cached",
                extra=telemetry.fields(pending_bytes=self.pending_bytes),
            )

    def _write_queued(self, number: int) -> None:
        while True:
            with self._lock:
                while not self._queue:
                    if self._closing:
                        return
                    self._queue_changed.wait()
                write = self._queue.popleft()
                self._busy_since[number] = time.monotonic()
            for step in (write.work, partial(write.done, True)):
                try:
                    step()
                except BaseException:  # whatever it is, the thread must not die
                    logger.exception("unexpected error in a write to the cache; its bytes are not cached")
            # After ``done``: the bytes are in memory until then, and count against the queue.
            with self._lock:
                del self._busy_since[number]
                self.pending_bytes -= write.count_bytes

    def _watch_inline_writes(self) -> None:
        """Has the fetches of stuck threads taken over. Sleeps while no fetch thread writes."""
        with self._lock:
            while not self._closing:
                self._watcher_is_timing = bool(self._inline)
                self._inline_write_began.wait(SLOW_WRITE_S if self._watcher_is_timing else None)
                before = time.monotonic() - SLOW_WRITE_S
                for ticket, write in list(self._inline.items()):
                    # Under the lock, so that the write cannot end in between; ``take_over`` takes the fetcher's lock.
                    if write.began < before and write.take_over is not None:
                        self._inline[ticket] = write._replace(take_over=None)
                        try:
                            write.take_over()
                        except BaseException:  # whatever it is, the thread must not die
                            logger.exception("unexpected error while a fetch was passed to another thread")
