"""Byte ranges and the fixed chunks that an object is divided into."""

from __future__ import annotations

from dataclasses import dataclass

CHUNK_BYTES = 1 << 20
"""Size of a chunk: the unit that is cached and that has a CRC. 1 MiB is the largest FUSE read, so that a
sequential read of the kernel touches exactly one chunk."""


OBJECT_FILE_MODE = 0o444
"""Mode of every object file: readable for all, because hard links to it in pods of any user share its mode."""


@dataclass(frozen=True, slots=True, order=True)
class ByteRange:
    """Half-open range of bytes [start, stop)."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop:
            raise ValueError(f"not a byte range: [{self.start}, {self.stop})")

    def __len__(self) -> int:
        return self.stop - self.start


def chunk_count(size_bytes: int) -> int:
    """Number of chunks of an object; 0 for an empty one."""
    return -(-size_bytes // CHUNK_BYTES)


def chunk_range(chunk: int, size_bytes: int) -> ByteRange:
    """The last chunk of an object is shorter."""
    start = chunk * CHUNK_BYTES
    return ByteRange(start, min(start + CHUNK_BYTES, size_bytes))


def chunks_of(byte_range: ByteRange) -> range:
    """Numbers of the chunks that the range touches; empty for an empty range."""
    if byte_range.start == byte_range.stop:
        return range(0)
    return range(byte_range.start // CHUNK_BYTES, (byte_range.stop - 1) // CHUNK_BYTES + 1)
