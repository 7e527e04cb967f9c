"""An object store for tests of ``reading``: objects in memory, recorded requests, and a gate that blocks responses."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from functools import lru_cache

from csi_driver.model.chunk import ByteRange
from csi_driver.model.errors import HayloftError, ObjectChanged, ObjectNotFound
from csi_driver.model.snapshot import ObjectInfo, ObjectPage, ObjectVersion


@lru_cache(maxsize=16)
def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


class ScriptedStore:
    """Each piece of a response, of ``piece_bytes``, waits for ``gate``."""

    endpoint = "test://store"
    bucket = "bucket"

    def __init__(self, objects: dict[str, bytes], piece_bytes: int = 300_000) -> None:
        self.objects = dict(objects)
        self.piece_bytes = piece_bytes
        self.requests: list[tuple[str, ByteRange]] = []
        self.failures: list[HayloftError] = []
        self.gate = threading.Event()
        self.gate.set()

    def etag(self, key: str) -> str:
        return _md5(self.objects[key])

    def version(self, key: str, domain: str = "d") -> ObjectVersion:
        return ObjectVersion(domain, self.endpoint, self.bucket, key, self.etag(key), len(self.objects[key]))

    def list(self, prefix: str) -> Iterator[ObjectPage]:
        keys = [key for key in self.objects if key.startswith(prefix)]
        if keys:
            sizes = [len(self.objects[key]) for key in keys]
            yield ObjectPage(keys, sizes, [self.etag(key) for key in keys], [0] * len(keys))

    def stat(self, key: str) -> ObjectInfo:
        if key not in self.objects:
            raise ObjectNotFound(key)
        return ObjectInfo(key, len(self.objects[key]), self.etag(key), 0)

    def read_range(self, key: str, byte_range: ByteRange, *, if_match: str | None) -> Iterator[memoryview]:
        self.requests.append((key, byte_range))
        if self.failures:
            raise self.failures.pop(0)
        if if_match is not None and if_match != self.etag(key):
            raise ObjectChanged(key)
        data = memoryview(self.objects[key])
        for start in range(byte_range.start, byte_range.stop, self.piece_bytes):
            assert self.gate.wait(20)
            yield data[start : min(start + self.piece_bytes, byte_range.stop)]

    def close(self) -> None:
        return

    @property
    def bytes_sent(self) -> int:
        return sum(len(byte_range) for _, byte_range in self.requests)
