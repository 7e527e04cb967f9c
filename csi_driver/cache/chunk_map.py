"""Which chunks of an object are present, with a CRC32C each."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence

import crc32c

from csi_driver.model.chunk import CHUNK_BYTES, chunk_count
from csi_driver.model.errors import ManifestInvalid

_KEEP_INTERPRETER = 0
"""Passed to crc32c: do not release the interpreter's lock. A small object takes 10 microseconds; to release the lock
and get it back takes more."""


class ChunkMap:
    """One byte of presence and one CRC for each chunk. Not locked: the owner guards it.

    ``present[n]`` may be read without a lock: a chunk goes from absent to present once its bytes are in the file, and
    back only by ``ObjectFile.drop_chunks``, before the file is complete.
    """

    __slots__ = ("checksums", "missing_count", "present")

    def __init__(self, chunks: int) -> None:
        self.present = bytearray(chunks)
        self.checksums = array("I", bytes(4 * chunks))
        self.missing_count = chunks

    def add(self, chunk: int, checksum: int) -> None:
        """Marks a chunk present. Adding it again changes its checksum only."""
        self.checksums[chunk] = checksum
        if not self.present[chunk]:
            self.present[chunk] = 1
            self.missing_count -= 1

    def remove(self, chunk: int) -> None:
        """Marks a chunk missing, because its bytes are bad."""
        if self.present[chunk]:
            self.present[chunk] = 0
            self.missing_count += 1

    @property
    def complete(self) -> bool:
        return self.missing_count == 0

    def present_bytes(self, size_bytes: int) -> int:
        """Bytes of the chunks that are present, in an object of that size."""
        count = sum(self.present) * CHUNK_BYTES
        return count - (-size_bytes % CHUNK_BYTES if self.present and self.present[-1] else 0)

    def encode(self) -> bytes:
        """For the index: number of chunks, presence by bit, checksums of the chunks that are present."""
        bits = bytearray(-(-len(self.present) // 8))
        checksums = array("I")
        for chunk, is_present in enumerate(self.present):
            if is_present:
                bits[chunk >> 3] |= 1 << (chunk & 7)
                checksums.append(self.checksums[chunk])
        return struct.pack("<I", len(self.present)) + bytes(bits) + checksums.tobytes()

    @classmethod
    def decode(cls, data: bytes, size_bytes: int) -> ChunkMap:
        """Raises ManifestInvalid if the data cannot be the map of an object of that size."""
        chunks = chunk_count(size_bytes)
        bit_bytes = -(-chunks // 8)
        if len(data) < 4 + bit_bytes or struct.unpack_from("<I", data)[0] != chunks:
            raise ManifestInvalid("a chunk map does not fit its object")
        bits = data[4 : 4 + bit_bytes]
        found = [chunk for chunk in range(chunks) if bits[chunk >> 3] >> (chunk & 7) & 1]
        checksums = array("I")
        if len(data) != 4 + bit_bytes + 4 * len(found):
            raise ManifestInvalid("a chunk map does not fit its object")
        checksums.frombytes(data[4 + bit_bytes :])
        chunk_map = cls(chunks)
        for chunk, checksum in zip(found, checksums, strict=True):
            chunk_map.add(chunk, checksum)
        return chunk_map


def checksums_of_parts(parts: Sequence[memoryview], size_bytes: int) -> ChunkMap:
    """The map of a complete object, with its bytes in these parts."""
    chunks = ChunkMap(chunk_count(size_bytes))
    if len(parts) == 1 and 0 < size_bytes <= CHUNK_BYTES:  # nearly every small object
        chunks.add(0, crc32c.crc32c(parts[0], 0, _KEEP_INTERPRETER))
        return chunks
    chunk, filled, checksum = 0, 0, 0
    for part in parts:
        view = part
        while len(view):
            take = min(CHUNK_BYTES - filled, len(view))
            checksum = crc32c.crc32c(view[:take], checksum, _KEEP_INTERPRETER)
            filled += take
            view = view[take:]
            if filled == CHUNK_BYTES:
                chunks.add(chunk, checksum)
                chunk, filled, checksum = chunk + 1, 0, 0
    if filled:
        chunks.add(chunk, checksum)
    return chunks
