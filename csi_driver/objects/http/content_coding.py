"""Bytes of objects that come with a Content-Encoding.

Every request asks for the stored bytes. A store may keep ``Content-Encoding: gzip`` as a property of an object that was
uploaded compressed; then the header comes with the stored bytes, which are what was listed. A web server, or a proxy on
the way, may compress an answer on the fly although the request forbids it; then the stored bytes are those after
decompression. The length decides which of the two it is: that of the stored bytes is known.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from csi_driver.model.chunk import ByteRange
from csi_driver.model.errors import BudgetExceeded, StoreProtocolError, TransientStoreError
from csi_driver.objects.http.bounded_body import read_raw

if TYPE_CHECKING:
    from urllib3.response import BaseHTTPResponse

_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
_OVERHEAD_BYTES = 64 << 10
"""By which compressed bytes may be longer than the bytes themselves: 5 for each block of up to 64 KiB, and a header."""


def is_recoded(response: BaseHTTPResponse, expected_bytes: int) -> bool:
    """Whether the body may be something else than ``expected_bytes`` stored bytes, because of a Content-Encoding."""
    coding = response.headers.get("Content-Encoding", "identity").strip().lower()
    return coding != "identity" and response.headers.get("Content-Length", "").strip() != str(expected_bytes)


def stored_bytes(response: BaseHTTPResponse, requested: ByteRange, name: str) -> Iterator[memoryview]:
    """The stored bytes of ``requested``, in one piece, of a response for which ``is_recoded`` holds. Blocks; takes
    memory for the range twice. Raises StoreProtocolError if the body is not the range, TransientStoreError if it breaks
    off, and urllib3's errors."""
    size_bytes = len(requested)
    if response.status == 206 or requested.start == 0:
        try:
            raw = read_raw(response, size_bytes + size_bytes // 64 + _OVERHEAD_BYTES, name)
        except BudgetExceeded:
            raw = b""
        found = raw if len(raw) == size_bytes else _decompressed(raw, size_bytes, name)
        if found is not None:
            yield memoryview(found)
            return
    coding = response.headers["Content-Encoding"].strip()[:40]
    raise StoreProtocolError(
        f"{name}: the server encodes its answers ({coding!r}) although the stored bytes were requested, and the part "
        "that was requested is not in the answer; switch compression off for these objects, at the server or the proxy"
    )


def _decompressed(raw: bytes, size_bytes: int, name: str) -> bytes | None:
    """None: not compressed in a known way, or to another length. Raises TransientStoreError if the end is missing."""
    decompressor = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        decoded = decompressor.decompress(raw, size_bytes + 1)
    except zlib.error:
        return None
    if len(decoded) > size_bytes:
        return None
    if not decompressor.eof:
        raise TransientStoreError(f"{name}: the end of the compressed answer is missing")
    return decoded if len(decoded) == size_bytes else None
