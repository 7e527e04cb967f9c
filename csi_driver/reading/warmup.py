"""Fetches the files of a volume before anybody asks for them, in the order of the manifest, beside the readers.

What is there already is passed over, so a warmup that was interrupted, by whatever, begins again at the start and is
soon where it was. Nothing is kept of a file but its number, and that only where it has to be tried again.
"""

from __future__ import annotations

import contextlib
import logging
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
from csi_driver.reading.admission import LIGHT, LIGHT_BYTES, AdmissionGate, Clock, RateLimit, nobody
from csi_driver.reading.read_through_cache import ReadThroughCache
from csi_driver.reading.services import ObjectSource
from csi_driver.reading.warmup_progress import Progress, WarmupCounts
from csi_driver.reading.warmup_target import WarmupTarget

logger = logging.getLogger(__name__)

FETCH_CHUNKS = 16
"""Longest fetch: nobody waits for its first bytes, so it may be as long as any."""

FETCH_S = 0.25
"""With a limit of bandwidth a fetch takes about this share of a second, so that what comes is even."""

MOST_ROUNDS = 5
"""How often a file is tried. Each try lasts until the volume's ``deadline`` already."""

MOST_FAILURES_IN_A_ROW = 100
"""So many files one after another that no other try will mend: it is not the files, and to ask on is no use."""

LONGEST_PAUSE_S = 60.0
"""Between tries while a store or disk fails: doubled from one second up to this."""

_SAMPLED_FILES = 1000

_LOOK_AGAIN_S = 0.05
"""How often it is looked whether fetches under way have left room for one more."""

_FINAL = (ObjectChanged, ObjectNotFound, AccessDenied, BucketNotFound)
"""No other try mends these."""

Piece = tuple[WarmupTarget, range]
"""Chunks of an object that one request may fetch."""


class WarmupFiles(Protocol):
    """The files to be fetched, by numbers that go up in the order of the manifest."""

    def chosen(self, stopping: Callable[[], bool]) -> Sequence[int]:
        """Their numbers. May take seconds where globs have to be matched with a million paths; empty when stopped."""

    def size_bytes(self, number: int) -> int:
        """Of one file."""

    def source(self, number: int) -> ObjectSource:
        """Where one file is to be had."""


class Warmup:
    """One warmup, from ``start`` until it has ended; it is not started twice.

    ``_lock`` guards the tally, what has to be tried again, and the counts of failures; nothing slow is done while it
    is held. ``_handing_out`` is held by who looks for the next piece, which asks the cache's disk; ``_promising`` by
    who asks for room, which may evict; ``_entering`` by the one who waits at the gates.
    """

    def __init__(
        self,
        name: str,
        targets: WarmupFiles,
        library: ReadThroughCache,
        gate: AdmissionGate,
        has_room: Callable[[int], bool],
        *,
        bandwidth_bytes: int = 0,
        concurrency: int = 4,
        ended: Callable[[Progress], None] = lambda end: None,
        clock: Clock = time.monotonic,
        wait: Callable[[threading.Event, float], bool] = threading.Event.wait,
    ) -> None:
        """``has_room`` says whether so many bytes fit into the cache without harm to anybody. ``ended`` is called on a
        thread of the warmup, but not when it was stopped without being cancelled. ``wait`` waits for an event or
        until time has passed, by the same clock. ``concurrency`` fetches at a time, of small objects ``LIGHT`` times
        as many."""
        self._name = name
        self._targets = targets
        self._library = library
        self._gate = gate
        self._has_room = has_room
        self._bandwidth = RateLimit(bandwidth_bytes, clock)
        self._fetch_chunks = fetch_chunks(bandwidth_bytes)
        self._concurrency = concurrency
        self._ended = ended
        self._clock = clock
        self._wait_for = wait
        self._stopping = threading.Event()
        self._cancelled = self._full = self._broken_off = False
        self._lock = threading.Lock()
        self._handing_out = threading.Lock()
        self._promising = threading.Lock()
        self._entering = threading.Lock()
        self._own_gate = AdmissionGate(nobody, concurrency)
        self._promised_bytes = 0
        self._tally = WarmupCounts(clock)
        self._pieces: Generator[Piece] | None = None
        self._again = array("Q")
        self._failures_in_a_row = self._failures_to_wait_for = 0
        self._resume_at = 0.0
        self._thread = threading.Thread(target=self._run, name=f"warm-{name}", daemon=True)

    def start(self) -> None:
        """Begins, on threads of its own."""
        self._thread.start()

    def stop(self, *, cancelled: bool) -> None:
        """Begins nothing more; requests under way are not broken off, since a reader may wait for the same bytes.
        ``cancelled``: for good, and not only until the next daemon."""
        self._cancelled = self._cancelled or cancelled
        self._stopping.set()

    @property
    def started(self) -> bool:
        """Whether ``start`` was called."""
        return self._thread.ident is not None

    def join(self, timeout_s: float) -> bool:
        """Waits for the end; False if it has not come by then."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def progress(self) -> Progress:
        """How far it is."""
        with self._lock:
            return self._tally.progress()

    # -- rounds --

    def _run(self) -> None:
        try:
            self._rounds()
        except Exception as error:
            logger.exception("a warmup failed in a way nobody foresaw")
            self._break_off(error)
        if self._cancelled or self._full or self._broken_off or not self._stopping.is_set():
            with self._lock:
                end = self._tally.end(full=self._full, cancelled=self._cancelled)
            self._ended(end)

    def _rounds(self) -> None:
        numbers = self._targets.chosen(self._stopping.is_set)
        size_bytes = sum(map(self._targets.size_bytes, numbers))
        with self._lock:
            self._tally.total(len(numbers), size_bytes)
        for number in range(MOST_ROUNDS):
            if not numbers or (number and self._wait(min(2.0**number, LONGEST_PAUSE_S))):
                break
            self._round(numbers)
            numbers, self._again = array("Q", sorted(self._again)), array("Q")
        with self._lock:
            self._tally.given_up(len(numbers))

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
        """Where most files are small, by a sample, nearly every thread waits for the answer to a small request; there
        are no more of them than the gate lets in."""
        sample = numbers[:: max(1, len(numbers) // _SAMPLED_FILES)]
        light = sum(self._targets.size_bytes(number) <= LIGHT_BYTES for number in sample)
        most = self._concurrency if light <= len(sample) / 2 else min(self._concurrency, self._gate.most) * LIGHT
        return min(most, max(len(numbers), self._concurrency))

    def _pieces_of(self, numbers: Sequence[int]) -> Generator[Piece]:
        for number in numbers:
            source = self._targets.source(number)
            size_bytes = source.version.size_bytes
            if self._library.is_complete(source):
                self._file_is_there(size_bytes)
                continue
            target = WarmupTarget(number, source, self._library, small=size_bytes <= self._library.small_object_bytes)
            step = len(target.whole) if target.small else self._fetch_chunks
            try:
                for first in range(0, len(target.whole), step):
                    if target.failure is not None:
                        break
                    target.hold()
                    yield target, target.whole[first : first + step]
            finally:
                self._leave(target)

    def _work(self) -> None:
        try:
            while (piece := self._next_piece()) is not None:
                self._do(*piece)
        except Exception as error:
            logger.exception("a warmup failed in a way nobody foresaw")
            self._break_off(error)

    def _next_piece(self) -> Piece | None:
        with self._handing_out:
            return None if self._stopping.is_set() or self._pieces is None else next(self._pieces, None)

    # -- one piece --

    def _do(self, target: WarmupTarget, chunks: range) -> None:
        try:
            missing_bytes = target.missing_bytes(chunks, self._wait)
            if missing_bytes:
                self._fetch(target, chunks, missing_bytes)
            if not target.small:
                self._part_is_there(target, chunks)
        except HayloftError as error:
            target.fail(error)
        finally:
            self._leave(target)

    def _fetch(self, target: WarmupTarget, chunks: range, missing_bytes: int) -> None:
        """Raises what Target.fetch raises, and Interrupted when it should not begin."""
        self._pause()
        self._promise(missing_bytes)
        fetched_bytes = 0
        try:
            if self._wait(self._bandwidth.take(missing_bytes)):
                raise Interrupted("the warmup was stopped")
            with self._inside_gates(light=missing_bytes <= LIGHT_BYTES and target.small):
                fetched_bytes = target.fetch(chunks, self._wait)
        finally:
            with self._promising:
                self._promised_bytes -= missing_bytes
            self._bandwidth.give_back(missing_bytes - fetched_bytes)
        with self._lock:
            self._tally.fetched(fetched_bytes)

    @contextlib.contextmanager
    def _inside_gates(self, *, light: bool) -> Iterator[None]:
        """Raises Interrupted."""
        with self._entering:
            entered = self._own_gate.enter(self._wait, light=light)
            if entered and not self._gate.enter(self._wait, light=light):
                self._own_gate.leave(light=light)
                entered = False
        if not entered:
            raise Interrupted("the warmup was stopped")
        try:
            yield
        finally:
            self._gate.leave(light=light)
            self._own_gate.leave(light=light)

    def _pause(self) -> None:
        """Waits while a store or disk fails. Raises Interrupted."""
        while (left_s := self._resume_at - self._clock()) > 0:
            if self._wait(left_s):
                raise Interrupted("the warmup was stopped")

    def _promise(self, count_bytes: int) -> None:
        """Sees to it that the bytes fit beside those of the fetches under way. Raises Interrupted if they never will,
        CacheError while the disk refuses."""
        while True:
            with self._promising:
                under_way = self._promised_bytes
                if self._has_room(under_way + count_bytes):
                    self._promised_bytes += count_bytes
                    return
            if not under_way:
                self._full = True
                self._stopping.set()
            if self._wait(_LOOK_AGAIN_S):
                raise Interrupted("the warmup was stopped")

    # -- what became of it --

    def _leave(self, target: WarmupTarget) -> None:
        if not target.leave():
            return
        complete, failure = target.close(), target.failure
        if failure is None and complete:
            self._file_is_there(target.size_bytes - target.counted_bytes)
        elif not self._stopping.is_set() or not (failure is None or isinstance(failure, Interrupted)):
            self._failed(target, failure or CacheDiskFailed("the cache disk has not taken all that came"))

    def _file_is_there(self, rest_bytes: int) -> None:
        with self._lock:
            self._failures_in_a_row = self._failures_to_wait_for = 0
            self._tally.file(rest_bytes)

    def _part_is_there(self, target: WarmupTarget, chunks: range) -> None:
        last = chunk_range(chunks.stop - 1, target.size_bytes)
        count_bytes = last.stop - chunks.start * CHUNK_BYTES
        target.counted(count_bytes)
        with self._lock:
            self._failures_to_wait_for = 0
            self._tally.part(count_bytes)

    def _failed(self, target: WarmupTarget, error: HayloftError) -> None:
        with self._lock:
            if isinstance(error, _FINAL):
                self._tally.failed(error)
                self._failures_in_a_row += 1
                self._broken_off = self._failures_in_a_row >= MOST_FAILURES_IN_A_ROW
            else:
                self._again.append(target.number)
                self._tally.part(-target.counted_bytes)
                self._tally.waiting(error)
                now = self._clock()
                if now >= self._resume_at:  # what fails together counts once
                    self._resume_at = now + min(2.0**self._failures_to_wait_for, LONGEST_PAUSE_S)
                    self._failures_to_wait_for += 1
        if self._broken_off:
            self._stopping.set()

    def _break_off(self, error: Exception) -> None:
        with self._lock:
            self._tally.failed(InternalFailure(f"{type(error).__name__}: {error}"))
            self._broken_off = True
        self._stopping.set()

    def _wait(self, seconds: float) -> bool:
        """True as soon as the warmup is to stop."""
        if self._stopping.is_set():
            return True
        return seconds > 0 and self._wait_for(self._stopping, seconds)


def fetch_chunks(bandwidth_bytes: int) -> int:
    """How long the fetches of large objects are, in chunks, under a limit of bytes a second (0: none)."""
    if not bandwidth_bytes:
        return FETCH_CHUNKS
    return min(FETCH_CHUNKS, max(1, int(bandwidth_bytes * FETCH_S / CHUNK_BYTES)))
