"""Validates the paths in CSI requests before they are used."""

from __future__ import annotations

import os
from pathlib import Path

from csi_driver.model.errors import InvalidParameter, MissingParameter
from csi_driver.mounts.mount_table import real_mount_point

_LONGEST_PATH = 4095
"""PATH_MAX without the terminating NUL."""


def checked_path(field: str, text: str, below: Path | None) -> Path:
    """The path as the mount table spells it: links in its parents are resolved, and the result lies ``below``.

    Never calls stat on the last component: a file system that is mounted there may hang. Raises MissingParameter,
    InvalidParameter.
    """
    if not text:
        raise MissingParameter(field)
    if not text.startswith("/") or "\0" in text or ".." in text.split("/"):
        raise InvalidParameter(field, text, "an absolute path without '..'")
    if len(os.fsencode(text)) > _LONGEST_PATH:
        raise InvalidParameter(field, text[:64] + "…", f"a path of at most {_LONGEST_PATH} bytes")
    real = real_mount_point(text)
    if below is not None and not _lies_below(real, below):
        raise InvalidParameter(field, text, f"a path below kubelet's directory {below}, links followed")
    if real == Path("/"):
        raise InvalidParameter(field, text, "a path that is not the root directory")
    return real


def _lies_below(real: Path, below: Path) -> bool:
    root = Path(os.path.realpath(below))
    return real != root and real.is_relative_to(root)
