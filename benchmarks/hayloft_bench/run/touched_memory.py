"""Touches memory before something is measured: a virtual machine gives pages that nothing used back to its host, and
the first program that needs them waits for the host, about a second for each GB. That should be none of the targets.

Before each figure, and not once for all: what was written stays in the page cache, and the next target needs other
pages."""

from __future__ import annotations

import mmap
from pathlib import Path

MOST_SHARE = 0.5
"""Of the available memory: other programs may run on the machine."""
_PIECE_BYTES = 256 << 20


def touch_memory(wanted_bytes: int, meminfo: Path = Path("/proc/meminfo")) -> int:
    """Writes to so many bytes of new memory, page by page, or to half of what is available, and frees them. Returns how
    many. Blocks: about a second for each GB where the host has taken them back."""
    available = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:"))
    count_bytes = min(wanted_bytes, int(int(available.split()[1]) * 1024 * MOST_SHARE))
    pieces: list[mmap.mmap] = []  # all at a time: freed pages would be given out again
    try:
        for start in range(0, count_bytes, _PIECE_BYTES):
            piece = mmap.mmap(-1, min(_PIECE_BYTES, count_bytes - start))
            pieces.append(piece)
            for page in range(0, len(piece), mmap.PAGESIZE):
                piece[page] = 1
    finally:
        for piece in pieces:
            piece.close()
    return count_bytes
