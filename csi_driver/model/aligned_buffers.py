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


_SMALLEST_BYTES, _MOST_IDLE_BYTES = 64 << 10, 4 << 20
_SIZES = (128 << 10, 256 << 10, 384 << 10, 512 << 10, 768 << 10, 1056 << 10)
_BY_SIZE = {size: AlignedBuffers(size, _MOST_IDLE_BYTES // size) for size in _SIZES}
"""For small objects, by the size of a piece: the largest is for 1 MiB and the head of its response. Of each size at
most ``_MOST_IDLE_BYTES`` are kept."""


def buffer_of(count_bytes: int) -> memoryview:
    """So many bytes of memory, which may hold those of an earlier use: a piece that is used again, if that is at most
    twice as large. May be called from any thread."""
    if count_bytes > _SMALLEST_BYTES:
        for size, buffers in _BY_SIZE.items():
            if count_bytes <= size:
                return buffers.take()[:count_bytes]
    return memoryview(bytearray(count_bytes))
