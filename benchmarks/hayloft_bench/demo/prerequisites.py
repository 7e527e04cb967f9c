"""Finds out, before any work is done, whether the demonstration can run here; says what to do when it cannot."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from csi_driver.mounts.mount_table import MountTable
from hayloft_bench.demo import extra
from hayloft_bench.demo.errors import DemoFailed
from hayloft_bench.demo.options import DemoOptions

DATASET_BYTES = 710_000_000
COPIES = 3
"""On the disk at one time: the plain files, the store's copy and the cache."""
SPARE_BYTES = 2 << 30
"""1 GiB that the cache always leaves free, and as much for the store's own files."""


def check(options: DemoOptions) -> Path:
    """Gives the directory to work below. Raises DemoFailed."""
    if not 0.001 <= options.scale <= 100:
        raise DemoFailed(f"--scale {options.scale} is out of range: 0.001 to 100; 1 is about 700 MB")
    _check_machine()
    extra.check()
    for path in (options.json_path, options.picture_path):
        if not path.absolute().parent.is_dir():
            raise DemoFailed(f"{path} cannot be written: {path.absolute().parent} is not a directory; make it first")
    return _check_directory(options)


def _check_machine() -> None:
    if not sys.platform.startswith("linux"):
        raise DemoFailed(f"the driver mounts with FUSE of Linux; this is {sys.platform}: use a Linux machine")
    if os.geteuid() != 0:
        raise DemoFailed("the demonstration mounts as a node does, which needs root: run it with sudo")
    if not Path("/dev/fuse").exists():
        raise DemoFailed("/dev/fuse is missing: modprobe fuse, or start the container with --device /dev/fuse")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise DemoFailed("/dev/fuse may not be opened: start the container with --device /dev/fuse --privileged")


def _check_directory(options: DemoOptions) -> Path:
    # /var/tmp rather than /tmp, which is often a tmpfs: a cache in memory would show nothing.
    directory = (options.directory or Path("/var/tmp")).absolute()  # noqa: S108 - a new directory of mode 0700 is made
    if not directory.is_dir():
        raise DemoFailed(f"--directory {directory} is not a directory; make it, or name another")
    entry = MountTable.read().containing(directory.resolve())
    if entry is not None and entry.fs_type in ("tmpfs", "ramfs"):
        raise DemoFailed(f"{directory} is on {entry.fs_type}, in memory; name a directory on a disk with --directory")
    needed_bytes = int(COPIES * DATASET_BYTES * options.scale) + SPARE_BYTES
    free_bytes = shutil.disk_usage(directory).free
    if free_bytes < needed_bytes:
        raise DemoFailed(
            f"{directory} has {free_bytes / 1e9:.1f} GB free and {needed_bytes / 1e9:.1f} GB are needed: name another "
            "directory with --directory, or use less with --scale 0.2"
        )
    return directory
