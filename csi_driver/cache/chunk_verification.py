"""Checks the bytes of object files against their CRCs."""

from __future__ import annotations

import crc32c

from csi_driver.cache.chunk_map import ChunkMap
from csi_driver.cache.disk import Disk
from csi_driver.model.chunk import CHUNK_BYTES, chunk_count, chunk_range


def bad_chunks(disk: Disk, descriptor: int, chunks: ChunkMap, size_bytes: int) -> list[int]:
    """The chunks that are marked present but do not match their CRC. Reads all present chunks: blocks on the disk.

    Raises CacheDiskFailed if the disk cannot be read.
    """
    buffer = memoryview(bytearray(CHUNK_BYTES))
    bad = []
    for chunk, is_present in enumerate(chunks.present):
        if not is_present:
            continue
        byte_range = chunk_range(chunk, size_bytes)
        view = buffer[: len(byte_range)]
        count = disk.read("chunk.verify", descriptor, [view], byte_range.start)
        if count != len(byte_range) or crc32c.crc32c(view) != chunks.checksums[chunk]:
            bad.append(chunk)
    return bad


def checksums_of_file(disk: Disk, descriptor: int, size_bytes: int) -> ChunkMap:
    """The map of a file that is known to be complete. Reads all of it. Raises CacheDiskFailed."""
    buffer = memoryview(bytearray(CHUNK_BYTES))
    chunks = ChunkMap(chunk_count(size_bytes))
    for chunk in range(chunk_count(size_bytes)):
        byte_range = chunk_range(chunk, size_bytes)
        view = buffer[: len(byte_range)]
        disk.read("chunk.verify", descriptor, [view], byte_range.start)
        chunks.add(chunk, crc32c.crc32c(view))
    return chunks
