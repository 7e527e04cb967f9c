"""OPEN, READ and RELEASE, and the INTERRUPT of those that wait. Answers may come from any thread.

Whatever waits for the store is in ``parked``, by its unique number. Who takes it out, answers it: the file system's
callback, an interrupt, or nobody after the session stopped. Taking an entry out of a dictionary is atomic, so there
is exactly one answer and no lock.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable

from csi_driver.filesystem.nodes import Filesystem, OpenedFile
from csi_driver.filesystem.open_table import PASSTHROUGH_BIT, OpenTable
from csi_driver.fuse import protocol as p
from csi_driver.fuse.errnos import errno_of
from csi_driver.fuse.passthrough import CACHED_FLAGS, PASSTHROUGH_FLAGS, BackingTable
from csi_driver.fuse.replies import Replies
from csi_driver.model.errors import HayloftError

_NOT_FOR_READING = os.O_WRONLY | os.O_RDWR | os.O_TRUNC
_NO_HANDLE = 0
"""What the kernel sends with reads of a file that it opened by itself. The open table gives no such handle."""
_UNIQUE_MASK = p.RESENT - 1


class ReadRequest:
    """A READ that was handed to the file system, and the callback that answers it."""

    __slots__ = ("_files", "interrupted", "node", "pid", "size_bytes", "token", "unique")

    def __init__(self, files: FileOperations, unique: int, pid: int, node: int, size_bytes: int) -> None:
        self._files = files
        self.unique = unique
        self.pid = pid
        self.node = node
        self.size_bytes = size_bytes
        self.token: object = None
        self.interrupted = False

    def __call__(self, data: list[memoryview] | HayloftError) -> None:
        files = self._files
        if files.parked.pop(self.unique, None) is None:
            return
        if isinstance(data, HayloftError):
            files.failed(self.node, data)
            files.replies.error(self.unique, errno_of(data))
            return
        size_bytes = 0
        for view in data:
            size_bytes += view.nbytes
        if size_bytes > self.size_bytes:
            raise RuntimeError(f"{size_bytes} bytes for a read of {self.size_bytes}")
        files.replies.views(self.unique, data, size_bytes)

    def interrupt(self) -> None:
        """EINTR now; the file system is told to forget the read."""
        if self._files.parked.pop(self.unique, None) is None:
            return
        self._files.replies.error(self.unique, errno.EINTR)
        self.interrupted = True
        if self.token is not None:
            self._files.filesystem.cancel(self.token)


class OpenRequest:
    """An OPEN that was handed to the file system, and the callback that answers it."""

    __slots__ = ("_files", "node", "pid", "unique")

    def __init__(self, files: FileOperations, unique: int, pid: int, node: int) -> None:
        self._files = files
        self.unique = unique
        self.pid = pid
        self.node = node

    def __call__(self, opened: OpenedFile | HayloftError) -> None:
        files = self._files
        if files.parked.pop(self.unique, None) is None:
            if not isinstance(opened, HayloftError):
                files.filesystem.release(opened.handle)
        elif isinstance(opened, HayloftError):
            files.failed(self.node, opened)
            files.replies.error(self.unique, errno_of(opened))
        else:
            files.answer_open(self.unique, self.node, opened)

    def interrupt(self) -> None:
        """EINTR now; what the file system opens later is released."""
        if self._files.parked.pop(self.unique, None) is not None:
            self._files.replies.error(self.unique, errno.EINTR)


class FileOperations:
    """Handlers are called as ``handler(buffer, length, unique, node)`` with a request that is long enough.

    ``handles`` maps the kernel's handle of an open to the file system's. ``_recording`` guards ``_stopped``: after
    ``stop`` no open is recorded any more, because the table is the next daemon's then.
    """

    def __init__(
        self,
        filesystem: Filesystem,
        replies: Replies,
        open_table: OpenTable,
        backing: BackingTable,
        last_cached_close: Callable[[int], None],
    ) -> None:
        self.filesystem = filesystem
        self.replies = replies
        self.parked: dict[int, ReadRequest | OpenRequest] = {}
        self.handles: dict[int, int] = {}
        self.recorded_opens: dict[int, int] = {}
        """After adoption: handles of opens that an earlier daemon recorded, by the unique number of their OPEN. If it
        died before it answered, the kernel sends that OPEN again."""
        self.failed: Callable[[int, HayloftError], None] = lambda node, error: None
        """Called with the node and the error before a reader sees it."""
        self._open_table = open_table
        self._backing = backing
        self._last_cached_close = last_cached_close
        self.openless = False
        """Set by INIT: ENOSYS then tells the kernel to open and close files without us. Their pages stay in its memory
        from one open to the next, and a file that is read again costs no request at all."""
        self._recording = threading.Lock()
        self._stopped = False

    def stop(self) -> None:
        """Answers nothing that waits any more; what the file system still opens for it is released."""
        with self._recording:
            self._stopped = True
        self.parked.clear()

    # -- open ---------------------------------------------------------------------------------------------------------

    def open(self, buffer: bytearray, length: int, unique: int, node: int) -> None:
        """Answered when the file system has opened the node, perhaps after fetching it."""
        flags, _ = p.OPEN_IN.unpack_from(buffer, p.HEADER_BYTES)
        if flags & _NOT_FOR_READING:
            self.replies.error(unique, errno.EROFS)
            return
        if self.openless:
            self.replies.error(unique, errno.ENOSYS)
            return
        if unique & p.RESENT and self._answer_recorded(unique):
            return
        pending = OpenRequest(self, unique, _pid(buffer), node)
        self.parked[unique] = pending
        self.filesystem.open(node, pending)

    def answer_open(self, unique: int, node: int, opened: OpenedFile) -> None:
        """Settles the mode, records the open, and answers, in this order."""
        with self._recording:
            if self._stopped:
                self.filesystem.release(opened.handle)
                return
            backing_id = self._backing.admit(node, opened)
            handle = self._open_table.claim(node, opened.handle, unique & _UNIQUE_MASK, backing_id)
        self.handles[handle] = opened.handle
        flags = PASSTHROUGH_FLAGS if backing_id else CACHED_FLAGS
        reply = p.OPEN_REPLY.pack(p.OPEN_REPLY.size, 0, unique, handle, flags, backing_id)
        if not self.replies.message(reply, unique) and not self._stopped:
            self._forget(node, handle)

    def _answer_recorded(self, unique: int) -> bool:
        handle = self.recorded_opens.get(unique & _UNIQUE_MASK)
        if handle is None:
            return False
        record = self._open_table.record(handle)
        if record is None:
            return False
        flags = PASSTHROUGH_FLAGS if record.backing_id else CACHED_FLAGS
        reply = p.OPEN_REPLY.pack(p.OPEN_REPLY.size, 0, unique, handle, flags, record.backing_id)
        if not self.replies.message(reply, unique):
            self._forget(record.node, handle)
        return True

    # -- read ---------------------------------------------------------------------------------------------------------

    def read(self, buffer: bytearray, length: int, unique: int, node: int) -> None:
        """Answered when the bytes are there."""
        handle, offset, size_bytes = p.READ_IN.unpack_from(buffer, p.HEADER_BYTES)
        file_handle = self.handles.get(handle)
        if file_handle is None and handle != _NO_HANDLE:
            self.replies.error(unique, errno.ESTALE)
            return
        pending = ReadRequest(self, unique, _pid(buffer), node, size_bytes)
        self.parked[unique] = pending
        if file_handle is None:
            pending.token = token = self.filesystem.read_node(node, offset, size_bytes, pending)
        else:
            pending.token = token = self.filesystem.read(file_handle, offset, size_bytes, pending)
        if pending.interrupted and token is not None:
            self.filesystem.cancel(token)

    # -- release ------------------------------------------------------------------------------------------------------

    def release(self, buffer: bytearray, length: int, unique: int, node: int) -> None:
        """A handle that is not known (any more) was released by a daemon that died before it could say so."""
        (handle,) = p.RELEASE_IN.unpack_from(buffer, p.HEADER_BYTES)
        self._forget(node, handle)
        self.replies.empty(unique)

    def _forget(self, node: int, handle: int) -> None:
        """The slot first: a daemon that dies after it leaves at worst a backing id, which the next one finds."""
        if not self._open_table.clear(handle):
            return
        if self._backing.release(node):
            self._last_cached_close(node)
        file_handle = self.handles.pop(handle, None)
        if file_handle is not None:
            self.filesystem.release(file_handle)

    def is_passthrough(self, handle: int) -> bool:
        """Whether the kernel reads this open by itself."""
        return bool(handle & PASSTHROUGH_BIT)


def _pid(buffer: bytearray) -> int:
    pid: int = p.PID.unpack_from(buffer, p.PID_OFFSET)[0]
    return pid
