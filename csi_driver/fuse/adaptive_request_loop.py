"""Reads the requests of a dataset of small files: with the event loop while bytes are read, and otherwise with a thread
of the mount's own.

While files are fetched, one thread for the requests and for the small objects that they need is best (decision 12).
When all files are in the page cache, what remains is one request for each open(2) of a Python program: an ioctl, by
which ``io.open`` asks whether the file is a terminal, and which no answer makes the kernel stop (decision 10). A thread
that blocks in read(2) answers it with two system calls and half of the processor time that the event loop takes.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from csi_driver.event_loop.event_loop import EventLoop
from csi_driver.fuse import protocol as p
from csi_driver.fuse.reader_core import ReaderCore
from csi_driver.fuse.request_loop import (
    RETRIED,
    STOP_TIMEOUT_S,
    WAKE_EVERY_S,
    RequestDispatcher,
    returned_to_kernel,
)

_BATCH = 16
"""Requests of one mount before the event loop serves others: those of eight readers, and a few look-ups."""

_QUIET_REQUESTS = 64
"""So many requests in a row that are answered from memory, and the mount gets a thread. Starting one and coming back
takes some 200 microseconds, and each request that the thread answers saves 5 to 10."""

_FROM_MEMORY = frozenset(
    (
        *(p.IOCTL, p.LOOKUP, p.GETATTR, p.ACCESS, p.FLUSH, p.FORGET, p.BATCH_FORGET, p.NOTIFY_REPLY),
        *(p.OPENDIR, p.READDIR, p.READDIRPLUS, p.RELEASEDIR),
    )
)
"""Requests that wait neither for the disk nor for a store. All others are left to the event loop, which replaces a
thread that is stuck."""


class AdaptiveRequestLoop:
    """A ``RequestLoop``. At any time either the event loop reads from the device, which then does not block, or the
    thread of the mount, which blocks in it.

    ``_lock`` guards the change from one to the other: ``_watched``, ``_thread`` and ``_stopping``. A thread is started
    under it, and nothing is read or answered. The event loop calls ``_serve`` from one thread at a time, and from a
    second one only when the first is stuck in a request; each has a buffer of its own then.
    """

    def __init__(
        self,
        dispatcher: RequestDispatcher,
        event_loop: EventLoop,
        name: str,
        wake: Callable[[], None],
        resend: Callable[[], None],
    ) -> None:
        """``wake`` and ``resend`` as those of ``BlockingRequestLoop``."""
        self._dispatcher = dispatcher
        self._event_loop = event_loop
        self._name = name
        self._wake, self._resend = wake, resend
        self._lock = threading.Lock()
        self._stopping = False
        self._watched = False
        self._thread: threading.Thread | None = None
        """The thread of the mount: it reads unless ``_watched``, and is about to end otherwise."""
        self._quiet_requests = 0
        """Requests in a row that were answered from memory."""
        self._handed_over: list[tuple[bytearray, int]] = []
        """The request with which the thread has left the device to the event loop."""
        self._inside: set[int] = set()
        """Threads of the event loop that answer requests now: more than one when one is stuck."""
        self._free_buffers: list[bytearray] = []

    def start(self) -> None:
        with self._lock:
            self._watch(at_once=False)

    def stop(self) -> None:
        # Only a stuck thread takes longer than 2 s. It is left behind, and answers the request that it has.
        with self._lock:
            self._stopping = True
            self._unwatch()
        with suppress(IndexError):  # none was on its way to the event loop
            buffer, length = self._handed_over.pop()
            if not returned_to_kernel(buffer, self._resend):
                self._dispatcher.answer(buffer, length)
        ends = time.monotonic() + STOP_TIMEOUT_S
        while self.serving and time.monotonic() < ends:
            if self._thread is not None and self._thread.is_alive():
                self._wake()
                self._thread.join(WAKE_EVERY_S)
            else:
                time.sleep(WAKE_EVERY_S)

    @property
    def serving(self) -> bool:
        thread = self._thread
        return self._watched or bool(self._inside) or (thread is not None and thread.is_alive())

    # -- from one to the other; under the lock ------------------------------------------------------------------------

    def _watch(self, *, at_once: bool) -> None:
        os.set_blocking(self._dispatcher.device_fd, False)
        self._watched = True
        self._event_loop.watch(self._dispatcher.device_fd, self._serve, at_once=at_once)

    def _unwatch(self) -> None:
        # Only once: later the number of the descriptor may be that of another mount.
        if self._watched:
            self._watched = False
            self._event_loop.unwatch(self._dispatcher.device_fd)

    def _leave_to_thread(self) -> None:
        """On the event loop. The caller reads no more."""
        self._quiet_requests = 0
        with self._lock:
            # A second thread inside is stuck, and would read on when it is not any more.
            if not self._watched or len(self._inside) > 1:
                return
            self._unwatch()
            os.set_blocking(self._dispatcher.device_fd, True)
            thread = threading.Thread(target=self._serve_from_memory, name=f"{self._name}-0", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the process may have no more threads
                self._watch(at_once=False)
            else:
                self._thread = thread

    def _leave_to_event_loop(self, buffer: bytearray, length: int) -> bool:
        """On the thread, which then ends. False after ``stop``."""
        with self._lock:
            if self._stopping:
                return False
            self._handed_over.append((buffer, length))
            self._watch(at_once=True)
        return True

    # -- on the event loop --------------------------------------------------------------------------------------------

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
        with suppress(IndexError):  # ``stop`` may take it
            answer(*self._handed_over.pop())
        for _ in range(_BATCH):
            # False after ``stop``, and where this thread was stuck and the mount has got one of its own meanwhile: the
            # device then blocks.
            if not self._watched:
                return
            try:
                length = os.readv(device_fd, [buffer])
            except OSError as error:
                if error.errno in RETRIED:
                    continue
                if error.errno != errno.EAGAIN:
                    with self._lock:
                        self._unwatch()
                    self._dispatcher.ended(error)
                return
            if answer(buffer, length) not in _FROM_MEMORY:
                self._quiet_requests = 0
                continue
            self._quiet_requests += 1
            if self._quiet_requests >= _QUIET_REQUESTS and not self._event_loop.busy:
                self._leave_to_thread()
                return

    # -- on the thread of the mount -----------------------------------------------------------------------------------

    def _serve_from_memory(self) -> None:
        reader_core = ReaderCore()
        try:
            self._read_until_left(reader_core)
        finally:
            reader_core.release()

    def _read_until_left(self, reader_core: ReaderCore) -> None:
        device_fd, readv, answer = self._dispatcher.device_fd, os.readv, self._dispatcher.answer
        opcode_at, task_at = p.OPCODE.unpack_from, p.PID.unpack_from
        buffer = bytearray(p.REQUEST_BUFFER_BYTES)
        buffers = [buffer]
        while True:
            try:
                length = readv(device_fd, buffers)
            except OSError as error:
                if error.errno in RETRIED:
                    continue
                # EAGAIN after ``stop``: the next session has made the device non-blocking, and reads now.
                if error.errno != errno.EAGAIN or not self._stopping:
                    self._dispatcher.ended(error)
                return
            opcode = opcode_at(buffer, p.OPCODE_OFFSET)[0]
            # While objects are fetched, also for another mount, a second thread would slow the event loop down: they
            # would pass the interpreter's lock to each other.
            if opcode not in _FROM_MEMORY or self._event_loop.busy:
                reader_core.release()  # the event loop may start a thread, which would inherit the core
                if self._leave_to_event_loop(buffer, length):
                    return
            if self._stopping and returned_to_kernel(buffer, self._resend):
                return
            answer(buffer, length)
            if opcode == p.IOCTL:  # that of a file in the page cache: a reader sends one after another
                reader_core.request(task_at(buffer, p.PID_OFFSET)[0])
