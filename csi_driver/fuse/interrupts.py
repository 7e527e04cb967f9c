"""INTERRUPT: a process with a pending request received a signal.

A read of a local file is not ended by a signal that has a handler, and programs rely on it: EINTR where none is
expected loses a batch, and in a page fault it is SIGBUS. So a pending read continues, unless its reader is being
killed. The kernel sends one INTERRUPT for a request, so an interrupted reader is polled until it is answered.
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

_POLL_S = 0.1
_RETRY_S = 0.01
UNSEEN_READER_TIMEOUT_S = 2.0
"""A reader in a pid namespace that the daemon cannot see may be dying; after so long it counts as dying."""
_MOST_LOST = 4096


class Interrupts:
    """Finds the request of an INTERRUPT, and answers it with EINTR if its reader is being killed. The polls run on the
    thread of the notifier."""

    def __init__(self, files: FileOperations, replies: Replies, notifier: Notifier) -> None:
        self._files = files
        self._replies = replies
        self._notifier = notifier
        self.requests_may_be_lost = False
        """After adoption on a kernel that cannot resend requests: this daemon never sees those that the last one had
        read, and without an answer their readers could not even be killed."""
        self._lost: dict[int, float] = {}
        """When requests that are unknown to this daemon count as lost, by their unique number."""

    def interrupt(self, buffer: bytearray, length: int, unique: int, node: int) -> None:
        """The handler of INTERRUPT, which is answered only if its request is not pending."""
        (target,) = p.INTERRUPT_IN.unpack_from(buffer, p.HEADER_BYTES)
        pending = self._files.pending.get(target)
        if pending is None and self.requests_may_be_lost:
            self._answer_lost(target, unique)
        elif pending is None:
            # Answered already, or read by another thread that has not entered it in ``pending`` yet. EAGAIN makes the
            # kernel send the INTERRUPT again if the request still waits, and is refused if not. The delay keeps this
            # from becoming a busy loop.
            self._notifier.after(_RETRY_S, lambda: self._retry(unique))
        else:
            self._poll(pending, time.monotonic() + UNSEEN_READER_TIMEOUT_S)

    def _answer_lost(self, target: int, unique: int) -> None:
        """EINTR for a request that stays unknown for longer than any thread takes to enter it in ``pending``. If it was
        answered after all, the kernel refuses this second answer."""
        now = time.monotonic()
        if len(self._lost) >= _MOST_LOST:
            self._lost.clear()
        if now < self._lost.setdefault(target, now + UNSEEN_READER_TIMEOUT_S):
            self._notifier.after(_POLL_S, lambda: self._retry(unique))
        else:
            del self._lost[target]
            self._replies.error(target, errno.EINTR)

    def _retry(self, unique: int) -> None:
        self._replies.error(unique, errno.EAGAIN)

    def _poll(self, pending: ReadRequest | OpenRequest, deadline: float) -> None:
        if self._files.pending.get(pending.unique) is not pending:
            return  # answered
        dying = is_being_killed(pending.pid)
        if dying or (dying is None and time.monotonic() >= deadline):
            pending.interrupt()
        else:
            self._notifier.after(_POLL_S, lambda: self._poll(pending, deadline))


def is_being_killed(thread_id: int) -> bool | None:
    """Whether SIGKILL is pending for the thread, as it is for every fatal signal; None: the daemon cannot see it."""
    if not thread_id:
        return None
    try:
        status = (_PROCESSES / str(thread_id) / "status").read_text()
    except OSError as error:
        return False if error.errno in (errno.EMFILE, errno.ENFILE) else None  # the next poll may have a descriptor
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name in ("SigPnd", "ShdPnd") and int(value, 16) & _SIGKILL_BIT:
            return True
    return False
