"""From the bytes of a request, as they come, to chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import crc32c

from csi_driver.model.chunk import CHUNK_BYTES, chunk_range


def assemble(
    chunks: range, size_bytes: int, pieces: Iterable[memoryview]
) -> Iterator[tuple[int, list[memoryview], int]]:
    """Cuts the bytes of neighbouring chunks, as they come, into (chunk, its parts, its CRC32C). Nothing is copied."""
    chunk = chunks.start
    room = len(chunk_range(chunk, size_bytes))
    parts: list[memoryview] = []
    checksum = 0
    for piece in pieces:
        rest = piece
        while len(rest):
            part = rest[:room]
            checksum = crc32c.crc32c(part, checksum)
            parts.append(part)
            room -= len(part)
            rest = rest[len(part) :]
            if room == 0:
                yield chunk, parts, checksum
                chunk += 1
                parts, checksum = [], 0
                room = len(chunk_range(chunk, size_bytes)) if chunk < chunks.stop else CHUNK_BYTES


def counted(pieces: Iterable[memoryview], received: Callable[[int], None]) -> Iterator[memoryview]:
    """The pieces, each told of before it is passed on."""
    for piece in pieces:
        received(len(piece))
        yield piece
