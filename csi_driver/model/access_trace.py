"""Which bytes of a dataset a program read, in the order of the first reads: recorded, and replayed by a warmup."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TracedRange:
    """Bytes [start, stop) of a file, in the version that was read. ``time_ms`` has passed since the recording began."""

    path: bytes
    """Below the root of the volume."""
    size_bytes: int
    etag: str | None
    mtime_ns: int
    start: int
    stop: int
    time_ms: int = 0


@dataclass(frozen=True, slots=True)
class AccessTrace:
    """``ranges`` of one file do not overlap."""

    dataset_url: str
    ranges: tuple[TracedRange, ...] = ()
    truncated: bool = False
    """More was read than a recording holds."""

    @property
    def total_bytes(self) -> int:
        return sum(each.stop - each.start for each in self.ranges)

    @property
    def file_count(self) -> int:
        return len({each.path for each in self.ranges})
