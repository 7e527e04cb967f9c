"""Fetches the files of a volume before they are read, in the order of the manifest, beside the readers.

Cached files are skipped, so a warmup that was interrupted begins again at the start and is soon where it was. All that
stays in memory of a file is its number, and that only while it has to be retried.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from array import array
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Protocol

from csi_driver.model.chunk import CHUNK_BYTES, chunk_range
from csi_driver.model.errors import (
    AccessDenied,
    BucketNotFound,
    CacheDiskFailed,
    HayloftError,
    InternalFailure,
    Interrupted,
    ObjectChanged,
    ObjectNotFound,
)
from csi_driver.model.tracebacks import summary
from csi_driver.reading.bandwidth_limit import Clock, RateLimit
from csi_driver.reading.fair_shares import Share, work_in
from csi_driver.reading.read_through_cache import Presence, ReadThroughCache
from csi_driver.reading.services import ObjectSource
from csi_driver.reading.warmup_admission import LIGHT_BYTES, LIGHT_FETCHES, AdmissionGate, no_readers
from csi_driver.reading.warmup_progress import Progress, WarmupCounts
from csi_driver.reading.warmup_target import WarmupTarget

logger = logging.getLogger(__name__)

FETCH_CHUNKS = 16
"""Longest fetch: no reader waits for its first bytes, so it may be as long as any."""

FETCH_S = 0.25
"""With a limit of bandwidth a fetch takes about this long, so that the rate is even."""

MOST_ROUNDS = 5
"""How often a file is tried. Each try already lasts until the volume's ``deadline``."""

MOST_FAILURES_IN_A_ROW = 100
"""So many files in a row with a final error: the cause is not the files, and the warmup is aborted."""

MAX_BACKOFF_S = 60.0
"""Backoff while a store or disk fails: doubled from one second up to this."""

_SAMPLED_FILES = 1000

_POLL_S = 0.05
"""How often a thread polls whether fetches in flight have left cache capacity for one more."""

_FINAL = (ObjectChanged, ObjectNotFound, AccessDenied, BucketNotFound)
"""Errors that are not retried."""

Piece = tuple[WarmupTarget, range]
"""Chunks of an object that one request may fetch."""


class WarmupFiles(Protocol):
    """The files to be fetched, by numbers that ascend in the order of the manifest."""

    def chosen(self, stopping: Callable[[], bool]) -> Sequence[int]:
        """Their numbers. May take seconds where globs have to be matched with a million paths; empty when stopped."""

    def size_bytes(self, number: int) -> int:
        """The bytes of a file that are to be fetched."""

    def source(self, number: int) -> ObjectSource:
        """The object of a file, and its store."""

    def wanted(self, number: int) -> tuple[range, ...]:
        """The chunks of a file that are to be fetched, which ascend; empty for an empty file."""


class Warmup:
    """One warmup, from ``start`` until it has ended; it is not started twice.

    ``_lock`` guards ``_counts``, ``_retry``, ``_resume_at`` and the counts of failures; it is not held across disk or
    network. ``_pieces_lock`` guards ``_pieces``; it is held while the next missing piece is searched, which asks the
    cache's disk. ``_reserve_lock`` guards ``_reserved_bytes``; it is held while capacity is reserved, which may evict.
    ``_gates_lock`` is held by the one thread that waits at the gates.
    """

    def __init__(
        self,
        name: str,
        targets: WarmupFiles,
        read_through_cache: ReadThroughCache,
        gate: AdmissionGate,
        has_capacity: Callable[[int], bool],
        *,
        bandwidth_bytes: int = 0,
        concurrency: int = 4,
        ended: Callable[[Progress], None] = lambda end: None,
        clock: Clock = time.monotonic,
        wait: Callable[[threading.Event, float], bool] = threading.Event.wait,
    ) -> None:
        """``has_capacity`` is True if so many bytes fit into the cache without evicting mounted volumes. ``ended`` is
        called on a thread of the warmup, but not when it was stopped without being cancelled. ``wait`` waits for an
        event or until time has passed, by the same clock. ``concurrency`` fetches run at a time, and ``LIGHT_FETCHES``
        times as many of small objects."""
        self._name = name
        self._targets = targets
        self._read_through_cache = read_through_cache
        self._gate = gate
        self._has_capacity = has_capacity
        self._bandwidth = RateLimit(bandwidth_bytes, clock)
        self._fetch_chunks = fetch_chunks(bandwidth_bytes)
        self._concurrency = concurrency
        self._ended = ended
        self._clock = clock
        self._wait_for = wait
        self._stopping = threading.Event()
        self._cancelled = self._full = self._aborted = False
        self._lock = threading.Lock()
        self._pieces_lock = threading.Lock()
        self._reserve_lock = threading.Lock()
        self._gates_lock = threading.Lock()
        self._own_gate = AdmissionGate(no_readers, concurrency, math.inf)
        self._reserved_bytes = 0
        self._counts = WarmupCounts(clock)
        self._pieces: Generator[Piece] | None = None
        self._retry = array("Q")
        """Numbers of files for the next round."""
        self._final_failures_in_a_row = self._backoffs = 0
        self._resume_at = 0.0
        self._thread = threading.Thread(target=self._run, name=f"warm-{name}", daemon=True)

    def start(self) -> None:
        """Returns at once: the warmup runs on threads of its own."""
        self._thread.start()

    def stop(self, *, cancelled: bool) -> None:
        """Begins no further fetch; requests in flight are not aborted, since a reader may wait for the same bytes.
        ``cancelled``: for good, and not only until the next daemon resumes it."""
        self._cancelled = self._cancelled or cancelled
        self._stopping.set()

    @property
    def started(self) -> bool:
        """True after ``start``."""
        return self._thread.ident is not None

    def join(self, timeout_s: float) -> bool:
        """Waits for the end; False at the timeout."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def progress(self) -> Progress:
        with self._lock:
            return self._counts.progress()

    # -- rounds --

    def _run(self) -> None:
        try:
            self._rounds()
        except HayloftError as error:
            logger.warning("%s: the warmup is aborted: %s", self._name, error)
            self._abort(error)
        except BaseException as error:
            logger.exception("%s: unexpected error in the warmup; it is aborted", self._name)
            self._abort(error)
        if self._cancelled or self._full or self._aborted or not self._stopping.is_set():
            with self._lock:
                end = self._counts.end(full=self._full, cancelled=self._cancelled)
            self._ended(end)

    def _rounds(self) -> None:
        numbers = self._targets.chosen(self._stopping.is_set)
        size_bytes = sum(map(self._targets.size_bytes, numbers))
        with self._lock:
            self._counts.total(len(numbers), size_bytes)
        for number in range(MOST_ROUNDS):
            if not numbers or (number and self._wait(min(2.0**number, MAX_BACKOFF_S))):
                break
            self._round(numbers)
            numbers, self._retry = array("Q", sorted(self._retry)), array("Q")
        with self._lock:
            self._counts.retries_exhausted(len(numbers))

    def _round(self, numbers: Sequence[int]) -> None:
        pieces = self._pieces = self._pieces_of(numbers)
        helpers = [
            threading.Thread(target=self._work, name=f"warm-{self._name}-{number}", daemon=True)
            for number in range(1, self._threads_for(numbers))
        ]
        for helper in helpers:
            helper.start()
        self._work()
        for helper in helpers:
            helper.join()
        pieces.close()

    def _threads_for(self, numbers: Sequence[int]) -> int:
        """Where most files of a sample are small, nearly every thread waits for a small response: there are as many of
        them as the gate admits light fetches."""
        sample = numbers[:: max(1, len(numbers) // _SAMPLED_FILES)]
        light = sum(self._targets.size_bytes(number) <= LIGHT_BYTES for number in sample)
        most = (
            self._concurrency if light <= len(sample) / 2 else min(self._concurrency, self._gate.limit) * LIGHT_FETCHES
        )
        return min(most, max(len(numbers), self._concurrency))

    def _pieces_of(self, numbers: Sequence[int]) -> Generator[Piece]:
        for number in numbers:
            source = self._targets.source(number)
            presence = self._read_through_cache.presence(source)
            if presence is Presence.READABLE:
                self._count_file(self._targets.size_bytes(number))
                continue
            small = source.version.size_bytes <= self._read_through_cache.small_object_bytes
            cached = presence is Presence.UNPROVEN
            wanted = self._targets.wanted(number)
            target = WarmupTarget(number, source, self._read_through_cache, wanted, small=small, cached=cached)
            try:
                for chunks in target.pieces(self._fetch_chunks):
                    if target.failure is not None:
                        break
                    target.add_piece()
                    yield target, chunks
            finally:
                self._piece_done(target)

    def _work(self) -> None:
        try:
            while (piece := self._next_piece()) is not None:
                self._fetch_piece(*piece)
        except BaseException as error:
            logger.exception("%s: unexpected error in the warmup; it is aborted", self._name)
            self._abort(error)

    def _next_piece(self) -> Piece | None:
        with self._pieces_lock:
            return None if self._stopping.is_set() or self._pieces is None else next(self._pieces, None)

    # -- one piece --

    def _fetch_piece(self, target: WarmupTarget, chunks: range) -> None:
        try:
            if target.cached:
                with self._inside_gates(target.share, light=True):
                    target.open(self._wait)
            missing_bytes = target.missing_bytes(chunks, self._wait)
            if missing_bytes:
                self._fetch(target, chunks, missing_bytes)
            if not target.small:
                self._count_part(target, chunks)
        except HayloftError as error:
            target.fail(error)
        finally:
            self._piece_done(target)

    def _fetch(self, target: WarmupTarget, chunks: range, missing_bytes: int) -> None:
        """Raises what WarmupTarget.fetch raises, and Interrupted when it should not begin."""
        while (backoff_s := self._resume_at - self._clock()) > 0:
            if self._wait(backoff_s):
                raise Interrupted("the warmup was stopped")
        self._reserve(missing_bytes)
        fetched_bytes = 0
        try:
            if self._wait(self._bandwidth.take(missing_bytes)):
                raise Interrupted("the warmup was stopped")
            with self._inside_gates(target.share, light=missing_bytes <= LIGHT_BYTES and target.small):
                fetched_bytes = target.fetch(chunks, self._wait)
        finally:
            with self._reserve_lock:
                self._reserved_bytes -= missing_bytes
            self._bandwidth.give_back(missing_bytes - fetched_bytes)
        with self._lock:
            self._counts.fetched(fetched_bytes)

    @contextlib.contextmanager
    def _inside_gates(self, share: Share, *, light: bool) -> Iterator[None]:
        """Raises Interrupted."""
        # One thread waits at a time, and at the warmup's own gate first: so a warmup that waits there for its own
        # fetches occupies no place of the daemon's gate.
        with self._gates_lock:
            own_slot = self._own_gate.enter(self._wait, light=light)
            slot = None if own_slot is None else self._gate.enter(self._wait, share, light=light)
        try:
            if slot is None:
                raise Interrupted("the warmup was stopped")
            work_in(slot)
            yield
        finally:
            work_in()
            if slot is not None:
                self._gate.leave(slot, light=light)
            if own_slot is not None:
                self._own_gate.leave(own_slot, light=light)

    def _reserve(self, count_bytes: int) -> None:
        """Reserves cache capacity beside that of the fetches in flight, until the fetch has ended. Raises Interrupted
        if there will never be enough, CacheError while the disk refuses."""
        while True:
            with self._reserve_lock:
                reserved_bytes = self._reserved_bytes
                if self._has_capacity(reserved_bytes + count_bytes):
                    self._reserved_bytes += count_bytes
                    return
            if not reserved_bytes:  # no fetch in flight will make it fit
                self._full = True
                self._stopping.set()
            if self._wait(_POLL_S):
                raise Interrupted("the warmup was stopped")

    # -- results --

    def _piece_done(self, target: WarmupTarget) -> None:
        if not target.piece_done():
            return
        complete, failure = target.close(), target.failure
        if failure is None and complete:
            self._count_file(target.wanted_bytes - target.counted_bytes)
        elif not self._stopping.is_set() or not (failure is None or isinstance(failure, Interrupted)):
            self._count_failure(target, failure or CacheDiskFailed("the cache disk did not store all fetched bytes"))

    def _count_file(self, rest_bytes: int) -> None:
        with self._lock:
            self._final_failures_in_a_row = self._backoffs = 0
            self._counts.file(rest_bytes)

    def _count_part(self, target: WarmupTarget, chunks: range) -> None:
        last = chunk_range(chunks.stop - 1, target.size_bytes)
        count_bytes = last.stop - chunks.start * CHUNK_BYTES
        target.count(count_bytes)
        with self._lock:
            self._backoffs = 0
            self._counts.part(count_bytes)

    def _count_failure(self, target: WarmupTarget, error: HayloftError) -> None:
        with self._lock:
            if isinstance(error, _FINAL):
                self._counts.failed(error)
                self._final_failures_in_a_row += 1
                self._aborted = self._final_failures_in_a_row >= MOST_FAILURES_IN_A_ROW
            else:
                self._retry.append(target.number)
                self._counts.part(-target.counted_bytes)
                self._counts.retrying(error)
                now = self._clock()
                if now >= self._resume_at:  # fetches that fail together back off once
                    self._resume_at = now + min(2.0**self._backoffs, MAX_BACKOFF_S)
                    self._backoffs += 1
        if self._aborted:
            self._stopping.set()

    def _abort(self, error: BaseException) -> None:
        with self._lock:
            self._counts.failed(InternalFailure(summary(error)))
            self._aborted = True
        self._stopping.set()

    def _wait(self, seconds: float) -> bool:
        """Waits, or returns True as soon as the warmup is to stop."""
        if self._stopping.is_set():
            return True
        return seconds > 0 and self._wait_for(self._stopping, seconds)


def fetch_chunks(bandwidth_bytes: int) -> int:
    """The length of fetches of large objects, in chunks, under a limit of bytes a second (0: none)."""
    if not bandwidth_bytes:
        return FETCH_CHUNKS
    return min(FETCH_CHUNKS, max(1, int(bandwidth_bytes * FETCH_S / CHUNK_BYTES)))
