"""Queues jobs by volume; what holds the fewest slots goes first: a namespace, then its store, then its volume."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from csi_driver.event_loop.once import Once
from csi_driver.reading.fair_shares import FairShares, Share

J = TypeVar("J", bound=Once)

Admits = Callable[[Share, J], bool] | None
"""Whether the next job of a share may start now; None: each may."""


class FairQueue(Generic[J]):
    """Not locked: the caller serialises."""

    def __init__(self) -> None:
        self.by_share: dict[Share, deque[J]] = {}
        """Empty if nothing is queued. No deque is empty. A share moves to the end when one of its jobs is taken."""

    def __bool__(self) -> bool:
        return bool(self.by_share)

    def __len__(self) -> int:
        """Of all jobs. May be called from any thread: it is approximate."""
        return sum(map(len, list(self.by_share.values())))

    def put(self, share: Share, job: J) -> None:
        """Appends to the jobs of the share."""
        jobs = self.by_share.get(share)
        if jobs is None:
            jobs = self.by_share[share] = deque()
        jobs.append(job)

    def take(self, shares: Sequence[FairShares], admits: Admits[J]) -> tuple[Share, J] | None:
        """A job, claimed, of the share that holds the fewest slots of the first of ``shares``; of equal ones, of that
        which was served longest ago. None if no job is queued, or only jobs that may not start by all of these."""
        while (share := self.next_share(shares, admits)) is not None:
            job = self._claim_job(share)
            if job is not None:
                return share, job
        return None

    def clear(self) -> None:
        """Drops all jobs."""
        self.by_share.clear()

    def waits(self, shares: FairShares) -> bool:
        """Whether a job waits behind jobs that make progress; not one that waits for stalled ones of its own volume
        alone."""
        return any(map(shares.waits_for_progress, self.by_share))

    def next_share(self, shares: Sequence[FairShares], admits: Admits[J]) -> Share | None:
        """The share of the next job."""
        best: Share | None = None
        fewest = (0, 0, 0)
        for share, jobs in self.by_share.items():
            for each in shares:
                if not each.may_start(share):
                    break
            else:
                if admits is not None and not admits(share, jobs[0]):
                    continue
                if len(self.by_share) == 1:  # nearly always, and this is done for each small object
                    return share
                held = shares[0].held(share)
                if best is None or held < fewest:
                    best, fewest = share, held
        return best

    def _claim_job(self, share: Share) -> J | None:
        """The share's next job that is not claimed yet. Moves the share to the end, or drops it when it is empty."""
        jobs = self.by_share.pop(share)
        while jobs:
            job = jobs.popleft()
            if job.claim():
                if jobs:
                    self.by_share[share] = jobs
                return job
        return None
