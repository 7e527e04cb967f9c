"""Who reads requests from the device: threads of the mount's own, or a thread that does other things as well."""

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
_GIVEN_UP = frozenset((errno.EINTR, errno.ENOENT))
"""ENOENT: the request was given up while it was being read."""
_STOP_TIMEOUT_S = 2.0
_WAKE_EVERY_S = 0.02
_MOST_AT_ONCE = 16
"""Requests of one mount until others have their turn: what eight readers ask for, and their neighbours' look-ups."""


class Server(Protocol):
    """Reads requests and has them answered, from ``start`` until ``stop`` or until the mount is gone."""

    def start(self) -> None:
        """Returns at once."""

    def stop(self) -> None:
        """Ends it and leaves the mount as it is. Blocks up to 2 s."""

    @property
    def serving(self) -> bool:
        """Whether it has anything to do with the device still."""


class Requests:
    """Where requests come from and who answers them."""

    def __init__(self, device_fd: int, operations: Operations, ended: Callable[[OSError], None]) -> None:
        """``ended`` is called when the device cannot be read any more, perhaps several times."""
        self.device_fd = device_fd
        self.ended = ended
        self._operations = operations
        self._handlers, self._dispatch = operations.handlers, operations.dispatch

    def answer(self, buffer: bytearray, length: int) -> None:
        """Answers the request in the buffer, now or later. What this does counts in every open(2)."""
        stated, opcode, unique, node, _ = p.REQUEST.unpack_from(buffer)
        if opcode >= p.OPCODE_COUNT or length < p.MINIMUM_BYTES[opcode] or stated != length:
            self._dispatch(buffer, length)
            return
        try:
            self._handlers[opcode](buffer, length, unique, node)
        except Exception as error:  # noqa: BLE001 - a request without an answer would hang its reader
            self._operations.failed(opcode, unique, error)


class ThreadServer:
    """Threads of the mount's own, each of which waits in read(2)."""

    def __init__(
        self,
        requests: Requests,
        threads: int,
        name: str,
        wake: Callable[[], None],
        resend: Callable[[], None],
    ) -> None:
        """``wake`` has the kernel send one thread something that is no request; ``resend`` has it send again what was
        read and not answered, and raises OSError if it cannot."""
        self._requests = requests
        self._wake, self._resend = wake, resend
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._serve, name=f"{name}-{number}", daemon=True) for number in range(threads)
        ]

    def start(self) -> None:
        """See Server."""
        os.set_blocking(self._requests.device_fd, True)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """See Server. A thread that waits for a request and cannot be woken (no file of the mount is known to the
        kernel) is left behind, and hands back what it gets."""
        self._stopping = True
        ends = time.monotonic() + _STOP_TIMEOUT_S
        while self.serving and time.monotonic() < ends:
            self._wake()
            for thread in self._threads:
                thread.join(_WAKE_EVERY_S)

    @property
    def serving(self) -> bool:
        """See Server."""
        return any(thread.is_alive() for thread in self._threads)

    def _serve(self) -> None:
        device_fd, readv, answer = self._requests.device_fd, os.readv, self._requests.answer
        buffer = bytearray(p.REQUEST_BUFFER_BYTES)
        buffers = [buffer]
        while True:
            try:
                length = readv(device_fd, buffers)
            except OSError as error:
                if error.errno in _GIVEN_UP:
                    continue
                # The next daemon reads without waiting: whether a read waits is the same for all who have the device.
                if error.errno != errno.EAGAIN or not self._stopping:
                    self._requests.ended(error)
                return
            if self._stopping and self._hand_back(buffer):
                return
            answer(buffer, length)

    def _hand_back(self, buffer: bytearray) -> bool:
        """What woke this thread is no request. A request that was read after ``stop`` belongs to the next daemon: the
        kernel is asked to send it again. False where it cannot (before Linux 6.9): then it is answered here, late as
        it is."""
        if p.REQUEST.unpack_from(buffer)[1] == p.NOTIFY_REPLY:
            return True
        try:
            self._resend()
        except OSError as error:
            return error.errno in ENDED
        return True


class LoopServer:
    """The thread of a loop, for mounts whose requests are answered without waiting for a disk.

    That thread has more to do than to answer: where requests for small objects come from is where their bytes come to.
    """

    def __init__(self, requests: Requests, loop: EventLoop) -> None:
        self._requests = requests
        self._loop = loop
        self._stopping = False
        self._watched = False
        self._inside: set[int] = set()
        """Threads that answer now: more than one when one is stuck."""
        self._buffers: list[bytearray] = []
        """That nobody uses."""

    def start(self) -> None:
        """See Server."""
        os.set_blocking(self._requests.device_fd, False)
        self._watched = True
        self._loop.watch(self._requests.device_fd, self._serve)

    def stop(self) -> None:
        """See Server. Longer than 2 s only a thread takes that is stuck; it is left behind, and answers what it has."""
        self._stopping = True
        self._unwatch()
        ends = time.monotonic() + _STOP_TIMEOUT_S
        while self.serving and time.monotonic() < ends:
            time.sleep(_WAKE_EVERY_S)

    @property
    def serving(self) -> bool:
        """See Server."""
        return self._watched or bool(self._inside)

    def _unwatch(self) -> None:
        # Once: the descriptor's number may be another mount's by the next time.
        if self._watched:
            self._watched = False
            self._loop.unwatch(self._requests.device_fd)

    def _serve(self) -> None:
        me = threading.get_ident()
        self._inside.add(me)
        try:
            buffer = self._buffers.pop() if self._buffers else bytearray(p.REQUEST_BUFFER_BYTES)
            self._answer_what_came(buffer)
            self._buffers.append(buffer)
        finally:
            self._inside.discard(me)

    def _answer_what_came(self, buffer: bytearray) -> None:
        device_fd, answer = self._requests.device_fd, self._requests.answer
        for _ in range(_MOST_AT_ONCE):
            if self._stopping:
                return
            try:
                length = os.readv(device_fd, [buffer])
            except OSError as error:
                if error.errno in _GIVEN_UP:
                    continue
                if error.errno != errno.EAGAIN:
                    self._unwatch()
                    self._requests.ended(error)
                return
            answer(buffer, length)
