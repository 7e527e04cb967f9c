"""The kernel's FUSE protocol as numbers and structs: the part of versions 7.31 to 7.45 that a read-only server needs.

Pure: nothing here does I/O. Integers are little-endian (x86-64 and arm64 both are). The hot paths use the structs
directly. Before a body is read, the request has to be checked for ``MINIMUM_BYTES[opcode]``, because the buffer behind
a short one still holds the previous request. The layouts are those of linux/fuse.h.
"""

from __future__ import annotations

import struct

MAJOR = 7
MINOR_MINIMUM = 31
"""Linux 5.4 (2019). The layouts below have not changed since, only grown."""
MINOR_MAXIMUM = 45
"""Linux 6.18. A newer kernel uses this version with us."""

# -- opcodes ----------------------------------------------------------------------------------------------------------
LOOKUP, FORGET, GETATTR, SETATTR, READLINK, SYMLINK = 1, 2, 3, 4, 5, 6
MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK, OPEN, READ, WRITE, STATFS, RELEASE = 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18
FSYNC, SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR, FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR = range(20, 30)
FSYNCDIR, GETLK, SETLK, SETLKW, ACCESS, CREATE, INTERRUPT, BMAP, DESTROY, IOCTL = range(30, 40)
POLL, NOTIFY_REPLY, BATCH_FORGET, FALLOCATE, READDIRPLUS, RENAME2, LSEEK, COPY_FILE_RANGE = range(40, 48)
SETUPMAPPING, REMOVEMAPPING, SYNCFS, TMPFILE, STATX, COPY_FILE_RANGE_64 = range(48, 54)
OPCODE_COUNT = 54

WRITING = frozenset(
    (
        *(SETATTR, SYMLINK, MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK, WRITE, SETXATTR, REMOVEXATTR, CREATE),
        *(FALLOCATE, RENAME2, COPY_FILE_RANGE, TMPFILE, COPY_FILE_RANGE_64),
    )
)
"""Answered with EROFS. The kernel refuses them itself on a read-only mount; a bind mount made writable would not."""

WITHOUT_REPLY = frozenset((FORGET, BATCH_FORGET, NOTIFY_REPLY, INTERRUPT))

# -- notifications, written with unique 0 and the code in the place of the error --------------------------------------
NOTIFY_INVAL_INODE = 2
NOTIFY_RETRIEVE = 5
NOTIFY_RESEND = 7

# -- bits of ``unique`` -----------------------------------------------------------------------------------------------
RESENT = 1 << 63
"""Set in a request that was sent to an earlier server before. The reply carries it too."""

# -- flags of INIT ----------------------------------------------------------------------------------------------------
INIT_ASYNC_READ = 1 << 0
INIT_ATOMIC_O_TRUNC = 1 << 3
INIT_EXPORT_SUPPORT = 1 << 4
INIT_DO_READDIRPLUS = 1 << 13
INIT_READDIRPLUS_AUTO = 1 << 14
INIT_PARALLEL_DIROPS = 1 << 18
INIT_ABORT_ERROR = 1 << 21
INIT_MAX_PAGES = 1 << 22
INIT_NO_OPEN_SUPPORT = 1 << 17
INIT_NO_OPENDIR_SUPPORT = 1 << 24
INIT_EXT = 1 << 30
INIT_PASSTHROUGH = 1 << 37
INIT_HAS_RESEND = 1 << 39
INIT_ALLOW_IDMAP = 1 << 40
INIT_REQUEST_TIMEOUT = 1 << 42

# -- flags of the OPEN reply ------------------------------------------------------------------------------------------
FOPEN_KEEP_CACHE = 1 << 1
FOPEN_CACHE_DIR = 1 << 3
FOPEN_NOFLUSH = 1 << 5
FOPEN_PASSTHROUGH = 1 << 7

# -- sizes ------------------------------------------------------------------------------------------------------------
HEADER_BYTES = 40
REPLY_HEADER_BYTES = 16
MAX_WRITE_BYTES = 4096
"""There are no writes: the least that the kernel accepts."""
REQUEST_BUFFER_BYTES = 128 * 1024 + MAX_WRITE_BYTES
"""Of the buffer that requests are read into. The kernel insists on max_write and a header; the rest is space for a
SETXATTR value (64 KiB), which would otherwise fail with E2BIG instead of EROFS, and for 8,000 FORGETs at once."""
MAX_READ_BYTES = 1 << 20
"""Of a READ: the size of a chunk. With 8 MiB (a raised fs.fuse.max_pages_limit) a served sequential read fell from 2.7
to below 1 GB/s."""
NAME_BYTES_MAXIMUM = 255

REQUEST = struct.Struct("<IIQQ8xI")
"""The parts of the request header that are used: length, opcode, unique, node, pid."""
OPCODE = struct.Struct("<I")
OPCODE_OFFSET = 4
PID = struct.Struct("<I")
PID_OFFSET = 32
REPLY = struct.Struct("<IiQ")
"""Length, negative errno, unique."""

INIT_IN = struct.Struct("<IIII")
INIT_IN_FLAGS2 = struct.Struct("<I")
INIT_OUT = struct.Struct("<IIIIHHIIHHIIH22x")
GETATTR_IN_BYTES = 16
OPEN_IN = struct.Struct("<II")
READ_IN = struct.Struct("<QQI12xI")
"""Handle, offset, size and the flags of the open file."""
READDIR_IN = struct.Struct("<QQI")
READ_IN_BYTES = 40
RELEASE_IN = struct.Struct("<Q")
RELEASE_IN_BYTES = 24
LSEEK_IN = struct.Struct("<QQI4x")
LSEEK_OUT = struct.Struct("<Q")
ACCESS_IN = struct.Struct("<I4x")
INTERRUPT_IN = struct.Struct("<Q")
XATTR_IN = struct.Struct("<I4x")
XATTR_OUT = struct.Struct("<I4x")
STATFS_OUT = struct.Struct("<QQQQQIII28x")
ATTR_OUT = struct.Struct("<QI4xQQQQQQIIIIIIIIII")
ENTRY_OUT = struct.Struct("<QQQQIIQQQQQQIIIIIIIIII")
DIRENT = struct.Struct("<QQII")
OPEN_REPLY = struct.Struct("<IiQQIi")
"""Reply header and body of OPEN in one: handle, open flags, backing id."""
INVAL_INODE = struct.Struct("<IiQQqq")
RETRIEVE = struct.Struct("<IiQQQQI4x")

BLOCK_BYTES = 4096
"""What stat and statfs call a block: that of the local file systems. Python before 3.14 sizes the buffer of open() by
it, and 4096 is best for large files too: with 1 MiB a reader of tar files makes 33 instead of 8,254 calls of read(2)
and saves a fifteenth of its time, and one of small pieces takes 40 times as long
(``hayloft_bench.micro.buffer_sizes``)."""


class ProtocolError(Exception):
    """A request that no kernel sends: shorter than its opcode needs, or with a name without an end."""


def _minimum_lengths() -> tuple[int, ...]:
    name = 2  # at least one byte and its NUL
    body = {
        LOOKUP: name,
        GETATTR: GETATTR_IN_BYTES,
        OPEN: OPEN_IN.size,
        READ: READ_IN_BYTES,
        RELEASE: RELEASE_IN_BYTES,
        GETXATTR: XATTR_IN.size + name,
        INIT: INIT_IN.size,
        OPENDIR: OPEN_IN.size,
        READDIR: READ_IN_BYTES,
        READDIRPLUS: READ_IN_BYTES,
        ACCESS: ACCESS_IN.size,
        INTERRUPT: INTERRUPT_IN.size,
        LSEEK: LSEEK_IN.size,
    }
    return tuple(HEADER_BYTES + body.get(opcode, 0) for opcode in range(OPCODE_COUNT))


MINIMUM_BYTES = _minimum_lengths()
"""By opcode: the least length of a request, header included."""


def parse_header(buffer: bytes | bytearray, length: int) -> tuple[int, int, int, int]:
    """Opcode, unique, node and pid of a request of ``length`` bytes. Raises ProtocolError.

    An unknown opcode is returned as it is.
    """
    if length < HEADER_BYTES:
        raise ProtocolError(f"a request of {length} bytes has no header")
    stated, opcode, unique, node, pid = REQUEST.unpack_from(buffer)
    if stated != length:
        raise ProtocolError(f"a request of {length} bytes says it has {stated}")
    if opcode < OPCODE_COUNT and length < MINIMUM_BYTES[opcode]:
        raise ProtocolError(f"a request with opcode {opcode} has at least {MINIMUM_BYTES[opcode]} bytes, not {length}")
    return opcode, unique, node, pid


def name_at(buffer: bytes | bytearray, start: int, length: int) -> bytes:
    """The name from ``start`` up to its NUL. Raises ProtocolError when it is empty or does not end in the request."""
    stop = buffer.find(b"\0", start, length)
    if stop <= start:
        raise ProtocolError("a name is empty or has no end")
    return bytes(buffer[start:stop])


def pad8(size_bytes: int) -> int:
    """Bytes that are missing to a multiple of eight."""
    return -size_bytes & 7
