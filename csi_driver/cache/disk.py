"""The effects on the cache disk, each with a label, so that a fault test can break exactly one step.

Nothing here syncs. A killed process loses no page cache; what a crash of the machine loses is found by CRC.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from csi_driver.model.chunk import ByteRange
from csi_driver.model.errors import CacheDiskFailed, CacheDiskFull, CacheError, DescriptorsExhausted

_MOST_BUFFERS = 1024
"""IOV_MAX of Linux: more in one call is refused."""

NO_DESCRIPTOR = frozenset({errno.EMFILE, errno.ENFILE})

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

_REFUSED = frozenset({errno.EINVAL, errno.EOPNOTSUPP})

_RWF_DONTCACHE = 0x80
_FALLOC_FL_KEEP_SIZE = 1

_libc = ctypes.CDLL(None, use_errno=True)

_NO_ATTRIBUTE = frozenset({errno.ENODATA, errno.ENOENT, errno.EOPNOTSUPP})


def disk_error(label: str, error: OSError) -> CacheError:
    """The error class for an OSError of the cache disk."""
    text = f"{label}: {error.strerror or error}"
    if error.errno in NO_DESCRIPTOR:
        return DescriptorsExhausted(f"{text}; raise the limit of open files (RLIMIT_NOFILE) of the daemon")
    if error.errno in _FULL:
        return CacheDiskFull(f"cache disk is full ({text}); reads go straight to the store")
    return CacheDiskFailed(f"cache disk failed ({text}); reads go straight to the store")


@contextmanager
def state_errors(path: Path, content: str) -> Iterator[None]:
    """Errors of the body with files that the daemon needs itself: without those there is no mount. ``content`` says
    what the files are, in the plural."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        if error.errno in NO_DESCRIPTOR:
            raise DescriptorsExhausted(
                f"{where}: {error.strerror}; raise the limit of open files (RLIMIT_NOFILE)"
            ) from error
        if error.errno in _FULL:
            raise CacheDiskFull(f"{where}: {_what_is_missing(path)}; {content} are stored there") from error
        raise CacheDiskFailed(f"{where}: {error.strerror or error}; {content} are stored there") from error


def _what_is_missing(path: Path) -> str:
    try:
        space = DiskSpace.of(path.parent)
    except OSError:
        return os.strerror(errno.ENOSPC)
    if space.total_inodes and not space.free_inodes:
        return "the file system has no inode left: remove files, or make it with more inodes (mkfs.ext4 -i 8192)"
    return "the disk is full, or its quota is used up: free some space"


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """Of a file system, as statvfs(3) reports it: what is free is what this process may use."""

    total_bytes: int
    free_bytes: int
    total_inodes: int
    """0: the file system makes inodes without a limit of their number (btrfs)."""
    free_inodes: int

    @classmethod
    def of(cls, path: Path | str) -> DiskSpace:
        """Raises OSError."""
        status = os.statvfs(path)
        return cls(
            total_bytes=status.f_blocks * status.f_frsize,
            free_bytes=status.f_bavail * status.f_frsize,
            total_inodes=status.f_files,
            free_inodes=status.f_favail,
        )


class Disk(Protocol):
    """Durable effects. Each raises CacheDiskFull or CacheDiskFailed, and blocks as long as the disk does."""

    def create(self, label: str, path: Path | str) -> int:
        """A descriptor, open for reading and writing, of a new file of mode 0444. A file of that name is unlinked."""

    def create_new(self, label: str, path: Path | str) -> int | None:
        """As ``create``; None: there is a file of that name, which stays."""

    def open(self, label: str, path: Path | str) -> int | None:
        """A descriptor open for reading and writing, or None if there is no such file."""

    def write(
        self, label: str, descriptor: int, buffers: Sequence[memoryview], offset: int, *, cached: bool = True
    ) -> None:
        """Writes all bytes at that offset. Not ``cached``: their pages are dropped once they are written, if the kernel
        can (Linux 6.14)."""

    def allocate(self, label: str, descriptor: int, part: ByteRange) -> None:
        """Has blocks reserved for a part of a file, whose size stays. A file system that cannot is success."""

    def open_direct(self, label: str, descriptor: int) -> int | None:
        """A second descriptor of a file for ``write_direct``; None: not possible there. Raises DescriptorsExhausted."""

    def write_direct(self, label: str, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        """Writes complete blocks past the page cache; how many bytes. Fewer, or 0: the others are not aligned, or the
        file system refuses."""

    def close(self, descriptor: int) -> None:
        """Closes a descriptor."""

    def read(self, label: str, descriptor: int, buffers: Sequence[memoryview | bytearray], offset: int) -> int:
        """Fills the buffers; the number of bytes, fewer only at the end of the file."""

    def read_cached(self, label: str, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        """Like ``read``, but never waits for the disk: fewer bytes, or 0, if they are not in the page cache."""

    def sync(self, label: str, descriptor: int) -> None:
        """fdatasync(2). For trials of a disk alone: no read waits for it."""

    def rename(self, label: str, source: Path | str, target: Path | str) -> None:
        """Atomic; replaces the target."""

    def rename_if_exists(self, label: str, source: Path | str, target: Path | str) -> None:
        """Like ``rename``; a missing source is success."""

    def unlink(self, label: str, path: Path | str) -> None:
        """A missing file is success."""

    def get_attribute(self, label: str, file: int | str, name: str) -> bytes:
        """An extended attribute by descriptor or path; empty if there is none, or no such file."""

    def set_attribute(self, label: str, descriptor: int, name: str, value: bytes) -> None:
        """Replaces an extended attribute."""

    def space(self, path: Path | str) -> DiskSpace:
        """Of the file system that holds the path."""


class LocalDisk:
    """The real disk."""

    _drops_pages = True
    """False as soon as the kernel, or the file system, has refused to."""

    def create(self, label: str, path: Path | str) -> int:
        while (descriptor := self.create_new(label, path)) is None:
            self.unlink(label, path)
        return descriptor

    def create_new(self, label: str, path: Path | str) -> int | None:
        # 0444, because materialised views link the file into pods of any user.
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            return os.open(path, flags, 0o444)
        except FileExistsError:
            return None
        except OSError as error:
            raise disk_error(label, error) from error

    def open(self, label: str, path: Path | str) -> int | None:
        try:
            return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise disk_error(label, error) from error

    def write(
        self, label: str, descriptor: int, buffers: Sequence[memoryview], offset: int, *, cached: bool = True
    ) -> None:
        try:
            expected = sum(map(len, buffers))
            written = 0
            if not cached and self._drops_pages:
                written = self._write_dropped(descriptor, buffers[:_MOST_BUFFERS], offset)
            if buffers and not written:
                written = os.pwritev(descriptor, buffers[:_MOST_BUFFERS], offset)
            while written < expected:
                rest = b"".join(buffers)[written:]
                count = os.pwrite(descriptor, rest, offset + written)
                if count == 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                written += count
        except OSError as error:
            raise disk_error(label, error) from error

    def _write_dropped(self, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        try:
            return os.pwritev(descriptor, buffers, offset, _RWF_DONTCACHE)
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            self._drops_pages = False
            return 0

    def allocate(self, label: str, descriptor: int, part: ByteRange) -> None:
        # Not posix_fallocate: where a file system cannot, that of glibc writes to each block. Whatever the error is,
        # the write that follows finds it out.
        start, length = ctypes.c_int64(part.start), ctypes.c_int64(len(part))
        _libc.fallocate(descriptor, _FALLOC_FL_KEEP_SIZE, start, length)

    def open_direct(self, label: str, descriptor: int) -> int | None:
        try:
            return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in NO_DESCRIPTOR:
                raise disk_error(label, error) from error
            return None

    def write_direct(self, label: str, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        try:
            return os.pwritev(descriptor, buffers[:_MOST_BUFFERS], offset)
        except OSError as error:
            if error.errno in _REFUSED:
                return 0
            raise disk_error(label, error) from error

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def read(self, label: str, descriptor: int, buffers: Sequence[memoryview | bytearray], offset: int) -> int:
        try:
            return os.preadv(descriptor, buffers, offset)
        except OSError as error:
            raise disk_error(label, error) from error

    def read_cached(self, label: str, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        try:
            return os.preadv(descriptor, buffers, offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:  # a file system without RWF_NOWAIT
                return 0
            raise disk_error(label, error) from error

    def sync(self, label: str, descriptor: int) -> None:
        try:
            os.fdatasync(descriptor)
        except OSError as error:
            raise disk_error(label, error) from error

    def rename(self, label: str, source: Path | str, target: Path | str) -> None:
        try:
            os.rename(source, target)
        except OSError as error:
            raise disk_error(label, error) from error

    def rename_if_exists(self, label: str, source: Path | str, target: Path | str) -> None:
        try:
            os.rename(source, target)
        except FileNotFoundError:
            return
        except OSError as error:
            raise disk_error(label, error) from error

    def unlink(self, label: str, path: Path | str) -> None:
        try:
            os.unlink(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise disk_error(label, error) from error

    def get_attribute(self, label: str, file: int | str, name: str) -> bytes:
        try:
            return os.getxattr(file, name)
        except OSError as error:
            if error.errno in _NO_ATTRIBUTE:
                return b""
            raise disk_error(label, error) from error

    def set_attribute(self, label: str, descriptor: int, name: str, value: bytes) -> None:
        try:
            os.setxattr(descriptor, name, value)
        except OSError as error:
            raise disk_error(label, error) from error

    def space(self, path: Path | str) -> DiskSpace:
        try:
            return DiskSpace.of(path)
        except OSError as error:
            raise disk_error("disk.free", error) from error
