"""Keeps the thread that answers a reader on the core where the reader runs.

A reader sleeps until its request is answered, so nothing is gained by two cores, and each change from one to the other
costs two wake-ups of an idle core: 35 to 60 microseconds for a request in a virtual machine, where it takes 13 on one
core (decision 10). The kernel leaves a thread that it wakes where it ran before, wherever the reader is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress

_EVERY = 64
"""Requests from one look to the next. A look takes 8 microseconds (a file of /proc is opened and read)."""
_ALIKE = 4
"""So many looks in a row that saw the same core are taken for one reader that stays there."""

_CORE_FIELD = 36
"""Of ``/proc/TASK/stat``, counted behind the name: where the task ran last."""
_STAT_BYTES = 1024


def core_of(task: int) -> int | None:
    """Where a task (a thread's id) ran last. None: it is gone, or has no id here: 0, for a task of another process
    namespace."""
    if not task:
        return None
    try:
        stat = os.open(f"/proc/{task}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return int(os.read(stat, _STAT_BYTES).rpartition(b")")[2].split()[_CORE_FIELD])
    except (OSError, IndexError, ValueError):
        return None
    finally:
        os.close(stat)


def _stay_on(cores: Iterable[int]) -> None:
    os.sched_setaffinity(0, cores)


class ReaderCore:
    """For one thread, which alone calls the methods. ``release`` before the thread starts another one, which would
    inherit the core."""

    def __init__(
        self,
        core_of: Callable[[int], int | None] = core_of,
        stay_on: Callable[[Iterable[int]], None] = _stay_on,
    ) -> None:
        self._core_of, self._stay_on = core_of, stay_on
        self._all_cores = os.sched_getaffinity(0)
        self._requests_left = _EVERY
        self._seen: int | None = None
        self._alike = 0
        self._core: int | None = None
        """Where the thread is kept; None: it runs on any."""

    def request(self, task: int) -> None:
        """A request of this task is about to be answered. Raises nothing."""
        self._requests_left -= 1
        if self._requests_left > 0:
            return
        self._requests_left = _EVERY
        seen = self._core_of(task)
        self._alike = self._alike + 1 if seen == self._seen else 1
        self._seen = seen
        if seen != self._core:  # the reader has moved, or there are several
            self.release()
            if seen is not None and self._alike >= _ALIKE:
                self._follow(seen)

    def release(self) -> None:
        """The thread may run on any core again."""
        if self._core is not None:
            self._core = None
            with suppress(OSError):  # the container has other cores by now: the kernel has moved the thread already
                self._stay_on(self._all_cores)

    def _follow(self, core: int) -> None:
        try:
            self._stay_on((core,))
        except OSError:  # not one of this container's: the reader has cores of its own (kubelet's static CPU manager)
            self._alike = 0
        else:
            self._core = core
