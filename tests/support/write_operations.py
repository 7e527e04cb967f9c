"""A program that tries every operation that would change a file system, and those that a read-only one may refuse, each
in a process of its own. Prints a JSON object: the operation, and "ok" or the name of its errno.

    python write_operations.py MOUNT SCRATCH

MOUNT has a file ``file``, an empty file ``empty``, a directory ``directory`` with a file in it, and LMDB's
``lock.mdb``. SCRATCH is a directory of another file system, or of another mount, that the caller may write to.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import socket
import stat
import struct
import sys
from collections.abc import Callable
from contextlib import suppress

_FACCESSAT2 = 439
_AT_FDCWD = -100
_AT_EACCESS = 0x200
_FS_IOC_GETFLAGS = 0x80086601
_FS_IOC_SETFLAGS = 0x40086602
_FS_IOC_FSSETXATTR = 0x401C5820
_FICLONE = 0x40049409
_OFD_SETLK = 37

_libc = ctypes.CDLL(None, use_errno=True)

Operation = Callable[[], object]


def opening(path: str, flags: int) -> Operation:
    return lambda: os.close(os.open(path, flags, 0o600))


def with_descriptor(path: str, use: Callable[[int], object]) -> Operation:
    """Of a file or directory that is open for reading."""
    return lambda: use(os.open(path, os.O_RDONLY))


def access(path: str, mode: int, flags: int = 0) -> Operation:
    """The system call: os.access does not tell its errno."""

    def call() -> None:
        arguments = (ctypes.c_int(_AT_FDCWD), ctypes.c_char_p(os.fsencode(path)), ctypes.c_int(mode))
        if _libc.syscall(ctypes.c_long(_FACCESSAT2), *arguments, ctypes.c_int(flags)):
            raise OSError(ctypes.get_errno(), path)

    return call


def map_shared(descriptor: int) -> None:
    mmap.mmap(descriptor, 1, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)


def map_private(descriptor: int) -> None:
    mmap.mmap(descriptor, 1, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)


def lock_record(descriptor: int, command: int, kind: int) -> None:
    fcntl.fcntl(descriptor, command, struct.pack("hhlli", kind, 0, 0, 0, 0))


def take_lease(descriptor: int) -> None:
    with suppress(BlockingIOError):  # the cache has the object file open for writing
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)


def bind_socket(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path)


def move_in(scratch: str, path: str) -> None:
    source = os.path.join(scratch, "moved")
    os.close(os.open(source, os.O_WRONLY | os.O_CREAT, 0o600))
    os.rename(source, path)


def operations(mount: str, scratch: str) -> dict[str, Operation]:
    file, empty, directory = (os.path.join(mount, name) for name in ("file", "empty", "directory"))
    missing, new = os.path.join(mount, "missing"), os.path.join(mount, "new")
    lock_file, outside = os.path.join(mount, "lock.mdb"), os.path.join(scratch, "outside")
    read_write, create = os.O_RDWR, os.O_RDWR | os.O_CREAT
    return {
        "open for writing": opening(file, os.O_WRONLY),
        "open for reading and writing": opening(file, read_write),
        "open for reading and writing, O_CREAT": opening(file, create),
        "open for appending": opening(file, os.O_WRONLY | os.O_APPEND),
        "open an empty file for writing": opening(empty, os.O_WRONLY),
        "open lock.mdb for writing": opening(lock_file, create),
        "open with O_TRUNC": opening(file, os.O_WRONLY | os.O_TRUNC),
        "open with O_CREAT and O_TRUNC": opening(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        "open for reading with O_TRUNC": opening(file, os.O_RDONLY | os.O_TRUNC),
        "open with O_CREAT and O_EXCL": opening(file, create | os.O_EXCL),
        "open for reading with O_CREAT": opening(file, os.O_RDONLY | os.O_CREAT),
        "open a directory for writing": opening(directory, read_write),
        "create": opening(new, create),
        "create with O_EXCL": opening(new, create | os.O_EXCL),
        "create for reading": opening(new, os.O_RDONLY | os.O_CREAT),
        "create in a missing directory": opening(os.path.join(missing, "new"), create),
        "O_TMPFILE": opening(mount, os.O_RDWR | os.O_TMPFILE),
        "access W_OK": access(file, os.W_OK),
        "access W_OK, effective ids": access(file, os.W_OK, _AT_EACCESS),
        "access W_OK of a directory": access(directory, os.W_OK),
        "access W_OK of the root": access(mount, os.W_OK | os.X_OK),
        "access R_OK": access(file, os.R_OK),
        "access X_OK": access(file, os.X_OK),
        "access W_OK of a missing file": access(missing, os.W_OK),
        "truncate": lambda: os.truncate(file, 0),
        "truncate a directory": lambda: os.truncate(directory, 0),
        "unlink": lambda: os.unlink(file),
        "unlink a missing file": lambda: os.unlink(missing),
        "rmdir": lambda: os.rmdir(directory),
        "mkdir": lambda: os.mkdir(new),
        "mkdir of an existing directory": lambda: os.mkdir(directory),
        "mknod of a fifo": lambda: os.mknod(new, stat.S_IFIFO),
        "mknod of a file": lambda: os.mknod(new, stat.S_IFREG),
        "bind a socket": lambda: bind_socket(new),
        "rename": lambda: os.rename(file, new),
        "rename of a missing file": lambda: os.rename(missing, new),
        "rename to the outside": lambda: os.rename(file, outside),
        "rename from the outside": lambda: move_in(scratch, new),
        "link": lambda: os.link(file, new),
        "link to the outside": lambda: os.link(file, outside),
        "symlink": lambda: os.symlink("file", new),
        "symlink with an existing name": lambda: os.symlink("file", empty),
        "chmod": lambda: os.chmod(file, 0o700),
        "chmod of a directory": lambda: os.chmod(directory, 0o700),
        "fchmod": with_descriptor(file, lambda fd: os.fchmod(fd, 0o700)),
        "chown": lambda: os.chown(file, os.getuid(), os.getgid()),
        "fchown": with_descriptor(file, lambda fd: os.fchown(fd, os.getuid(), os.getgid())),
        "utimens, now": lambda: os.utime(file),
        "utimens, a time": lambda: os.utime(file, (1, 1)),
        "futimens": with_descriptor(file, os.utime),
        "setxattr": lambda: os.setxattr(file, "user.x", b"y"),
        "setxattr of an ACL": lambda: os.setxattr(file, "system.posix_acl_access", b"\2\0\0\0"),
        "fsetxattr": with_descriptor(file, lambda fd: os.setxattr(fd, "user.x", b"y")),
        "removexattr": lambda: os.removexattr(file, "user.x"),
        "FS_IOC_SETFLAGS": with_descriptor(file, lambda fd: fcntl.ioctl(fd, _FS_IOC_SETFLAGS, bytes(8))),
        "FS_IOC_FSSETXATTR": with_descriptor(file, lambda fd: fcntl.ioctl(fd, _FS_IOC_FSSETXATTR, bytes(28))),
        "FS_IOC_GETFLAGS": with_descriptor(file, lambda fd: fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(8))),
        "write": with_descriptor(file, lambda fd: os.write(fd, b"x")),
        "ftruncate": with_descriptor(file, lambda fd: os.ftruncate(fd, 0)),
        "fallocate": with_descriptor(file, lambda fd: os.posix_fallocate(fd, 0, 10)),
        "copy_file_range": with_descriptor(file, lambda fd: os.copy_file_range(fd, fd, 1, 0, 1)),
        "FICLONE": with_descriptor(file, lambda fd: fcntl.ioctl(fd, _FICLONE, fd)),
        "mmap shared, PROT_WRITE": with_descriptor(file, map_shared),
        "mmap private, PROT_WRITE": with_descriptor(file, map_private),
        "fsync": with_descriptor(file, os.fsync),
        "fsync of a directory": with_descriptor(directory, os.fsync),
        "flock, shared": with_descriptor(file, lambda fd: fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)),
        "flock, exclusive": with_descriptor(file, lambda fd: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)),
        "fcntl lock for reading": with_descriptor(file, lambda fd: lock_record(fd, fcntl.F_SETLK, fcntl.F_RDLCK)),
        "fcntl lock for writing": with_descriptor(file, lambda fd: lock_record(fd, fcntl.F_SETLK, fcntl.F_WRLCK)),
        "OFD lock for reading": with_descriptor(file, lambda fd: lock_record(fd, _OFD_SETLK, fcntl.F_RDLCK)),
        "OFD lock for writing": with_descriptor(file, lambda fd: lock_record(fd, _OFD_SETLK, fcntl.F_WRLCK)),
        "F_SETLEASE": with_descriptor(file, take_lease),
        "O_NOATIME": opening(file, os.O_RDONLY | os.O_NOATIME),
    }


def outcome(operation: Operation) -> str:
    """In a child, which releases descriptors, locks and mappings when it ends."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            operation()
            text = "ok"
        except OSError as error:
            text = errno.errorcode.get(error.errno or 0, str(error.errno))
        except BaseException as error:  # noqa: BLE001  # shown by the test
            text = repr(error)
        os.write(writing, text.encode())
        os._exit(0)
    os.close(writing)
    with open(reading, encoding="utf-8") as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return text


if __name__ == "__main__":
    found = {name: outcome(operation) for name, operation in operations(*sys.argv[1:]).items()}
    sys.stdout.write(json.dumps(found))
