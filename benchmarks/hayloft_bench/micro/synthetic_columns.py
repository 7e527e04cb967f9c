"""The same synthetic dataset as ``synthetic_listing.py``, a million objects at a time as Arrow columns.

Formatted one by one, a hundred million keys and ETags take longer to make than to import.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from hayloft_bench.micro.synthetic_listing import FILES_PER_CLASS, key_of

_MULTIPLIER = 0x9E3779B97F4A7C15F39CC0605CEDC835
_LIMB = 1 << 32
_HEX = np.frombuffer(bytes(range(256)).hex().encode(), np.uint8).reshape(256, 2)


def keys_of(numbers: Any) -> Any:
    """As ``key_of`` with the layout ``classes``, of an array of numbers."""
    template = np.frombuffer(key_of(0, "classes").encode(), np.uint8)
    text = np.tile(template, (len(numbers), 1))
    first = key_of(0, "classes").index("0" * 8)
    _write_digits(text[:, first : first + 8], numbers // FILES_PER_CLASS)
    second = key_of(0, "classes").index("0" * 10)
    _write_digits(text[:, second : second + 10], numbers)
    return _texts(text)


def sizes_of(numbers: Any) -> Any:
    """As ``size_of``."""
    return pa.array(80_000 + numbers * 31 % 60_000, pa.int64())


def etags_of(numbers: Any) -> Any:
    """As ``etag_of``: the product with a number of 128 bits, limb by limb."""
    limbs = np.zeros((len(numbers), 4), np.uint32)
    carry = np.zeros(len(numbers), np.uint64)
    for place in range(4):
        product = numbers.astype(np.uint64) * np.uint64(_MULTIPLIER >> (32 * place) & (_LIMB - 1)) + carry
        limbs[:, 3 - place] = product & np.uint64(_LIMB - 1)
        carry = product >> np.uint64(32)
    packed = limbs.astype(">u4").view(np.uint8).reshape(len(numbers), 16)
    return _texts(_HEX[packed].reshape(len(numbers), 32))


def _write_digits(columns: Any, numbers: Any) -> None:
    left = numbers.copy()
    for place in reversed(range(columns.shape[1])):
        left, digit = np.divmod(left, 10)
        columns[:, place] = digit + ord("0")


def _texts(characters: Any) -> Any:
    """A row of ASCII characters for each text."""
    count, width = characters.shape
    offsets = np.arange(0, (count + 1) * width, width, dtype=np.int32)
    data = np.ascontiguousarray(characters)
    return pa.Array.from_buffers(pa.string(), count, [None, pa.py_buffer(offsets), pa.py_buffer(data)])
