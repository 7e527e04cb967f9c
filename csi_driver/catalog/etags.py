"""Compact encoding of ETags: an MD5, the most frequent form, takes 17 bytes instead of 32 characters.

The first byte is the form. 0x00: 16 bytes of an MD5. 0x01: 16 bytes, and the text after them (an S3 multipart ETag,
``<md5>-12``). 0x02: any other text. An empty value: the store sent no ETag.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from csi_driver.catalog.key_names import is_text

_MD5 = re.compile(r"[0-9a-f]{32}")
_MD5_DIGITS = 32
WEAK_ETAG = b"\2W/"
"""How an encoded weak ETag begins."""
_HEX = re.compile(r"[0-9a-f]*")


def encode_etags(etags: Sequence[str | None]) -> list[bytes]:
    """One encoded value for each. A page of plain MD5s takes one conversion."""
    texts = [etag or "" for etag in etags]
    if set(map(len, texts)) == {_MD5_DIGITS} and _HEX.fullmatch("".join(texts)):
        packed = bytes.fromhex("00" + "00".join(texts))
        return [packed[start : start + 17] for start in range(0, len(packed), 17)]
    return [encode_etag(text) for text in texts]


def encode_etag(etag: str) -> bytes:
    """An empty ETag is encoded as a missing one, and so is one that is not valid text."""
    if not etag or not is_text(etag):
        return b""
    if _MD5.match(etag):
        packed, rest = bytes.fromhex(etag[:_MD5_DIGITS]), etag[_MD5_DIGITS:]
        return b"\1" + packed + rest.encode("utf-8", "surrogateescape") if rest else b"\0" + packed
    return b"\2" + etag.encode("utf-8", "surrogateescape")


def decode_etag(packed: bytes) -> str | None:
    """None for a missing ETag."""
    if not packed:
        return None
    if packed[0] == 2:
        return packed[1:].decode("utf-8", "surrogateescape")
    return packed[1:17].hex() + packed[17:].decode("utf-8", "surrogateescape")
