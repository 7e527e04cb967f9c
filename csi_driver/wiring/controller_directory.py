"""The directory in which a controller builds manifests: the same one after a restart, since a listing that was killed
is continued from what it left there."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_KEPT = ("listings",)
"""What the next process needs; everything else is made again."""


@contextmanager
def controller_directory(identity: str) -> Iterator[Path]:
    """Below the directory for temporary files, which in a pod is a volume that outlives its containers. ``identity``
    tells apart the controllers of a machine. At the end of the body only the journals of listings stay, if there are
    any. Where the name is taken, by another user or by a process that still runs, it is a directory without them.
    Raises OSError."""
    digest = hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()
    path = Path(tempfile.gettempdir()) / f"hayloft-controller-{os.geteuid()}-{digest}"
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    descriptor = _own(path)
    if descriptor is None:
        with tempfile.TemporaryDirectory(prefix="hayloft-controller-") as other:
            yield Path(other)
        return
    try:
        yield path
    finally:
        _remove_but_journals(path)
        os.close(descriptor)


def _own(path: Path) -> int | None:
    """A descriptor that holds the lock of the directory, until it is closed or this process ends. None: it is not of
    this user alone (in a directory that all may write, any other one may be a trap), or another process has it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        status = os.fstat(descriptor)
        if status.st_uid == os.geteuid() and not status.st_mode & 0o077:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
    except BlockingIOError:
        pass
    os.close(descriptor)
    return None


def _remove_but_journals(path: Path) -> None:
    for entry in path.iterdir():
        if entry.name not in _KEPT:
            shutil.rmtree(entry, ignore_errors=True)
    for name in _KEPT:
        kept = path / name
        if kept.is_dir() and {entry.name for entry in kept.iterdir()} <= {"key"}:
            shutil.rmtree(kept, ignore_errors=True)
    with contextlib.suppress(OSError):  # journals are left
        path.rmdir()
