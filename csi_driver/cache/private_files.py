"""Rights of what the cache stores: for its owner alone, also where an older version, or an operator, made it wider.

Object files have mode 0444, because pods of any user read their hard links in views; the directories above them are
closed instead. A view is mounted in a pod from below these directories, so their modes do not affect its readers.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def close_to_others(path: Path) -> None:
    """Takes all rights on a file or directory from group and others. Does nothing if it is missing, a link, or another
    user's."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if status.st_uid == os.geteuid() and status.st_mode & _OTHERS:
                os.fchmod(descriptor, stat.S_IMODE(status.st_mode) & ~_OTHERS)
        finally:
            os.close(descriptor)


def close_own_directory(path: Path, own: Collection[str]) -> None:
    """``close_to_others`` for a directory that an operator named, unless it holds anything but the names in ``own`` and
    what begins with them: it is then shared with others."""
    if all(name.startswith(tuple(own)) for name in os.listdir(path)):
        close_to_others(path)
