"""Opens objects: complete ones at once, small ones after one GET, large ones chunk by chunk.

One read-through cache serves all volumes of a daemon, so that an object is fetched once whichever volume opens it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial

from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.cache.object_file import ObjectFile
from csi_driver.cache.open_file_cache import OpenFileCache
from csi_driver.cache.proof_attribute import AccessProof
from csi_driver.event_loop.event_loop import EventLoop
from csi_driver.model.errors import CacheDiskFailed, CacheError, DescriptorsExhausted, HayloftError
from csi_driver.model.tracebacks import unexpected
from csi_driver.objects.store import WholeObject
from csi_driver.reading.access_proofs import AccessProofs
from csi_driver.reading.answers import answer_each
from csi_driver.reading.bandwidth_limit import Pace
from csi_driver.reading.fair_shares import Share
from csi_driver.reading.fetcher import Fetcher, Job
from csi_driver.reading.held_chunks import HeldBytes
from csi_driver.reading.integrity import IntegrityChecker
from csi_driver.reading.loop_fetch import LoopFetch
from csi_driver.reading.object_reader import ObjectReader
from csi_driver.reading.object_table import FromMemory, Key, Next, ObjectTable, Staged
from csi_driver.reading.open_object import Opened, OpenObject, PendingOpen
from csi_driver.reading.readahead import Limits, paced
from csi_driver.reading.received_counts import ReceivedCounts
from csi_driver.reading.repeats import Repeats
from csi_driver.reading.scheduler import Lane, Priority, Work
from csi_driver.reading.services import ObjectSource
from csi_driver.reading.small_object_fetcher import SmallFetch, SmallObjectFetcher
from csi_driver.reading.version_pins import VersionPins
from csi_driver.reading.write_back import SLOW_WRITE_S, WARN_INTERVAL_S, WriteBack
from csi_driver.settings import ReadingSettings

logger = logging.getLogger(__name__)

HELD_SHARE = 0.75
"""Of ``write_queue_bytes``: by default 96 MiB, the 12 fetches of 8 MiB that readahead has at a time."""

_POLL_S = 0.002
"""How often a thread polls whether the last chunks are written."""


class Presence(Enum):
    """Of an object in the cache, for a credential."""

    MISSING = 0
    UNPROVEN = 1
    """It is complete, and the store has to be asked whether the credential may read it."""
    READABLE = 2


class ReadThroughCache(ReceivedCounts):
    """What is in flight is in ``object_table.py``, which decides; here it is done."""

    def __init__(self, chunk_store: ChunkStore, settings: ReadingSettings, event_loop: EventLoop) -> None:
        """Starts the fetch threads, and attaches the small-object fetcher to the event loop, which the caller starts,
        and closes before this."""
        super().__init__()
        self._chunk_store = chunk_store
        self.chunk_writer = chunk_store.chunk_writer
        self.small_object_bytes = settings.small_object_bytes
        self.held_bytes = HeldBytes(int(settings.write_queue_bytes * HELD_SHARE))
        self.write_back = WriteBack(settings.write_queue_bytes, settings.fetch_threads)
        self.fetcher = Fetcher(
            settings.fetch_threads,
            loop_requests=settings.small_fetches,
            warm_fetches=settings.warmup_fetches,
            bytes_per_second=settings.bandwidth_bytes,
            # What a warmup fetches for a backlogged disk might not be cached.
            may_warm=lambda: self.write_back.may_read_ahead,
        )
        self.small_object_fetcher = SmallObjectFetcher(event_loop, self.fetcher)
        self.table: ObjectTable[PendingOpen, ObjectReader] = ObjectTable(self.write_back.reserve)
        self.integrity = IntegrityChecker()
        self.pins = VersionPins(self.count_request)
        self.proofs = AccessProofs(chunk_store, self.fetcher, self.pins, self.count_request)
        self.repeats = Repeats()
        self.limits = Limits(settings.fetch_chunks, settings.fetch_chunks * settings.readahead_fetches)
        self.queued_for_warmups: dict[Key, Job] = {}
        """Fetches of warmups that the event loop has passed to the threads. Single steps of a dictionary: no lock."""
        self._next_warning_s = 0.0

    def open(self, source: ObjectSource, opened: Opened) -> None:
        """Answers through ``opened``: at once from the cache, else later from a fetch thread or the event loop."""
        self._open(PendingOpen(source, opened))

    def open_to_read(self, source: ObjectSource, opened: Opened) -> None:
        """As ``open``, for one read that needs no file: a small object that has to be fetched is answered from memory
        before it is written to the disk."""
        self._open(PendingOpen(source, opened, to_read=True))

    def _open(self, pending: PendingOpen) -> None:
        source, opened = pending.source, pending.opened
        version = source.version
        if version.size_bytes == 0:
            opened(OpenObject(self, source, None, None))
            return
        self._chunk_store.advance(version.size_bytes, source.dataset)
        done = False
        while not done:
            since = self.table.arrivals  # before the lookup
            file = self._find(source)
            if file is not None:
                self.open_complete(pending, file)
                return
            done = self._open_missing(pending, since)

    def open_on_this_thread(self, source: ObjectSource, opened: Opened) -> None:
        """As ``open``, for a warmup: fetches and verifies, or asks for access, on the calling thread; waits for a
        backlogged disk, and does not count as a use for eviction."""
        file = self.look_for_warmup(PendingOpen(source, opened, for_warmup=True), Job.run)
        if file is None:
            return
        try:
            self.proofs.require(source, file)
        except HayloftError as error:
            opened(error)
        else:
            opened(OpenObject(self, source, file, None))

    def warm(
        self, source: ObjectSource, opened: Opened, count_bytes: int, pace: Pace | None, since: int | None = None
    ) -> Work:
        """As ``open_on_this_thread``, when no reader waits: on the event loop where that is possible. Returns the work
        that is queued; the caller may claim it before it has begun, which prevents it. ``count_bytes``: what will be
        requested, and ``pace`` the warmup's limit of bandwidth. ``since``: as of ``PendingOpen``."""
        if count_bytes and self._fits_event_loop(source):
            return self._fetch_on_event_loop(source, PendingOpen(source, opened, for_warmup=True, since=since), pace)
        job = Job(lambda: self.open_on_this_thread(source, opened), opened, count_bytes, pace)
        self.fetcher.warm(job, source.share)
        return job

    def presence(self, source: ObjectSource) -> Presence:
        """Whether the object is in the cache, trusted, and readable without a request."""
        if source.version.size_bytes == 0:
            return Presence.READABLE
        file = self._find(source)
        if file is None:
            return Presence.MISSING
        try:
            return Presence.READABLE if self.proofs.holds(source, file) else Presence.UNPROVEN
        finally:
            file.release()

    def add_open_file_cache(self) -> OpenFileCache[OpenObject]:
        """An open-file cache for a mount."""
        return self._chunk_store.add_open_file_cache()

    def reopen(self, source: ObjectSource) -> OpenObject:
        """An open of an earlier daemon. Does not ask the store, so that a daemon can start while it is unavailable:
        missing bytes, also of a small object, are fetched when they are read, and so are those of an object that the
        store never let the credential read. Blocks on the disk."""
        if source.version.size_bytes == 0:
            return OpenObject(self, source, None, None)
        results: list[OpenObject | HayloftError] = []
        found = self.table.start(source.key, PendingOpen(source, results.append))
        if found is Next.FETCH:
            self.complete_opens(source, lambda: self._cached_file(source))
            if isinstance(results[0], HayloftError):
                raise results[0]
            return results[0]
        # Without a reader, another open waits for the store with this object. Its fetch writes the file; this open
        # reads past the cache.
        reader = found if isinstance(found, ObjectReader) else self.reader_without_disk(source)
        return OpenObject(self, source, None, reader)

    def _cached_file(self, source: ObjectSource) -> ObjectFile | None:
        """A small object is either complete in the cache or not there at all. None: its bytes are not for this open."""
        if source.version.size_bytes > self.small_object_bytes:
            file: ObjectFile | None = self._chunk_store.open_partial(source.version, source.dataset)
        else:
            found = self._chunk_store.find(source.version, source.dataset)
            file = found or self._chunk_store.recover(source.version, source.dataset)
        if file is not None and file.complete and not self.proofs.was_proven(source, file):
            file.release()
            return None
        return file

    def probe(self) -> None:
        """Takes each lock of the read path once, and returns, unless one is held for ever."""
        self.fetcher.queued(Lane.THREADS)
        self.write_back.release(0)
        self.table.unstage(("", b""))  # of no object

    def present_bytes(self, source: ObjectSource) -> int:
        """Bytes of an object that are in the cache, or in memory until they are written to it. 0 for an object that the
        store never let the credential read: that another one has read it is not revealed."""
        reader, is_staged = self.table.look(source.key)
        if is_staged:
            return source.version.size_bytes
        if not self.proofs.reveals(source):
            return 0
        unwritten_bytes = 0 if reader is None else reader.unwritten_bytes
        return min(source.version.size_bytes, self._chunk_store.present_bytes(source.version) + unwritten_bytes)

    def close(self) -> None:
        """Ends the threads. Pending opens and reads get no answer: close the mounts and the event loop first."""
        self.small_object_fetcher.close()
        self.fetcher.close()
        self.write_back.close()

    # -- opening --

    def _open_missing(self, pending: PendingOpen, since: int, start: Callable[[Job], None] | None = None) -> bool:
        """Opens an object that is not complete. False, and nothing is done, if it may have arrived ``since`` it was
        looked up. ``start`` runs the fetch for a warmup, for which bytes in memory suffice: they are about to be
        written."""
        source, opened, for_warmup = pending.source, pending.opened, pending.for_warmup
        found = self.table.ask(source.key, pending, since, needs_file=not for_warmup)
        if isinstance(found, FromMemory):
            self._answer_from_memory(pending, found)
        elif isinstance(found, ObjectReader):
            if found.nearly_complete and not for_warmup:
                self.fetcher.read_disk(Job(lambda: self._open_when_written(pending, found), opened), source.share)
            else:
                self._open_with_reader(pending, found)
        elif found is Next.FETCH:
            try:
                if start is None and self._fits_event_loop(source):
                    self._fetch_on_event_loop(source)
                    return True
                is_small = source.version.size_bytes <= self.small_object_bytes
                job = Job(
                    lambda: self.complete_opens(source, for_warmup=for_warmup),
                    count_bytes=source.version.size_bytes if is_small else 0,
                )
                if start is not None:
                    start(job)
                else:
                    self.fetcher.demand(job, source.share)
            except BaseException as error:
                self._fail_opens(source, error)
                raise
        elif found is Next.WAIT and not for_warmup and (queued := self.queued_for_warmups.get(source.key)) is not None:
            self.fetcher.demand(queued, source.share)  # it is moved up
        return found is not Next.LOOK_AGAIN

    def look_for_warmup(self, pending: PendingOpen, start: Callable[[Job], None]) -> ObjectFile | None:
        """The complete file; None if the open is answered, or waits. ``start`` gets the fetch if there is to be one."""
        source = pending.source
        if source.version.size_bytes == 0:
            pending.opened(OpenObject(self, source, None, None))
            return None
        if pending.since is not None and self._open_missing(pending, pending.since, start):
            return None
        while True:
            since = self.table.arrivals  # before the lookup
            file = self._find(source)
            if file is not None or self._open_missing(pending, since, start):
                return file

    def _fail_opens(self, source: ObjectSource, error: BaseException) -> None:
        """After an unexpected error, which is the answer to the opens that are still pending: later opens of the object
        would wait with them for ever. Not a context manager: there are two for each small object."""
        waiting, failure = self.table.fail(source.key), unexpected(error)
        answer_each(waiting, lambda pending: pending.opened(failure))

    def _find(self, source: ObjectSource) -> ObjectFile | None:
        """The complete file; None also while the disk refuses."""
        try:
            return self._chunk_store.find(source.version, source.dataset)
        except CacheError as error:
            self.write_failed(error)
            return None

    def open_complete(self, pending: PendingOpen, file: ObjectFile) -> None:
        """Answers with a complete file, as soon as it is known that the credential may read the object."""
        source, opened = pending.source, pending.opened
        if self.proofs.holds(source, file):
            opened(OpenObject(self, source, file, None))
            return
        # If the credential is fetching the object, which another one has completed, its fetch is the proof.
        if self.table.join(source.key, pending):
            file.release()
            return

        def answer(error: HayloftError | None) -> None:
            if error is None:
                opened(OpenObject(self, source, file, None))
            else:
                file.release()
                opened(error)

        self.proofs.ask(source, file, answer)

    def _open_with_reader(self, pending: PendingOpen, reader: ObjectReader) -> None:
        """Shares the reader of an earlier open, which is counted already. What was proven for that one may be too long
        ago for this one."""
        source, opened = pending.source, pending.opened
        if reader.file is None or not reader.proven or self.proofs.holds(source, reader.file):
            opened(OpenObject(self, source, None, reader))
            return

        def answer(error: HayloftError | None) -> None:
            if error is None:
                opened(OpenObject(self, source, None, reader))
            else:
                self.leave(reader)
                opened(error)

        self.proofs.ask(source, reader.file, answer)

    def _fits_event_loop(self, source: ObjectSource) -> bool:
        """True if the small-object fetcher may try it: no step before its request can block."""
        return (
            source.version.size_bytes <= self.small_object_bytes
            and self.small_object_fetcher.accepts(source)
            and self.pins.is_conditional(source.version)
            and not self._chunk_store.has_unverified_files
            and self._chunk_store.accepts_writes
            and not self.integrity.is_refused(source)
        )

    def _fetch_on_event_loop(
        self, source: ObjectSource, warming: PendingOpen | None = None, pace: Pace | None = None
    ) -> SmallFetch:
        """``warming``: the open of a warmup, which begins when it is its turn."""
        steps = LoopFetch(self, source, warming, pace)
        fetch = SmallFetch(source, steps.received, steps.fallback, warming and steps.wanted, pace)
        self.small_object_fetcher.submit(fetch, Priority.DEMAND if warming is None else Priority.WARM)
        return fetch

    def _open_when_written(self, pending: PendingOpen, reader: ObjectReader) -> None:
        """Waits a moment for the writes of the last chunks: the kernel reads a complete file by itself, while one that
        is opened sooner is served by the daemon until its close."""
        until = time.monotonic() + SLOW_WRITE_S
        while reader.nearly_complete and time.monotonic() < until:
            time.sleep(_POLL_S)
        file = self._find(pending.source)
        if file is None:
            self._open_with_reader(pending, reader)
        else:
            self.open_complete(pending, file)
            self.leave(reader)

    def complete_opens(
        self,
        source: ObjectSource,
        find: Callable[[], ObjectFile | None] | None = None,
        *,
        for_warmup: bool = False,
        staged: Staged | None = None,
    ) -> None:
        """Fetches the object, or opens its file by ``find``, and answers its pending opens, whatever happens. Runs on
        a fetch thread, the event loop or the thread of a warmup. ``staged``: what is in memory until then."""
        file: ObjectFile | None = None
        failure: HayloftError | None = None
        try:
            try:
                file = find() if find is not None else self._fetch(source, for_warmup)
            except CacheError as error:
                self.write_failed(error)
            except HayloftError as error:
                failure = self.repeats.failed(source, (0,), error)
            kept = False
            try:
                kept = self._answer_pending_opens(source, file, failure, staged)
            finally:
                if file is not None and not kept:
                    file.release()
        except BaseException as error:
            self._fail_opens(source, error)
            raise

    def _fetch(self, source: ObjectSource, for_warmup: bool) -> ObjectFile | None:
        """The file of an object: of a large one, partial; of a small one, complete. None if its write is queued: then
        opens were answered from memory, as far as there was capacity."""
        version = source.version
        if version.size_bytes > self.small_object_bytes:
            return self.proofs.require(source, self._chunk_store.open_partial(version, source.dataset))
        file = self._chunk_store.recover(version, source.dataset)
        if file is not None:
            return self.proofs.require(source, file)
        self.integrity.raise_if_refused(source)
        return self.verify_and_cache(source, self._read_whole(source), for_warmup=for_warmup)

    def verify_and_cache(self, source: ObjectSource, whole: WholeObject, *, for_warmup: bool) -> ObjectFile | None:
        """On a thread that may wait, and waits for the disk for a warmup."""
        parts = self.integrity.verified(source, whole, lambda: self._read_whole(source))
        if not for_warmup:
            staged = Staged(parts, backlogged=False)
            return self.cache_object(source, staged, served=False)
        self.serve_from_memory(source, Staged(parts, backlogged=False))
        return self._add_whole(source, parts, self.proofs.fetched(source), for_warmup=True)

    def cache_object(
        self, source: ObjectSource, staged: Staged, *, served: bool = True, for_warmup: bool = False
    ) -> ObjectFile | None:
        """Answers the opens that need no file, unless they are ``served``, then writes the object to its file. None: as
        ``_fetch``."""
        ticket = self.write_back.begin_write()
        if ticket is None:
            self._queue_write(source, staged.parts)
            return None
        try:
            if not served:
                self.serve_from_memory(source, staged)
            return self._add_whole(source, staged.parts, self.proofs.fetched(source), for_warmup=for_warmup)
        finally:
            self.write_back.end_write(ticket)

    def _add_whole(
        self, source: ObjectSource, parts: Sequence[memoryview], proof: AccessProof, *, for_warmup: bool = False
    ) -> ObjectFile:
        try:
            file = self._chunk_store.add_whole(source.version, parts, source.dataset, proof, for_warmup=for_warmup)
        except CacheError:
            self.count_not_cached(source.version.size_bytes)
            raise
        self.pins.record(source.version, file)
        return file

    def _queue_write(self, source: ObjectSource, parts: Sequence[memoryview]) -> None:
        """For a backlogged disk: opens are answered from memory until the object is written."""
        key, proof = source.key, self.proofs.fetched(source)

        def write() -> None:
            try:
                self._add_whole(source, parts, proof).release()
            except CacheError as error:
                self.write_failed(error)

        # First the bytes, then the write, then the answers: the end of the write removes the bytes.
        staged = Staged(parts, backlogged=True)
        self.table.stage(key, staged)
        done = partial(self.table.unstage, key, arrived=True)
        size_bytes = source.version.size_bytes

        def ended(written: bool) -> None:
            if not written:
                self.count_not_cached(size_bytes)
            done()

        self.write_back.submit(size_bytes, write, ended)
        self.serve_from_memory(source, staged)

    def _read_whole(self, source: ObjectSource) -> WholeObject:
        version = source.version
        store = self.repeats.store(source, 0)
        etag = self.pins.pin(source, store, None)
        self.count_request()
        whole = self.pins.read_whole(source, store, etag)
        self.count_received(version.size_bytes)
        source.counts.fetched(version.size_bytes)
        return whole

    def serve_from_memory(self, source: ObjectSource, staged: Staged, *, stage: bool = False) -> bool:
        """Answers the pending opens that need no file, and while the disk is backlogged the others too, as far as there
        is capacity. True if opens are still pending."""
        answers, others_wait = self.table.serve(source.key, staged, stage=stage)
        answer_each(answers, lambda answer: self._answer_from_memory(*answer))
        return others_wait

    def _answer_from_memory(self, pending: PendingOpen, served: FromMemory) -> None:
        opened = OpenObject(self, pending.source, None, None, served.parts)
        opened.reserved_bytes = served.reserved_bytes
        pending.opened(opened)

    def _answer_pending_opens(
        self, source: ObjectSource, file: ObjectFile | None, failure: HayloftError | None, staged: Staged | None
    ) -> bool:
        """True if the caller's use of the file was taken over: by a reader, if the file is not complete, or not known
        to be for the credential, and otherwise by the last open."""
        proven = file is not None and self.proofs.was_proven(source, file)
        # Not proven: it had no bytes when it was opened, and readers of another credential may have completed it.
        readable = file is not None and file.complete and proven

        def make_reader(first: PendingOpen) -> ObjectReader:
            return ObjectReader(self, first.source, file, proven=proven)

        make = None if readable or failure is not None else make_reader
        waiting, reader = self.table.finish(source.key, make, staged)
        kept = reader is not None

        def answer(pending: PendingOpen) -> None:
            nonlocal kept
            if failure is not None:
                pending.opened(failure)
            elif reader is not None:
                pending.opened(OpenObject(self, pending.source, None, reader))
            elif file is not None:
                kept = pending is waiting[-1]
                if kept or file.acquire():
                    pending.opened(OpenObject(self, pending.source, file, None))

        answer_each(waiting, answer)
        if reader is not None and file is not None and file.whole:
            self._publish_later(reader, waiting[0].source.share)
        return kept

    def _publish_later(self, reader: ObjectReader, share: Share) -> None:
        """An earlier daemon had the last chunk and ended before it had verified the object."""

        def publish() -> None:
            try:
                reader.publish_if_complete()
            finally:
                self.release(reader)

        self.retain(reader)
        self.fetcher.ahead(Job(publish), share)

    # -- readers --

    def reader_without_disk(self, source: ObjectSource, file: ObjectFile | None = None) -> ObjectReader:
        """A reader that does not use the disk, with one open counted: the object's file, of which bytes may have been
        read before, cannot be read."""
        reader = ObjectReader(self, source, None)
        if file is not None and not source.version.has_strong_etag:
            reader.etag = file.pinned_etag()
        reader.opens = 1
        return reader

    def leave(self, reader: ObjectReader) -> None:
        """Ends one open of the reader."""
        if self.table.leave(reader.key, reader):
            reader.close()
        elif not reader.opens:
            reader.drop_held()

    def retain(self, reader: ObjectReader) -> None:
        self.table.retain(reader)

    def release(self, reader: ObjectReader) -> None:
        if self.table.release(reader.key, reader):
            reader.close()

    # -- ReadServices, and reports --

    def note_fetch(self, source: ObjectSource, file: ObjectFile) -> None:
        self.proofs.note_fetch(source, file)

    def raise_if_refused(self, source: ObjectSource) -> None:
        self.integrity.raise_if_refused(source)

    def verify_and_publish(self, source: ObjectSource, file: ObjectFile) -> None:
        self.integrity.verify_and_publish(source, file)

    def limits_for(self, source: ObjectSource) -> Limits:
        """Of the readahead of one that reads the object."""
        return paced(source.limits or self.limits, self.fetcher.bytes_per_second(source.share))

    @property
    def disk_error(self) -> CacheError | None:
        """Why the cache disk refused the last write; None while it works."""
        return self._chunk_store.last_refusal

    def store_wait_s(self, share: Share) -> float:
        """For how long the request of the volume that has waited longest has received no byte; 0: none waits."""
        return self.fetcher.longest_wait_s(share)

    def accepts_writes(self) -> bool:
        return self._chunk_store.accepts_writes

    def write_failed(self, error: CacheError) -> None:
        # Without a descriptor each open fails, until others are closed.
        repeats = isinstance(error, DescriptorsExhausted) and time.monotonic() < self._next_warning_s
        if self._chunk_store.accepts_writes and not repeats:
            self._next_warning_s = time.monotonic() + WARN_INTERVAL_S
            logger.warning("write to the cache disk failed: %s; reads are served without caching for a while", error)
        self._chunk_store.note_failure(error)

    def read_failed(self, error: CacheError) -> None:
        if isinstance(error, CacheDiskFailed):
            self._chunk_store.read_failed("an object file cannot be read")
