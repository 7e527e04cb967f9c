"""The format of a ``.npy`` file of bytes: what is before the bytes, given the size of the file."""

from __future__ import annotations

import io

import numpy

HEADER_BYTES = 128
"""numpy pads the header so that the data is aligned to 64 bytes; 128 suffice for one dimension."""


def header(file_bytes: int) -> bytes:
    """Of a file of that size that holds one array of uint8."""
    described = {"descr": "|u1", "fortran_order": False, "shape": (file_bytes - HEADER_BYTES,)}
    buffer = io.BytesIO()
    numpy.lib.format.write_array_header_1_0(buffer, described)
    return buffer.getvalue()
