"""Whose turn it is: jobs that wait, by volume, and the volume that has the fewest running goes first."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Generic, TypeVar

from csi_driver.event_loop.once import Once


class Claimed(Once):
    """Something to be done once, however often it is submitted."""

    __slots__ = ()

    claim = Once.take


class Job(Claimed):
    """Work for one thread."""

    __slots__ = ("work",)

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__()
        self.work = work


J = TypeVar("J", bound=Claimed)


class FairQueue(Generic[J]):
    """Jobs that wait. Not locked: the caller serialises."""

    def __init__(self) -> None:
        self._by_volume: dict[int, deque[J]] = {}
        """Never empty for a volume. Whoever had its turn goes to the end."""

    def __bool__(self) -> bool:
        return bool(self._by_volume)

    def put(self, volume: int, job: J) -> None:
        """At the end of the volume's jobs."""
        jobs = self._by_volume.get(volume)
        if jobs is None:
            jobs = self._by_volume[volume] = deque()
        jobs.append(job)

    def take(self, running: Counter[int], most: int) -> tuple[int, J] | None:
        """A job of the volume that has the fewest running, claimed; of equals, the one whose turn was longest ago.
        None if no job waits, or only of volumes that have ``most`` running."""
        while (volume := self._next(running, most)) is not None:
            job = self._claimed(volume)
            if job is not None:
                return volume, job
        return None

    def clear(self) -> None:
        """Forgets all."""
        self._by_volume.clear()

    def _next(self, running: Counter[int], most: int) -> int | None:
        best, fewest = None, most
        for volume in self._by_volume:
            if running[volume] < fewest:
                best, fewest = volume, running[volume]
        return best

    def _claimed(self, volume: int) -> J | None:
        """The next job of the volume that nobody has taken elsewhere; the volume goes to the end, or is forgotten."""
        jobs = self._by_volume.pop(volume)
        while jobs:
            job = jobs.popleft()
            if job.claim():
                if jobs:
                    self._by_volume[volume] = jobs
                return job
        return None
