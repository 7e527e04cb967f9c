"""What ends a command of the benchmark with one clear sentence."""

from __future__ import annotations


class BenchError(Exception):
    """Its text is for the person who called: what was wrong, where, and what is allowed."""


class ResultsError(BenchError):
    """A file of results cannot be read, or does not hold what this version knows."""


class NotComparable(BenchError):
    """Two results are about different things."""


class PricesError(BenchError):
    """A price list is not as it should be."""


class NetworkError(BenchError):
    """The path to the store cannot be shaped as asked."""


class Withdrawn(BenchError):
    """Another rank does not come to what was waited for; the run goes on without it."""


class RankError(Exception):
    """Ranks that should run together do not: the run is over. No ``BenchError``, which ends one target alone."""
