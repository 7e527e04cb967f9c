"""Local files as objects. Not through obstore: its local store hides names like ``a#1``, refuses names that are not
UTF-8, and follows symbolic links out of its root."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import PurePosixPath

from csi_driver.model.chunk import ByteRange
from csi_driver.model.errors import (
    AccessDenied,
    BucketNotFound,
    HayloftError,
    ObjectChanged,
    ObjectNotFound,
    StoreProtocolError,
    TransientStoreError,
)
from csi_driver.model.snapshot import ObjectInfo, ObjectPage

PIECE_BYTES = 1 << 20
PAGE_KEYS = 1000


class FileStore:
    """Files below ``base``; a key is the absolute path without its leading slash, in the bytes of the file system.

    Symbolic links are followed to regular files and directories below ``base``. A link that points outside, and
    everything that is neither a file nor a directory, does not exist as an object. Safe for any number of threads.
    """

    def __init__(self, base: str) -> None:
        """``base`` is absolute. It need not exist yet."""
        self._base = os.path.realpath(base)

    @property
    def endpoint(self) -> str:
        return "file://"

    @property
    def bucket(self) -> str:
        return ""

    def list(self, prefix: str) -> Iterator[ObjectPage]:
        rows: list[ObjectInfo] = []
        for info in self._walk("/" + prefix[: prefix.rfind("/") + 1], prefix):
            rows.append(info)
            if len(rows) == PAGE_KEYS:
                yield _page(rows)
                rows = []
        if rows:
            yield _page(rows)

    def stat(self, key: str) -> ObjectInfo:
        descriptor = self._open(key)
        try:
            return _info(key, os.fstat(descriptor))
        finally:
            os.close(descriptor)

    def read_range(self, key: str, byte_range: ByteRange, *, if_match: str | None) -> Iterator[memoryview]:
        if not byte_range:
            return
        descriptor = self._open(key)
        try:
            start = byte_range.start
            while start < byte_range.stop:
                piece = self._read(key, descriptor, ByteRange(start, min(start + PIECE_BYTES, byte_range.stop)))
                # Checked after the read: bytes of a file that changed in between are not returned.
                if if_match is not None and _etag(os.fstat(descriptor)) != if_match:
                    raise ObjectChanged(f"file {_shown(key)} has changed since it was listed; make a new snapshot")
                start += len(piece)
                yield memoryview(piece)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """No connections."""

    def _read(self, key: str, descriptor: int, part: ByteRange) -> bytes:
        try:
            piece = os.pread(descriptor, len(part), part.start)
        except OSError as error:
            raise from_os(error, key) from error
        if not piece:
            raise ObjectChanged(f"file {_shown(key)} is shorter than when it was listed; make a new snapshot")
        return piece

    def _open(self, key: str) -> int:
        if ".." in key.split("/"):
            raise ObjectNotFound(f"file {_shown(key)}: '..' is not a name")
        try:
            # O_NONBLOCK: opening a named pipe must not wait for its writer.
            descriptor = os.open("/" + key, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            raise from_os(error, key) from error
        # The check is on the descriptor, not the path, which may lead to another file by now.
        if not stat.S_ISREG(os.fstat(descriptor).st_mode) or not self._contains(f"/proc/self/fd/{descriptor}"):
            os.close(descriptor)
            raise ObjectNotFound(f"file {_shown(key)} is no regular file below {self._base!r}")
        return descriptor

    def _contains(self, path: str) -> bool:
        real = os.path.realpath(path)
        return real == self._base or real.startswith(self._base.rstrip("/") + "/")

    def _walk(self, directory: str, prefix: str) -> Iterator[ObjectInfo]:
        """All files with a key that begins with ``prefix``. No recursion: a tree may be deeper than Python's stack."""
        stack: list[tuple[str, frozenset[tuple[int, int]]]] = [(directory, frozenset())]
        while stack:
            path, above = stack.pop()
            try:
                with os.scandir(path) as entries:
                    found = sorted(entries, key=lambda entry: entry.name)
            except (OSError, ValueError) as error:
                self._unreadable(error, path, directory)
                continue
            for entry in found:
                key = os.path.join(path, entry.name)[1:]
                status = self._status(entry)
                if status is None:
                    continue
                if stat.S_ISREG(status.st_mode) and key.startswith(prefix):
                    yield _info(key, status)
                identity = (status.st_dev, status.st_ino)
                within = f"{key}/".startswith(prefix) or prefix.startswith(f"{key}/")
                if stat.S_ISDIR(status.st_mode) and within and identity not in above:  # no cycle of links
                    stack.append((f"{path.rstrip('/')}/{entry.name}", above | {identity}))

    def _status(self, entry: os.DirEntry[str]) -> os.stat_result | None:
        try:
            if entry.is_symlink() and not self._contains(entry.path):
                return None
            return entry.stat()
        except OSError:  # removed since the scan, or a dangling link
            return None

    def _unreadable(self, error: OSError | ValueError, path: str, top: str) -> None:
        """Not an error: a directory that was removed since the scan, and a URL that names one file."""
        if not isinstance(error, OSError) or error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise from_os(error, path.lstrip("/")) from error
        if path == top and not os.path.exists(self._base):
            raise BucketNotFound(f"directory {self._base!r} does not exist on this node; check the URL") from error


def from_os(error: OSError | ValueError, key: str) -> HayloftError:
    """For an error of the kernel about a file of a dataset. A ValueError is a name with a NUL byte."""
    name = f"file {_shown(key)}"
    number = error.errno if isinstance(error, OSError) else errno.ENOENT
    if number in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO):
        return ObjectNotFound(f"{name} does not exist")
    if number in (errno.EACCES, errno.EPERM):
        return AccessDenied(f"{name}: the node may not read it; check owner and mode")
    if number in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE):
        return TransientStoreError(f"{name}: {os.strerror(number)}")
    return StoreProtocolError(f"{name}: {os.strerror(number or 0)}")


def _shown(key: str) -> str:
    return repr(str(PurePosixPath("/", key)))


def _etag(status: os.stat_result) -> str:
    """Size, time and inode: a replaced file has another inode even if size and time are preserved."""
    return f"{status.st_size:x}-{status.st_mtime_ns:x}-{status.st_ino:x}"


def _info(key: str, status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, status.st_size, _etag(status), status.st_mtime_ns)


def _page(rows: list[ObjectInfo]) -> ObjectPage:
    return ObjectPage(
        keys=[row.key for row in rows],
        sizes_bytes=[row.size_bytes for row in rows],
        etags=[row.etag for row in rows],
        mtimes_ns=[row.mtime_ns for row in rows],
    )
