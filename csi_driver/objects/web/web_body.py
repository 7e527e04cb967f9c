"""The body of a response, read piece by piece from the start of a range on."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import urllib3

from csi_driver.model.chunk import ByteRange
from csi_driver.model.errors import ObjectChanged, StoreProtocolError, TransientStoreError
from csi_driver.objects.error_mapping import from_urllib3
from csi_driver.objects.web.index_pages import size_of
from csi_driver.objects.web.web_urls import WebLocation

if TYPE_CHECKING:
    from urllib3.response import BaseHTTPResponse

PIECE_BYTES = 512 << 10
_LEAST_SKIPPED_BYTES = 1 << 20
"""Within the time-out of a request: a server that sends a byte now and then would hold a reader for ever, since nothing
that is skipped reaches it."""
_GATHERED_BYTES, _GATHERING_S = 64 << 10, 0.05
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS


class WebBody:
    """Used by one thread at a time. ``position`` is that of the object's next byte."""

    def __init__(
        self,
        location: WebLocation,
        key: str,
        response: BaseHTTPResponse,
        position: int,
        *,
        is_whole: bool,
        timeout_s: float = 0.0,
    ) -> None:
        """``is_whole``: the server sends the object to its end, also what was not requested. Owns the response. Raises
        StoreProtocolError for a compression that is not known."""
        self._location, self._key, self._response = location, key, response
        self.position, self.is_whole = position, is_whole
        self._timeout_s = timeout_s
        self._left = memoryview(b"")
        """Of the last piece."""
        self._failure: urllib3.exceptions.HTTPError | None = None
        """Of the response, after the bytes that were received before."""
        self._length_bytes = size_of(response.headers.get("Content-Length"))
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        # With a length, a server sends what it has stored. Without one it compressed it on the way, unasked.
        self._decompressor = None
        if self._length_bytes is None and encoding != "identity":
            if encoding not in ("gzip", "x-gzip", "deflate") or not is_whole:
                raise StoreProtocolError(f"{self._name}: the server compressed a part of the object, unasked")
            self._decompressor = zlib.decompressobj(_GZIP_OR_ZLIB)

    @property
    def _name(self) -> str:
        return self._location.name(self._key)

    def pieces(self, byte_range: ByteRange) -> Iterator[memoryview]:
        """The bytes of the range, which begins at ``position`` or after it. Blocks. Raises ObjectChanged if the object
        ends within the range, StoreProtocolError, TransientStoreError."""
        self._skip_to(byte_range.start)
        while self.position < byte_range.stop:
            piece = self._next(byte_range.stop)
            excess = self.position + len(piece) - byte_range.stop
            if excess > 0:
                if not self.is_whole:
                    raise StoreProtocolError(f"{self._name}: the store sent more bytes than requested")
                self._left = piece[len(piece) - excess :]
                piece = piece[: len(piece) - excess]
            self.position += len(piece)
            yield piece

    def _skip_to(self, start: int) -> None:
        ends_s, skipped = time.monotonic() + self._timeout_s, 0
        while self.position < start:
            piece = self._next(start)
            used = min(len(piece), start - self.position)
            self._left = piece[used:]
            self.position, skipped = self.position + used, skipped + used
            if time.monotonic() > ends_s:
                if skipped < _LEAST_SKIPPED_BYTES:
                    raise TransientStoreError(f"{self._name}: the server sends too slowly to reach the range")
                ends_s, skipped = time.monotonic() + self._timeout_s, 0

    def _next(self, stop: int) -> memoryview:
        """At least one byte."""
        if self._left:
            left, self._left = self._left, memoryview(b"")
            return left
        try:
            piece = self._received(PIECE_BYTES if self.is_whole else min(PIECE_BYTES, stop - self.position))
        except urllib3.exceptions.HTTPError as error:
            raise from_urllib3(error, self._location, self._key) from None
        except zlib.error:
            raise StoreProtocolError(f"{self._name}: the server sent an answer that cannot be decompressed") from None
        if not piece:
            raise self._too_short(stop)
        return memoryview(piece)

    def _received(self, most_bytes: int) -> bytes:
        if self._decompressor is None:
            return self._gathered(most_bytes)
        while True:
            compressed = self._decompressor.unconsumed_tail or self._gathered(PIECE_BYTES)
            piece = self._decompressor.decompress(compressed, most_bytes)
            if piece or not compressed:
                return piece

    def _gathered(self, most_bytes: int) -> bytes:
        """What is received within a moment; or else a server that sends byte by byte would cost a step for each. What
        was received before a failure is given first."""
        parts, received = [], 0
        ends_s = time.monotonic() + _GATHERING_S
        try:
            if self._failure is not None:
                raise self._failure
            while received < min(most_bytes, _GATHERED_BYTES):
                part = self._response.read1(most_bytes - received, decode_content=False)
                parts.append(part)
                received += len(part)
                if not part or time.monotonic() > ends_s:
                    break
        except urllib3.exceptions.HTTPError as error:
            if not received:
                raise
            self._failure = error
        return b"".join(parts)

    def _too_short(self, stop: int) -> ObjectChanged | TransientStoreError:
        """urllib3 reports a body that breaks off, where its end is known: so a complete object ends here."""
        has_end = self._length_bytes is not None or "Transfer-Encoding" in self._response.headers
        if self.is_whole and has_end:
            return ObjectChanged(f"{self._name} is shorter than when it was listed; make a new snapshot")
        return TransientStoreError(f"{self._name}: bytes are missing at the end")

    @property
    def is_exhausted(self) -> bool:
        """Whether all that the server sends was received and used."""
        return not self._left and self._response.length_remaining == 0

    def close(self) -> None:
        """Keeps the connection if it can be used for another request."""
        if self.is_exhausted:
            self._response.release_conn()
        else:
            self._response.close()
