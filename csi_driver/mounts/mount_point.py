"""A path to mount on, reached without following a link and held by a descriptor of its parent from then on.

Whatever replaces a directory by a link while a call runs could otherwise lead a mount out of kubelet's directory. The
path is walked from ``/``, where no link is followed (openat2 with RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS and
RESOLVE_NO_MAGICLINKS), so a path that lies below kubelet's directory by its text cannot leave it. What comes after uses
the descriptor: a directory that is moved or replaced meanwhile changes nothing.

Where the kernel has no openat2 (before Linux 5.6), the path is opened directory by directory, each without following a
link, with the same result. Where it cannot move a mount that it made elsewhere (before 5.2; before 5.12 for bind
mounts), the file system is mounted on the descriptor of the directory; a mount whose check fails is then found by its
path, and not by its own descriptor.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from csi_driver.model.errors import MountFailed, MountPointMissing
from csi_driver.model.tracebacks import summary
from csi_driver.mounts import syscalls
from csi_driver.mounts.mount_table import MountEntry, MountTable

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_LINKS = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS


class MountPoint:
    """One name in a directory that is open. Methods raise OSError unless they say otherwise, and none accesses a file
    system that is mounted there: its daemon may be dead or stopped."""

    def __init__(self, path: Path, parent_fd: int) -> None:
        self.path = path
        """As the mount table spells it."""
        self.parent_fd = parent_fd
        self.name = path.name

    @property
    def address(self) -> str:
        """A path for calls that take no descriptor. Only its last component can be replaced: use it with calls that do
        not follow a link there."""
        return f"{descriptor_path(self.parent_fd)}/{self.name}"

    def make(self, mode: int) -> None:
        """Ensures that something exists there."""
        with suppress(FileExistsError):
            os.mkdir(self.name, mode, dir_fd=self.parent_fd)

    def open(self) -> int:
        """A descriptor of the directory, or of the root of the file system that is mounted there. The caller owns it.
        A link fails with ENOTDIR."""
        return os.open(self.name, _DIRECTORY, dir_fd=self.parent_fd)

    def remove(self) -> None:
        """Removes an empty directory."""
        os.rmdir(self.name, dir_fd=self.parent_fd)

    def remove_file_or_link(self) -> bool:
        """False if there is a directory, or nothing."""
        with suppress(FileNotFoundError):
            mode = os.stat(self.name, dir_fd=self.parent_fd, follow_symlinks=False).st_mode
            if stat.S_ISREG(mode) or stat.S_ISLNK(mode):
                os.unlink(self.name, dir_fd=self.parent_fd)
                return True
        return False

    def unmount(self, flags: int) -> None:
        """The topmost mount there."""
        syscalls.umount2(self.address, flags | syscalls.UMOUNT_NOFOLLOW)

    def attach(self, tree_fd: int, directory_fd: int) -> MountEntry:
        """Moves a mount that is attached nowhere to the directory, which ``open`` returned, and returns its entry.
        Raises MountFailed, with nothing left mounted, if it is not what the mount table shows at the path afterwards.
        """
        both_empty = syscalls.MOVE_MOUNT_F_EMPTY_PATH | syscalls.MOVE_MOUNT_T_EMPTY_PATH
        syscalls.move_mount(tree_fd, "", directory_fd, "", both_empty)
        entry = MountTable.read().at(self.path)
        if entry is None or entry.mount_id != syscalls.mount_id(tree_fd):
            detach(tree_fd)
            raise MountFailed(f"{self.path}: was moved or replaced during the mount, which is undone; retry")
        return entry


@contextmanager
def pinned(path: Path, create_mode: int | None = None) -> Iterator[MountPoint]:
    """The mount point during the body; its parent must exist, or is created with ``create_mode``. Raises ValueError for
    a path that is not absolute and plain, MountPointMissing for a parent that is missing, a file or a link."""
    try:
        parent_fd = open_directory(path.parent, create_mode)
    except OSError as error:
        raise mount_point_error(path, error) from error
    try:
        yield MountPoint(path, parent_fd)
    finally:
        os.close(parent_fd)


def open_directory(path: Path, create_mode: int | None = None) -> int:
    """A descriptor of the directory, without following any link; the caller owns it. With ``create_mode`` it is created
    if missing, with its parents. Raises OSError: ELOOP or ENOTDIR for a link."""
    if not path.is_absolute() or ".." in path.parts:
        raise ValueError(f"not an absolute path without '..': {path}")
    root_fd = os.open("/", _DIRECTORY)
    try:
        names = path.parts[1:]
        try:
            return syscalls.openat2(root_fd, "/".join(names) or ".", _DIRECTORY, _NO_LINKS)
        except OSError as error:
            missing = error.errno == errno.ENOENT and create_mode is not None
            if not missing and error.errno not in syscalls.NOT_SUPPORTED:
                raise
        return _walk(root_fd, names, create_mode)
    finally:
        os.close(root_fd)


def descriptor_path(descriptor: int) -> str:
    """A path that leads to what the descriptor has open, whatever its own path is by now."""
    return f"/proc/self/fd/{descriptor}"


def detach(mounted_fd: int) -> None:
    """Unmounts the mount with the root that the descriptor has open, wherever it is."""
    syscalls.umount2(descriptor_path(mounted_fd), syscalls.MNT_DETACH)


def mount_point_error(path: Path, error: OSError) -> MountPointMissing:
    """What to say of a directory that cannot be opened or created."""
    if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.EEXIST):
        return MountPointMissing(f"{path}: is not a directory (a link is not followed); make it one")
    if error.errno == errno.ENOENT:
        return MountPointMissing(f"{path}: no such directory; create it before mounting")
    return MountPointMissing(f"{path}: cannot be used as a mount point: {explain(error)}")


def explain(error: OSError) -> str:
    """The text of a mount call's error."""
    if error.errno in (errno.EPERM, errno.EACCES):
        return f"{error.strerror}; mounting needs CAP_SYS_ADMIN in the mount namespace"
    return error.strerror or summary(error)


def _walk(root_fd: int, names: tuple[str, ...], create_mode: int | None) -> int:
    current_fd = os.dup(root_fd)
    for name in names:
        outer_fd = current_fd
        try:
            if create_mode is not None:
                with suppress(FileExistsError):
                    os.mkdir(name, create_mode, dir_fd=outer_fd)
            current_fd = os.open(name, _DIRECTORY, dir_fd=outer_fd)
        finally:
            os.close(outer_fd)
    return current_fd
