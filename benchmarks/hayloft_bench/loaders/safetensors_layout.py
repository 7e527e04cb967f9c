"""The head of a safetensors file: eight bytes with the length of a JSON text, and the text, which says where each
tensor lies behind it."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import NamedTuple

LENGTH_BYTES = 8
_ALIGNMENT = 8


class Tensor(NamedTuple):
    """Where a tensor lies in its file, in bytes."""

    name: str
    start: int
    stop: int


def header(tensors: Sequence[tuple[str, Sequence[int], int]]) -> bytes:
    """Of float16 tensors (name, shape, bytes), one behind the other."""
    described, start = {}, 0
    for name, shape, size_bytes in tensors:
        described[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, start + size_bytes]}
        start += size_bytes
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def header_bytes(head: bytes | memoryview) -> int:
    """The length of the whole header, from the first eight bytes of a file."""
    return LENGTH_BYTES + int(struct.unpack("<Q", head[:LENGTH_BYTES])[0])


def tensors(head: bytes | memoryview) -> list[Tensor]:
    """From a whole header, in the order in which they lie in the file."""
    described = json.loads(bytes(head[LENGTH_BYTES:]))
    described.pop("__metadata__", None)
    base = len(head)
    found = [Tensor(name, *(base + offset for offset in value["data_offsets"])) for name, value in described.items()]
    return sorted(found, key=lambda tensor: tensor.start)
