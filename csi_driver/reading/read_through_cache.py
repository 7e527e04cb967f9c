"""Opens objects: complete ones at once, small ones after one GET, large ones chunk by chunk.

One library serves all volumes of a daemon, so that an object is fetched once whichever volume asks for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.cache.object_file import ObjectFile
from csi_driver.cache.open_file_cache import OpenFileCache
from csi_driver.model.chunk import CHUNK_BYTES
from csi_driver.model.errors import CacheError, HayloftError, InternalFailure
from csi_driver.objects.store import Whole, read_whole
from csi_driver.reading.admission import Foreground
from csi_driver.reading.fetcher import Fetcher, Job
from csi_driver.reading.integrity import IntegrityChecker
from csi_driver.reading.object_reader import ObjectReader
from csi_driver.reading.open_object import Opened, OpenObject, PendingOpen
from csi_driver.reading.readahead import Limits
from csi_driver.reading.services import ObjectSource
from csi_driver.reading.small_object_fetcher import Rest, SmallFetch, SmallObjectFetcher
from csi_driver.reading.write_back import LONG_S, WriteBack
from csi_driver.settings import ReadingSettings

logger = logging.getLogger(__name__)

_LOOK_AGAIN_S = 0.002
"""How often it is looked whether the last chunks are written."""


class _Arriving(NamedTuple):
    """A small object that is in memory until it is written."""

    parts: Sequence[memoryview]
    behind: bool
    """Whether the disk is. If not, who needs a file had better wait for it."""


class ReadThroughCache:
    """See the module.

    ``_lock`` guards ``_readers``, ``_opening``, ``_arriving``, ``_brought`` and the counts in the readers. It is not
    held across disk or network, and no lock but the write queue's is taken while it is held.
    """

    def __init__(self, chunk_store: ChunkStore, settings: ReadingSettings) -> None:
        """Starts the threads that fetch."""
        self._chunk_store = chunk_store
        self.small_object_bytes = settings.small_object_bytes
        self._lock = threading.Lock()
        self._readers: dict[str, ObjectReader] = {}
        self._opening: dict[str, list[PendingOpen]] = {}
        self._arriving: dict[str, _Arriving] = {}
        self._brought = 0
        """How many times something came into the cache: who looked for an object before that looks again."""
        self.fetcher = Fetcher(settings.fetch_threads)
        self.small = SmallObjectFetcher(settings.small_fetches)
        self.loop = self.small.loop
        """A thread for mounts whose requests are those of small objects."""
        self.writes = WriteBack(settings.write_queue_bytes, settings.fetch_threads)
        self.checking = IntegrityChecker()
        self.limits = Limits(settings.fetch_chunks, settings.fetch_chunks * settings.readahead_fetches)
        self.origin_bytes = 0
        self.origin_requests = 0

    def open(self, source: ObjectSource, opened: Opened) -> None:
        """Answers through ``opened``: at once from the cache, else later from a thread of the fetcher."""
        self._open(PendingOpen(source, opened))

    def open_to_read(self, source: ObjectSource, opened: Opened) -> None:
        """Like ``open``, for one read that needs no file: of a small object that has to be fetched, it gets the bytes
        in memory before they are written to the disk."""
        self._open(PendingOpen(source, opened, to_read=True))

    def _open(self, one: PendingOpen) -> None:
        source, opened, _ = one
        version = source.version
        if version.size_bytes == 0:
            opened(OpenObject(self, source, None, None))
            return
        self._chunk_store.advance(version.size_bytes, source.dataset)
        looked = False
        while not looked:
            brought = self._brought
            try:
                file = self._chunk_store.find(version, source.dataset)
            except CacheError as error:
                self.refused(error)
                file = None
            if file is not None:
                opened(OpenObject(self, source, file, None))
                return
            looked = self._open_missing(one, brought=brought)

    def open_here(self, source: ObjectSource, opened: Opened) -> None:
        """Like ``open``, but what has to be fetched or checked for it is done on the calling thread, and it is no use
        that eviction takes note of: for a warmup."""
        if source.version.size_bytes == 0:
            opened(OpenObject(self, source, None, None))
        else:
            self._open_missing(PendingOpen(source, opened), lambda job, _volume: job.work())

    def is_complete(self, source: ObjectSource) -> bool:
        """True if the object is in the cache and may be trusted."""
        if source.version.size_bytes == 0:
            return True
        try:
            file = self._chunk_store.find(source.version, source.dataset)
        except CacheError as error:
            self.refused(error)
            return False
        if file is None:
            return False
        file.release()
        return True

    def add_open_file_cache(self) -> OpenFileCache[OpenObject]:
        """An open-file cache for a mount."""
        return self._chunk_store.add_open_file_cache()

    def reopen(self, source: ObjectSource) -> OpenObject:
        """An open that an earlier daemon had. Asks no store, so that a daemon can start while one is gone: what is
        missing, of a small object too, is fetched when it is read. Blocks on the disk."""
        if source.version.size_bytes == 0:
            return OpenObject(self, source, None, None)
        digest = source.version.digest(CHUNK_BYTES)
        found: list[OpenObject | HayloftError] = []
        with self._lock:
            reader = self._readers.get(digest)
            busy = digest in self._opening
            if reader is not None:
                reader.opens += 1
            elif not busy:
                self._opening[digest] = [PendingOpen(source, found.append)]
        if reader is None and not busy:
            self._bring(digest, source, lambda: self._at_hand(source))
            if isinstance(found[0], HayloftError):
                raise found[0]
            return found[0]
        # Another mount is waiting for the store with it. Its file is that one's until it is there.
        return OpenObject(self, source, None, reader or self.reader_past_disk(source))

    def _at_hand(self, source: ObjectSource) -> ObjectFile | None:
        """A small object is in the cache whole or not at all: its parts are read past the cache."""
        if source.version.size_bytes > self.small_object_bytes:
            return self._chunk_store.open_partial(source.version, source.dataset)
        found = self._chunk_store.find(source.version, source.dataset)
        return found or self._chunk_store.recover(source.version, source.dataset)

    def present_bytes(self, source: ObjectSource) -> int:
        """Bytes of an object that are in the cache, or in memory on their way into it."""
        with self._lock:
            busy = bool(self._readers or self._arriving)
            digest = source.version.digest(CHUNK_BYTES) if busy else ""
            reader, arriving = self._readers.get(digest), self._arriving.get(digest)
        if arriving is not None:
            return source.version.size_bytes
        held_bytes = 0 if reader is None else reader.held_bytes
        return min(source.version.size_bytes, self._chunk_store.present_bytes(source.version) + held_bytes)

    def close(self) -> None:
        """Ends the threads. Whoever still waits gets no answer: close the mounts first."""
        self.small.close()
        self.fetcher.close()
        self.writes.close()

    # -- opening --

    def _open_missing(
        self, one: PendingOpen, start: Callable[[Job, int], None] | None = None, brought: int | None = None
    ) -> bool:
        """False, and nothing is done: something came into the cache since ``brought`` was read, and it may be this."""
        source, opened, _ = one
        digest = source.version.digest(CHUNK_BYTES)
        patient = start is not None
        with self._lock:
            reader = self._readers.get(digest)
            waiting = self._opening.get(digest)
            arriving = self._arriving.get(digest)
            in_memory = self._in_memory(one, *arriving) if arriving is not None and not patient else None
            if in_memory is not None:
                pass
            elif reader is not None:
                reader.opens += 1
            elif waiting is not None:
                waiting.append(one)
                return True
            elif brought is not None and brought != self._brought:
                return False
            else:
                self._opening[digest] = [one]
        if in_memory is not None:
            opened(in_memory)
        elif reader is not None and reader.nearly_complete and not patient:
            self.fetcher.demand(Job(lambda: self._open_when_written(one, reader)), source.volume)
        elif reader is not None:
            opened(OpenObject(self, source, None, reader))
        elif start is None and self._comes_alone(source):
            self._fetch_alone(digest, source)
        else:
            (start or self.fetcher.demand)(Job(lambda: self._bring(digest, source, patient=patient)), source.volume)
        return True

    def _comes_alone(self, source: ObjectSource) -> bool:
        """Whether the object is worth an attempt to fetch it without a thread that waits for it."""
        return (
            source.version.size_bytes <= self.small_object_bytes
            and self.small.takes(source)
            and not self._chunk_store.has_unverified_files
            and self._chunk_store.accepts_writes
            and not self.checking.refuses(source)
        )

    def _fetch_alone(self, digest: str, source: ObjectSource) -> None:
        def arrived(whole: Whole) -> Rest | None:
            self.requested()
            self.received(source.version.size_bytes)
            try:
                parts = self.checking.checked(source, whole, _ask_elsewhere)
            except _AskElsewhere:
                elsewhere(lambda: self._keep_checked(source, whole))
                return None
            arriving = _Arriving(parts, behind=False)
            with self._lock:
                self._arriving[digest] = arriving
            awaited = self._answer_in_memory(source, parts, behind=False)
            return Rest(lambda: write(arriving), awaited)

        def write(arriving: _Arriving) -> None:
            try:
                self._bring(digest, source, lambda: self._keep(source, arriving.parts))
            finally:
                with self._lock:
                    if self._arriving.get(digest) is arriving:
                        del self._arriving[digest]

        def elsewhere(find: Callable[[], ObjectFile | None] | None = None) -> None:
            with self._lock:
                self._arriving.pop(digest, None)
            self.fetcher.demand(Job(lambda: self._bring(digest, source, find)), source.volume)

        self.small.submit(SmallFetch(source, arrived, elsewhere))

    def _open_when_written(self, one: PendingOpen, reader: ObjectReader) -> None:
        """Its last chunks are on their way to the disk: worth a moment, since the kernel can read a complete file by
        itself, and a file that is opened sooner is served until its close."""
        until = time.monotonic() + LONG_S
        while reader.nearly_complete and time.monotonic() < until:
            time.sleep(_LOOK_AGAIN_S)
        file = None
        try:
            file = self._chunk_store.find(one.source.version, one.source.dataset)
        except CacheError as error:
            self.refused(error)
        if file is None:
            one.opened(OpenObject(self, one.source, None, reader))
        else:
            one.opened(OpenObject(self, one.source, file, None))
            self.leave(reader)

    def _bring(
        self,
        digest: str,
        source: ObjectSource,
        find: Callable[[], ObjectFile | None] | None = None,
        *,
        patient: bool = False,
    ) -> None:
        """Makes the object ready to be opened and answers all who wait for that; runs on a thread of the fetcher, or
        of a warmup, which is ``patient`` with a disk that is behind."""
        file: ObjectFile | None = None
        failure: HayloftError | None = None
        try:
            file = find() if find is not None else self._file_to_open(source, patient)
        except CacheError as error:
            self.refused(error)
        except HayloftError as error:
            failure = error
        except BaseException as error:
            failure = InternalFailure(f"{source.version.key}: {type(error).__name__}: {error}")
            raise
        finally:
            reader = self._answer_openers(digest, file, failure)
            if file is not None and reader is None:
                file.release()

    def _file_to_open(self, source: ObjectSource, patient: bool) -> ObjectFile | None:
        """None: the object is in memory for now, and whoever waits for it has it if there was room."""
        version = source.version
        if version.size_bytes > self.small_object_bytes:
            return self._chunk_store.open_partial(version, source.dataset)
        file = self._chunk_store.recover(version, source.dataset)
        if file is not None:
            return file
        self.checking.refuse_damaged(source)
        return self._keep_checked(source, self._whole(source), patient=patient)

    def _keep_checked(self, source: ObjectSource, whole: Whole, *, patient: bool = False) -> ObjectFile | None:
        parts = self.checking.checked(source, whole, lambda: self._whole(source))
        return self._keep(source, parts, patient=patient)

    def _keep(self, source: ObjectSource, parts: Sequence[memoryview], *, patient: bool = False) -> ObjectFile | None:
        """A whole object into its file, once those who only want its bytes have them. None: see ``_file_to_open``."""
        ticket = None if patient else self.writes.enter()
        if not patient and ticket is None:
            self._keep_later(source, parts)
            return None
        try:
            self._answer_in_memory(source, parts, behind=False)
            return self._chunk_store.add_whole(source.version, parts, source.dataset)
        finally:
            if ticket is not None:
                self.writes.leave(ticket)

    def _keep_later(self, source: ObjectSource, parts: Sequence[memoryview]) -> None:
        """The disk is behind: who waits for a small object gets it in memory, and it is written when its turn comes."""
        digest = source.version.digest(CHUNK_BYTES)

        def add() -> None:
            try:
                self._chunk_store.add_whole(source.version, parts, source.dataset).release()
            except CacheError as error:
                self.refused(error)

        def done(_written: bool) -> None:
            with self._lock:
                self._arriving.pop(digest, None)
                self._brought += 1

        with self._lock:
            self._arriving[digest] = _Arriving(parts, behind=True)
        self.writes.submit(source.version.size_bytes, add, done)
        self._answer_in_memory(source, parts, behind=True)

    def _whole(self, source: ObjectSource) -> Whole:
        version = source.version
        self.requested()
        whole = read_whole(source.store, version.key, version.size_bytes, if_match=version.etag)
        self.received(version.size_bytes)
        return whole

    def _answer_in_memory(self, source: ObjectSource, parts: Sequence[memoryview], *, behind: bool) -> bool:
        """Whoever wants to read need not wait for the disk; nor, while that is ``behind``, who needs a file otherwise,
        as far as there is room in memory. True if somebody still waits."""
        digest = source.version.digest(CHUNK_BYTES)
        answered: list[tuple[PendingOpen, OpenObject]] = []
        with self._lock:
            left = []
            for one in self._opening[digest]:
                in_memory = self._in_memory(one, parts, behind)
                left.append(one) if in_memory is None else answered.append((one, in_memory))
            self._opening[digest] = left
        for one, in_memory in answered:
            one.opened(in_memory)
        return bool(left)

    def _in_memory(self, one: PendingOpen, parts: Sequence[memoryview], behind: bool) -> OpenObject | None:
        held_bytes = 0 if one.to_read else one.source.version.size_bytes
        if held_bytes and not (behind and self.writes.hold(held_bytes)):
            return None
        opened = OpenObject(self, one.source, None, None, parts)
        opened.held_bytes = held_bytes
        return opened

    def _answer_openers(
        self, digest: str, file: ObjectFile | None, failure: HayloftError | None
    ) -> ObjectReader | None:
        """Returns the reader that took over the file, if it is not complete."""
        reader: ObjectReader | None = None
        with self._lock:
            waiting = self._opening.pop(digest)
            self._brought += 1
            if waiting and failure is None and (file is None or not file.complete):
                reader = self._readers[digest] = ObjectReader(self, waiting[0].source, file)
                reader.opens = len(waiting)
        if reader is not None and file is not None and file.whole:
            self._finish_later(reader)
        for source, opened, _ in waiting:
            if failure is not None:
                opened(failure)
            elif reader is not None:
                opened(OpenObject(self, source, None, reader))
            elif file is not None and file.acquire():
                opened(OpenObject(self, source, file, None))
        return reader

    def _finish_later(self, reader: ObjectReader) -> None:
        """An earlier daemon had the last chunk and ended before it had checked the object."""

        def finish() -> None:
            try:
                reader.finish_if_whole()
            finally:
                self.let_go(reader)

        self.retain(reader)
        self.fetcher.ahead(Job(finish))

    # -- readers --

    def reader_past_disk(self, source: ObjectSource) -> ObjectReader:
        """A reader that never touches the disk, with one open counted: the object's file cannot be read."""
        reader = ObjectReader(self, source, None)
        reader.opens = 1
        return reader

    def leave(self, reader: ObjectReader) -> None:
        """One open less."""
        with self._lock:
            reader.opens -= 1
            idle = self._forget_if_idle(reader)
        if idle:
            self._close(reader)

    def refuse_damaged(self, source: ObjectSource) -> None:
        """See ReadServices."""
        self.checking.refuse_damaged(source)

    def finish(self, source: ObjectSource, file: ObjectFile) -> None:
        """See ReadServices."""
        self.checking.finish(source, file)

    def retain(self, reader: ObjectReader) -> None:
        """See ReadServices."""
        with self._lock:
            reader.fetches += 1

    def let_go(self, reader: ObjectReader) -> None:
        """See ReadServices."""
        with self._lock:
            reader.fetches -= 1
            idle = self._forget_if_idle(reader)
        if idle:
            self._close(reader)

    def _forget_if_idle(self, reader: ObjectReader) -> bool:
        if reader.opens or reader.fetches:
            return False
        if self._readers.get(reader.digest) is reader:
            del self._readers[reader.digest]
        return True

    @staticmethod
    def _close(reader: ObjectReader) -> None:
        if reader.file is not None:
            reader.file.release()

    # -- what readers tell --

    def foreground(self) -> Foreground:
        """What there is to do for readers just now."""
        fetcher = self.fetcher.foreground()
        return fetcher._replace(engaged=fetcher.engaged + self.small.busy)

    @property
    def trouble(self) -> CacheError | None:
        """Why the cache disk refused the last write; None while it works."""
        return self._chunk_store.last_refusal

    def disk_condition(self, dataset: int) -> str:
        """See DiskHealth.condition."""
        return self._chunk_store.health.condition(dataset)

    def may_store(self) -> bool:
        """See ReadServices."""
        return self._chunk_store.accepts_writes

    def refused(self, error: CacheError) -> None:
        """See ReadServices."""
        if self._chunk_store.accepts_writes:
            logger.warning("%s", error)
        self._chunk_store.note_failure(error)

    def read_failed(self) -> None:
        """See ReadServices."""
        self._chunk_store.read_failed("an object file cannot be read")

    def received(self, count_bytes: int) -> None:
        """See ReadServices."""
        with self._lock:
            self.origin_bytes += count_bytes

    def requested(self) -> None:
        """See ReadServices."""
        with self._lock:
            self.origin_requests += 1


class _AskElsewhere(Exception):
    """The bytes do not match their checksum: they are to be asked for again, which takes a thread that may wait."""


def _ask_elsewhere() -> Whole:
    raise _AskElsewhere
