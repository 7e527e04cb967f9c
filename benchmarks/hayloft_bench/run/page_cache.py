"""Evicts named files from the page cache, and counts how much of them is in it."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

_MAP_FAILED = ctypes.c_void_p(-1).value


def write_out(directory: Path) -> None:
    """syncfs(2): blocks until the dirty pages of the directory's file system are on the disk. Once for all files,
    because fsync(2) of each file waits for the journal each time."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor):
            raise OSError(ctypes.get_errno(), f"syncfs: {directory}")
    finally:
        os.close(descriptor)


def evict(paths: Iterable[Path]) -> None:
    """Pages that are dirty or mapped stay in the cache: call ``write_out`` first."""
    for path in paths:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # a cache may have replaced or removed one of its files
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def cached_share(paths: Iterable[Path]) -> float:
    """Pages of the files that are in the page cache ÷ all of their pages, by mincore(2); 0 without pages."""
    resident, pages = 0, 0
    for path in paths:
        vector = _residency(path)
        pages += len(vector)
        # Only the lowest bit of each byte has a meaning.
        resident += sum(byte & 1 for byte in vector)
    return resident / pages if pages else 0.0


def _residency(path: Path) -> bytes:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size_bytes = os.fstat(descriptor).st_size
        if size_bytes == 0:
            return b""
        address = libc.mmap(None, size_bytes, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        if address == _MAP_FAILED:
            raise OSError(ctypes.get_errno(), f"mmap: {path}")
        vector = ctypes.create_string_buffer(-(-size_bytes // mmap.PAGESIZE))
        failed = libc.mincore(address, size_bytes, vector)
        libc.munmap(address, size_bytes)
        if failed:
            raise OSError(ctypes.get_errno(), f"mincore: {path}")
        return vector.raw
    finally:
        os.close(descriptor)
