"""Bytes from a seed: incompressible, and any range of any file can be computed again.

Every file has its own stream, PCG64 seeded with the dataset's seed and the file's path. PCG64 can jump ahead, so a
range in the middle costs no more than its own length.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy

PIECE_BYTES = 4 << 20
"""The part of a file that is generated at once."""
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
    """The stream up to ``size_bytes``, piece by piece."""
    for start in range(0, size_bytes, PIECE_BYTES):
        yield content(seed, path, start, min(start + PIECE_BYTES, size_bytes))


def varied_sizes(seed: int, name: str, count: int, mean_bytes: float, sigma_bytes: float, least: int) -> list[int]:
    """Sizes of files in bytes, normally distributed, at least ``least``."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    drawn = numpy.random.default_rng([seed, key]).normal(mean_bytes, sigma_bytes, count)
    return [max(least, round(value)) for value in drawn.tolist()]
