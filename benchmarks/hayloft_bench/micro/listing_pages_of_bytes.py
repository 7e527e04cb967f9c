"""The pages of a synthetic listing as bytes: made from one template of a thousand entries, in a few passes in C.

A page that is formatted entry by entry costs its server as much processor time as the driver takes to read it, and on a
machine of few cores the server would be measured. Here a page costs about a tenth of a millisecond.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right

from hayloft_bench.micro.synthetic_listing import FILES_PER_CLASS, PAGE_OBJECTS, PREFIX, key_of, size_of

_PARTS = 7
_HEAD = (
    f'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    f"<Name>scale</Name><Prefix>{PREFIX}</Prefix><MaxKeys>{PAGE_OBJECTS}</MaxKeys><EncodingType>url</EncodingType>"
)


class PagesOfBytes:
    """Of a bucket with ``objects`` keys. The key of a number is that of ``key_of``; its ETag is another one than
    ``etag_of``, and as long."""

    def __init__(self, objects: int, layout: str) -> None:
        self._objects, self._layout = objects, layout
        self._parts = [part for number in range(PAGE_OBJECTS) for part in self._entry(number)]
        """Of each of a thousand entries ``_PARTS``: three of them are replaced in a page."""

    def _entry(self, number: int) -> list[bytes]:
        """Of the objects whose number ends in these three digits."""
        before, _, after = key_of(number, self._layout).encode().partition(b"%010d" % number)
        folder, _, before = before.rpartition(b"n00000000")
        digest = hashlib.md5(b"%d" % number, usedforsecurity=False).hexdigest()[:25].encode()
        return [
            b"<Contents><Key>" + folder,
            b"",  # the class
            before,
            b"",  # the thousands of the number
            b"%03d%s</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified><ETag>&quot;%s"
            % (number, after, digest),
            b"",  # the thousands of the number
            b"&quot;</ETag><Size>%d</Size><StorageClass>STANDARD</StorageClass></Contents>" % size_of(number),
        ]

    def first_after(self, key: str) -> int:
        """The number of the first object whose key is above this one."""
        return bisect_right(range(self._objects), key, key=lambda number: key_of(number, self._layout))

    def page(self, start: int) -> bytes:
        """The answer to ListObjectsV2 for the objects from ``start`` on; the token is the number of the next one."""
        stop = min(start + PAGE_OBJECTS, self._objects)
        more = b"<IsTruncated>false</IsTruncated>"
        if stop < self._objects:
            more = b"<IsTruncated>true</IsTruncated><NextContinuationToken>%d</NextContinuationToken>" % stop
        count = b"<KeyCount>%d</KeyCount>" % (stop - start)
        return b"".join((_HEAD.encode(), count, more, *self._pieces(start, stop), b"</ListBucketResult>"))

    def _pieces(self, start: int, stop: int) -> list[bytes]:
        """Cut where the thousands or the class of the numbers change."""
        pieces = []
        while start < stop:
            block, first = divmod(start, PAGE_OBJECTS)
            own_class = start // FILES_PER_CLASS
            end = min(stop, (block + 1) * PAGE_OBJECTS, (own_class + 1) * FILES_PER_CLASS)
            parts = self._parts[first * _PARTS : (first + end - start) * _PARTS]
            if self._layout != "flat":
                parts[1::_PARTS] = [b"n%08d" % own_class] * (end - start)
            parts[3::_PARTS] = parts[5::_PARTS] = [b"%07d" % block] * (end - start)
            pieces.append(b"".join(parts))
            start = end
        return pieces
