"""Parts of the read path, each with an event loop of its own; in production wiring makes one for all."""

from __future__ import annotations

import time
from collections.abc import Callable

from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.event_loop.event_loop import EventLoop
from csi_driver.reading.fetcher import Fetcher
from csi_driver.reading.read_through_cache import ReadThroughCache
from csi_driver.reading.small_object_fetcher import SmallObjectFetcher
from csi_driver.settings import ReadingSettings


class OwnLoopCache(ReadThroughCache):
    def __init__(self, chunk_store: ChunkStore, settings: ReadingSettings) -> None:
        self.event_loop = EventLoop()
        super().__init__(chunk_store, settings, self.event_loop)
        self.event_loop.start()

    def close(self) -> None:
        self.event_loop.close()
        super().close()


class OwnLoopFetcher(SmallObjectFetcher):
    """With a scheduler of its own, too."""

    def __init__(self, max_requests: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.event_loop = EventLoop(clock)
        self.fetcher = Fetcher(1, loop_requests=max_requests, clock=clock)
        super().__init__(self.event_loop, self.fetcher, clock)
        self.event_loop.start()

    def close(self) -> None:
        self.event_loop.close()
        super().close()
        self.fetcher.close()
