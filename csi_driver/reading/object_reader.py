"""Reads of one object version of which chunks may be missing: each is fetched once, however many wait for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

from csi_driver.cache.object_file import ObjectFile
from csi_driver.event_loop.once import Once
from csi_driver.model.chunk import CHUNK_BYTES, ByteRange, chunk_range, chunks_of
from csi_driver.model.errors import (
    CacheError,
    HayloftError,
    InternalFailure,
    Interrupted,
    StoreProtocolError,
)
from csi_driver.objects.checksums import keeper_of
from csi_driver.reading.cached_read import answer_present, read_present
from csi_driver.reading.chunker import assemble, counted
from csi_driver.reading.fetcher import Job
from csi_driver.reading.pending_read import Data, PendingRead
from csi_driver.reading.readahead import History, plan
from csi_driver.reading.services import ObjectSource, ReadServices


class _Fetch:
    """One request, from its first chunk to its last; only the thread whose turn it is touches it."""

    __slots__ = ("failed", "left", "pieces")

    def __init__(self, chunks: range, failed: Callable[[HayloftError], None] | None) -> None:
        self.left = chunks
        self.pieces: Iterator[tuple[int, list[memoryview], int]] | None = None
        self.failed = failed
        """What a warmup is told by."""


class ObjectReader:
    """Shared by all opens of one object version.

    ``_lock`` guards ``_in_flight``, ``_waiting`` and the sets of the reads that are parked there, and ``_held``. It is
    not held across disk, network or an answer.
    """

    def __init__(self, world: ReadServices, source: ObjectSource, file: ObjectFile | None) -> None:
        """Takes over one use of the file. No file: the cache disk refused it, and bytes go straight through."""
        self._world = world
        self._source = source
        self._size_bytes = source.version.size_bytes
        self.digest = source.version.digest(CHUNK_BYTES)
        self._lock = threading.Lock()
        self._in_flight: dict[int, Job] = {}
        self._waiting: dict[int, list[PendingRead]] = {}
        self._held: dict[int, list[memoryview]] = {}
        """Chunks that are answered from memory until they are in the file."""
        self._disk_is_bad = False
        self.file = file
        if file is not None:
            file.held = keeper_of(source.store) is not None
        self.opens = 0
        self.fetches = 0
        """Both are counted by the world under its own lock; with neither left the reader closes its file."""

    def read(
        self, history: History, byte_range: ByteRange, data: Data, volume: int = 0
    ) -> tuple[History, PendingRead | None]:
        """Answers through ``data``, at once if every chunk is present. The range must not be empty. ``volume`` is who
        reads: what has to be fetched is done when it is its turn."""
        wanted = chunks_of(byte_range)
        planned = plan(history, byte_range, self._size_bytes, self._world.limits)
        parked = None
        if self.file is not None and self._has(wanted):
            answer_present(
                self._world.fetcher,
                self.file,
                byte_range,
                data,
                lambda: self._past_disk(byte_range, data, volume),
                volume,
            )
        else:
            parked = self._park(byte_range, wanted, data, volume)
        if planned.ahead and self._keeps_what_comes():
            for chunks in planned.ahead:
                self._fetch_missing(chunks, volume, urgent=False)
        return planned.history, parked

    def fill(self, chunks: range) -> tuple[int, HayloftError | None]:
        """Fetches those of the chunks that are missing and that nobody fetches, on the calling thread; how many bytes
        that were, and why it ended before the last of them. The caller has the object open."""
        fetched_bytes, at = 0, chunks.start
        while at < chunks.stop:
            failures: list[HayloftError] = []
            with self._lock:
                run = self._first_idle_run(range(at, chunks.stop))
                if run is None:
                    break
                job = self._begin(run, failures.append)
            # A reader that wants these chunks finds them in flight; it may even have handed the job to a thread of
            # the fetcher by now.
            if job.claim():
                job.work()
                if failures:
                    return fetched_bytes, failures[0]
                fetched_bytes += min(run.stop * CHUNK_BYTES, self._size_bytes) - run.start * CHUNK_BYTES
            at = run.stop
        return fetched_bytes, None

    def missing_bytes(self, chunks: range) -> int:
        """Bytes of those of the chunks that are not there."""
        return sum(len(chunk_range(chunk, self._size_bytes)) for chunk in chunks if not self._is_at_hand(chunk))

    @property
    def held_bytes(self) -> int:
        """Bytes that are in memory and not yet in the file."""
        with self._lock:
            return sum(len(chunk_range(chunk, self._size_bytes)) for chunk in self._held)

    @property
    def nearly_complete(self) -> bool:
        """True while the last missing chunks wait to be written."""
        file, held = self.file, self._held
        return file is not None and not file.complete and 0 < file.missing_count <= len(held)

    def in_flight(self, chunks: range) -> bool:
        """True if somebody fetches one of the chunks."""
        with self._lock:
            return any(chunk in self._in_flight for chunk in chunks)

    def _first_idle_run(self, chunks: range) -> range | None:
        """The first neighbours that are missing and not in flight. Under the lock."""
        start = None
        for chunk in chunks:
            idle = chunk not in self._in_flight and not self._is_at_hand(chunk)
            if idle and start is None:
                start = chunk
            elif not idle and start is not None:
                return range(start, chunk)
        return None if start is None else range(start, chunks.stop)

    @staticmethod
    def cancel(parked: PendingRead) -> None:
        """Answers a parked read with Interrupted; its fetch goes on for the others."""
        parked.fail(Interrupted("the reader was interrupted"))

    # -- reads of what is there --

    def _has(self, wanted: range) -> bool:
        return self.file is not None and not self._disk_is_bad and self.file.has(wanted)

    def _is_at_hand(self, chunk: int) -> bool:
        return chunk in self._held or self._has(range(chunk, chunk + 1))

    def _present(self, byte_range: ByteRange) -> memoryview:
        if self.file is None:
            raise InternalFailure("a chunk was present in no file")
        buffer = memoryview(bytearray(len(byte_range)))
        read_present(self.file, byte_range, buffer)
        return buffer

    def _past_disk(self, byte_range: ByteRange, data: Data, volume: int) -> None:
        """The disk cannot give back what it was given: from now on this object goes straight through."""
        self._disk_is_bad = True
        self._world.read_failed()
        self._park(byte_range, chunks_of(byte_range), data, volume)

    # -- reads of what is missing --

    def _keeps_what_comes(self) -> bool:
        """Without that, what is fetched ahead would be fetched again."""
        world = self._world
        return self.file is not None and not self.file.passing and world.may_store() and world.writes.may_fetch_ahead

    def _park(self, byte_range: ByteRange, wanted: range, data: Data, volume: int) -> PendingRead:
        parked = PendingRead(byte_range, data)
        with self._lock:
            for chunk in wanted:
                held = self._held.get(chunk)
                if held is not None:
                    parked.hold(chunk, held)
                elif not self._has(range(chunk, chunk + 1)):
                    parked.missing.add(chunk)
                    self._waiting.setdefault(chunk, []).append(parked)
            there = not parked.missing
        if there:
            self._answer(parked)
        else:
            self._fetch_missing(wanted, volume, urgent=True)
        return parked

    def _fetch_missing(self, chunks: range, volume: int, *, urgent: bool) -> None:
        """Sees to it that each missing chunk is being fetched: neighbours that are not yet, in one request."""
        jobs: list[tuple[Job, bool]] = []
        with self._lock:
            run_start: int | None = None
            for chunk in range(chunks.start, chunks.stop + 1):
                flying = self._in_flight.get(chunk) if chunk < chunks.stop else None
                fetch = chunk < chunks.stop and flying is None and not self._is_at_hand(chunk)
                if urgent and chunk not in self._waiting:
                    fetch = False  # delivered between parking and here
                if fetch and run_start is None:
                    run_start = chunk
                elif not fetch and run_start is not None:
                    jobs.append((self._begin(range(run_start, chunk)), True))
                    run_start = None
                if flying is not None and urgent and flying.waiting:
                    jobs.append((flying, False))
        for job, _new in jobs:
            (self._world.fetcher.demand if urgent else self._world.fetcher.ahead)(job, volume)

    def _begin(self, chunks: range, failed: Callable[[HayloftError], None] | None = None) -> Job:
        job = Job(lambda: self._fetch(chunks, failed))
        self._world.retain(self)
        for chunk in chunks:
            self._in_flight[chunk] = job
        return job

    def _fetch(self, chunks: range, failed: Callable[[HayloftError], None] | None = None) -> None:
        """One request for neighbouring chunks; runs on a thread of the fetcher, or of a warmup, which is told why it
        failed."""
        self._go_on(_Fetch(chunks, failed))

    def _go_on(self, fetch: _Fetch) -> None:
        """To the end of the fetch, or until another thread goes on with it because a write takes long."""
        mine = True
        try:
            if fetch.pieces is None:
                self._require_wanted()
                fetch.pieces = self._chunks_from_store(fetch.left)
            for chunk, parts, checksum in fetch.pieces:
                fetch.left = range(chunk + 1, fetch.left.stop)
                mine = not self._deliver(chunk, parts) or self._keep(fetch, chunk, parts, checksum)
                if not mine:
                    return
                if fetch.left:
                    self._require_wanted()
            if fetch.left:
                raise StoreProtocolError(f"{self._source.version.key}: the store sent too little")
            self.finish_if_whole()
        except HayloftError as error:
            self._abandon(fetch.left, error)
            if fetch.failed is not None:
                fetch.failed(error)
        except BaseException as error:
            self._abandon(fetch.left, InternalFailure(f"{self._source.version.key}: {type(error).__name__}: {error}"))
            raise
        finally:
            if mine:
                self._world.let_go(self)

    def _require_wanted(self) -> None:
        """Raises Interrupted when nobody has the file open or waits for a chunk: readers were killed, or closed it."""
        if self.opens:
            return
        with self._lock:
            wanted = any(not parked.answered for waiting in self._waiting.values() for parked in waiting)
        if not wanted:
            raise Interrupted("nobody wants the rest of the file")

    def finish_if_whole(self) -> None:
        """With the last chunk, after all who waited for it have it: the check may take a request and a pass over the
        file."""
        file = self.file
        if file is None or self._disk_is_bad or not file.whole:
            return
        try:
            self._world.finish(self._source, file)
        except CacheError as error:
            self._world.refused(error)

    def _chunks_from_store(self, chunks: range) -> Iterator[tuple[int, list[memoryview], int]]:
        version = self._source.version
        last = chunk_range(chunks.stop - 1, self._size_bytes)
        wanted = ByteRange(chunks.start * CHUNK_BYTES, last.stop)
        self._world.refuse_damaged(self._source)
        self._world.requested()
        pieces = self._source.store.read_range(version.key, wanted, if_match=version.etag)
        return assemble(chunks, self._size_bytes, counted(pieces, self._world.received))

    def _keep(self, fetch: _Fetch, chunk: int, parts: Sequence[memoryview], checksum: int) -> bool:
        """Has the chunk written. It is at hand in memory until that is done, or given up. False if another thread has
        gone on with the fetch meanwhile."""
        if fetch.failed is not None:  # a warmup, which has time
            self._write(chunk, parts, checksum)
            return True
        turn = Once()

        def rescue() -> None:
            if turn.take():
                self._world.fetcher.demand(Job(lambda: self._go_on(fetch)))

        ticket = self._world.writes.enter(rescue)
        if ticket is None:
            self._write_later(chunk, parts, checksum)
            return True
        self._world.retain(self)
        try:
            self._write(chunk, parts, checksum)
        finally:
            self._world.writes.leave(ticket)
            mine = turn.take()
            if not mine and self.file is not None and self.file.whole:
                self.finish_if_whole()
            self._world.let_go(self)
        return mine

    def _write(self, chunk: int, parts: Sequence[memoryview], checksum: int) -> None:
        file = self.file
        try:
            if file is not None:
                file.write_chunk(chunk, parts, checksum)
        except CacheError as error:
            self._world.refused(error)
        finally:
            with self._lock:
                self._held.pop(chunk, None)

    def _write_later(self, chunk: int, parts: Sequence[memoryview], checksum: int) -> None:
        def done(written: bool) -> None:
            with self._lock:
                self._held.pop(chunk, None)
            if written and self.file is not None and self.file.whole:
                self._world.fetcher.ahead(Job(self._finish_and_go))
            else:
                self._world.let_go(self)

        self._world.retain(self)
        length = len(chunk_range(chunk, self._size_bytes))
        self._world.writes.submit(length, lambda: self._write(chunk, parts, checksum), done)

    def _finish_and_go(self) -> None:
        try:
            self.finish_if_whole()
        finally:
            self._world.let_go(self)

    def _deliver(self, chunk: int, parts: list[memoryview]) -> bool:
        """Answers who waited for the chunk; True if it is to be written, and is held until then."""
        ready = []
        with self._lock:
            self._in_flight.pop(chunk, None)
            to_write = self.file is not None and not self._disk_is_bad and not self.file.is_present(chunk)
            if to_write:
                self._held[chunk] = parts
            for parked in self._waiting.pop(chunk, ()):
                if parked.hold(chunk, parts):
                    ready.append(parked)
        for parked in ready:
            self._answer(parked)
        return to_write

    def _answer(self, parked: PendingRead) -> None:
        try:
            parked.answer(self._present, self._size_bytes)
        except CacheError:
            self._fetch_instead(parked)
        except HayloftError as error:
            parked.fail(error)

    def _fetch_instead(self, parked: PendingRead) -> None:
        """What was in the file when the read was parked cannot be read now: it comes from the store."""
        self._disk_is_bad = True
        self._world.read_failed()
        wanted = chunks_of(parked.byte_range)
        with self._lock:
            for chunk in wanted:
                held = self._held.get(chunk)
                if held is not None:
                    parked.hold(chunk, held)
                elif not parked.holds(chunk):
                    parked.missing.add(chunk)
                    self._waiting.setdefault(chunk, []).append(parked)
            there = not parked.missing
        if there:
            self._answer(parked)
        else:
            self._fetch_missing(wanted, self._source.volume, urgent=True)

    def _abandon(self, chunks: range, error: HayloftError) -> None:
        failed: list[PendingRead] = []
        with self._lock:
            for chunk in chunks:
                self._in_flight.pop(chunk, None)
                failed += self._waiting.pop(chunk, ())
        for parked in failed:
            parked.fail(error)
