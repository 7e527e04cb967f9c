"""Keeps ranks in step: they begin each measurement together, and all of them skip a measurement that one cannot do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hayloft_bench.distributed.gang import Gang
from hayloft_bench.errors import BenchError


class OtherRank(BenchError):
    """Another rank cannot continue with the measurement that this rank was about to begin."""


class Barrier:
    """The named points at which all ranks meet. All ranks reach the same points in the same order, even after an error:
    a rank that cannot continue passes the remaining points with its obstacle, so that no other rank waits for it."""

    def __init__(self, gang: Gang) -> None:
        self._gang = gang
        self._expected: list[str] = []

    @property
    def rank(self) -> int:
        """The rank of this process."""
        return self._gang.rank.rank

    @property
    def ranks(self) -> int:
        """The number of ranks in the run."""
        return self._gang.rank.ranks

    def agreed(self, name: str, obstacle: str | None) -> str | None:
        """The obstacle of this rank, else of another rank, else None. Blocks until all ranks are at the point."""
        found = self._gang.barrier(name, obstacle=obstacle or "")
        others = [f"rank {rank}: {text}" for rank, text in sorted(found.items()) if rank != self.rank]
        return obstacle or next(iter(others), None)

    def begin(self, name: str) -> None:
        """Returns at the same moment on all ranks. Raises OtherRank."""
        if name in self._expected:
            self._expected.remove(name)
        obstacle = self.agreed(name, None)
        if obstacle is not None:
            raise OtherRank(obstacle)

    @contextmanager
    def turn(self, name: str, beginnings: Sequence[str]) -> Iterator[None]:
        """Encloses a turn of one target; ``beginnings`` are the points within it. An exception of the block is raised
        after the other ranks were notified; if another rank failed, OtherRank is raised."""
        self._expected = list(beginnings)
        try:
            yield
        except Exception as error:
            # The other ranks are still on their way to these points: pass each of them, with the error as obstacle.
            for remaining in [*self._expected, f"{name}/end"]:
                self.agreed(remaining, str(error) or type(error).__name__)
            raise
        obstacle = self.agreed(f"{name}/end", None)
        if obstacle is not None:
            raise OtherRank(obstacle)
