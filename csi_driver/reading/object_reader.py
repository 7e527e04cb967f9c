"""Reads one object version of which chunks may be missing; each chunk is fetched once for all pending reads."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

from csi_driver.cache.chunk_writer import ChunkWriter
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
from csi_driver.model.read_counts import NOT_COUNTED, ReadCounts, WaitsFor
from csi_driver.model.tracebacks import unexpected
from csi_driver.objects.checksums import checksum_provider
from csi_driver.reading.answers import answer_each
from csi_driver.reading.cached_read import answer_cached, read_cached
from csi_driver.reading.chunker import ReceivedChunk, counted, into_chunks
from csi_driver.reading.fair_shares import Share
from csi_driver.reading.fetcher import Job
from csi_driver.reading.held_chunks import HeldChunks
from csi_driver.reading.pending_read import Data, PendingRead
from csi_driver.reading.readahead import History, Limits, plan
from csi_driver.reading.services import ObjectSource, ReadServices

logger = logging.getLogger(__name__)


class _Fetch:
    """One request, from its first chunk to its last. One thread at a time works on it: a fetch thread or, when that is
    stuck in a write, the one that took over."""

    __slots__ = ("failed", "hold", "remaining", "response")

    def __init__(
        self, chunks: range, failed: Callable[[HayloftError], None] | None = None, *, hold: bool = False
    ) -> None:
        self.remaining = chunks
        self.response: Iterator[ReceivedChunk] | None = None
        self.failed = failed
        """Reports an error to the warmup that fetches; None for a fetch of readers."""
        self.hold = hold
        """Whether its chunks stay in memory until they are read, as far as there is capacity."""


class _Awaited(PendingRead):
    """A warmup waits for a chunk, and reads none of it."""

    __slots__ = ()

    def bytes_of(self, chunk: int) -> int:
        return 0


class _NotInPageCache(Exception):
    """The bytes are on the disk alone."""


class _Delivered(NamedTuple):
    """A chunk that is to be written: the share of it that pending reads have got, and whether memory has the rest."""

    read_share: float
    held: bool


class ObjectReader:
    """Shared by all opens of one object version.

    ``_lock`` guards ``_in_flight``, ``_pending``, the ``missing`` sets of the pending reads there, ``_unwritten`` and
    ``_held``. It is not held across disk, network or an answer.
    """

    def __init__(
        self, services: ReadServices, source: ObjectSource, file: ObjectFile | None, *, proven: bool = False
    ) -> None:
        """Takes over one use of the file. Without a file, because the cache disk refused it, nothing is cached.
        ``proven``: the store has let the credential read the object."""
        self._services = services
        self._source = source
        self._size_bytes = source.version.size_bytes
        self.key = source.key
        self._lock = threading.Lock()
        self._in_flight: dict[int, Job] = {}
        """By chunk; the chunks of one fetch share a job."""
        self._pending: dict[int, list[PendingRead]] = {}
        """By missing chunk."""
        self._unwritten: dict[int, list[memoryview]] = {}
        """Chunks that are served from memory until they are in the file."""
        self._held = HeldChunks(services.held_bytes)
        """Chunks that are served from memory until they were read."""
        self._drops = 0 if file is None else file.drops
        """Of the file when ``_held`` was looked at last."""
        self._disk_failed = False
        self.etag: str | None = None
        """See ``VersionPins.pin``; None before the first request."""
        self.file = file
        self.proven = proven
        """Whether chunks of the file may be answered. If not, they count as missing: the first one that the store sends
        is the proof. The file may be shared with readers of other credentials, which add chunks to it."""
        if file is not None:
            file.unpublished_until_verified = checksum_provider(source.store) is not None
        self.opens = 0
        self.fetches = 0
        """Both are counted by the services under their own lock; when both are 0 the reader closes its file."""

    def read(
        self,
        history: History,
        byte_range: ByteRange,
        data: Data,
        share: Share,
        limits: Limits,
        counts: ReadCounts = NOT_COUNTED,
    ) -> tuple[History, PendingRead | None]:
        """Answers through ``data``, at once if every chunk is cached. The range must not be empty. Fetches are queued
        for ``share``, within the ``limits`` of its volume; the read is one of the volume of ``counts``."""
        planned = plan(history, byte_range, self._size_bytes, limits)
        pending = None
        if self._held and self._answer_held(byte_range, planned.demand, data, share, counts):
            pass
        elif self.file is not None and self._in_file(planned.demand):
            answer_cached(
                self._services.fetcher,
                self.file,
                byte_range,
                data,
                lambda error: self._read_without_disk(byte_range, data, share, counts, error),
                share,
                counts,
            )
        else:
            pending = self._start_pending_read(byte_range, planned.demand, data, share, counts)
        if planned.ahead and self._may_read_ahead():
            for ahead in planned.ahead:
                self._fetch_missing(ahead, share, urgent=False, hold=limits.whole)
        return planned.history, pending

    def fill(self, chunks: range) -> tuple[int, HayloftError | None]:
        """Fetches, on the calling thread, those of the chunks that are missing and not in flight, and waits for those
        that are. Returns the number of fetched bytes, and the error that ended it. The caller has the object open."""
        fetched_bytes, at = 0, chunks.start
        while at < chunks.stop:
            failures: list[HayloftError] = []
            with self._lock:
                run = self._first_idle_run(range(at, chunks.stop))
                if run is None:
                    break
                job = self._begin_fetch(_Fetch(run, failures.append))
            # As soon as the lock is released, a reader that needs these chunks finds the job, and may pass it to a
            # fetch thread. If that thread claims it first, the chunks are in flight there.
            if job.claim():
                job.run()
                if failures:
                    return fetched_bytes, failures[0]
                fetched_bytes += len(self._byte_range(run))
            at = run.stop
        self._wait_for_others(chunks)
        return fetched_bytes, None

    def _wait_for_others(self, chunks: range) -> None:
        """Until the chunks that a reader fetches are received, or will not be."""
        ended: queue.SimpleQueue[object] = queue.SimpleQueue()
        with self._lock:
            awaited = [chunk for chunk in chunks if chunk in self._in_flight]
            for chunk in awaited:
                pending = _Awaited(chunk_range(chunk, self._size_bytes), ended.put)
                pending.missing.add(chunk)
                self._pending.setdefault(chunk, []).append(pending)
        for _ in awaited:
            ended.get()

    def drop_held(self) -> None:
        """No open is left; fetches and writes may be."""
        with self._lock:
            if not self.opens:
                self._held.drop()

    def close(self) -> None:
        """Releases the file. No open and no fetch is left."""
        with self._lock:
            self._held.drop()
        if self.file is not None:
            self.file.release()

    def missing_bytes(self, chunks: range) -> int:
        """Bytes of those of the chunks that are not cached."""
        return sum(len(chunk_range(chunk, self._size_bytes)) for chunk in chunks if not self._is_cached(chunk))

    @property
    def unwritten_bytes(self) -> int:
        """Bytes that are in memory and not yet in the file."""
        with self._lock:
            return sum(len(chunk_range(chunk, self._size_bytes)) for chunk in self._unwritten)

    @property
    def nearly_complete(self) -> bool:
        """True while only writes are missing: all chunks that are not in the file are in memory."""
        file, unwritten = self.file, self._unwritten
        return file is not None and not file.complete and 0 < file.missing_count <= len(unwritten)

    @property
    def complete(self) -> bool:
        """True if no byte is missing."""
        return self.file is not None and self.proven and self.file.complete

    def _first_idle_run(self, chunks: range) -> range | None:
        """The first neighbours that are missing and not in flight. The caller holds the lock."""
        start = None
        for chunk in chunks:
            idle = chunk not in self._in_flight and not self._is_cached(chunk)
            if idle and start is None:
                start = chunk
            elif not idle and start is not None:
                return range(start, chunk)
        return None if start is None else range(start, chunks.stop)

    @staticmethod
    def cancel(pending: PendingRead) -> None:
        """Answers a pending read with Interrupted; its fetch continues for other reads."""
        pending.fail(Interrupted("the reader was interrupted"))

    # -- reads of cached chunks --

    def _in_file(self, chunks: range) -> bool:
        return self.file is not None and self.proven and not self._disk_failed and self.file.has(chunks)

    def _is_cached(self, chunk: int) -> bool:
        return chunk in self._unwritten or self._in_file(range(chunk, chunk + 1))

    def _read_file(self, byte_range: ByteRange) -> memoryview:
        if self.file is None:
            raise InternalFailure("a chunk was present in no file")
        buffer = memoryview(bytearray(len(byte_range)))
        read_cached(self.file, byte_range, buffer)
        return buffer

    def _read_without_disk(
        self, byte_range: ByteRange, data: Data, share: Share, counts: ReadCounts, error: CacheError
    ) -> None:
        """The disk cannot return what it has stored: from now on this object is read from the store."""
        self._disk_failed = True
        self._services.read_failed(error)
        self._start_pending_read(byte_range, chunks_of(byte_range), data, share, counts)

    # -- reads of chunks in memory --

    def _answer_held(self, byte_range: ByteRange, chunks: range, data: Data, share: Share, counts: ReadCounts) -> bool:
        """Answers a read of which a part is held in memory, and the rest is in the file. False: it is not."""
        read = PendingRead(byte_range, data, counts)
        with self._lock:
            self._drop_damaged()
            in_file = [chunk for chunk in chunks if chunk not in self._held]
            if len(in_file) == len(chunks) or not all(self._in_file(range(chunk, chunk + 1)) for chunk in in_file):
                return False
            for chunk in chunks:
                parts = self._held.take(chunk, read.bytes_of(chunk))
                if parts is not None:
                    read.add_chunk(chunk, parts)
        self._answer_at_once(read, share, counts)
        return True

    def _answer_at_once(self, read: PendingRead, share: Share, counts: ReadCounts) -> None:
        """On the thread that serves all requests of a mount: what is on the disk alone is read by another one."""
        try:
            read.answer(self._read_page_cache, self._size_bytes)
        except (_NotInPageCache, CacheError):
            read.wait = counts.begin_wait(WaitsFor.DISK)
            self._services.retain(self)
            self._services.fetcher.read_disk(Job(lambda: self._answer_and_release(read), read.fail), share)

    def _read_page_cache(self, byte_range: ByteRange) -> memoryview:
        buffer = memoryview(bytearray(len(byte_range)))
        if self.file is None or not self.file.read_cached(byte_range, buffer):
            raise _NotInPageCache
        return buffer

    def _answer_and_release(self, read: PendingRead) -> None:
        try:
            self._answer(read)
        finally:
            self._services.release(self)

    def _drop_damaged(self) -> None:
        """What was dropped from the file, because it is not the object's bytes, is not served from memory either. The
        caller holds the lock."""
        if self.file is not None and self.file.drops != self._drops:
            self._drops = self.file.drops
            self._held.drop()

    def _in_memory(self, chunk: int, read_bytes: int) -> list[memoryview] | None:
        """Of a chunk, of which so many bytes are read now. The caller holds the lock."""
        self._drop_damaged()
        held = self._held.take(chunk, read_bytes)
        return self._unwritten.get(chunk) if held is None else held

    # -- reads of missing chunks --

    def _may_read_ahead(self) -> bool:
        """False if the bytes would not be cached: they would be fetched again."""
        services = self._services
        return (
            self.file is not None
            and not self.file.passing
            and services.accepts_writes()
            and services.write_back.may_read_ahead
        )

    def _start_pending_read(
        self, byte_range: ByteRange, chunks: range, data: Data, share: Share, counts: ReadCounts
    ) -> PendingRead:
        pending = PendingRead(byte_range, data, counts)
        with self._lock:
            for chunk in chunks:
                parts = self._in_memory(chunk, pending.bytes_of(chunk))
                if parts is not None:
                    pending.add_chunk(chunk, parts)
                elif not self._in_file(range(chunk, chunk + 1)):
                    pending.missing.add(chunk)
                    self._pending.setdefault(chunk, []).append(pending)
            complete = not pending.missing
            if not complete:
                pending.wait = counts.begin_wait(WaitsFor.STORE)
        if complete:
            self._answer_at_once(pending, share, counts)
        else:
            self._fetch_missing(chunks, share, urgent=True)
        return pending

    def _fetch_missing(self, chunks: range, share: Share, *, urgent: bool, hold: bool = False) -> None:
        """Begins a fetch for each run of missing chunks that are not in flight. ``urgent``: for a pending read, which
        moves fetches up that are queued as readahead. ``hold``: see ``_Fetch``."""
        jobs: list[Job] = []
        with self._lock:
            run_start: int | None = None
            for chunk in range(chunks.start, chunks.stop + 1):
                in_flight = self._in_flight.get(chunk) if chunk < chunks.stop else None
                fetch = chunk < chunks.stop and in_flight is None and not self._is_cached(chunk)
                fetch = fetch and (urgent or chunk not in self._held)  # a reader comes to it, and finds it in memory
                if urgent and chunk not in self._pending:
                    fetch = False  # received between the start of the pending read and this lock
                if fetch and run_start is None:
                    run_start = chunk
                elif not fetch and run_start is not None:
                    jobs.append(self._begin_fetch(_Fetch(range(run_start, chunk), hold=hold)))
                    run_start = None
                if in_flight is not None and urgent and not in_flight.claimed:
                    jobs.append(in_flight)
        for job in jobs:
            (self._services.fetcher.demand if urgent else self._services.fetcher.ahead)(job, share)

    def _begin_fetch(self, fetch: _Fetch) -> Job:
        """The caller holds the lock, and passes the job to a thread."""
        job = self._job(fetch, len(self._byte_range(fetch.remaining)))
        self._services.retain(self)
        for chunk in fetch.remaining:
            self._in_flight[chunk] = job
        return job

    def _job(self, fetch: _Fetch, count_bytes: int = 0) -> Job:
        return Job(lambda: self._resume(fetch), lambda error: self._end_with(fetch, error), count_bytes)

    def _resume(self, fetch: _Fetch) -> None:
        """Fetches the remaining chunks with one request; runs on a fetch thread or on a thread of a warmup. Returns
        early when another thread has taken over because a write takes long."""
        owned = True
        writer: ChunkWriter | None = None
        try:
            if fetch.response is None:
                self._require_reader()
            # Each thread has its own: the one that was stuck may still write.
            writer = self._writer(fetch)
            if fetch.response is None:
                fetch.response = self._request(fetch.remaining)
            for received in fetch.response:
                # Readers are answered before the write. Until then the chunk is among those that remain, so that they
                # get the error if there is one.
                hold = fetch.hold and writer is not None and writer.may_hold
                delivered = self._deliver(received, hold=hold)
                fetch.remaining = range(received.number + 1, fetch.remaining.stop)
                owned = delivered is None or self._cache(fetch, writer, received, delivered)
                if not owned:
                    return
                if fetch.remaining:
                    self._require_reader()
            if fetch.remaining:
                raise StoreProtocolError(f"{self._source.version.key}: the store sent too little")
            self.publish_if_complete()
        except HayloftError as error:
            self._end_with(fetch, error)
        finally:
            if writer is not None:
                writer.close()
            if owned:
                self._services.release(self)

    def _writer(self, fetch: _Fetch) -> ChunkWriter | None:
        if self.file is None or not fetch.remaining:
            return None
        part = self._byte_range(fetch.remaining)
        return self._services.chunk_writer(self.file, part, for_warmup=fetch.failed is not None)

    def _byte_range(self, chunks: range) -> ByteRange:
        return ByteRange(chunks.start * CHUNK_BYTES, chunk_range(chunks.stop - 1, self._size_bytes).stop)

    def _end_with(self, fetch: _Fetch, error: HayloftError) -> None:
        """The remaining chunks are not fetched."""
        error = self._services.repeats.failed(self._source, fetch.remaining, error)
        self._fail(fetch.remaining, error)
        if fetch.failed is not None:
            fetch.failed(error)

    def _require_reader(self) -> None:
        """Raises Interrupted when no open is left and no read is pending: the readers were killed, or closed it."""
        if self.opens:
            return
        with self._lock:
            wanted = any(not read.answered for reads in self._pending.values() for read in reads)
        if not wanted:
            raise Interrupted("no reader needs the rest of the file")

    def publish_if_complete(self) -> None:
        """After the last chunk was written and delivered: verifying may take a request and a pass over the file."""
        file = self.file
        if file is None or self._disk_failed or not file.whole:
            return
        try:
            self._services.verify_and_publish(self._source, file)
        except CacheError as error:
            self._services.write_failed(error)

    def _request(self, chunks: range) -> Iterator[ReceivedChunk]:
        self._services.raise_if_refused(self._source)
        self._services.count_request()
        store = self._services.repeats.store(self._source, chunks.start)
        if self.etag is None:  # threads that ask at the same time get the same answer
            self.etag = self._services.pins.pin(self._source, store, self.file)
        pieces = self._services.pins.read_range(self._source, store, self.etag, self._byte_range(chunks))
        return into_chunks(chunks, self._size_bytes, counted(pieces, self._count_received))

    def _count_received(self, count_bytes: int) -> None:
        self._services.count_received(count_bytes)
        self._source.counts.fetched(count_bytes)

    def _cache(self, fetch: _Fetch, writer: ChunkWriter | None, received: ReceivedChunk, delivered: _Delivered) -> bool:
        """Writes the chunk, or queues its write; until then it is served from memory. False if another thread has taken
        over the fetch meanwhile."""
        if fetch.failed is not None:  # a warmup has the time to wait for the disk
            self._write(writer, received, delivered)
            return True
        # The end of the write and its timeout race for the rest of the fetch: the first to claim it continues it.
        rest_of_fetch = Once()

        def take_over() -> None:
            if rest_of_fetch.claim():
                self._services.fetcher.demand(self._job(fetch), self._source.share)

        ticket = self._services.write_back.begin_write(take_over)
        if ticket is None:
            self._queue_write(writer, received, delivered._replace(held=False))
            return True
        # A use of this thread's own: the thread that takes over releases that of the fetch when it has ended it.
        self._services.retain(self)
        owned: bool | None = None
        try:
            self._write(writer, received, delivered)
        except BaseException:
            owned = rest_of_fetch.claim()
            if owned:
                raise
            # The rest is another thread's: this one neither fails its readers nor gives back its use of the file.
            self._count_not_cached(received.number)
            logger.exception(
                "%s: unexpected error in a write to the cache; a chunk is not cached", self._source.version.key
            )
        finally:
            self._services.write_back.end_write(ticket)
            if owned is None:
                owned = rest_of_fetch.claim()
            if not owned:
                self._publish_beside()
            self._services.release(self)
        return owned

    def _publish_beside(self) -> None:
        """A file that this write has made whole, while another thread has the fetch: an error fails no reader there."""
        try:
            if self.file is not None and self.file.whole:
                self.publish_if_complete()
        except BaseException:
            logger.exception("%s: unexpected error; the file is not complete in the cache", self._source.version.key)

    def _write(self, writer: ChunkWriter | None, received: ReceivedChunk, delivered: _Delivered) -> None:
        try:
            if writer is not None:
                writer.write(*received, delivered.read_share, held=delivered.held)
            if self.file is not None and not self.file.is_present(received.number):
                self._count_not_cached(received.number)
        except CacheError as error:
            self._count_not_cached(received.number)
            self._services.write_failed(error)
        finally:
            # After the write: in between the chunk is both in the file and in memory, but never in neither.
            with self._lock:
                self._unwritten.pop(received.number, None)

    def _queue_write(self, writer: ChunkWriter | None, received: ReceivedChunk, delivered: _Delivered) -> None:
        def done(written: bool) -> None:
            with self._lock:
                self._unwritten.pop(received.number, None)
            if written and self.file is not None and self.file.whole:
                self._services.fetcher.ahead(Job(self._publish_and_release), self._source.share)
            else:
                if not written:
                    self._count_not_cached(received.number)
                self._services.release(self)

        self._services.retain(self)
        length = len(chunk_range(received.number, self._size_bytes))
        self._services.write_back.submit(length, lambda: self._write(writer, received, delivered), done)

    def _publish_and_release(self) -> None:
        try:
            self.publish_if_complete()
        finally:
            self._services.release(self)

    def _deliver(self, received: ReceivedChunk, *, hold: bool) -> _Delivered | None:
        """Answers the reads for which this was the last missing chunk. None if the chunk is not to be written; else it
        is served from memory until then, and with ``hold`` until it was read."""
        chunk, parts, _ = received
        length = len(chunk_range(chunk, self._size_bytes))
        complete, read_bytes, held = [], 0, False
        if self.file is not None:
            self._services.note_fetch(self._source, self.file)
            self.proven = True
        with self._lock:
            # In one step: a read that starts after this finds the chunk in memory, and one before it is pending.
            self._in_flight.pop(chunk, None)
            to_write = self.file is not None and not self._disk_failed and not self.file.is_present(chunk)
            if to_write:
                self._unwritten[chunk] = parts
            for read in self._pending.pop(chunk, ()):
                read_bytes += 0 if read.answered else read.bytes_of(chunk)
                if read.add_chunk(chunk, parts):
                    complete.append(read)
            self._drop_damaged()
            if to_write and hold and self.opens:
                held = read_bytes >= length or self._held.hold(chunk, parts, length - read_bytes)
        answer_each(complete, self._answer)
        if not to_write and (self.file is None or self._disk_failed):
            self._count_not_cached(chunk)
        return _Delivered(read_bytes / length, held) if to_write else None

    def _count_not_cached(self, chunk: int) -> None:
        self._services.count_not_cached(len(chunk_range(chunk, self._size_bytes)))

    def _answer(self, read: PendingRead) -> None:
        try:
            read.answer(self._read_file, self._size_bytes)
        except CacheError as error:
            self._fetch_instead(read, error)
        except BaseException as error:
            read.fail(unexpected(error))
            if not isinstance(error, HayloftError):
                raise

    def _fetch_instead(self, read: PendingRead, error: CacheError) -> None:
        """The part that was in the file when the read became pending cannot be read now: it is fetched."""
        self._disk_failed = True
        self._services.read_failed(error)
        chunks = chunks_of(read.byte_range)
        with self._lock:
            for chunk in chunks:
                if read.has_chunk(chunk):
                    continue
                parts = self._in_memory(chunk, read.bytes_of(chunk))
                if parts is not None:
                    read.add_chunk(chunk, parts)
                else:
                    read.missing.add(chunk)
                    self._pending.setdefault(chunk, []).append(read)
            complete = not read.missing
        if complete:
            self._answer(read)
        else:
            self._fetch_missing(chunks, self._source.share, urgent=True)

    def _fail(self, chunks: range, error: HayloftError) -> None:
        failed: list[PendingRead] = []
        with self._lock:
            for chunk in chunks:
                self._in_flight.pop(chunk, None)
                failed += self._pending.pop(chunk, ())
        answer_each(failed, lambda read: read.fail(error))
