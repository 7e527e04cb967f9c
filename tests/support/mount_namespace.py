"""Another mount namespace: a process that has copies of this one's mounts, as a container has that was started with
them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SCRIPT = """
# Mounts of other tests must not stay busy in this namespace after these tests unmount them.
grep hayloft /proc/self/mountinfo | while read -r id parent device root point rest; do
    case $point in "$1"/*) ;; *) umount --lazy "$point" || true ;; esac
done
echo ready
exec cat
"""


@contextmanager
def copied_mounts(home: Path) -> Iterator[Path]:
    """During the body, a namespace with copies of the mounts below ``home``, which unmounts here do not change. Yields
    the path of its root directory: ``root / "mnt"`` is its ``/mnt``."""
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _SCRIPT, "sh", os.fspath(home)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield Path(f"/proc/{process.pid}/root")
        finally:
            process.kill()
