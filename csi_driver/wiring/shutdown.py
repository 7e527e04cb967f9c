"""Shutdown of a process: on a signal, or with its parent process. Standard library only."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

PARENT_VARIABLE = "HAYLOFT_PARENT_PID"
"""Set by ``hayloft all-in-one`` for its children."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Signals:
    """Signals as events that the main thread waits for. The interpreter writes their numbers to a pipe when they are
    received (``signal.set_wakeup_fd``). A handler in Python could not: it runs between two steps of the main thread, so
    that of a signal received just before ``select`` would run after it, which is never."""

    def __init__(self, numbers: tuple[int, ...] = ()) -> None:
        """``numbers``: of the signals that are events; others may be written too."""
        self._numbers = numbers
        self._read_fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def wait(self, timeout_s: float | None = None) -> int | None:
        """The number of the next signal, or None when the wait times out. Without a time-out it waits for a signal."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            try:
                received = os.read(self._read_fd, 1)
            except BlockingIOError:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                if left == 0.0:
                    return None
                select.select((self._read_fd,), (), (), left)
            else:
                if received[0] in self._numbers:
                    return received[0]

    @property
    def write_fd(self) -> int:
        """Where the interpreter writes."""
        return self._write_fd

    def close(self) -> None:
        """The interpreter must not write there any more."""
        os.close(self._read_fd)
        os.close(self._write_fd)


@contextmanager
def watching(*numbers: int) -> Iterator[Signals]:
    """Handles these signals during the body, in the main thread; restores the earlier handlers afterwards."""
    signals = Signals(numbers)
    earlier = signal.set_wakeup_fd(signals.write_fd, warn_on_full_buffer=False)
    before = {number: signal.signal(number, lambda _received, _frame: None) for number in numbers}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(earlier)
        signals.close()


STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def wait_for_stop() -> None:
    """Blocks the main thread until SIGTERM or SIGINT."""
    with watching(*STOP_SIGNALS) as signals:
        signals.wait()


def die_with_parent(environment: Mapping[str, str]) -> None:
    """Makes the kernel send SIGTERM to this process when its parent dies, if the parent has set ``PARENT_VARIABLE``."""
    parent = environment.get(PARENT_VARIABLE, "")
    if parent.isdigit():
        end_with_parent(int(parent))


def end_with_parent(parent_pid: int) -> None:
    """Makes the kernel send SIGTERM to this process when the thread that has started it dies, or its process."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGTERM))
    if os.getppid() != parent_pid:  # race: it died before the prctl call, so no signal will follow
        sys.exit(0)
