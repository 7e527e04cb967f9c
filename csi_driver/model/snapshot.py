"""Objects of a store, and the identity of their cached bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object version. ``key`` is the complete key in the bucket (for a file store: the path below its root), with
    bytes that are not UTF-8 as surrogate escapes. ``etag`` is as the store sends it, without quotes."""

    key: str
    size_bytes: int
    etag: str | None
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class ObjectPage:
    """A page of a listing, by column: four sequences of the same length. Columns, because a dataset may have ten
    million objects and one Python object for each would be most of the cost of listing it."""

    keys: Sequence[str]
    sizes_bytes: Sequence[int]
    etags: Sequence[str | None]
    mtimes_ns: Sequence[int]

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True, slots=True)
class ObjectVersion:
    """The identity of cached bytes: access domain, origin and version."""

    access_domain: str
    endpoint: str
    bucket: str
    key: str
    etag: str | None
    size_bytes: int
    _digest: tuple[int, str] | None = field(default=None, init=False, repr=False, compare=False)

    def digest(self, chunk_bytes: int) -> str:
        """Name of the object file: 40 hexadecimal digits. Cached, because a cold open needs it five times."""
        known = self._digest
        if known is None or known[0] != chunk_bytes:
            scope = CacheScope(self.access_domain, self.endpoint, self.bucket, chunk_bytes)
            known = chunk_bytes, scope.digest(self.key, self.etag, self.size_bytes)
            # On a frozen instance. Two threads may both compute it, with the same result.
            object.__setattr__(self, "_digest", known)
        return known[1]


class CacheScope:
    """The part of the identity that is common to all objects of a volume. It is hashed once, so that naming a million
    object files takes 0.7 microseconds a name instead of 3 by an ``ObjectVersion`` for each."""

    __slots__ = ("_common", "_end")

    def __init__(self, access_domain: str, endpoint: str, bucket: str, chunk_bytes: int) -> None:
        text = "".join(map(_prefixed, (access_domain, endpoint, bucket)))
        self._common = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=20)
        self._end = _prefixed(str(chunk_bytes))

    def digest(self, key: str, etag: str | None, size_bytes: int) -> str:
        """The same as ``ObjectVersion.digest``. Parts are length-prefixed, so that two identities never give the same
        text."""
        etag, size = etag or "", str(size_bytes)
        text = f"{len(key)}:{key},{len(etag)}:{etag},{len(size)}:{size},{self._end}"
        digest = self._common.copy()
        digest.update(text.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def _prefixed(part: str) -> str:
    return f"{len(part)}:{part},"
