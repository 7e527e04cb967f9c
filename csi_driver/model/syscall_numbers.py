"""Numbers of the system calls that neither Python nor the C library has a function for.

Those that were added since Linux 5.1 have one number on x86-64 (``arch/x86/entry/syscalls/syscall_64.tbl``) and on
arm64 (``include/uapi/asm-generic/unistd.h``); an older one has one for each.
"""

from __future__ import annotations

from collections.abc import Mapping

OPEN_TREE = 428  # Linux 5.2
MOVE_MOUNT = 429  # Linux 5.2
FSOPEN = 430  # Linux 5.2
FSCONFIG = 431  # Linux 5.2
FSMOUNT = 432  # Linux 5.2
OPENAT2 = 437  # Linux 5.6
MOUNT_SETATTR = 442  # Linux 5.12
CACHESTAT = 451  # Linux 6.5

SCHED_SETATTR: Mapping[str, int] = {"x86_64": 314, "aarch64": 274}
"""By the name of the processor, as ``uname -m`` prints it."""
