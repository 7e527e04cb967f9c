"""What is common to servers that run as child processes on loopback."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Sequence

# Asks the kernel to kill this process when the thread that started it ends (PR_SET_PDEATHSIG = 1), then becomes the
# server. It is a separate program because code between fork and exec is not safe in a process with threads. The parent
# may have died before prctl: then the signal never comes, so the parent's id is compared afterwards.
_DIE_WITH_PARENT = (
    "import ctypes, os, signal, sys\n"
    "ctypes.CDLL(None).prctl(1, signal.SIGKILL)\n"
    "if os.getppid() != int(sys.argv[1]): sys.exit(1)\n"
    "os.execv(sys.argv[2], sys.argv[2:])\n"
)


def dying_with_parent(command: Sequence[str]) -> list[str]:
    """A command that becomes ``command``, whose program is a path. The kernel kills it when the thread that started it
    ends."""
    return [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command]


def free_ports(count: int, host: str) -> list[int]:
    """Ports that are free now. All probes stay bound until the last one is found, so that the ports differ."""
    with contextlib.ExitStack() as stack:
        ports = []
        for _ in range(count):
            probe = stack.enter_context(socket.socket())
            probe.bind((host, 0))
            ports.append(int(probe.getsockname()[1]))
        return ports
