"""INIT: the kernel's offer, what Hayloft takes of it, and the reply. Pure."""

from __future__ import annotations

import mmap
from dataclasses import dataclass

from csi_driver.fuse import protocol as p

MAX_BACKGROUND = 256
"""Asynchronous requests in flight at once: readahead and RELEASE. Reads of missing chunks are among them, so this is
also how many MiB of readahead may be pending per mount; the kernel's own 12 would block the ninth reader."""
CONGESTION_THRESHOLD = 192
"""From here on the kernel skips optional readahead; three quarters, as in the kernel's own default."""
MAX_READAHEAD_BYTES = 64 << 20
"""No limit in effect: the mount's read_ahead_kb is set after mounting, and this must not be below it."""

_WANTED = (
    p.INIT_ASYNC_READ
    | p.INIT_ATOMIC_O_TRUNC  # a truncating open is refused as an open, not after it
    | p.INIT_EXPORT_SUPPORT  # node ids outlive the kernel's memory of them: file handles may be resolved at any time
    | p.INIT_DO_READDIRPLUS
    | p.INIT_READDIRPLUS_AUTO  # attributes with names only where they are used, as by ls -l
    | p.INIT_PARALLEL_DIROPS
    | p.INIT_ABORT_ERROR  # ECONNABORTED after an abort, ENODEV after an unmount
    | p.INIT_MAX_PAGES
    | p.INIT_NO_OPEN_SUPPORT
    | p.INIT_NO_OPENDIR_SUPPORT
    | p.INIT_EXT
    | p.INIT_HAS_RESEND
    | p.INIT_ALLOW_IDMAP  # pods with user namespaces need idmapped mounts
)
"""Left out on purpose: WRITEBACK_CACHE (turns passthrough off), POSIX_LOCKS and FLOCK_LOCKS (without them the kernel
keeps locks locally, as on a local disk), CACHE_SYMLINKS (there are none), HANDLE_KILLPRIV (no writes), the SPLICE flags
(measured: no gain), OVER_IO_URING (needs a module parameter), REQUEST_TIMEOUT (a read may take long for a store; but
see ``request_timeout.py``), ASYNC_DIO (tried: an O_DIRECT reader that waits for missing bytes could not be killed),
AUTO_INVAL_DATA (a snapshot does not change)."""


@dataclass(frozen=True, slots=True)
class Negotiated:
    """The agreement with the kernel for the life of a connection. ``flags`` are all 64 bits."""

    minor: int
    flags: int
    request_timeout_s: int = 0
    """The limit of a request's time that is named to the kernel; 0: none."""

    @property
    def passthrough(self) -> bool:
        """Whether OPEN may name a backing file. It also needs CAP_SYS_ADMIN, which the first OPEN shows."""
        return bool(self.flags & p.INIT_PASSTHROUGH)

    @property
    def open_is_optional(self) -> bool:
        """Whether ENOSYS to OPEN makes the kernel open files by itself from then on, and keep their pages."""
        return bool(self.flags & p.INIT_NO_OPEN_SUPPORT)

    @property
    def opendir_is_optional(self) -> bool:
        """Whether ENOSYS to OPENDIR makes the kernel open directories by itself, cached, from then on."""
        return bool(self.flags & p.INIT_NO_OPENDIR_SUPPORT)


@dataclass(frozen=True, slots=True)
class Offer:
    """The body of an INIT request."""

    major: int
    minor: int
    flags: int


def parse_offer(buffer: bytes | bytearray, length: int) -> Offer:
    """Reads an INIT request. Raises ProtocolError."""
    if length < p.HEADER_BYTES + p.INIT_IN.size:
        raise p.ProtocolError("INIT is too short")
    major, minor, _, flags = p.INIT_IN.unpack_from(buffer, p.HEADER_BYTES)
    second = p.HEADER_BYTES + p.INIT_IN.size
    if flags & p.INIT_EXT and length >= second + p.INIT_IN_FLAGS2.size:
        flags |= p.INIT_IN_FLAGS2.unpack_from(buffer, second)[0] << 32
    return Offer(major, minor, flags)


def agree(offer: Offer, passthrough: bool, request_timeout_s: int = 0) -> Negotiated | None:
    """None: the kernel is too old. ``passthrough``: whether to use it if the kernel offers it. ``request_timeout_s`` is
    named to a kernel that knows one."""
    if offer.major < p.MAJOR or (offer.major == p.MAJOR and offer.minor < p.MINOR_MINIMUM):
        return None
    wanted = _WANTED | (p.INIT_PASSTHROUGH if passthrough else 0)
    wanted |= p.INIT_REQUEST_TIMEOUT if request_timeout_s else 0
    flags = offer.flags & wanted
    return Negotiated(
        min(offer.minor, p.MINOR_MAXIMUM), flags, request_timeout_s if flags & p.INIT_REQUEST_TIMEOUT else 0
    )


def init_reply(agreed: Negotiated, page_bytes: int = mmap.PAGESIZE) -> bytes:
    """The body of the reply to INIT. ``page_bytes`` are those of a page of the kernel: it counts the size of a READ in
    pages, which have 4 KiB on x86-64 and 4, 16 or 64 KiB on arm64."""
    return p.INIT_OUT.pack(
        p.MAJOR,
        agreed.minor,
        MAX_READAHEAD_BYTES,
        agreed.flags & 0xFFFFFFFF,
        MAX_BACKGROUND,
        CONGESTION_THRESHOLD,
        p.MAX_WRITE_BYTES,
        1,  # time stamps in nanoseconds
        p.MAX_READ_BYTES // page_bytes,
        0,
        agreed.flags >> 32,
        1 if agreed.passthrough else 0,  # backing files may not be stacked themselves
        agreed.request_timeout_s,
    )


def newer_major_reply() -> bytes:
    """To a kernel of a later major version: it repeats INIT with ours."""
    return p.INIT_OUT.pack(p.MAJOR, p.MINOR_MAXIMUM, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
