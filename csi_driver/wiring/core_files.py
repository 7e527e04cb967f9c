"""No core file of a process that holds secrets."""

from __future__ import annotations

import ctypes
import resource

_PR_SET_DUMPABLE = 4


def keep_no_core_files() -> None:
    """For this process, and for those that it forks. The limit alone does not hold where core files go to a program
    (``|`` in /proc/sys/kernel/core_pattern): the kernel asks that for no process that may not be dumped. Such a process
    cannot be traced either, nor its memory be read, without CAP_SYS_PTRACE."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, ctypes.c_ulong(0), 0, 0, 0)
