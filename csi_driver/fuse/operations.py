"""The table of handlers, by opcode. It is built once, so that dispatch is one index."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from contextlib import suppress

from csi_driver.fuse import protocol as p
from csi_driver.fuse.errnos import errno_of
from csi_driver.fuse.file_operations import FileOperations
from csi_driver.fuse.interrupts import Interrupts
from csi_driver.fuse.metadata_operations import MetadataOperations
from csi_driver.fuse.replies import Replies
from csi_driver.model.errors import HayloftError
from csi_driver.model.tracebacks import unexpected

_log = logging.getLogger(__name__)

Handler = Callable[[bytearray, int, int, int], None]
"""Called with the buffer, the length of the request in it, its unique number and its node."""


class Operations:
    """The handlers of all requests of the kernel. ``dispatch`` raises for no bytes."""

    def __init__(
        self,
        metadata: MetadataOperations,
        files: FileOperations,
        interrupts: Interrupts,
        replies: Replies,
        init: Handler,
    ) -> None:
        self._files = files
        self._replies = replies
        answered: dict[int, Handler] = {
            p.INIT: init,
            p.LOOKUP: metadata.lookup,
            p.GETATTR: metadata.getattr,
            p.ACCESS: metadata.access,
            p.OPENDIR: metadata.opendir,
            p.READDIR: metadata.readdir,
            p.READDIRPLUS: metadata.readdirplus,
            p.RELEASEDIR: metadata.releasedir,
            p.STATFS: metadata.statfs,
            p.GETXATTR: metadata.getxattr,
            p.LSEEK: metadata.seek,
            p.IOCTL: self._no_ioctl,
            p.OPEN: files.open,
            p.READ: files.read,
            p.RELEASE: files.release,
            p.INTERRUPT: interrupts.interrupt,
            p.DESTROY: self._success,
            # Node ids are rows of the manifest: there is nothing to forget. NOTIFY_REPLY only wakes a thread that
            # should stop (``FuseSession._wake``).
            p.FORGET: _nothing,
            p.BATCH_FORGET: _nothing,
            p.NOTIFY_REPLY: _nothing,
        }
        answered.update(dict.fromkeys(p.WRITING, self._read_only))
        # ENOSYS for the rest, and the kernel does not send them again: close(2) then has nothing to flush, fsync
        # succeeds, locks stay local, poll is always ready, statx(2) has no birth time and is answered from cached
        # attributes, and listxattr(2) is EOPNOTSUPP: a copy with attributes (cp -a, rsync -X, tar --xattrs) would carry
        # ``user.hayloft.*`` along, where it is wrong.
        self.handlers: tuple[Handler, ...] = tuple(
            answered.get(opcode, self._not_supported) for opcode in range(p.OPCODE_COUNT)
        )

    def dispatch(self, buffer: bytearray, length: int) -> None:
        """Answers the request in the buffer, now or later."""
        try:
            opcode, unique, node, _ = p.parse_header(buffer, length)
        except p.ProtocolError as error:
            self._malformed(buffer, length, error)
            return
        if opcode >= p.OPCODE_COUNT:
            self._not_supported(buffer, length, unique, node)
            return
        try:
            self.handlers[opcode](buffer, length, unique, node)
        except BaseException as error:  # noqa: BLE001 - a request without an answer would hang its reader
            self.failed(opcode, unique, node, error)

    def failed(self, opcode: int, unique: int, node: int, error: BaseException) -> None:
        """Answers a request whose handler raised."""
        if not isinstance(error, (HayloftError, p.ProtocolError)):
            _log.error("unexpected error in a request with opcode %d, answered with EIO", opcode, exc_info=error)
        was_pending = self._files.pending.pop(unique, None) is not None
        if opcode not in p.WITHOUT_REPLY:
            self._replies.error(unique, errno.EINVAL if isinstance(error, p.ProtocolError) else errno_of(error))
        if was_pending:  # an open or a read
            with suppress(KeyError):  # of no file
                self._files.failed(node, unexpected(error))

    def _malformed(self, buffer: bytearray, length: int, error: p.ProtocolError) -> None:
        _log.error("malformed request from the kernel, answered with EIO: %s", error)
        if length < p.HEADER_BYTES:
            return
        _, opcode, unique, _, _ = p.REQUEST.unpack_from(buffer)
        if opcode not in p.WITHOUT_REPLY:
            self._replies.error(unique, errno.EIO)

    def _success(self, buffer: bytearray, length: int, unique: int, node: int) -> None:
        self._replies.empty(unique)

    def _read_only(self, buffer: bytearray, length: int, unique: int, node: int) -> None:
        self._replies.error(unique, errno.EROFS)

    def _no_ioctl(self, buffer: bytearray, length: int, unique: int, node: int) -> None:
        # No file is a terminal. Unlike that of other requests, ENOSYS does not end these: the kernel turns it into
        # ENOTTY each time.
        self._replies.error(unique, errno.ENOTTY)

    def _not_supported(self, buffer: bytearray, length: int, unique: int, node: int) -> None:
        self._replies.error(unique, errno.ENOSYS)


def _nothing(buffer: bytearray, length: int, unique: int, node: int) -> None:
    return
