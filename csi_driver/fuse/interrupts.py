"""INTERRUPT: a signal came for a process that waits for an answer.

A read of a local file is not ended by a signal that has a handler, and programs rely on it: EINTR where none is
expected loses a batch, and in a page fault it is SIGBUS. So a waiting read goes on, unless its reader is being killed.
The kernel says only once that there was a signal, so an interrupted reader is looked at until it is answered.
"""

from __future__ import annotations

import errno
import signal
import time
from pathlib import Path

from csi_driver.fuse import protocol as p
from csi_driver.fuse.file_operations import FileOperations, OpenRequest, ReadRequest
from csi_driver.fuse.notifier import Notifier
from csi_driver.fuse.replies import Replies

_PROCESSES = Path("/proc")
_SIGKILL_BIT = 1 << (signal.SIGKILL - 1)

_LOOK_EVERY_S = 0.1
_RETRY_S = 0.01
UNSEEN_READER_PATIENCE_S = 2.0
"""A reader in a pid namespace that the daemon cannot see may be dying; after this long it is taken to be."""
_LOST_AT_MOST = 4096


class Interrupts:
    """Finds the request that an INTERRUPT is about, and ends it if its reader is being killed."""

    def __init__(self, files: FileOperations, replies: Replies, housekeeping: Notifier) -> None:
        self._files = files
        self._replies = replies
        self._housekeeping = housekeeping
        self.requests_may_be_lost = False
        """After adoption on a kernel that cannot repeat its requests: those that the last daemon had read have no
        answer, and their readers could not even be killed."""
        self._lost: dict[int, float] = {}

    def interrupt(self, buffer: bytearray, length: int, unique: int, node: int) -> None:
        """The handler of INTERRUPT, which has no answer unless the request is not found."""
        (target,) = p.INTERRUPT_IN.unpack_from(buffer, p.HEADER_BYTES)
        pending = self._files.parked.get(target)
        if pending is None and self.requests_may_be_lost:
            self._give_up(target, unique)
        elif pending is None:
            # Answered already, or another thread has read it and not parked it yet. EAGAIN makes the kernel ask again
            # if it still waits, and is refused if not; after a moment, so that it is not asked in a circle.
            self._housekeeping.after(_RETRY_S, lambda: self._ask_again(unique))
        else:
            self._look(pending, time.monotonic() + UNSEEN_READER_PATIENCE_S)

    def _give_up(self, target: int, unique: int) -> None:
        """EINTR for a request that stays unknown for longer than any thread takes to park one. If it was known after
        all and has its answer, the kernel refuses this one."""
        now = time.monotonic()
        if len(self._lost) >= _LOST_AT_MOST:
            self._lost.clear()
        if now < self._lost.setdefault(target, now + UNSEEN_READER_PATIENCE_S):
            self._housekeeping.after(_LOOK_EVERY_S, lambda: self._ask_again(unique))
        else:
            del self._lost[target]
            self._replies.error(target, errno.EINTR)

    def _ask_again(self, unique: int) -> None:
        self._replies.error(unique, errno.EAGAIN)

    def _look(self, pending: ReadRequest | OpenRequest, patience_ends: float) -> None:
        if self._files.parked.get(pending.unique) is not pending:
            return
        dying = is_being_killed(pending.pid)
        if dying or (dying is None and time.monotonic() >= patience_ends):
            pending.interrupt()
        else:
            self._housekeeping.after(_LOOK_EVERY_S, lambda: self._look(pending, patience_ends))


def is_being_killed(thread_id: int) -> bool | None:
    """Whether SIGKILL waits for the thread, which is how every fatal signal shows; None: it cannot be seen."""
    if not thread_id:
        return None
    try:
        status = (_PROCESSES / str(thread_id) / "status").read_text()
    except OSError:
        return None
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name in ("SigPnd", "ShdPnd") and int(value, 16) & _SIGKILL_BIT:
            return True
    return False
