"""The name of a process, for ps and for logs of the kernel."""

from __future__ import annotations

import ctypes

_PR_SET_NAME = 15  # linux/prctl.h


def name_this_process(name: str) -> None:
    """Of up to 15 bytes; for the main thread. Not by /proc/self/comm: the files there belong to root in a process that
    leaves no core file, so that another user may not write them."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)
