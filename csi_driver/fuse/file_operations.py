"""OPEN, READ and RELEASE, and the INTERRUPT of pending ones. Requests are answered from any thread.

A request that was passed to the file system is in ``pending``, by its unique number, until it is answered. The file
system's callback and an interrupt may race for it: ``dict.pop`` is atomic, the thread that gets the entry answers, and
the other does nothing. So there is exactly one answer, and no lock. After ``stop`` there is none: the kernel sends the
request to the next daemon.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable

from csi_driver.filesystem.inodes import Filesystem, OpenedFile
from csi_driver.filesystem.open_table import OpenTable
from csi_driver.fuse import protocol as p
from csi_driver.fuse.errnos import errno_of
from csi_driver.fuse.passthrough import CACHED_FLAGS, PASSTHROUGH_FLAGS, BackingTable
from csi_driver.fuse.replies import Replies
from csi_driver.model.errors import HayloftError
from csi_driver.model.read_counts import NOT_COUNTED, ReadCounts

_NOT_FOR_READING = os.O_WRONLY | os.O_RDWR | os.O_TRUNC
_NO_HANDLE = 0
"""In reads of a file that the kernel opened by itself. The open table gives no such handle."""
_UNIQUE_MASK = p.RESENT - 1
_DIRECT_BYTES = 512
"""Offset and size of a read with O_DIRECT are multiples of this, as they have to be for the local file: without a check
here a misaligned reader would work until the file is passed through. A disk with larger blocks demands more."""


class ReadRequest:
    """A pending READ, and the callback that answers it."""

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
        if files.pending.pop(self.unique, None) is None:
            return
        try:
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
        except BaseException:  # from the pop on, no other thread answers it
            files.replies.error(self.unique, errno.EIO)
            raise

    def interrupt(self) -> None:
        """Answers with EINTR and cancels the read in the file system."""
        if self._files.pending.pop(self.unique, None) is None:
            return
        self._files.replies.error(self.unique, errno.EINTR)
        # The read may be on its way into the file system, without a token yet. ``FileOperations.read`` looks at
        # ``interrupted`` after it has set the token: one of the two threads sees both.
        self.interrupted = True
        if self.token is not None:
            self._files.filesystem.cancel(self.token)


class OpenRequest:
    """A pending OPEN, and the callback that answers it."""

    __slots__ = ("_files", "node", "pid", "unique")

    def __init__(self, files: FileOperations, unique: int, pid: int, node: int) -> None:
        self._files = files
        self.unique = unique
        self.pid = pid
        self.node = node

    def __call__(self, opened: OpenedFile | HayloftError) -> None:
        files = self._files
        if files.pending.pop(self.unique, None) is None:
            # Interrupted, or the session has stopped: the kernel has no such open.
            if not isinstance(opened, HayloftError):
                files.filesystem.release(opened.handle)
            return
        try:
            if isinstance(opened, HayloftError):
                files.failed(self.node, opened)
                files.replies.error(self.unique, errno_of(opened))
            else:
                files.answer_open(self.unique, self.node, opened)
        except BaseException:  # from the pop on, no other thread answers it
            files.replies.error(self.unique, errno.EIO)
            raise

    def interrupt(self) -> None:
        """Answers with EINTR; the callback releases the file when the file system has opened it."""
        if self._files.pending.pop(self.unique, None) is not None:
            self._files.replies.error(self.unique, errno.EINTR)


class FileOperations:
    """Handlers are called as ``handler(buffer, length, unique, node)`` with a request that is long enough.

    ``handles`` maps the kernel's handle of an open to the file system's; ``pending`` and ``handles`` are used by single
    steps of a dictionary and need no lock. ``_recording`` guards ``_stopped``, ``openless`` and ``decides_openless``,
    and is held while an open is recorded: after ``stop`` none is, because the open table then belongs to the next
    daemon.
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
        self.pending: dict[int, ReadRequest | OpenRequest] = {}
        self.handles: dict[int, int] = {}
        self.recorded_opens: dict[int, int] = {}
        """After adoption: handles of opens that an earlier daemon recorded, by the unique number of their OPEN. If it
        died before it answered, the kernel resends that OPEN."""
        self.failed: Callable[[int, HayloftError], None] = lambda node, error: None
        """Called with the node and the error of a request before it is answered."""
        self.counts: ReadCounts = NOT_COUNTED
        """Of the volume: its opens are counted here, where it is known which files the kernel reads by itself."""
        self._open_table = open_table
        self._backing = backing
        self._last_cached_close = last_cached_close
        self.openless = False
        """OPEN is answered with ENOSYS, and from then on the kernel opens and closes files by itself. Their pages stay
        in memory from one open to the next, and a file that is read again costs no READ."""
        self.decides_openless: Callable[[int], bool] | None = None
        """Set by INIT where ``openless`` may become true: called with the process of the first OPEN. The answer holds
        for the life of the connection, since the kernel sends no RELEASE of earlier opens after an ENOSYS."""
        self._recording = threading.Lock()
        self._stopped = False

    def stop(self) -> None:
        """Pending requests are not answered any more; files that are opened for them are released."""
        with self._recording:
            self._stopped = True
        # After this no ``answer_open`` is between its look at ``_stopped`` and the open table.
        self.pending.clear()

    # -- open ---------------------------------------------------------------------------------------------------------

    def open(self, buffer: bytearray, length: int, unique: int, node: int) -> None:
        """Answered when the file system has opened the node, perhaps after a fetch."""
        flags, _ = p.OPEN_IN.unpack_from(buffer, p.HEADER_BYTES)
        if flags & _NOT_FOR_READING:
            self.replies.error(unique, errno.EROFS)
            return
        if self.decides_openless is not None:
            self._decide_openless(_pid(buffer))
        if self.openless:
            self.replies.error(unique, errno.ENOSYS)
            return
        if unique & p.RESENT and self._answer_recorded(unique):
            return
        request = OpenRequest(self, unique, _pid(buffer), node)
        # Entered first: the file system may answer, and an INTERRUPT may be read, before ``open`` returns.
        self.pending[unique] = request
        self.filesystem.open(node, request)

    def _decide_openless(self, process_id: int) -> None:
        with self._recording:  # of two first OPENs on two threads, the second waits for the decision
            if self.decides_openless is not None:
                self.openless = self.decides_openless(process_id)
                self.decides_openless = None

    def answer_open(self, unique: int, node: int, opened: OpenedFile) -> None:
        """Decides the mode, records the open, and answers, in this order: the kernel never has an open that the next
        daemon does not find in the table."""
        with self._recording:
            if self._stopped:
                self.filesystem.release(opened.handle)
                return
            backing_id = self._backing.admit(node, opened)
            try:
                handle = self._open_table.claim(node, opened.handle, unique & _UNIQUE_MASK, backing_id)
            except BaseException:  # the table cannot grow: no space on the disk of the state directory
                self._backing.release(node)
                self.filesystem.release(opened.handle)
                raise
        self.handles[handle] = opened.handle
        flags = PASSTHROUGH_FLAGS if backing_id else CACHED_FLAGS
        self.counts.opened(opened.size_bytes if backing_id else None)
        reply = p.OPEN_REPLY.pack(p.OPEN_REPLY.size, 0, unique, handle, flags, backing_id)
        if not self.replies.message(reply, unique) and not self._stopped:
            # The kernel has aborted the OPEN and sends no RELEASE for it. After ``stop`` the open table is the next
            # daemon's.
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
        """Answered when the bytes are cached or fetched."""
        handle, offset, size_bytes, flags = p.READ_IN.unpack_from(buffer, p.HEADER_BYTES)
        file_handle = self.handles.get(handle)
        if file_handle is None and handle != _NO_HANDLE:
            self.replies.error(unique, errno.ESTALE)
            return
        if flags & os.O_DIRECT and (offset | size_bytes) % _DIRECT_BYTES:
            self.replies.error(unique, errno.EINVAL)
            return
        request = ReadRequest(self, unique, _pid(buffer), node, size_bytes)
        self.pending[unique] = request
        if file_handle is None:
            request.token = token = self.filesystem.read_node(node, offset, size_bytes, request)
        else:
            request.token = token = self.filesystem.read(file_handle, offset, size_bytes, request)
        if request.interrupted and token is not None:
            self.filesystem.cancel(token)

    # -- release ------------------------------------------------------------------------------------------------------

    def release(self, buffer: bytearray, length: int, unique: int, node: int) -> None:
        """A handle that is not known was released already, by a daemon that died before its answer."""
        (handle,) = p.RELEASE_IN.unpack_from(buffer, p.HEADER_BYTES)
        self._forget(node, handle)
        self.replies.empty(unique)

    def _forget(self, node: int, handle: int) -> None:
        # The slot first: a daemon that dies after it leaves at worst a backing id, which the next one finds in the
        # slot. A RELEASE that is sent again finds the slot free, and counts no open a second time.
        if not self._open_table.clear(handle):
            return
        if self._backing.release(node):
            self._last_cached_close(node)
        file_handle = self.handles.pop(handle, None)
        if file_handle is not None:
            self.filesystem.release(file_handle)


def _pid(buffer: bytearray) -> int:
    pid: int = p.PID.unpack_from(buffer, p.PID_OFFSET)[0]
    return pid
