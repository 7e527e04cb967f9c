"""Queues jobs by volume; what holds the fewest slots goes first: a namespace, then its store, then its volume."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from csi_driver.event_loop.once import Once
from csi_driver.model.errors import HayloftError
from csi_driver.model.tracebacks import unexpected
from csi_driver.reading.fair_shares import FairShares, Share

logger = logging.getLogger(__name__)


def _none_waits(error: HayloftError) -> None:
    return


class Job(Once):
    """Work for one thread. It may be in several queues; the first thread that claims it runs it."""

    __slots__ = ("_failed", "_work")

    def __init__(self, work: Callable[[], None], failed: Callable[[HayloftError], None] = _none_waits) -> None:
        """``failed`` answers those who wait for the work if that raises, whatever it raises; without it none waits. It
        may find that some, or all of them, are answered already."""
        super().__init__()
        self._work, self._failed = work, failed

    def run(self) -> None:
        """Does the work. By the thread that has claimed it. Raises what ``failed`` raises, and nothing else."""
        try:
            self._work()
        except BaseException as error:  # a panic of a store's client is no Exception
            logger.exception("unexpected error in the work for a read; those who wait for it get it as their error")
            self._failed(unexpected(error))


class Admission(Protocol):
    """Part of ``FairShares``."""

    def may_start(self, share: Share) -> bool:
        """Whether a job of the share may start now."""


J = TypeVar("J", bound=Once)


class FairQueue(Generic[J]):
    """Not locked: the caller serialises."""

    def __init__(self) -> None:
        self._by_share: dict[Share, deque[J]] = {}
        """No deque is empty. A share moves to the end when one of its jobs is taken."""

    def __bool__(self) -> bool:
        return bool(self._by_share)

    def __len__(self) -> int:
        """Of all jobs. May be called from any thread: it is approximate."""
        return sum(map(len, list(self._by_share.values())))

    def put(self, share: Share, job: J) -> None:
        """Appends to the jobs of the share."""
        jobs = self._by_share.get(share)
        if jobs is None:
            jobs = self._by_share[share] = deque()
        jobs.append(job)

    def take(self, shares: FairShares, *more: Admission) -> tuple[Share, J] | None:
        """A job, claimed, of the share that holds the fewest slots of ``shares``; of equal ones, of that which was
        served longest ago. None if no job is queued, or only jobs that may not start by all of these."""
        while (share := self.next_share(shares, *more)) is not None:
            job = self._claim_job(share)
            if job is not None:
                return share, job
        return None

    def clear(self) -> None:
        """Drops all jobs."""
        self._by_share.clear()

    def waits(self, shares: FairShares) -> bool:
        """Whether a job waits behind jobs that make progress; not one that waits for stalled ones of its own volume
        alone. May be called from any thread: it is approximate."""
        return bool(self._by_share) and any(map(shares.waits_for_progress, list(self._by_share)))

    def next_share(self, shares: FairShares, *more: Admission) -> Share | None:
        """The share of the next job."""
        best: Share | None = None
        fewest = (0, 0, 0)
        for share in self._by_share:
            if shares.may_start(share) and all(admission.may_start(share) for admission in more):
                held = shares.held(share)
                if best is None or held < fewest:
                    best, fewest = share, held
        return best

    def _claim_job(self, share: Share) -> J | None:
        """The share's next job that is not claimed yet. Moves the share to the end, or drops it when it is empty."""
        jobs = self._by_share.pop(share)
        while jobs:
            job = jobs.popleft()
            if job.claim():
                if jobs:
                    self._by_share[share] = jobs
                return job
        return None
