"""Reads requests from the device with threads of the mount's own. ``adaptive_request_loop.py`` does it with the event
loop that all mounts share."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from typing import Protocol

from csi_driver.fuse import protocol as p
from csi_driver.fuse.operations import Operations

ENDED = frozenset((errno.ENODEV, errno.ECONNABORTED))
"""The mount is gone."""
RETRIED = frozenset((errno.EINTR, errno.ENOENT))
"""ENOENT: the kernel aborted the request while it was being read."""
STOP_TIMEOUT_S = 2.0
WAKE_EVERY_S = 0.02


class RequestLoop(Protocol):
    """Reads requests and dispatches them, from ``start`` until ``stop`` or until the mount is gone."""

    def start(self) -> None:
        """Returns at once."""

    def stop(self) -> None:
        """Stops reading and leaves the mount as it is. Blocks up to 2 s."""

    @property
    def serving(self) -> bool:
        """Whether a thread still reads from the device or answers what it has read."""


class RequestDispatcher:
    """The device of a mount and the handlers of its requests."""

    def __init__(self, device_fd: int, operations: Operations, ended: Callable[[OSError], None]) -> None:
        """``ended`` is called when the device cannot be read any more, once by each thread that reads it."""
        self.device_fd = device_fd
        self.ended = ended
        self._operations = operations
        self._handlers, self._dispatch = operations.handlers, operations.dispatch

    def answer(self, buffer: bytearray, length: int) -> int:
        """Answers the request in the buffer, now or later, and returns its opcode. Every open(2) pays for what this
        does."""
        opcode: int
        stated, opcode, unique, node, _ = p.REQUEST.unpack_from(buffer)
        if opcode >= p.OPCODE_COUNT or length < p.MINIMUM_BYTES[opcode] or stated != length:
            self._dispatch(buffer, length)
            return opcode
        try:
            self._handlers[opcode](buffer, length, unique, node)
        except BaseException as error:  # noqa: BLE001 - a request without an answer would hang its reader
            self._operations.failed(opcode, unique, node, error)
        return opcode


class BlockingRequestLoop:
    """A ``RequestLoop`` with threads of the mount's own, each of which blocks in read(2)."""

    def __init__(
        self,
        dispatcher: RequestDispatcher,
        threads: int,
        name: str,
        wake: Callable[[], None],
        resend: Callable[[], None],
    ) -> None:
        """``wake`` makes the kernel send a message that is no request, which one thread reads; ``resend`` makes it send
        again the requests that were read and not answered, and raises OSError if it cannot."""
        self._dispatcher = dispatcher
        self._wake, self._resend = wake, resend
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._serve, name=f"{name}-{number}", daemon=True) for number in range(threads)
        ]

    def start(self) -> None:
        os.set_blocking(self._dispatcher.device_fd, True)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        # A thread that cannot be woken, because the kernel knows no file of the mount, is left behind. It asks the
        # kernel to resend the request that it reads next.
        self._stopping = True
        ends = time.monotonic() + STOP_TIMEOUT_S
        # Each wake-up is read by one thread and ends it; one that is busy reads a later one.
        while self.serving and time.monotonic() < ends:
            self._wake()
            for thread in self._threads:
                thread.join(WAKE_EVERY_S)

    @property
    def serving(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def _serve(self) -> None:
        device_fd, readv, answer = self._dispatcher.device_fd, os.readv, self._dispatcher.answer
        buffer = bytearray(p.REQUEST_BUFFER_BYTES)
        buffers = [buffer]
        while True:
            try:
                length = readv(device_fd, buffers)
            except OSError as error:
                if error.errno in RETRIED:
                    continue
                # EAGAIN after ``stop``: the next session has made the device non-blocking, which holds for all
                # descriptors of it. That session reads now.
                if error.errno != errno.EAGAIN or not self._stopping:
                    self._dispatcher.ended(error)
                return
            if self._stopping and returned_to_kernel(buffer, self._resend):
                return
            answer(buffer, length)


def returned_to_kernel(buffer: bytearray, resend: Callable[[], None]) -> bool:
    """For what was read after ``stop``. A request belongs to the next daemon, and the kernel has to send it again; the
    wake-up is no request. False where the kernel cannot (before Linux 6.9): the request then has to be answered."""
    if p.REQUEST.unpack_from(buffer)[1] == p.NOTIFY_REPLY:
        return True
    try:
        resend()
    except OSError as error:
        return error.errno in ENDED
    return True
