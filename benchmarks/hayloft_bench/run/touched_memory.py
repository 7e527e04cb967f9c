"""Touches memory before something is measured: a virtual machine gives pages that nothing used back to its host, and
the first program that needs them waits for the host, two seconds for each GB here. That should be none of the targets.

Before each figure, and not once for all: what was written stays in the page cache, and the next target needs other
pages."""

from __future__ import annotations

import mmap
from collections.abc import Callable

from csi_driver.wiring.available_memory import available_bytes

MOST_SHARE = 0.5
"""Of the available memory, also of a container: other programs may run there."""
_PIECE_BYTES = 256 << 20


def touch_memory(wanted_bytes: int, available: Callable[[], int] = available_bytes, *, ranks: int = 1) -> int:
    """Writes to so many bytes of new memory, page by page, or to half of what is available, of which each of the
    ``ranks`` has its part, and frees them. Returns how many. Blocks: about two seconds for each GB that the host has
    taken back."""
    count_bytes = min(wanted_bytes, int(available() * MOST_SHARE / ranks))
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
