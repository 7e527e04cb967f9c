"""Fetches the files of a volume before they are read, in the order of the manifest, beside the readers.

One thread goes through the files and hands the scheduler so many fetches as may be in flight; threads and the event
loop do them when no reader waits. Cached files are skipped, so a warmup that was interrupted begins again at the start
and is soon where it was. All that stays in memory of a file is its number, and that only while it has to be retried.
"""

from __future__ import annotations

import logging
import threading
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Protocol

from csi_driver.event_loop.once import Once
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
from csi_driver.model.tracebacks import summary, unexpected
from csi_driver.reading.bandwidth_limit import Pace
from csi_driver.reading.fetcher import Job
from csi_driver.reading.open_object import OpenObject
from csi_driver.reading.read_through_cache import Presence, ReadThroughCache
from csi_driver.reading.readahead import paced_chunks
from csi_driver.reading.scheduler import LIGHT_BYTES, LIGHT_FETCHES, Work
from csi_driver.reading.services import ObjectSource
from csi_driver.reading.warmup_progress import Clock, Progress, WarmupCounts
from csi_driver.reading.warmup_target import WarmupTarget

logger = logging.getLogger(__name__)

FETCH_CHUNKS = 16
"""Longest fetch: no reader waits for its first bytes, so it may be as long as any."""

MOST_ROUNDS = 5
"""How often a file is tried. Each try already lasts until the volume's ``deadline``."""

MOST_FAILURES_IN_A_ROW = 100
"""So many files in a row with a final error: the cause is not the files, and the warmup is aborted."""

MAX_BACKOFF_S = 60.0
"""Backoff while a store or disk fails: doubled from one second up to this."""

_WAKE_PART = 8
"""The thread of a warmup is woken when one of so many places is free, and not for each: waking it costs a twentieth of
a small object."""

_FINAL = (ObjectChanged, ObjectNotFound, AccessDenied, BucketNotFound)
"""Errors that are not retried."""


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


class _Piece:
    """Chunks of an object that one request fetches, from the moment when they are handed out."""

    __slots__ = ("chunks", "count_bytes", "target", "work")

    def __init__(self, target: WarmupTarget, chunks: range, count_bytes: int) -> None:
        self.target, self.chunks, self.count_bytes = target, chunks, count_bytes
        self.work: Work | None = None

    @property
    def weight(self) -> int:
        """As in the scheduler."""
        return 1 if self.count_bytes <= LIGHT_BYTES else LIGHT_FETCHES


class Warmup:
    """One warmup, from ``start`` until it has ended; it is not started twice.

    ``_lock`` guards ``_handed_out``, ``_weight``, ``_reserved_bytes``, ``_ended_pieces``, ``_counts``, ``_retry``,
    ``_resume_at`` and the counts of failures; it is not held across disk or network. ``_changed`` shares it, and wakes
    the warmup's thread.
    """

    def __init__(
        self,
        name: str,
        targets: WarmupFiles,
        read_through_cache: ReadThroughCache,
        has_capacity: Callable[[int], bool],
        *,
        bandwidth_bytes: int = 0,
        concurrency: int = 4,
        start_share: float = 0.0,
        ended: Callable[[Progress], None] = lambda end: None,
        clock: Clock = time.monotonic,
        wait: Callable[[threading.Event, float], bool] = threading.Event.wait,
    ) -> None:
        """``has_capacity`` is True if so many bytes fit into the cache without evicting mounted volumes. ``ended`` is
        called on the thread of the warmup, but not when it was stopped without being cancelled. ``wait`` waits for an
        event or until time has passed, by the same clock. ``concurrency`` fetches are in flight at a time;
        ``LIGHT_FETCHES`` of small objects count as one. ``start_share``: of the bytes, which come last."""
        self._name = name
        self._targets = targets
        self._read_through_cache = read_through_cache
        self._has_capacity = has_capacity
        self._pace = Pace(bandwidth_bytes) if bandwidth_bytes else None
        self._fetch_chunks = paced_chunks(FETCH_CHUNKS, bandwidth_bytes)
        self._most_in_flight = concurrency * LIGHT_FETCHES
        self._wake_at = self._most_in_flight - max(1, self._most_in_flight // _WAKE_PART)
        self._start_share = start_share
        self._ended = ended
        self._clock = clock
        self._wait_for = wait
        self._stopping = threading.Event()
        self._cancelled = self._full = self._aborted = False
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._handed_out: set[_Piece] = set()
        """Queued or in flight."""
        self._weight = self._reserved_bytes = 0
        """Of these."""
        self._ended_pieces = 0
        self._counts = WarmupCounts(clock)
        self._retry = array("Q")
        """Numbers of files for the next round."""
        self._final_failures_in_a_row = self._backoffs = 0
        self._resume_at = 0.0
        self._thread = threading.Thread(target=self._run, name=f"warm-{name}", daemon=True)

    def start(self) -> None:
        """Returns at once."""
        self._thread.start()

    def stop(self, *, cancelled: bool) -> None:
        """Begins no further fetch; requests in flight are not aborted, since a reader may wait for the same bytes.
        ``cancelled``: for good, and not only until the next daemon resumes it."""
        self._cancelled = self._cancelled or cancelled
        self._stop()

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
            begin = self._beginning(numbers, size_bytes) if not number and self._start_share else 0
            self._round(chain(numbers[begin:], numbers[:begin]) if begin else numbers)
            numbers, self._retry = array("Q", sorted(self._retry)), array("Q")
        with self._lock:
            self._counts.retries_exhausted(len(numbers))

    def _beginning(self, numbers: Sequence[int], size_bytes: int) -> int:
        """How many of the files have the bytes that come last."""
        before_bytes, until_bytes = 0, size_bytes * self._start_share
        for index, number in enumerate(numbers):
            if before_bytes >= until_bytes:
                return index
            before_bytes += self._targets.size_bytes(number)
        return 0

    def _round(self, numbers: Iterable[int]) -> None:
        try:
            for number in numbers:
                if self._stopping.is_set():
                    break
                self._hand_out_file(number)
            with self._changed:
                self._changed.wait_for(lambda: not self._handed_out or self._stopping.is_set())
        finally:
            self._end_round()

    def _end_round(self) -> None:
        """Waits for what is in flight; what has not begun when the warmup is stopped does not begin."""
        with self._lock:
            queued = list(self._handed_out)
        for piece in queued:
            if piece.work is not None and piece.work.claim():
                self._ended_piece(piece)
        with self._changed:
            self._changed.wait_for(lambda: not self._handed_out)

    def _hand_out_file(self, number: int) -> None:
        """Hands out all pieces of a file, each when it has its place. Blocks; what is cached is skipped."""
        cache, source = self._read_through_cache, self._targets.source(number)
        since = cache.table.arrivals  # before the look-up
        presence = cache.presence(source)
        if presence is Presence.READABLE:
            self._count_file(self._targets.size_bytes(number))
            return
        # Neither opening nor asking for access is possible for a part.
        whole = presence is Presence.UNPROVEN or source.version.size_bytes <= cache.small_object_bytes
        target = WarmupTarget(number, source, cache, None if whole else self._targets.wanted(number))
        try:
            if presence is Presence.UNPROVEN:
                self._hand_out(_Piece(target, target.chunks, 0))  # the store is asked whether it may be read
            elif target.size_bytes <= cache.small_object_bytes:
                self._hand_out(_Piece(target, target.chunks, target.size_bytes), since)
            else:
                self._hand_out_large(target)
        except HayloftError as error:
            target.fail(error)
        finally:
            self._piece_done(target)

    def _hand_out_large(self, target: WarmupTarget) -> None:
        target.opened = self._open(target.source)
        for chunks in target.pieces(self._fetch_chunks):
            missing_bytes = target.missing_bytes(chunks)
            if target.failure is not None:
                return
            if missing_bytes:
                self._hand_out(_Piece(target, chunks, missing_bytes))
            else:
                self._count_part(target, chunks)

    def _hand_out(self, piece: _Piece, since: int | None = None) -> None:
        """``since``: as of ``PendingOpen``. Raises Interrupted when no fetch is to begin any more, CacheError while the
        disk refuses writes."""
        self._wait_for_place(piece)
        cache, target, pace = self._read_through_cache, piece.target, self._pace
        target.add_piece()
        if target.opened is not None:
            job = piece.work = Job(lambda: self._fetch(piece), target.fail, piece.count_bytes, pace)
            cache.fetcher.warm(job, target.source.share)
            return
        answer = self._answer_of(piece)
        try:
            piece.work = cache.warm(target.source, answer, piece.count_bytes, pace, since)
        except BaseException as error:
            answer(unexpected(error))
            raise

    def _wait_for_place(self, piece: _Piece) -> None:
        """Until the piece may be in flight, beside the others, and fits into the cache with them."""
        while not self._stopping.is_set():
            backoff_s = self._resume_at - self._clock()
            with self._lock:
                weight, reserved_bytes, ended = self._weight, self._reserved_bytes, self._ended_pieces
            if backoff_s > 0:
                self._wait(backoff_s)
                continue
            if weight < self._most_in_flight:
                if self._has_capacity(reserved_bytes + piece.count_bytes):
                    with self._lock:
                        self._handed_out.add(piece)
                        self._weight += piece.weight
                        self._reserved_bytes += piece.count_bytes
                    return
                if not weight:  # no fetch in flight will make it fit
                    self._full = True
                    self._stop()
            with self._changed:
                while self._ended_pieces == ended and not self._stopping.is_set():
                    self._changed.wait()
        raise Interrupted("the warmup was stopped")

    def _open(self, source: ObjectSource) -> OpenObject:
        """Opens a large object, on this thread unless a reader already does. Raises HayloftError."""
        results: list[OpenObject | HayloftError] = []
        # The answer and the interruption race on two threads. The answer wins: this thread returns it. The interruption
        # wins: the answer closes what it has opened.
        outcome = Once()

        def opened(result: OpenObject | HayloftError) -> None:
            if outcome.claim():
                with self._changed:
                    results.append(result)
                    self._changed.notify_all()
            elif isinstance(result, OpenObject):
                result.close()

        self._read_through_cache.open_on_this_thread(source, opened)
        with self._changed:
            self._changed.wait_for(lambda: results or self._stopping.is_set())
        if not results and outcome.claim():
            raise Interrupted("the warmup was stopped")
        with self._changed:
            self._changed.wait_for(lambda: results)
        if isinstance(results[0], HayloftError):
            raise results[0]
        return results[0]

    # -- one piece, on a thread of the fetcher or the event loop --

    def _fetch(self, piece: _Piece) -> None:
        fetched_bytes = 0
        try:
            fetched_bytes = piece.target.fetch(piece.chunks)
            self._count_fetched(fetched_bytes)
            self._count_part(piece.target, piece.chunks)
        except HayloftError as error:
            piece.target.fail(error)
        except BaseException as error:
            piece.target.fail(unexpected(error))
            raise
        finally:
            if piece.work is not None:
                piece.work.unused_bytes = piece.count_bytes - fetched_bytes
            self._ended_piece(piece)

    def _answer_of(self, piece: _Piece) -> Callable[[OpenObject | HayloftError], None]:
        """What receives the object of a piece that is opened and fetched in one."""
        outcome = Once()  # after an unexpected error it may be called twice

        def opened(result: OpenObject | HayloftError) -> None:
            if not outcome.claim():
                return
            if isinstance(result, HayloftError):
                piece.target.fail(result)
            else:
                piece.target.opened = result
                self._count_fetched(piece.count_bytes)
            self._ended_piece(piece)

        return opened

    def _ended_piece(self, piece: _Piece) -> None:
        try:
            self._piece_done(piece.target)
        finally:
            with self._changed:
                self._handed_out.remove(piece)
                self._weight -= piece.weight
                self._reserved_bytes -= piece.count_bytes
                self._ended_pieces += 1
                if self._weight <= self._wake_at:
                    self._changed.notify_all()

    # -- results --

    def _piece_done(self, target: WarmupTarget) -> None:
        if not target.piece_done():
            return
        complete, failure = target.close(), target.failure
        if failure is None and complete:
            self._count_file(target.wanted_bytes - target.counted_bytes)
        elif not self._stopping.is_set() or not (failure is None or isinstance(failure, Interrupted)):
            self._count_failure(target, failure or CacheDiskFailed("the cache disk did not store all fetched bytes"))

    def _count_fetched(self, count_bytes: int) -> None:
        with self._lock:
            self._counts.fetched(count_bytes)

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
            self._stop()

    def _abort(self, error: BaseException) -> None:
        with self._lock:
            self._counts.failed(InternalFailure(summary(error)))
            self._aborted = True
        self._stop()

    def _stop(self) -> None:
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()

    def _wait(self, seconds: float) -> bool:
        """Waits, or returns True as soon as the warmup is to stop."""
        if self._stopping.is_set():
            return True
        return seconds > 0 and self._wait_for(self._stopping, seconds)
