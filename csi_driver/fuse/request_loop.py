"""Reads requests from the device: with threads of the mount's own, or with the event loop that all mounts share."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from typing import Protocol

from csi_driver.event_loop.event_loop import EventLoop
from csi_driver.fuse import protocol as p
from csi_driver.fuse.operations import Operations

ENDED = frozenset((errno.ENODEV, errno.ECONNABORTED))
"""The mount is gone."""
_RETRIED = frozenset((errno.EINTR, errno.ENOENT))
"""ENOENT: the kernel aborted the request while it was being read."""
_STOP_TIMEOUT_S = 2.0
_WAKE_EVERY_S = 0.02
_BATCH = 16
"""Requests of one mount before the event loop serves others: those of eight readers, and a few look-ups."""


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

    def answer(self, buffer: bytearray, length: int) -> None:
        """Answers the request in the buffer, now or later. Every open(2) pays for what this does."""
        stated, opcode, unique, node, _ = p.REQUEST.unpack_from(buffer)
        if opcode >= p.OPCODE_COUNT or length < p.MINIMUM_BYTES[opcode] or stated != length:
            self._dispatch(buffer, length)
            return
        try:
            self._handlers[opcode](buffer, length, unique, node)
        except Exception as error:  # noqa: BLE001 - a request without an answer would hang its reader
            self._operations.failed(opcode, unique, error)


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
        ends = time.monotonic() + _STOP_TIMEOUT_S
        # Each wake-up is read by one thread and ends it; one that is busy reads a later one.
        while self.serving and time.monotonic() < ends:
            self._wake()
            for thread in self._threads:
                thread.join(_WAKE_EVERY_S)

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
                if error.errno in _RETRIED:
                    continue
                # EAGAIN after ``stop``: the next session has made the device non-blocking, which holds for all
                # descriptors of it. That session reads now.
                if error.errno != errno.EAGAIN or not self._stopping:
                    self._dispatcher.ended(error)
                return
            if self._stopping and self._return_to_kernel(buffer):
                return
            answer(buffer, length)

    def _return_to_kernel(self, buffer: bytearray) -> bool:
        """The wake-up is no request. A request that was read after ``stop`` belongs to the next daemon: the kernel has
        to send it again. False where it cannot (before Linux 6.9): the request is then answered here."""
        if p.REQUEST.unpack_from(buffer)[1] == p.NOTIFY_REPLY:
            return True
        try:
            self._resend()
        except OSError as error:
            return error.errno in ENDED
        return True


class EventDrivenRequestLoop:
    """A ``RequestLoop`` on the thread of the event loop, for mounts whose reads seldom wait for a disk. The same thread
    receives the small objects that these requests ask for.

    Nothing is locked: the event loop calls ``_serve`` from one thread at a time, and from a second one only when the
    first is stuck in a request; each has a buffer of its own then.
    """

    def __init__(self, dispatcher: RequestDispatcher, event_loop: EventLoop) -> None:
        self._dispatcher = dispatcher
        self._event_loop = event_loop
        self._stopping = False
        self._watched = False
        self._inside: set[int] = set()
        """Threads that answer requests now: more than one when one is stuck."""
        self._free_buffers: list[bytearray] = []

    def start(self) -> None:
        os.set_blocking(self._dispatcher.device_fd, False)
        self._watched = True
        self._event_loop.watch(self._dispatcher.device_fd, self._serve)

    def stop(self) -> None:
        # Only a stuck thread takes longer than 2 s. It is left behind, and answers the request that it has.
        self._stopping = True
        self._unwatch()
        ends = time.monotonic() + _STOP_TIMEOUT_S
        while self.serving and time.monotonic() < ends:
            time.sleep(_WAKE_EVERY_S)

    @property
    def serving(self) -> bool:
        return self._watched or bool(self._inside)

    def _unwatch(self) -> None:
        # Only once: later the number of the descriptor may be that of another mount.
        if self._watched:
            self._watched = False
            self._event_loop.unwatch(self._dispatcher.device_fd)

    def _serve(self) -> None:
        me = threading.get_ident()
        self._inside.add(me)
        try:
            buffer = self._free_buffers.pop() if self._free_buffers else bytearray(p.REQUEST_BUFFER_BYTES)
            self._answer_pending(buffer)
            self._free_buffers.append(buffer)
        finally:
            self._inside.discard(me)

    def _answer_pending(self, buffer: bytearray) -> None:
        device_fd, answer = self._dispatcher.device_fd, self._dispatcher.answer
        for _ in range(_BATCH):
            if self._stopping:
                return
            try:
                length = os.readv(device_fd, [buffer])
            except OSError as error:
                if error.errno in _RETRIED:
                    continue
                if error.errno != errno.EAGAIN:
                    self._unwatch()
                    self._dispatcher.ended(error)
                return
            answer(buffer, length)
