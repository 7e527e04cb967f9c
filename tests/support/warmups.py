"""Warmups with a scripted store: a cache, files by number, and a clock that advances during waits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.cache.disk import Disk
from csi_driver.model.chunk import chunk_count
from csi_driver.model.errors import HayloftError
from csi_driver.reading.open_object import OpenObject
from csi_driver.reading.services import ObjectSource
from csi_driver.reading.warmup import Warmup
from csi_driver.reading.warmup_progress import Progress
from csi_driver.settings import ChunkStoreSettings, ReadingSettings
from tests.support.own_event_loop import OwnLoopCache
from tests.support.scripted_store import ScriptedStore


class FakeClock:
    """Advances only in ``wait``, which returns after a millisecond, so that other threads run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def wait(self, event: threading.Event, seconds: float) -> bool:
        with self._lock:
            self.now += seconds
        return event.wait(0.001)


class Files:
    """The objects of a scripted store in their order, as targets."""

    def __init__(self, origin: ScriptedStore) -> None:
        self._origin = origin
        self._keys = list(origin.objects)
        self._versions = [origin.version(key) for key in self._keys]

    def chosen(self, stopping: Callable[[], bool]) -> Sequence[int]:
        return range(len(self._keys))

    def size_bytes(self, number: int) -> int:
        return self._versions[number].size_bytes

    def wanted(self, number: int) -> tuple[range, ...]:
        chunks = range(chunk_count(self.size_bytes(number)))
        return (chunks,) if chunks else ()

    def source(self, number: int) -> ObjectSource:
        return ObjectSource(self._versions[number], self._origin, dataset=1)


class WarmBench:
    """A cache, a scripted store, and warmups that all use one clock."""

    def __init__(
        self,
        directory: Path,
        objects: dict[str, bytes],
        limit_bytes: int = 1 << 30,
        disk: Disk | None = None,
        **reading: Any,
    ) -> None:
        self.origin = ScriptedStore(objects)
        settings = ChunkStoreSettings(directory=directory, limit_bytes=limit_bytes, free_floor_bytes=0)
        self.chunks = ChunkStore(settings, disk)
        self.library = OwnLoopCache(self.chunks, ReadingSettings(**{"warmup_fetches": 4} | reading))
        self.clock = FakeClock()
        self.ends: list[Progress] = []
        self.mounted = {1}
        self.files = Files(self.origin)
        self._made: list[Warmup] = []

    def warmup(self, **options: Any) -> Warmup:
        made = Warmup(
            "test",
            self.files,
            self.library,
            lambda count_bytes: self.chunks.has_space_for_warmup(count_bytes, 1, self.mounted),
            ended=self.ends.append,
            clock=self.clock,
            wait=self.clock.wait,
            **options,
        )
        self._made.append(made)
        return made

    def run(self, **options: Any) -> Progress:
        """Runs one warmup to its end."""
        warmup = self.warmup(**options)
        warmup.start()
        assert warmup.join(30), "it did not end"
        return self.ends[-1]

    def open(self, key: str) -> OpenObject:
        return self.open_source(ObjectSource(self.origin.version(key), self.origin, dataset=1))

    def open_source(self, source: ObjectSource) -> OpenObject:
        """Opens an object as a reader does, and waits for it."""
        done, results = threading.Event(), []

        def opened(result: OpenObject | HayloftError) -> None:
            results.append(result)
            done.set()

        self.library.open(source, opened)
        assert done.wait(20)
        assert isinstance(results[0], OpenObject), results[0]
        return results[0]

    def is_complete(self, key: str) -> bool:
        return self.chunks.is_complete(self.origin.version(key))

    def close(self) -> None:
        self.origin.gate.set()
        for warmup in self._made:
            warmup.stop(cancelled=False)
            if warmup.started:
                assert warmup.join(20)
        self.library.close()
        self.chunks.close()
