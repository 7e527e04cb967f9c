"""What ends a command of the benchmark with one clear sentence."""

from __future__ import annotations


class BenchError(Exception):
    """The text is for the person at the terminal: what was wrong, where, and what is allowed."""


class ProcessFailed(BenchError):
    """A reader process, a target or one of its programs did not start, or ended before its work was done."""


class MissingPrerequisite(BenchError):
    """The machine lacks something that the command needs; the text says how to get it."""


class ResultsError(BenchError):
    """A results file cannot be read, or does not hold what this version knows."""


class NotComparable(BenchError):
    """Two results are about different things."""


class PricesError(BenchError):
    """A price list is malformed."""


class NetworkError(BenchError):
    """The path to the store cannot be shaped as requested."""


class Withdrawn(BenchError):
    """Another rank will not arrive at this barrier; the run continues without it."""


class RankError(Exception):
    """The ranks of one run do not fit together: the run ends. Not a ``BenchError``, which takes out one target."""


class Stopped(BaseException):
    """SIGINT or SIGTERM. Not an ``Exception``, so that no handler of ordinary errors swallows it."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by signal {signal_number}")
        self.signal_number = signal_number
