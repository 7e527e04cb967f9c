"""One object that is fetched on the event loop: whether it is still wanted, what becomes of its bytes, and which thread
takes over where the loop cannot go on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from csi_driver.cache.object_file import ObjectFile
from csi_driver.model.tracebacks import unexpected
from csi_driver.objects.store import WholeObject
from csi_driver.reading.bandwidth_limit import Pace
from csi_driver.reading.fetcher import Job
from csi_driver.reading.object_table import Staged
from csi_driver.reading.open_object import PendingOpen
from csi_driver.reading.services import ObjectSource
from csi_driver.reading.small_object_fetcher import ObjectWrite

if TYPE_CHECKING:
    from csi_driver.reading.read_through_cache import ReadThroughCache

logger = logging.getLogger(__name__)


class LoopFetch:
    """What becomes of an object that is fetched on the event loop."""

    def __init__(
        self, cache: ReadThroughCache, source: ObjectSource, warming: PendingOpen | None, pace: Pace | None
    ) -> None:
        self._cache, self._source, self._warming, self._pace = cache, source, warming, pace
        self._for_warmup = warming is not None

    def wanted(self) -> bool:
        """Of a warmup, when it is its turn: False if the object is cached, or another fetch of it is in flight."""
        cache, warming, fetches = self._cache, self._warming, list[Job]()
        if warming is None:
            return True
        try:
            file = cache.look_for_warmup(warming, fetches.append)
            if file is not None:
                cache.open_complete(warming, file)
        except BaseException as error:
            logger.exception("%s: unexpected error before a fetch of a warmup", self._source.version.key)
            warming.opened(unexpected(error))
            return False
        return bool(fetches)

    def received(self, whole: WholeObject) -> ObjectWrite | None:
        cache, source = self._cache, self._source
        cache.count_request()
        cache.count_received(source.version.size_bytes)
        source.counts.fetched(source.version.size_bytes)
        try:
            parts = cache.integrity.verified(source, whole, _raise_needs_refetch)
        except _NeedsRefetch:
            self._pass_to_threads(lambda: cache.verify_and_cache(source, whole, for_warmup=self._for_warmup))
            return None
        staged = Staged(parts, backlogged=False)
        awaited = cache.serve_from_memory(source, staged, stage=True)
        return ObjectWrite(lambda: self._write(staged), awaited)

    def fallback(self) -> None:
        self._pass_to_threads(None)

    def _write(self, staged: Staged) -> None:
        cache, source, for_warmup = self._cache, self._source, self._for_warmup
        try:
            cache.complete_opens(
                source, lambda: cache.cache_object(source, staged, for_warmup=for_warmup), staged=staged
            )
        except BaseException:
            # Only its own bytes: the disk may be backlogged, and _queue_write has replaced them.
            cache.table.unstage(source.key, staged)
            raise

    def _pass_to_threads(self, find: Callable[[], ObjectFile | None] | None) -> None:
        cache, source = self._cache, self._source
        cache.table.unstage(source.key)

        def complete() -> None:
            cache.queued_for_warmups.pop(source.key, None)
            cache.complete_opens(source, find, for_warmup=self._for_warmup)

        job = Job(complete, count_bytes=source.version.size_bytes, pace=self._pace)
        if self._for_warmup:
            # Before the look: a reader that asks for the object after it finds the job, and moves it up.
            cache.queued_for_warmups[source.key] = job
        if self._for_warmup and not cache.table.is_urgent(source.key):
            cache.fetcher.warm(job, source.share)
        else:
            cache.fetcher.demand(job, source.share)


class _NeedsRefetch(Exception):
    """The bytes do not match their checksum: they are to be fetched again, on a thread that may wait."""


def _raise_needs_refetch() -> WholeObject:
    raise _NeedsRefetch
