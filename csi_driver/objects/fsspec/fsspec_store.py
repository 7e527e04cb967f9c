"""All other URLs, through fsspec: ``memory://``, ``github://``, ``hf://``, ``sftp://`` and what else is installed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import fsspec
from fsspec.registry import known_implementations

from csi_driver.model.chunk import ByteRange
from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.entity_tags import plain_etag, satisfies
from csi_driver.model.errors import (
    ObjectChanged,
    ObjectNotFound,
    StoreProtocolError,
    TransientStoreError,
    UnsupportedUrl,
)
from csi_driver.model.snapshot import SIZE_UNKNOWN, TIME_UNKNOWN_NS, ObjectInfo, ObjectPage
from csi_driver.objects.error_mapping import from_fsspec
from csi_driver.objects.http.dialling import check_endpoint
from csi_driver.objects.node_identity import needs_node_identity
from csi_driver.objects.store_location import StoreLocation

PIECE_BYTES = 1 << 20
PAGE_KEYS = 1000

OWN_SCHEMES = ("s3", "gs", "az", "http", "https", "file")
_NOT_FOR_DATASETS = frozenset(
    {
        # These read files of the node, or other URLs that would bypass all checks.
        *("arrow_hdfs", "async_wrapper", "asynclocal", "asyncwrapper", "blockcache", "cached", "dask", "data", "dir"),
        *("dvc", "filecache", "generic", "git", "libarchive", "local", "pyscript", "reference", "simplecache", "tar"),
        "zip",
    }
)
_WITH_HOST = frozenset({"ftp", "hdfs", "sftp", "smb", "ssh", "webdav", "webhdfs"})
"""Schemes of URLs that begin with a host."""
# Fields that identify a version, best first; the names differ between file systems.
_VERSION_FIELDS = ("ETag", "etag", "e_tag", "sha", "sha256", "blob_id", "oid", "ukey", "checksum", "md5")
_WITHOUT_AMBIENT: dict[str, dict[str, Any]] = {
    "hf": {"token": False},
    "sftp": {"allow_agent": False, "look_for_keys": False},
    "ssh": {"allow_agent": False, "look_for_keys": False},
}
"""Arguments that keep a file system from using an identity of the node: a token or keys in files, an agent."""
_TIME_FIELDS = ("LastModified", "last_modified", "mtime", "modified", "updated", "created")


class FsspecStore:
    """One file system of fsspec below a root. fsspec has no If-Match, so a read checks the version after each piece,
    and before it is handed out."""

    def __init__(self, filesystem: Any, root: str, location: StoreLocation) -> None:
        self._filesystem, self._root, self._location = filesystem, root.rstrip("/"), location

    @property
    def endpoint(self) -> str:
        return self._location.endpoint

    @property
    def bucket(self) -> str:
        return self._location.bucket

    def list(self, prefix: str) -> Iterator[ObjectPage]:
        directory = prefix[: prefix.rfind("/") + 1].rstrip("/")
        found = self._find(self._path(directory))
        infos = [self._info(self._key(path), details) for path, details in sorted(found.items())]
        selected = [info for info in infos if info.key.startswith(prefix)]
        for start in range(0, len(selected), PAGE_KEYS):
            rows = selected[start : start + PAGE_KEYS]
            yield ObjectPage(
                keys=[row.key for row in rows],
                sizes_bytes=[row.size_bytes for row in rows],
                etags=[row.etag for row in rows],
                mtimes_ns=[row.mtime_ns for row in rows],
            )

    def stat(self, key: str) -> ObjectInfo:
        try:
            self._filesystem.invalidate_cache()
            details = self._filesystem.info(self._path(key))
        except Exception as error:  # noqa: BLE001 - every file system raises its own; from_fsspec maps them
            raise from_fsspec(error, self._location, key) from None
        if details.get("type") == "directory":
            raise ObjectNotFound(f"{self._location.name(key)} is a directory")
        return self._info(key, details)

    def read_range(self, key: str, byte_range: ByteRange, *, if_match: str | None) -> Iterator[memoryview]:
        if not byte_range:
            return
        start = byte_range.start
        while start < byte_range.stop:
            stop = min(start + PIECE_BYTES, byte_range.stop)
            piece = self._cat(key, ByteRange(start, stop))
            if if_match is not None:
                self._check_version(key, if_match)
            yield memoryview(piece)
            start = stop

    def close(self) -> None:
        """fsspec caches its file systems for the life of the process."""

    def _find(self, path: str) -> Mapping[str, Mapping[str, Any]]:
        try:
            self._filesystem.invalidate_cache()
            found: Mapping[str, Mapping[str, Any]] = self._filesystem.find(path, detail=True)
        except FileNotFoundError:
            return {}
        except Exception as error:  # noqa: BLE001 - every file system raises its own; from_fsspec maps them
            raise from_fsspec(error, self._location, None) from None
        return found

    def _cat(self, key: str, part: ByteRange) -> bytes:
        try:
            content: bytes = self._filesystem.cat_file(self._path(key), start=part.start, end=part.stop)
        except Exception as error:  # noqa: BLE001 - every file system raises its own; from_fsspec maps them
            raise from_fsspec(error, self._location, key) from None
        name = self._location.name(key)
        if len(content) > len(part):
            raise StoreProtocolError(f"{name}: the store sent more bytes than requested")
        if len(content) < len(part):
            if self.stat(key).size_bytes < part.stop:
                raise ObjectChanged(
                    f"{self._location.name(key)} is shorter than when it was listed; make a new snapshot"
                )
            raise TransientStoreError(f"{name}: bytes are missing")
        return content

    def _check_version(self, key: str, expected: str) -> None:
        if not satisfies(self.stat(key).etag, expected):
            raise ObjectChanged(f"{self._location.name(key)} is not the version that was listed; make a new snapshot")

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}" if key else self._root

    def _key(self, path: str) -> str:
        return path.removeprefix(self._root).removeprefix("/")

    def _info(self, key: str, details: Mapping[str, Any]) -> ObjectInfo:
        return ObjectInfo(key, _size(details), _version(details), _time_ns(details))


def _size(details: Mapping[str, Any]) -> int:
    try:
        return int(details["size"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return SIZE_UNKNOWN


def _version(details: Mapping[str, Any]) -> str | None:
    """The store's own version if it has one, else a weak one of size and time; None if neither is known."""
    for name in _VERSION_FIELDS:
        value = details.get(name)
        version = plain_etag(value) if isinstance(value, str) else None
        if version is not None:
            return version
    time_ns = _time_ns(details)
    return f"W/{_size(details):x}-{time_ns:x}" if time_ns else None


def _time_ns(details: Mapping[str, Any]) -> int:
    for name in _TIME_FIELDS:
        value = details.get(name)
        if isinstance(value, str):
            try:
                value = datetime.fromisoformat(value)
            except ValueError:
                continue
        if isinstance(value, datetime):
            aware = value if value.tzinfo else value.replace(tzinfo=UTC)
            value = aware.timestamp()
        if isinstance(value, int | float) and math.isfinite(value):
            return round(value * 10**6) * 1000  # a float holds today's seconds to the microsecond
    return TIME_UNKNOWN_NS


def open_fsspec(url: DatasetUrl, options: StoreOptions, credentials: Credentials) -> FsspecStore:
    """Raises UnsupportedUrl, which names the supported schemes and the missing package, and AddressNotAllowed. The
    libraries resolve names and dial by themselves; the policy leaves them to trusted volumes and listed endpoints."""
    scheme = url.scheme
    if scheme in _NOT_FOR_DATASETS or "::" in str(url):
        raise UnsupportedUrl(f"{scheme}:// cannot be a dataset; {_supported()}")
    if scheme not in known_implementations and scheme not in fsspec.available_protocols():
        raise UnsupportedUrl(f"no store reads {scheme}://; {_supported()}")
    if scheme in _WITH_HOST:
        check_endpoint(options.address_rules, f"{scheme}://{url.bucket}")
    arguments = _arguments(url, options, credentials)
    try:
        filesystem, root = fsspec.url_to_fs(f"{scheme}://{url.bucket}/", **arguments)
    except (ImportError, ValueError) as error:
        hint = known_implementations.get(scheme, {}).get("err") or type(error).__name__
        raise UnsupportedUrl(f"{scheme}:// needs a package that is not in this image: {hint}; {_supported()}") from None
    except Exception as error:  # noqa: BLE001 - every file system raises its own; from_fsspec maps them
        raise from_fsspec(error, StoreLocation(f"{scheme}://", url.bucket), None) from None
    return FsspecStore(filesystem, root, StoreLocation(_endpoint(scheme, filesystem), url.bucket))


def _arguments(url: DatasetUrl, options: StoreOptions, credentials: Credentials) -> dict[str, Any]:
    """The file system itself adds an identity of the node, unless the volume has its own or is anonymous."""
    alone = {} if needs_node_identity(url, options, credentials) else _WITHOUT_AMBIENT.get(url.scheme, {})
    return {**alone, **({} if options.anonymous else credentials.values)}


def _endpoint(scheme: str, filesystem: Any) -> str:
    """Scheme, and host if the file system has one."""
    host = getattr(filesystem, "host", "")
    return f"{scheme}://{host}" if isinstance(host, str) else f"{scheme}://"


def _supported() -> str:
    others = sorted(set(known_implementations) - _NOT_FOR_DATASETS - set(OWN_SCHEMES))
    return f"supported are {', '.join(f'{name}://' for name in OWN_SCHEMES)} and, through fsspec, {', '.join(others)}"
