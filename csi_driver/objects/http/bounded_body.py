"""Bodies of responses, read with a bound on what they become: a page of 597 KiB may decompress to 1.2 GB.

urllib3 decompresses each piece it received completely, however large the result. Here the decompressor is told how much
may come out.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from csi_driver.model.errors import BudgetExceeded, StoreProtocolError, TransientStoreError

if TYPE_CHECKING:
    from urllib3.response import BaseHTTPResponse

_PIECE_BYTES = 64 << 10
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS

LONGEST_S = 60.0
"""For one body. The time-out of a connection bounds each wait for a byte; a store that sends a byte from time to time
would never reach it."""


def read_body(response: BaseHTTPResponse, most_bytes: int, name: str) -> bytes:
    """The complete body, decompressed. Raises BudgetExceeded if it is longer, TransientStoreError after ``LONGEST_S``,
    StoreProtocolError for a compression that was not asked for and is not known, and urllib3's errors."""
    return _joined(_decompressed(response, most_bytes + 1, name), most_bytes, name)


def read_raw(response: BaseHTTPResponse, most_bytes: int, name: str) -> bytes:
    """The complete body as it was sent. Raises as ``read_body``."""
    return _joined(_pieces(response, name), most_bytes, name)


def _joined(pieces: Iterator[bytes], most_bytes: int, name: str) -> bytes:
    parts, length_bytes = [], 0
    for piece in pieces:
        parts.append(piece)
        length_bytes += len(piece)
        if length_bytes > most_bytes:
            raise BudgetExceeded(
                f"{name}: the store sent an answer of more than {most_bytes} bytes, the most that is read"
            )
    return b"".join(parts)


def read_start(response: BaseHTTPResponse, most_bytes: int) -> bytes:
    """The body up to ``most_bytes``. Raises as ``read_body``, except for BudgetExceeded."""
    start = b""
    for piece in _decompressed(response, most_bytes, ""):
        start += piece
        if len(start) >= most_bytes:
            break
    return start[:most_bytes]


def _decompressed(response: BaseHTTPResponse, most_bytes: int, name: str) -> Iterator[bytes]:
    """Pieces of at most ``_PIECE_BYTES``; after ``most_bytes`` no more are needed."""
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding == "identity":
        yield from _pieces(response, name)
        return
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise StoreProtocolError(
            f"{name}: the store compressed its answer ({encoding[:40]!r}), which was not requested"
        )
    decompressor = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        for piece in _pieces(response, name):
            while piece:
                yield decompressor.decompress(piece, _PIECE_BYTES)
                piece = decompressor.unconsumed_tail
    except zlib.error:
        raise StoreProtocolError(f"{name}: the store sent an answer that cannot be decompressed") from None


def _pieces(response: BaseHTTPResponse, name: str) -> Iterator[bytes]:
    ends_s = time.monotonic() + LONGEST_S
    while piece := response.read1(_PIECE_BYTES, decode_content=False):
        yield piece
        if time.monotonic() > ends_s:
            raise TransientStoreError(f"{name}: the store did not send its answer completely within {LONGEST_S:g} s")
