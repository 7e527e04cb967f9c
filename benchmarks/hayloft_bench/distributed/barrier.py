"""How ranks keep in step: they begin each measurement together, and what one of them cannot do none of them does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hayloft_bench.distributed.gang import Gang
from hayloft_bench.errors import BenchError


class OtherRank(BenchError):
    """Another rank cannot go on with what this one was about to do."""


class Barrier:
    """The points at which all ranks meet. Each has a name; all ranks come to the same ones in the same order, also
    when something fails: a rank that cannot go on comes to those that are left with its obstacle."""

    def __init__(self, gang: Gang) -> None:
        self._gang = gang
        self._expected: list[str] = []

    @property
    def rank(self) -> int:
        """Of this process."""
        return self._gang.rank.rank

    @property
    def ranks(self) -> int:
        """How many there are."""
        return self._gang.rank.ranks

    def agreed(self, name: str, obstacle: str | None) -> str | None:
        """The obstacle of this rank, or of another; None if nobody has one. Blocks until all are there."""
        found = self._gang.barrier(name, obstacle=obstacle or "")
        others = [f"rank {rank}: {text}" for rank, text in sorted(found.items()) if rank != self.rank]
        return obstacle or next(iter(others), None)

    def begin(self, name: str) -> None:
        """Returns at one moment at all ranks. Raises OtherRank."""
        if name in self._expected:
            self._expected.remove(name)
        obstacle = self.agreed(name, None)
        if obstacle is not None:
            raise OtherRank(obstacle)

    @contextmanager
    def turn(self, name: str, beginnings: Sequence[str]) -> Iterator[None]:
        """Around a turn of one target with the points that it comes to. What it raises is raised, and the other ranks
        are told; if one of them failed, OtherRank is raised."""
        self._expected = list(beginnings)
        try:
            yield
        except Exception as error:
            for left in [*self._expected, f"{name}/end"]:
                self.agreed(left, str(error) or type(error).__name__)
            raise
        obstacle = self.agreed(f"{name}/end", None)
        if obstacle is not None:
            raise OtherRank(obstacle)
