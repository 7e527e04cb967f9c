"""Objects of a store, and the identity of their cached bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from csi_driver.model.entity_tags import is_strong

TIME_UNKNOWN_NS = 0
"""The modification time of an object for which the store says none that can be read."""
SIZE_UNKNOWN = -1
"""In a listing: the size of an object for which the store says none that can be read. It is left out."""
MOST_TIME_NS = (1 << 63) - 1
"""In the year 2262; the earliest time is as far before 1970. Manifests and stat(2) have 64 bits."""


def representable_ns(time_ns: int) -> int:
    """The time, or the nearest that can be represented."""
    return max(-MOST_TIME_NS, min(time_ns, MOST_TIME_NS))


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object version. ``key`` is the complete key in the bucket (for a file store: the path below its root), with
    bytes that are not UTF-8 as surrogate escapes. ``etag`` is as in ``entity_tags.py``."""

    key: str
    size_bytes: int
    etag: str | None
    mtime_ns: int


class VersionedKey(str):
    """A key with the id that its store gave to one version of the object. It is its key everywhere but in a request,
    which then names that version, also when the bucket shows another one by now."""

    __slots__ = ("version_id",)

    version_id: str

    def __new__(cls, key: str, version_id: str) -> VersionedKey:
        made = super().__new__(cls, key)
        made.version_id = version_id
        return made


def version_id_of(key: str | None) -> str | None:
    """The version that a request for the key has to name; None: the one that the bucket shows."""
    return key.version_id if isinstance(key, VersionedKey) else None


@dataclass(frozen=True, slots=True)
class ObjectPage:
    """A page of a listing, by column: four sequences of the same length. Columns, because a dataset may have ten
    million objects and one Python object for each would be most of the cost of listing it."""

    keys: Sequence[str]
    sizes_bytes: Sequence[int]
    etags: Sequence[str | None]
    mtimes_ns: Sequence[int]
    unreadable: Sequence[str] = ()
    """Keys that the store names and does not describe. They are reported, and not shown."""
    archived: Collection[str] = ()
    """Keys of the page that lie in an archive of the store and cannot be read before they are restored."""

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True, slots=True)
class VersionPage:
    """A page of a listing of all versions that a bucket keeps, also of objects that were overwritten or deleted.
    Deletion marks are not in it."""

    objects: ObjectPage
    version_ids: Sequence[str]
    """For each object. ``NO_VERSION``: it was written while the bucket kept no versions."""


NO_VERSION = "null"
"""S3's id of a version that the next write may replace."""


@dataclass(frozen=True, slots=True)
class ObjectVersion:
    """The identity of cached bytes: access domain, origin and version. ``mtime_ns`` is part of it only without a strong
    ETag, where the same size and ETag may be other bytes."""

    access_domain: str
    endpoint: str
    bucket: str
    key: str
    etag: str | None
    size_bytes: int
    mtime_ns: int = 0
    _digest: tuple[int, str] | None = field(default=None, init=False, repr=False, compare=False)

    def digest(self, chunk_bytes: int) -> str:
        """Name of the object file: 40 hexadecimal digits. Cached, because a cold open needs it five times."""
        known = self._digest
        if known is None or known[0] != chunk_bytes:
            scope = _scope(self.access_domain, self.endpoint, self.bucket, chunk_bytes)
            known = chunk_bytes, scope.digest(self.key, self.etag, self.size_bytes, self.mtime_ns)
            # On a frozen instance. Two threads may both compute it, with the same result.
            object.__setattr__(self, "_digest", known)
        return known[1]

    @property
    def has_strong_etag(self) -> bool:
        return is_strong(self.etag)


class CacheScope:
    """The part of the identity that is common to all objects of a volume. It is hashed once, so that naming a million
    object files takes 0.7 microseconds a name instead of 3 by an ``ObjectVersion`` for each."""

    __slots__ = ("_common", "_end")

    def __init__(self, access_domain: str, endpoint: str, bucket: str, chunk_bytes: int) -> None:
        text = "".join(map(_prefixed, (access_domain, endpoint, bucket)))
        self._common = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=20)
        self._end = _prefixed(str(chunk_bytes))

    def digest(self, key: str, etag: str | None, size_bytes: int, mtime_ns: int = 0) -> str:
        """The same as ``ObjectVersion.digest``. Parts are length-prefixed, so that two identities never give the same
        text."""
        etag, size = etag or "", str(size_bytes)
        text = f"{len(key)}:{key},{len(etag)}:{etag},{len(size)}:{size},{self._end}"
        if not etag or etag[:2] == "W/":  # as ``is_strong``: a call would be a tenth of the cost of a name
            text += _prefixed(str(mtime_ns))
        digest = self._common.copy()
        digest.update(text.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


@lru_cache(maxsize=64)
def _scope(access_domain: str, endpoint: str, bucket: str, chunk_bytes: int) -> CacheScope:
    """Of a volume, made once: a third of the cost of a name otherwise."""
    return CacheScope(access_domain, endpoint, bucket, chunk_bytes)


def _prefixed(part: str) -> str:
    return f"{len(part)}:{part},"
