"""Stores read through obstore: ranges of S3, GCS, Azure and HTTP.

Its exceptions are never chained as a cause: their texts hold URLs, and a signed URL is a secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import obstore

from csi_driver.model.chunk import ByteRange
from csi_driver.model.errors import ObjectChanged, StoreProtocolError, TransientStoreError
from csi_driver.model.snapshot import ObjectInfo, ObjectPage
from csi_driver.objects.content_range import check_end
from csi_driver.objects.error_mapping import from_obstore
from csi_driver.objects.store_location import StoreLocation

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult, ObjectMeta
    from obstore.store import ObjectStore as Obstore

SINGLE_PIECE_BYTES = 1 << 20
"""Ranges up to this size are received in one piece: as fast as a stream, and one step less for the caller."""
PIECE_BYTES = 512 << 10
"""Least size of a piece of a longer range. Measured with 8 MiB ranges from a loopback server: 256 KiB to 1 MiB make
no difference in throughput (1.1 to 1.3 GB/s with 4 readers), 2 MiB costs a quarter of it, and the first bytes of a
smaller piece are available sooner. `get` and `get_range` are equally fast; only `get` can send If-Match."""
PAGE_KEYS = 1000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

# Keys that obstore does not change. It strips slashes at the ends and refuses control characters, empty parts, dots.
_TIDY = re.compile(r"(?!/)(?!.*//)(?!(?:.*/)?\.\.?(?:/|\Z))[^\x00-\x1f\x7f\ud800-\udfff]+(?<!/)\Z")


def is_tidy(key: str) -> bool:
    """Whether obstore reads exactly this key, rather than another one or none."""
    return _TIDY.match(key) is not None


class ObstoreStore:
    """Any store that obstore opens, with obstore's own retries disabled. Safe for any number of threads."""

    def __init__(self, store: Obstore, location: StoreLocation) -> None:
        self._store, self._location = store, location

    @property
    def endpoint(self) -> str:
        return self._location.endpoint

    @property
    def bucket(self) -> str:
        return self._location.bucket

    def list(self, prefix: str) -> Iterator[ObjectPage]:
        return self._pages(prefix, None)

    def list_after(self, prefix: str, after: str) -> Iterator[ObjectPage]:
        """Only keys that sort after ``after``; the services list sorted."""
        return self._pages(prefix, after)

    def _pages(self, prefix: str, after: str | None) -> Iterator[ObjectPage]:
        # obstore lists by complete path segments: the rest of a prefix such as "dir/part-" is compared here.
        directory = prefix[: prefix.rfind("/") + 1].strip("/")
        try:
            for metas in obstore.list(self._store, directory or None, offset=after, chunk_size=PAGE_KEYS):
                selected = [meta for meta in metas if meta["path"].startswith(prefix)]
                if selected:
                    yield _page(selected)
        except (obstore.exceptions.BaseError, OSError, ValueError) as error:
            raise from_obstore(error, self._location, None) from None

    def stat(self, key: str) -> ObjectInfo:
        self._require_tidy(key)
        try:
            return _info(key, obstore.head(self._store, key))
        except (obstore.exceptions.BaseError, OSError, ValueError) as error:
            raise from_obstore(error, self._location, key) from None

    def read_range(self, key: str, byte_range: ByteRange, *, if_match: str | None) -> Iterator[memoryview]:
        self._require_tidy(key)
        if not byte_range:
            return
        result = self._get(key, byte_range, if_match)
        missing = len(byte_range)
        for piece in self._pieces(key, result, missing):
            if len(piece) > missing:
                raise StoreProtocolError(f"{self._location.name(key)}: the store sent more bytes than requested")
            missing -= len(piece)
            yield piece
        if missing:
            raise TransientStoreError(f"{self._location.name(key)}: {missing} bytes are missing at the end")

    def close(self) -> None:
        """obstore closes idle connections by itself."""

    def _get(self, key: str, byte_range: ByteRange, if_match: str | None) -> GetResult:
        options: GetOptions = {"range": (byte_range.start, byte_range.stop)}
        weak = if_match is not None and if_match.startswith("W/")
        if if_match is not None and not weak:
            options["if_match"] = f'"{if_match}"'
        try:
            result = obstore.get(self._store, key, options=options)
        except (obstore.exceptions.BaseError, OSError, ValueError) as error:
            raise from_obstore(error, self._location, key) from None
        # Some servers ignore the condition, and none may match a weak ETag: the ETag of the response decides.
        if if_match is not None and _plain_etag(result.meta["e_tag"]) != if_match:
            raise ObjectChanged(f"{self._location.name(key)} is not the version that was listed; make a new snapshot")
        start, stop = result.range
        if start != byte_range.start or stop > byte_range.stop:
            raise StoreProtocolError(f"{self._location.name(key)}: the store sent another range than the requested one")
        if stop < byte_range.stop:
            check_end(stop, result.meta["size"], byte_range, self._location.name(key))
        return result

    def _pieces(self, key: str, result: GetResult, expected_bytes: int) -> Iterator[memoryview]:
        try:
            if expected_bytes <= SINGLE_PIECE_BYTES:
                yield memoryview(result.bytes())
            else:
                for piece in result.stream(PIECE_BYTES):
                    yield memoryview(piece)
        except (obstore.exceptions.BaseError, OSError, ValueError) as error:
            raise from_obstore(error, self._location, key) from None

    def _require_tidy(self, key: str) -> None:
        if not is_tidy(key):
            raise StoreProtocolError(f"{self._location.name(key)}: this kind of store reads no key of this form")


def _plain_etag(etag: str | None) -> str | None:
    """Without quotes; ``W/"x"`` becomes ``W/x``."""
    return etag.replace('"', "") or None if etag else None


def _mtime_ns(meta: ObjectMeta) -> int:
    return (meta["last_modified"] - _EPOCH) // _MICROSECOND * 1000


def _info(key: str, meta: ObjectMeta) -> ObjectInfo:
    return ObjectInfo(key, meta["size"], _plain_etag(meta["e_tag"]), _mtime_ns(meta))


def _page(metas: list[ObjectMeta]) -> ObjectPage:
    return ObjectPage(
        keys=[meta["path"] for meta in metas],
        sizes_bytes=[meta["size"] for meta in metas],
        etags=[_plain_etag(meta["e_tag"]) for meta in metas],
        mtimes_ns=[_mtime_ns(meta) for meta in metas],
    )
