"""The second part of a warmup with ``warmup: memory``: reads cached files into the page cache, weights first.

A program that maps the weights of a model touches them page by page, and each page that is not in memory is a read of
its own from the disk. The pages are those of the object files: a file that is passed through, or shown by a view, is
mapped from them.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from csi_driver import telemetry
from csi_driver.cache.page_cache import READ_BYTES, hot_bytes, read_in
from csi_driver.event_loop.once import Once
from csi_driver.model.chunk import ByteRange, chunk_range, chunks_of
from csi_driver.model.errors import HayloftError, Interrupted
from csi_driver.model.tracebacks import summary
from csi_driver.model.weight_files import is_weight_file
from csi_driver.reading.open_object import OpenObject
from csi_driver.reading.read_through_cache import ReadThroughCache
from csi_driver.reading.services import ObjectSource

logger = logging.getLogger(__name__)

_POLL_S = 0.05

THREADS = 4
"""Sequential reads at a time, each of 8 MiB: a queue that is deep enough for NVMe."""

PART_BYTES = 64 << 20
"""What one thread reads of a file before it takes the next part."""


class MemoryFiles(Protocol):
    """The files of the warmup, as ``reading.warmup.WarmupFiles``."""

    def source(self, number: int) -> ObjectSource:
        """The object of a file."""

    def wanted(self, number: int) -> tuple[range, ...]:
        """The chunks of a file that are wanted in memory."""


@dataclass(frozen=True, slots=True)
class MemoryProgress:
    """``hot_bytes`` of ``total_bytes`` were in the page cache when they were counted last. ``budget_bytes`` of them may
    be read in."""

    total_bytes: int = 0
    hot_bytes: int = 0
    budget_bytes: int = 0
    read_bytes: int = 0
    """Read by this warmup; the rest of the hot bytes was in memory before."""

    @property
    def is_bounded(self) -> bool:
        return self.total_bytes > self.budget_bytes

    @property
    def claimed_bytes(self) -> int:
        """What the warmup will have in memory at its end."""
        return min(self.total_bytes, self.budget_bytes)


Part = tuple[ObjectSource, ByteRange]


class MemoryWarmup:
    """``run`` blocks on the disk, on threads of its own besides that of the caller; it is called once.

    ``stop`` and ``progress`` may be called from any thread.

    ``_parts_lock`` guards ``_parts`` and is held while the next part is looked for, which asks the cache's disk.
    ``_lock`` guards the counts; it is not held across the disk.
    """

    def __init__(
        self,
        name: str,
        files: MemoryFiles,
        numbers: Sequence[int],
        read_through_cache: ReadThroughCache,
    ) -> None:
        """Counts the bytes of the files with these numbers, which takes 20 µs for each."""
        self._name = name
        self._files = files
        self._numbers = numbers
        self._read_through_cache = read_through_cache
        self._stopping = threading.Event()
        self._parts_lock = threading.Lock()
        self._parts: Iterator[Part] = iter(())
        self._lock = threading.Lock()
        total_bytes = sum(len(part) for number in numbers for _, part in self._parts_of(number))
        self._counts = MemoryProgress(total_bytes)

    def grant(self, budget_bytes: int) -> None:
        """So many bytes of the files may be in memory. Called before ``run``."""
        with self._lock:
            self._counts = replace(self._counts, budget_bytes=budget_bytes)

    def stop(self) -> None:
        """Reads no further; a read of 8 MiB that is in flight ends first."""
        self._stopping.set()

    @property
    def file_count(self) -> int:
        return len(self._numbers)

    @property
    def stopped(self) -> bool:
        return self._stopping.is_set()

    def progress(self) -> MemoryProgress:
        with self._lock:
            return self._counts

    def run(self) -> MemoryProgress:
        """Returns when all files are in memory, or as many as the budget allows, or when stopped. Never raises for a
        file that cannot be read: it is logged, and not hot."""
        budget_bytes = self.progress().budget_bytes
        self._parts = within(budget_bytes, (part for number in self._in_order() for part in self._parts_of(number)))
        helpers = [
            threading.Thread(target=self._work, name=f"memory-{self._name}-{number}", daemon=True)
            for number in range(1, THREADS)
        ]
        for helper in helpers:
            helper.start()
        self._work()
        for helper in helpers:
            helper.join()
        return self.progress()

    def recount(self) -> MemoryProgress:
        """Counts again what is in memory, after ``run``. None of several calls at a time does harm. Blocks on the disk,
        about 100 µs for each file."""
        hot = 0
        parts = (part for number in self._numbers for part in self._parts_of(number))
        for source, part in parts:
            with contextlib.suppress(HayloftError, OSError):
                hot += self._hot(source, part)
        with self._lock:
            self._counts = replace(self._counts, hot_bytes=hot)
            return self._counts

    def _hot(self, source: ObjectSource, part: ByteRange) -> int:
        opened = self._opened(source)
        if opened is None:
            return 0
        try:
            descriptor = opened.cached_descriptor
            return 0 if descriptor is None else hot_bytes(descriptor, part)
        finally:
            opened.close()

    def _in_order(self) -> Iterator[int]:
        """Weights first, each in the order of the manifest."""
        for first in (True, False):
            for number in self._numbers:
                if is_weight_file(self._files.source(number).version.key) is first:
                    yield number

    def _parts_of(self, number: int) -> Iterator[Part]:
        source = self._files.source(number)
        for chunks in self._files.wanted(number):
            stop = chunk_range(chunks.stop - 1, source.version.size_bytes).stop
            for start in range(chunk_range(chunks.start, source.version.size_bytes).start, stop, PART_BYTES):
                yield source, ByteRange(start, min(start + PART_BYTES, stop))

    def _work(self) -> None:
        buffer = memoryview(bytearray(READ_BYTES))
        while not self.stopped:
            with self._parts_lock:
                found = next(self._parts, None)
            if found is None:
                return
            source, part = found
            try:
                read_bytes, hot = self._read(source, part, buffer)
            except (HayloftError, OSError) as error:
                facts = telemetry.fields(warmup=self._name, key=source.version.key, error=summary(error))
                logger.warning("a file was not read into memory; its pages are read when they are used", extra=facts)
                continue
            with self._lock:
                counts = self._counts
                self._counts = replace(
                    counts, hot_bytes=counts.hot_bytes + hot, read_bytes=counts.read_bytes + read_bytes
                )

    def _read(self, source: ObjectSource, part: ByteRange, buffer: memoryview) -> tuple[int, int]:
        """How many bytes were read, and how many are in memory. Raises HayloftError, OSError."""
        opened = self._opened(source)
        if opened is None:
            return 0, 0
        try:
            descriptor = opened.cached_descriptor
            if descriptor is None or opened.missing_bytes(chunks_of(part)):
                return 0, 0
            hot = hot_bytes(descriptor, part)
            if hot == len(part):
                return 0, hot
            read_in(descriptor, part, buffer, self._stopping.is_set)
            return len(part) - hot, hot_bytes(descriptor, part)
        finally:
            opened.close()

    def _opened(self, source: ObjectSource) -> OpenObject | None:
        """None: it was evicted since, and is not fetched here."""
        if not self._read_through_cache.present_bytes(source):
            return None
        return _opened(self._read_through_cache, source, self._stopping.wait)


def _opened(read_through_cache: ReadThroughCache, source: ObjectSource, wait: Callable[[float], bool]) -> OpenObject:
    """Opens an object, on this thread unless a reader already does. Raises HayloftError; Interrupted if ``wait``
    returned True, and then the open is closed as soon as it is answered."""
    results: list[OpenObject | HayloftError] = []
    done = threading.Event()
    # The answer and the interruption race on two threads. The answer wins: this thread returns it. The interruption
    # wins: the answer closes what it has opened.
    outcome = Once()

    def opened(result: OpenObject | HayloftError) -> None:
        if outcome.claim():
            results.append(result)
            done.set()
        elif isinstance(result, OpenObject):
            result.close()

    read_through_cache.open_on_this_thread(source, opened)
    while not done.is_set():
        if wait(_POLL_S):
            if outcome.claim():
                raise Interrupted("the warmup was stopped")
            done.wait()
    if isinstance(results[0], HayloftError):
        raise results[0]
    return results[0]


def within(budget_bytes: int, parts: Iterator[Part]) -> Iterator[Part]:
    """The first parts that together have at most so many bytes. The one that exceeds them is shortened to chunks."""
    for source, part in parts:
        if len(part) > budget_bytes:
            length = budget_bytes // READ_BYTES * READ_BYTES
            if length:
                yield source, ByteRange(part.start, part.start + length)
            return
        budget_bytes -= len(part)
        yield source, part
