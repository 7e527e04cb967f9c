"""Reused memory, aligned to pages: bytes are received into it, and written from it past the page cache.

New memory is zeroed by the kernel, page by page, when it is touched: for each byte received that costs about as much as
its copy from the socket.
"""

from __future__ import annotations

import ctypes
import mmap
import weakref
from collections import deque


class _Lent(weakref.ref["ctypes.Array[ctypes.c_ubyte]"]):
    """A piece in use."""

    __slots__ = ("memory",)
    memory: mmap.mmap


class AlignedBuffers:
    """Pieces of one size. Methods may be called from any thread, without a lock: single steps of a deque and a dict."""

    def __init__(self, piece_bytes: int, most_idle: int) -> None:
        """So many pieces are kept while they are not in use."""
        self._array = ctypes.c_ubyte * piece_bytes
        self._idle: deque[mmap.mmap] = deque(maxlen=most_idle)  # beyond it, append drops the oldest
        self._lent: dict[int, _Lent] = {}
        """By its own id: what it refers to has no hash."""
        self.piece_bytes = piece_bytes

    def take(self) -> memoryview:
        """A piece, with the bytes of an earlier use in it. It is used again once no view of it is referenced."""
        try:
            memory = self._idle.pop()
        except IndexError:
            memory = mmap.mmap(-1, self.piece_bytes)
        # Each view refers to this array, and nothing else does: its end is the end of the last view.
        array = self._array.from_buffer(memory)
        lent = _Lent(array, self._take_back)
        lent.memory = memory
        self._lent[id(lent)] = lent
        return memoryview(array).cast("B")

    def _take_back(self, lent: weakref.ref[ctypes.Array[ctypes.c_ubyte]]) -> None:
        self._idle.append(self._lent.pop(id(lent)).memory)
