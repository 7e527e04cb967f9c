"""Bytes from a seed: as good as random, so that nothing compresses them, and any range of any file again at any time.

Every file has a stream of its own, PCG64 seeded with the dataset's seed and the file's path. PCG64 can jump ahead, so
that a range in the middle costs no more than its own length: 16 µs for 16 KiB, seeding included; 2.6 GB/s for long
ones, measured on one core.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy

PIECE_BYTES = 4 << 20
"""How much of a file is made at once."""
_WORD_BYTES = 8


def content(seed: int, path: str, start: int, stop: int) -> memoryview:
    """The bytes ``start`` to ``stop`` (exclusive) of the stream of ``path``."""
    key = int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "little")
    generator = numpy.random.PCG64(numpy.random.SeedSequence([seed, key]))
    first = start // _WORD_BYTES
    generator.advance(first)
    words = generator.random_raw(-(-stop // _WORD_BYTES) - first)
    return memoryview(words.data).cast("B")[start - first * _WORD_BYTES : stop - first * _WORD_BYTES]


def pieces(seed: int, path: str, size_bytes: int) -> Iterator[memoryview]:
    """The whole stream up to ``size_bytes``, piece by piece."""
    for start in range(0, size_bytes, PIECE_BYTES):
        yield content(seed, path, start, min(start + PIECE_BYTES, size_bytes))


def varied_sizes(seed: int, name: str, count: int, mean_bytes: float, sigma_bytes: float, least: int) -> list[int]:
    """Sizes of files, normally distributed, and at least ``least``."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    drawn = numpy.random.default_rng([seed, key]).normal(mean_bytes, sigma_bytes, count)
    return [max(least, round(value)) for value in drawn.tolist()]
