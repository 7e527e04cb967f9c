"""The limit of open files of a process. Standard library only, for the keeper."""

from __future__ import annotations

import logging
import resource
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger(__name__)

_NR_OPEN = Path("/proc/sys/fs/nr_open")

_FEW = 4096
"""Below it a daemon closes files between two epochs of a training, and refuses opens of volumes with many readers."""


def raise_descriptor_limit() -> None:
    """Raises the soft limit, often 1024, to the hard one, or to what the kernel allows by now. Raises nothing: with a
    low limit a process works with fewer files."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # the kernel refuses a limit above fs.nr_open, which may have been lowered
        allowed = int(_NR_OPEN.read_text())
        hard = allowed if hard == resource.RLIM_INFINITY else min(hard, allowed)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def warn_of_few_descriptors() -> None:
    """One line in the log if this process may open few files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _FEW:
        logger.warning(
            "this process may open no more than %d files (RLIMIT_NOFILE): raise the hard limit of the container to "
            "%d or more; with few, files are closed early and a volume with many open files gets ENFILE",
            soft,
            _FEW,
        )
