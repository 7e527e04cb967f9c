"""The header of a safetensors file: eight bytes with the length of a JSON text, then the text, which gives the place of
each tensor in the data that follows."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import NamedTuple

LENGTH_BYTES = 8
_ALIGNMENT = 8


class Tensor(NamedTuple):
    """The place of a tensor in its file, in bytes."""

    name: str
    start: int
    stop: int


def header(tensors: Sequence[tuple[str, Sequence[int], int]]) -> bytes:
    """The header for float16 tensors (name, shape, bytes) in sequence."""
    described, start = {}, 0
    for name, shape, size_bytes in tensors:
        described[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, start + size_bytes]}
        start += size_bytes
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def header_bytes(head: bytes | memoryview) -> int:
    """The length of the complete header, from the first eight bytes of a file."""
    return LENGTH_BYTES + int(struct.unpack("<Q", head[:LENGTH_BYTES])[0])


def tensors(head: bytes | memoryview) -> list[Tensor]:
    """From a complete header, in the order of their places in the file."""
    described = json.loads(bytes(head[LENGTH_BYTES:]))
    described.pop("__metadata__", None)
    base = len(head)
    found = [Tensor(name, *(base + offset for offset in value["data_offsets"])) for name, value in described.items()]
    return sorted(found, key=lambda tensor: tensor.start)
