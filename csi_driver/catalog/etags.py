"""ETags in few bytes: an MD5, which most are, in 17 bytes instead of 32 characters.

The first byte tells the form: 0x00 and 16 bytes of an MD5; 0x01, 16 bytes, and the text after them (an S3 multipart
ETag, ``<md5>-12``); 0x02 and any other text. Nothing at all: the store gave no ETag.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_MD5 = re.compile(r"[0-9a-f]{32}")
_MD5_DIGITS = 32
_HEX = re.compile(r"[0-9a-f]*")


def encode_etags(etags: Sequence[str | None]) -> list[bytes]:
    """One encoded value for each. A page of plain MD5s takes one conversion."""
    texts = [etag or "" for etag in etags]
    if set(map(len, texts)) == {_MD5_DIGITS} and _HEX.fullmatch("".join(texts)):
        packed = bytes.fromhex("00" + "00".join(texts))
        return [packed[start : start + 17] for start in range(0, len(packed), 17)]
    return [encode_etag(text) for text in texts]


def encode_etag(etag: str) -> bytes:
    """See the module. An empty ETag is none."""
    if not etag:
        return b""
    if _MD5.match(etag):
        packed, rest = bytes.fromhex(etag[:_MD5_DIGITS]), etag[_MD5_DIGITS:]
        return b"\1" + packed + rest.encode("utf-8", "surrogateescape") if rest else b"\0" + packed
    return b"\2" + etag.encode("utf-8", "surrogateescape")


def decode_etag(packed: bytes) -> str | None:
    """The text that was encoded, or None."""
    if not packed:
        return None
    if packed[0] == 2:
        return packed[1:].decode("utf-8", "surrogateescape")
    return packed[1:17].hex() + packed[17:].decode("utf-8", "surrogateescape")
