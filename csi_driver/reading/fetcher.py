"""Does what the scheduler decides: threads for work that blocks, and the work that the event loop takes from it.

The number of fetch threads bounds the connections to the stores and, with the length of a fetch, the bytes in flight.
"""

from __future__ import annotations

import logging
import queue
import resource
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from csi_driver.model.errors import HayloftError
from csi_driver.model.tracebacks import unexpected
from csi_driver.reading.bandwidth_limit import Pace
from csi_driver.reading.fair_shares import STALL_S, FairShares, Share, work_in
from csi_driver.reading.scheduler import LIGHT_FETCHES, Lane, LaneLimits, Priority, Scheduler, Started, Work

logger = logging.getLogger(__name__)

RESERVED_THREADS = 4
"""Threads that readahead never takes, so that a fetch for a pending read starts at once."""

OTHERS_SHARE = 8
"""One thread of so many is left to other volumes: one volume cannot occupy all threads of the node."""

MOST_THREADS = 8
"""So many times as many threads there are at the most, while others are stalled or a namespace or a store waits that
has less than an equal part."""

MOST_REQUESTS = 4
"""So many times as many requests of the event loop, and bytes, are in flight at the most in these cases."""
DESCRIPTORS_PART = 4
"""But no more than one of so many descriptors of the process."""
MAX_IN_FLIGHT_BYTES = 32 << 20
"""Of the event loop's requests for readers: more than 128 objects of 110 kB have together, and a bound for larger ones.
"""

DISK_READS = 32
"""Reads from the disk at a time. They do not depend on the number of connections: NVMe reads at its full rate with
some 32 requests in flight."""

IDLE_S = 10.0
"""Threads beyond the usual number end after so long without a job."""

WATCH_S = 0.5
"""How often the running jobs are checked for progress."""
LEAST_WATCH_S = 0.005
"""How often it is looked for work that has waited for bandwidth: what this delays may start together (``BURST_S``)."""

WARN_INTERVAL_S = 60.0

CLOSE_TIMEOUT_S = 3.0
"""A fetch from a store that works takes less; one from a store that hangs ends with its deadline, minutes later."""


def _none_waits(error: HayloftError) -> None:
    return


class Job(Work):
    """Work for one thread. It may be in several queues; the first thread that claims it runs it."""

    __slots__ = ("_failed", "_work")

    def __init__(
        self,
        work: Callable[[], None],
        failed: Callable[[HayloftError], None] = _none_waits,
        count_bytes: int = 0,
        pace: Pace | None = None,
    ) -> None:
        """``failed`` answers those who wait for the work if that raises, whatever it raises; without it none waits. It
        may find that some, or all of them, are answered already."""
        super().__init__(count_bytes, pace)
        self._work, self._failed = work, failed

    def run(self) -> None:
        """Does the work. By the thread that has claimed it. Raises what ``failed`` raises, and nothing else."""
        try:
            self._work()
        except BaseException as error:  # a panic of a store's client is no Exception
            logger.exception("unexpected error in the work for a read; those who wait for it get it as their error")
            self._failed(unexpected(error))


class _Pool:
    """The threads of a lane. The caller serialises."""

    def __init__(self, lane: Lane, name: str, usual: int, most: int) -> None:
        self.lane, self.name, self.usual, self.most = lane, name, usual, most
        self.threads: set[threading.Thread] = set()
        self._tokens: queue.SimpleQueue[bool] = queue.SimpleQueue()
        """One for each of ``_started``: what the threads wait for. False ends one."""
        self._started: tuple[deque[Started[Work]], ...] = tuple(deque() for _ in Priority)
        """Work that was taken, by priority: a thread that wakes up late begins with the most urgent."""
        self.busy = 0
        """Work that was taken and is not done: in ``started``, or on a thread."""
        self.may_grow = True
        """False after a thread could not be started, until the watcher tries again."""

    def put(self, started: Started[Work]) -> None:
        """For the next thread."""
        self._started[started.priority].append(started)
        self._tokens.put(True)

    def put_end(self) -> None:
        """Ends a thread."""
        self._tokens.put(False)

    def get(self, timeout_s: float | None) -> Started[Work] | None:
        """By a thread, without the lock; None: it is to end, or the time is over."""
        try:
            if not self._tokens.get(timeout=timeout_s):
                return None
        except queue.Empty:
            return None
        while True:  # there is one for each token; another thread may take it in between, and leaves its own
            for started in self._started:
                try:
                    return started.popleft()
                except IndexError:
                    continue

    @property
    def has_thread(self) -> bool:
        """Whether a thread waits for work, or one more may be started."""
        return self.busy < len(self.threads) or (self.may_grow and len(self.threads) < self.most)


class Fetcher:
    """Methods may be called from any thread.

    ``_lock`` guards the scheduler, the pools, ``_watch_s``, ``_watched_until_s`` and ``_next_warning_s``. It is not
    held while a job runs.
    """

    def __init__(
        self,
        threads: int,
        *,
        loop_requests: int = 128,
        warm_fetches: int = 8,
        bytes_per_second: int = 0,
        may_warm: Callable[[], bool] = lambda: True,
        idle_s: float = IDLE_S,
        stall_s: float = STALL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Threads start when they are needed. ``loop_requests`` of the event loop are in flight at a time, for
        ``MAX_IN_FLIGHT_BYTES`` together, without those that are stalled."""
        self._idle_s = idle_s
        self._clock = clock
        self._lock = threading.Lock()
        limits = {
            Lane.THREADS: _thread_limits(threads, stall_s, clock),
            Lane.LOOP: _loop_limits(loop_requests, stall_s, clock),
            Lane.DISK: _thread_limits(DISK_READS, stall_s, clock),
        }
        self._scheduler: Scheduler[Work] = Scheduler(
            limits, warm_fetches, bytes_per_second=bytes_per_second, may_warm=may_warm, stall_s=stall_s, clock=clock
        )
        most_warm = warm_fetches * LIGHT_FETCHES * MOST_REQUESTS
        self._pools = {
            Lane.THREADS: _Pool(Lane.THREADS, "fetch", threads, threads * MOST_THREADS + most_warm),
            Lane.DISK: _Pool(Lane.DISK, "disk-read", DISK_READS, DISK_READS * MOST_THREADS),
        }
        self._wake_loop: Callable[[], None] = lambda: None
        self._watch_s: float | None = None
        """How long the watcher sleeps: until it is woken, while nothing runs or waits."""
        self._watched_until_s = 0.0
        self._next_warning_s = 0.0
        self._work_began = threading.Event()
        self._closing = threading.Event()
        threading.Thread(target=self._watch, name="fetch-watch", daemon=True).start()

    def demand(self, job: Job, share: Share = Share()) -> None:  # noqa: B008  # immutable
        """Runs the job as soon as it is the share's turn. A job that is queued as readahead is moved up by this."""
        self._submit(Lane.THREADS, Priority.DEMAND, share, job)

    def ahead(self, job: Job, share: Share = Share()) -> None:  # noqa: B008  # immutable
        """Runs the job when no job on demand can run."""
        self._submit(Lane.THREADS, Priority.AHEAD, share, job)

    def warm(self, job: Job, share: Share = Share()) -> None:  # noqa: B008  # immutable
        """Runs the job of a warmup when no reader waits for a thread."""
        self._submit(Lane.THREADS, Priority.WARM, share, job)

    def read_disk(self, job: Job, share: Share = Share()) -> None:  # noqa: B008  # immutable
        """Runs a job that reads from the disk, on threads of its own: all others may wait for stores."""
        self._submit(Lane.DISK, Priority.DEMAND, share, job)

    def limit(self, share: Share, bytes_per_second: int) -> Callable[[], None]:
        """As ``Scheduler.limit``; what it returns ends it."""
        with self._lock:
            pace = self._scheduler.limit(share, bytes_per_second)

        def end() -> None:
            with self._lock:
                self._scheduler.unlimit(share, pace)
                self._dispatch()

        return end

    def bytes_per_second(self, share: Share) -> int:
        """As ``Scheduler.bytes_per_second``. Without the lock: two look-ups in dictionaries."""
        return self._scheduler.bytes_per_second(share)

    def queued(self, lane: Lane) -> tuple[int, ...]:
        """Work of a lane that waits, by priority."""
        with self._lock:
            return self._scheduler.queued(lane)

    def longest_wait_s(self, share: Share) -> float:
        """As ``Scheduler.longest_wait_s``."""
        with self._lock:
            return self._scheduler.longest_wait_s(share)

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Drops the queued jobs and waits for the running ones, up to the timeout: a store that hangs must not hold up
        the end of the daemon."""
        self._closing.set()
        self._work_began.set()
        with self._lock:
            self._scheduler.clear()
            threads = [(pool, thread) for pool in self._pools.values() for thread in pool.threads]
        for pool, _ in threads:
            pool.put_end()
        until = time.monotonic() + timeout_s
        for _, thread in threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _submit(self, lane: Lane, priority: Priority, share: Share, job: Job) -> None:
        with self._lock:
            if not self._closing.is_set():
                self._scheduler.submit(lane, priority, share, job)
                self._dispatch_to(self._pools[lane])
                self._wake_watcher()

    # -- for the event loop --

    def attach_loop(self, wake: Callable[[], None]) -> None:
        """``wake`` is called, under the lock and from any thread, when work of the event loop may have become startable
        by something else than the loop itself."""
        self._wake_loop = wake

    def exchange(
        self, submitted: Iterable[tuple[Priority, Share, Work]], ended: Iterable[Started[Any]]
    ) -> tuple[list[Started[Any]], bool]:
        """By the event loop: queues work, ends other work, and takes what starts now. Also returns whether other work
        waits, which the end of something may start."""
        with self._lock:
            scheduler = self._scheduler
            for priority, share, work in submitted:
                scheduler.submit(Lane.LOOP, priority, share, work)
            for each in ended:
                scheduler.end(each)
            taken: list[Started[Any]] = []
            while (started := scheduler.take(Lane.LOOP)) is not None:
                taken.append(started)
            warmups_wait = scheduler.warmups_wait
            if warmups_wait:
                for pool in self._pools.values():
                    self._dispatch_to(pool)
            if warmups_wait or scheduler.next_start_s() is not None:
                self._wake_watcher()
            return taken, warmups_wait or scheduler.waits(Lane.LOOP)

    def hold_back(self, started: Started[Any]) -> None:
        """By the event loop: the store of the volume is at its limit. The work gives back its slots until
        ``restart``; others of the volume do not start until ``admit``."""
        with self._lock:
            self._scheduler.end(started)
            self._scheduler.hold_back(Lane.LOOP, started.share)

    def restart(self, started: Started[Any]) -> None:
        """By the event loop: the store has a slot for it now."""
        with self._lock:
            self._scheduler.restart(started)

    def admit(self, share: Share) -> None:
        """By the event loop: no work of the volume waits for its store any more."""
        with self._lock:
            self._scheduler.admit(Lane.LOOP, share)

    def stall(self, started: Started[Any]) -> None:
        """As ``Scheduler.stall``."""
        with self._lock:
            self._scheduler.stall(started)

    def resume(self, started: Started[Any]) -> None:
        """As ``Scheduler.resume``."""
        with self._lock:
            self._scheduler.resume(started)

    # -- what starts on threads: the caller holds the lock --

    def _dispatch(self) -> None:
        """Starts what may start now, in all lanes."""
        for pool in self._pools.values():
            self._dispatch_to(pool)
        if self._scheduler.may_start(Lane.LOOP):
            self._wake_loop()

    def _dispatch_to(self, pool: _Pool) -> None:
        while pool.has_thread and (started := self._scheduler.take(pool.lane)) is not None:
            pool.busy += 1
            pool.put(started)
            if pool.busy > len(pool.threads):
                self._add_thread(pool)

    def _add_thread(self, pool: _Pool) -> None:
        """Without a thread, the work waits for those that there are."""
        if self._closing.is_set():
            return
        usual = len(pool.threads) < pool.usual
        thread = threading.Thread(
            target=self._work, args=(pool, usual), name=f"{pool.name}-{len(pool.threads)}", daemon=True
        )
        pool.threads.add(thread)
        try:
            thread.start()
        except RuntimeError:  # the process may have no more threads; the watcher tries again
            pool.threads.discard(thread)
            pool.may_grow = False
            self._wake_watcher()
            self._log_no_thread()

    # -- a thread --

    def _work(self, pool: _Pool, usual: bool) -> None:
        started = self._wait(pool, usual)
        while started is not None:
            job = started.work
            work_in(*started.slots)
            try:
                if isinstance(job, Job):
                    job.run()
            except BaseException:  # whatever it is, the thread must not die
                logger.exception("unexpected error while the error of a job was reported")
            work_in()
            started = self._done(pool, started) or self._wait(pool, usual)

    def _wait(self, pool: _Pool, usual: bool) -> Started[Work] | None:
        """None if the thread is to end."""
        while True:
            started = pool.get(None if usual else self._idle_s)
            if started is not None:
                return started
            with self._lock:
                # After a timeout: work may have been put there for this thread in the meantime.
                if self._closing.is_set() or pool.busy < len(pool.threads):
                    pool.threads.discard(threading.current_thread())
                    return None

    def _done(self, pool: _Pool, started: Started[Work]) -> Started[Work] | None:
        """The work is done. Returns the next for this thread."""
        following = None
        with self._lock:
            self._scheduler.end(started)
            pool.busy -= 1
            if pool.busy < len(pool.threads):  # else other work waits for this thread
                following = self._scheduler.take(pool.lane)
                pool.busy += following is not None
            if self._scheduler.warmups_wait:
                self._dispatch()
        return following

    # -- the watcher --

    def _wake_watcher(self) -> None:
        """The caller holds the lock."""
        next_start_s = self._scheduler.next_start_s()
        if self._watch_s is None or (next_start_s is not None and next_start_s + LEAST_WATCH_S < self._watched_until_s):
            self._watch_s, self._watched_until_s = WATCH_S, 0.0
            self._work_began.set()

    def _log_no_thread(self) -> None:
        now = time.monotonic()
        if now >= self._next_warning_s:
            self._next_warning_s = now + WARN_INTERVAL_S
            logger.error(
                "no thread can be started, reads wait for those that there are; raise the limit of the container's "
                "processes (pids.max), or its memory"
            )

    def _watch(self) -> None:
        """Has other threads take the place of those that are stalled, or could not be started, and starts what has
        waited for bandwidth. Sleeps while nothing runs or waits."""
        while not self._closing.is_set():
            self._work_began.wait(self._watch_s)
            self._work_began.clear()
            with self._lock:
                self._scheduler.mark_stalled(*self._pools)
                for pool in self._pools.values():
                    pool.may_grow = True
                    while pool.may_grow and pool.busy > len(pool.threads):
                        self._add_thread(pool)
                self._dispatch()
                self._watch_s = self._watch_interval_s()

    def _watch_interval_s(self) -> float | None:
        if self._scheduler.is_idle and not any(pool.busy for pool in self._pools.values()):
            return None
        now_s, next_start_s = self._clock(), self._scheduler.next_start_s()
        interval_s = WATCH_S if next_start_s is None else min(WATCH_S, max(LEAST_WATCH_S, next_start_s - now_s))
        self._watched_until_s = now_s + interval_s
        return interval_s


def _thread_limits(threads: int, stall_s: float, clock: Callable[[], float]) -> LaneLimits:
    most, most_ahead = threads * MOST_THREADS, max(1, threads - min(RESERVED_THREADS, threads // 2))
    most_of_a_volume = threads - threads // OTHERS_SHARE
    return LaneLimits(
        FairShares(threads, most, most_of_a_volume=most_of_a_volume, stall_s=stall_s, clock=clock),
        FairShares(most_ahead, most, stall_s=stall_s, clock=clock),
    )


def _loop_limits(requests: int, stall_s: float, clock: Callable[[], float]) -> LaneLimits:
    request_bytes = MAX_IN_FLIGHT_BYTES // requests
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most_requests = min(requests * MOST_REQUESTS, max(requests, descriptors // DESCRIPTORS_PART))
    shares = FairShares(
        MAX_IN_FLIGHT_BYTES,
        request_bytes * most_requests,
        most_of_a_volume=MAX_IN_FLIGHT_BYTES - requests // OTHERS_SHARE * request_bytes,
        stall_s=stall_s,
        clock=clock,
    )
    return LaneLimits(shares, least_weight=request_bytes, weighs_bytes=True)
