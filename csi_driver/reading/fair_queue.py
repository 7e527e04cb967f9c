"""Queues jobs by volume; the volume that has the fewest jobs running goes first."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Generic, TypeVar

from csi_driver.event_loop.once import Once


class Job(Once):
    """Work for one thread. It may be in several queues; the first thread that claims it runs it."""

    __slots__ = ("work",)

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__()
        self.work = work


J = TypeVar("J", bound=Once)


class FairQueue(Generic[J]):
    """Not locked: the caller serialises."""

    def __init__(self) -> None:
        self._by_volume: dict[int, deque[J]] = {}
        """No deque is empty. A volume moves to the end when one of its jobs is taken."""

    def __bool__(self) -> bool:
        return bool(self._by_volume)

    def put(self, volume: int, job: J) -> None:
        """Appends to the volume's jobs."""
        jobs = self._by_volume.get(volume)
        if jobs is None:
            jobs = self._by_volume[volume] = deque()
        jobs.append(job)

    def take(self, running: Counter[int], max_of_a_volume: int) -> tuple[int, J] | None:
        """A job of the volume that has the fewest running, claimed; of equal volumes, the one that was served longest
        ago. None if no job is queued, or only jobs of volumes that have ``max_of_a_volume`` running."""
        while (volume := self._next_volume(running, max_of_a_volume)) is not None:
            job = self._claim_job(volume)
            if job is not None:
                return volume, job
        return None

    def clear(self) -> None:
        """Drops all jobs."""
        self._by_volume.clear()

    def _next_volume(self, running: Counter[int], max_of_a_volume: int) -> int | None:
        best, fewest = None, max_of_a_volume
        for volume in self._by_volume:
            if running[volume] < fewest:
                best, fewest = volume, running[volume]
        return best

    def _claim_job(self, volume: int) -> J | None:
        """The volume's next job that is not claimed yet. Moves the volume to the end, or drops it when it is empty."""
        jobs = self._by_volume.pop(volume)
        while jobs:
            job = jobs.popleft()
            if job.claim():
                if jobs:
                    self._by_volume[volume] = jobs
                return job
        return None
