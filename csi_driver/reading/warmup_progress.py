"""The progress of a warmup: counts, a rate, and how it ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from csi_driver.model.errors import HayloftError

RATE_WINDOW_S = 10.0
"""A rate is measured over so many seconds: long enough for a few fetches of 16 MiB, short enough to show a standstill.
"""

_SAMPLE_S = 0.5

Clock = Callable[[], float]

State = Literal["running", "complete", "full", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class Progress:
    """A warmup at one moment. Totals are 0 until the files are counted."""

    state: State = "running"
    total_bytes: int = 0
    total_files: int = 0
    done_bytes: int = 0
    done_files: int = 0
    fetched_bytes: int = 0
    failed_files: int = 0
    rate_bytes: float = 0.0
    message: str = ""

    @property
    def eta_s(self) -> float | None:
        """Seconds until everything is cached, at the current rate; None if that is unknown."""
        if self.state != "running" or not self.total_files or self.rate_bytes <= 0:
            return None
        return max(0, self.total_bytes - self.done_bytes) / self.rate_bytes


class RateMeter:
    """Bytes a second over the last ``RATE_WINDOW_S``. The caller serialises."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._samples: deque[tuple[float, int]] = deque([(clock(), 0)])
        self._total_bytes = 0

    def add(self, count_bytes: int) -> None:
        """Counts bytes that were received now."""
        self._total_bytes += count_bytes
        now = self._clock()
        if now - self._samples[-1][0] >= _SAMPLE_S:
            self._samples.append((now, self._total_bytes))
            self._drop_old_samples(now)

    def bytes_per_second(self) -> float:
        """0 until bytes were received."""
        now = self._clock()
        self._drop_old_samples(now)
        since, bytes_then = self._samples[0]
        return (self._total_bytes - bytes_then) / (now - since) if now > since else 0.0

    def _drop_old_samples(self, now: float) -> None:
        # The newest of the samples before the window stays: it is where the window begins.
        while len(self._samples) > 1 and now - self._samples[1][0] >= RATE_WINDOW_S:
            self._samples.popleft()


class WarmupCounts:
    """The caller serialises."""

    def __init__(self, clock: Clock) -> None:
        self._rate = RateMeter(clock)
        self._state: State = "running"
        self._message = "counting files"
        self._total_bytes = self._total_files = 0
        self._done_bytes = self._done_files = 0
        self._fetched_bytes = 0
        self._failed_files = 0
        self._failure: HayloftError | None = None

    def total(self, files: int, count_bytes: int) -> None:
        """Sets the totals, which include what is cached already."""
        self._total_files, self._total_bytes = files, count_bytes
        self._message = ""

    def fetched(self, count_bytes: int) -> None:
        """Bytes were received for the warmup."""
        self._fetched_bytes += count_bytes
        self._rate.add(count_bytes)

    def part(self, count_bytes: int) -> None:
        """So many bytes of a file are cached; a negative number takes bytes back that will be counted again."""
        self._done_bytes += count_bytes

    def file(self, rest_bytes: int) -> None:
        """A file is cached; ``rest_bytes`` of it were not counted as parts."""
        self._done_files += 1
        self._done_bytes += rest_bytes
        self._message = ""

    def retrying(self, error: HayloftError) -> None:
        """A fetch failed and will be retried."""
        self._failure = error
        self._message = f"waiting to retry: {error}"

    def failed(self, error: HayloftError, files: int = 1) -> None:
        """Files cannot be fetched: a retry is no use."""
        self._failure = error
        self._failed_files += files

    def retries_exhausted(self, files: int) -> None:
        """The last retry of these files failed, with the error of the last ``retrying``."""
        self._failed_files += files

    def end(self, *, full: bool, cancelled: bool) -> Progress:
        """The final progress."""
        if cancelled:
            self._state, self._message = "cancelled", "it was cancelled"
        elif full:
            self._state = "full"
            # The counts are fields of the progress; Kubernetes merges events of the same text only.
            self._message = (
                "the cache is full: a part is on the node, and the rest does not fit without evicting mounted volumes; "
                "raise --cache-limit, or warm less with warmupInclude"
            )
        elif self._failed_files:
            self._state, self._message = "failed", f"files could not be fetched; the last error: {self._failure}"
        elif not self._total_files:
            self._state, self._message = "complete", "the volume has no such file"
        else:
            self._state, self._message = "complete", ""
        return self.progress()

    def progress(self) -> Progress:
        message = self._message
        if self._state == "running" and not message and self._failed_files:
            message = f"{self._failed_files} files cannot be fetched; the last error: {self._failure}"
        return Progress(
            self._state,
            self._total_bytes,
            self._total_files,
            self._done_bytes,
            self._done_files,
            self._fetched_bytes,
            self._failed_files,
            self._rate.bytes_per_second() if self._state == "running" else 0.0,
            message,
        )
