"""The header of a ``.npy`` file of bytes, from the size of the file."""

from __future__ import annotations

import io

import numpy

HEADER_BYTES = 128
"""numpy pads the header so that the data is aligned to 64 bytes; 128 are enough for one dimension."""


def header(file_bytes: int) -> bytes:
    """The header of a file of ``file_bytes`` that holds one array of uint8."""
    described = {"descr": "|u1", "fortran_order": False, "shape": (file_bytes - HEADER_BYTES,)}
    buffer = io.BytesIO()
    numpy.lib.format.write_array_header_1_0(buffer, described)
    return buffer.getvalue()
