"""The victim's reads: ``python -m hayloft_bench.tenants.victim_process``.

It takes its reads as one line of JSON, performs them one after the other, and writes a line for each: the time of open,
read and close in seconds. Its parent ends it when a read hangs.
"""

from __future__ import annotations

import json
import os
import sys
import time
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


def main() -> None:
    wanted = json.loads(sys.stdin.readline())
    for _ in range(wanted["passes"]):
        if wanted["evict"]:
            evict({Path(path) for path, _, _ in wanted["reads"]})
        for path, offset, size_bytes in wanted["reads"]:
            print(timed(path, offset, size_bytes), flush=True)


if __name__ == "__main__":
    main()
