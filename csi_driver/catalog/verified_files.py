"""Remembers that a file was compared with its checksum, as an extended attribute of it: a manifest of a hundred million
objects has 8 GB, and a mount must not read them all.

What is remembered holds for the same file, of the same size and modification time, on the same boot of the machine, for
a week: the page cache of a killed process is sound, that of a machine that crashed is not.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

_NAME = "user.hayloft.verified"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

TRUSTED_FOR_S = 7 * 86_400.0
"""As often as the scrubber reads the cache."""

_SETTLED_S = 1.0
"""A change within the same tick of the file system's clock leaves the modification time as it is, so a file that was
changed less than this before it was verified is not remembered. A large one takes longer to verify."""


def is_remembered(descriptor: int) -> bool:
    """Whether the file was verified, and is the same since."""
    with suppress(OSError, ValueError):
        identity, _, at_s = os.getxattr(descriptor, _NAME).decode("ascii").rpartition(" ")
        return identity == _identity(descriptor) and 0 <= time.time() - float(at_s) < TRUSTED_FOR_S
    return False


def remember(descriptor: int) -> None:
    """Notes that the file was verified just now. Does nothing where the file system has no such attributes."""
    with suppress(OSError):
        now_s = time.time()
        if now_s - os.fstat(descriptor).st_mtime >= _SETTLED_S:
            os.setxattr(descriptor, _NAME, f"{_identity(descriptor)} {int(now_s)}".encode("ascii"))


def _identity(descriptor: int) -> str:
    """Also of the inode: a copy may take attributes and times along. Hard links are the same file."""
    found = os.fstat(descriptor)
    return f"{_BOOT_ID.read_text().strip()} {found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns}"
