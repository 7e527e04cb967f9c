"""Validates the paths in CSI requests before they are used."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from csi_driver.model.errors import InvalidParameter, MissingParameter
from csi_driver.mounts.mount_point import open_directory
from csi_driver.mounts.mount_table import real_mount_point

_LONGEST_PATH = 4095
"""PATH_MAX without the terminating NUL."""


def checked_path(field: str, text: str, below: Path | None) -> Path:
    """The path as the mount table spells it. With ``below``, kubelet's directory without links, it lies below that
    directory and is reached from there without a link; links to the directory itself are followed. Without it, links in
    the parents are followed.

    Never calls stat on the last component: a file system that is mounted there may hang. Raises MissingParameter,
    InvalidParameter.
    """
    if not text:
        raise MissingParameter(field)
    if not text.startswith("/") or "\0" in text or ".." in text.split("/"):
        raise InvalidParameter(field, text, "an absolute path without '..'")
    if len(os.fsencode(text)) > _LONGEST_PATH:
        raise InvalidParameter(field, text[:64] + "…", f"a path of at most {_LONGEST_PATH} bytes")
    if below is not None:
        return _beneath(field, text, below)
    real = real_mount_point(text)
    if real == Path("/"):
        raise InvalidParameter(field, text, "a path that is not the root directory")
    return real


def _beneath(field: str, text: str, below: Path) -> Path:
    plain = Path(os.path.normpath("/" + text.lstrip("/")))
    for ancestor in reversed(plain.parents):  # kubelet's directory may have several names
        if os.path.realpath(ancestor) == os.fspath(below):
            path = below / plain.relative_to(ancestor)
            break
    else:
        raise InvalidParameter(field, text, f"a path below kubelet's directory {below}")
    try:
        os.close(open_directory(path.parent))
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise InvalidParameter(
                field, text, f"a path below kubelet's directory {below} that no link or file is a part of"
            ) from error
        if error.errno != errno.ENOENT:
            raise InvalidParameter(field, text, f"a path that can be opened; this one: {error.strerror}") from error
    return path
