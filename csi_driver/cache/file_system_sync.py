"""Syncs a file system, for as long as an orderly stop may take."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

SYNC_S = 3.0
"""How long an orderly stop waits for the disk. Kubernetes grants 30 s for everything."""

_unended: list[subprocess.Popen[bytes]] = []
"""Nothing waits for their ends, and Python would complain about that when it frees them."""


def synced(path: Path) -> bool:
    """Whether the file system of the path is on the disk within ``SYNC_S``. By a process of its own: sync(2) cannot be
    interrupted, and would keep this process from ending in time."""
    try:
        sync = subprocess.Popen(("sync", "--file-system", os.fspath(path)), stderr=subprocess.DEVNULL)  # noqa: S603, S607
    except OSError:
        return False
    try:
        return sync.wait(SYNC_S) == 0
    except subprocess.TimeoutExpired:
        _unended.append(sync)
        return False
