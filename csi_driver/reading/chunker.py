"""Turns the bytes of a response, as they are received, into chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import crc32c

from csi_driver.model.chunk import CHUNK_BYTES, chunk_range


class ReceivedChunk(NamedTuple):
    """A complete chunk: its number, its bytes and its CRC32C."""

    number: int
    parts: list[memoryview]
    checksum: int


def into_chunks(chunks: range, size_bytes: int, pieces: Iterable[memoryview]) -> Iterator[ReceivedChunk]:
    """Cuts the bytes of neighbouring chunks, as they are received, into chunks, uncopied."""
    chunk = chunks.start
    missing_bytes = len(chunk_range(chunk, size_bytes))
    parts: list[memoryview] = []
    checksum = 0
    for piece in pieces:
        rest = piece
        while len(rest):
            part = rest[:missing_bytes]
            checksum = crc32c.crc32c(part, checksum)
            parts.append(part)
            missing_bytes -= len(part)
            rest = rest[len(part) :]
            if missing_bytes == 0:
                yield ReceivedChunk(chunk, parts, checksum)
                chunk += 1
                parts, checksum = [], 0
                missing_bytes = len(chunk_range(chunk, size_bytes)) if chunk < chunks.stop else CHUNK_BYTES


def counted(pieces: Iterable[memoryview], count_received: Callable[[int], None]) -> Iterator[memoryview]:
    """Counts each piece before it is passed on."""
    for piece in pieces:
        count_received(len(piece))
        yield piece
