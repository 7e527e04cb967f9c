"""The page cache of object files: reads pages in ahead of their use, and counts those that are in it."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Callable

from csi_driver.model.chunk import ByteRange
from csi_driver.model.syscall_numbers import CACHESTAT

READ_BYTES = 8 << 20
"""One read: the kernel splits it into requests of the size that the disk takes, and has them in flight together."""


class _Range(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Counts(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64) for name in ("cached", "dirty", "writeback", "evicted", "recently_evicted")
    )


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
_MAP_FAILED = ctypes.c_void_p(-1).value


def read_in(descriptor: int, part: ByteRange, buffer: memoryview, stopping: Callable[[], bool]) -> None:
    """Reads that part of a file through the buffer, and so into the page cache. Returns early at the end of the file
    and when stopped. Blocks on the disk. Raises OSError."""
    at = part.start
    while at < part.stop and not stopping():
        read_bytes = os.preadv(descriptor, [buffer[: min(len(buffer), part.stop - at)]], at)
        if not read_bytes:
            return
        at += read_bytes


def hot_bytes(descriptor: int, part: ByteRange) -> int:
    """Bytes of that part of a file whose pages are in the page cache, by cachestat(2) or, before Linux 6.5, mincore(2).
    The start is a multiple of the page size; ``part`` ends at the end of the file at the latest. Raises OSError."""
    if not len(part):
        return 0
    counts = _Counts()
    span = _Range(part.start, len(part))
    if _libc.syscall(CACHESTAT, descriptor, ctypes.byref(span), ctypes.byref(counts), 0) == 0:
        return min(len(part), int(counts.cached) * mmap.PAGESIZE)
    if ctypes.get_errno() not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
        raise OSError(ctypes.get_errno(), "cachestat")
    return _by_mincore(descriptor, part)


def _by_mincore(descriptor: int, part: ByteRange) -> int:
    # Not by ``mmap`` of Python, which duplicates the descriptor, and whose address ctypes gets for writable maps only.
    address = _libc.mmap(None, len(part), mmap.PROT_READ, mmap.MAP_SHARED, descriptor, part.start)
    if address == _MAP_FAILED:
        raise OSError(ctypes.get_errno(), "mmap")
    try:
        pages = ctypes.create_string_buffer(-(-len(part) // mmap.PAGESIZE))
        if _libc.mincore(address, len(part), pages):
            raise OSError(ctypes.get_errno(), "mincore")
    finally:
        _libc.munmap(address, len(part))
    # Only the lowest bit of each byte has a meaning.
    return min(len(part), sum(byte & 1 for byte in pages.raw) * mmap.PAGESIZE)
