"""Writes replies and notifications to the device: one write(2) each, which the kernel takes as a whole, so that threads
need no lock."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Sequence

from csi_driver.fuse import protocol as p

_log = logging.getLogger(__name__)

_GONE = frozenset((errno.ENOENT, errno.ENODEV, errno.ECONNABORTED, errno.ENOTCONN))
"""The kernel has aborted the request, or the whole connection."""


class Replies:
    """Every method returns whether the kernel took the message; False is no error: the reader is gone."""

    def __init__(self, device_fd: int) -> None:
        self._device_fd = device_fd
        self._write, self._writev = os.write, os.writev
        self._header = p.REPLY.pack

    def empty(self, unique: int) -> bool:
        """Success without a body."""
        return self.message(self._header(p.REPLY_HEADER_BYTES, 0, unique), unique)

    def error(self, unique: int, number: int) -> bool:
        """An errno, positive."""
        return self.message(self._header(p.REPLY_HEADER_BYTES, -number, unique), unique)

    def body(self, unique: int, body: bytes | bytearray) -> bool:
        """Success with a body."""
        return self.message(self._header(p.REPLY_HEADER_BYTES + len(body), 0, unique) + body, unique)

    def views(self, unique: int, views: Sequence[memoryview], size_bytes: int) -> bool:
        """Success with bytes that are not copied here. ``size_bytes`` is their sum."""
        header = self._header(p.REPLY_HEADER_BYTES + size_bytes, 0, unique)
        try:
            self._writev(self._device_fd, [header, *views])
        except OSError as failure:
            return self._failed(failure, unique)
        return True

    def message(self, message: bytes, unique: int) -> bool:
        """A complete message with its header."""
        try:
            self._write(self._device_fd, message)
        except OSError as failure:
            return self._failed(failure, unique)
        return True

    def notify(self, message: bytes) -> None:
        """Raises OSError, whose meaning depends on the notification."""
        self._write(self._device_fd, message)

    def _failed(self, failure: OSError, unique: int) -> bool:
        if failure.errno not in _GONE:
            # Without any answer the reader would hang for ever.
            _log.error("the kernel refused a reply, the reader gets EIO: %s", failure.strerror)
            try:
                self._write(self._device_fd, self._header(p.REPLY_HEADER_BYTES, -errno.EIO, unique))
            except OSError:
                _log.debug("the kernel refused the EIO as well")
        return False
