"""The victim's reads: ``python -m hayloft_bench.tenants.victim_process``.

It takes its reads as one line of JSON, performs them one after the other, and writes a line for each: the times of
open, read and close in seconds, one for each of the paths of the read, in their order. Its parent ends it when a read
hangs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from hayloft_bench.run.page_cache import evict


def timed(path: str, offset: int, size_bytes: int) -> float:
    """Raises OSError, also for a short read."""
    begun_s = time.monotonic()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        count = 0
        while count < size_bytes:
            piece = os.pread(descriptor, size_bytes - count, offset + count)
            if not piece:
                raise OSError(f"{path}: ends after {offset + count} bytes")
            count += len(piece)
    finally:
        os.close(descriptor)
    return time.monotonic() - begun_s


def in_turns(paths: Sequence[str], offset: int, size_bytes: int, number: int) -> list[float]:
    """The same read of several volumes. Another one begins each time: the first reader of an object may find the store
    slower than the second one. Raises OSError."""
    seconds = [0.0] * len(paths)
    for step in range(len(paths)):
        index = (number + step) % len(paths)
        seconds[index] = timed(paths[index], offset, size_bytes)
    return seconds


def main() -> None:
    wanted = json.loads(sys.stdin.readline())
    for _ in range(wanted["passes"]):
        if wanted["evict"]:
            evict({Path(path) for paths, _, _ in wanted["reads"] for path in paths})
        for number, (paths, offset, size_bytes) in enumerate(wanted["reads"]):
            print(*in_turns(paths, offset, size_bytes, number), flush=True)


if __name__ == "__main__":
    main()
