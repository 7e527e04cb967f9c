"""Read-only bind mounts and their mount points. Each call ensures a state, compared with the mount table.

No call accesses a mounted file system itself (no stat, no statfs): its daemon may be dead or stopped. The caller
serializes calls for one target: two concurrent binds would stack, and ``unmount`` removes both.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from csi_driver.model.errors import (
    MountError,
    MountFailed,
    MountPointBusy,
    MountPointMissing,
    NotMounted,
    ViewUnavailable,
    VolumeConflict,
)
from csi_driver.mounts import syscalls
from csi_driver.mounts.mount_table import MountEntry, MountTable, real_mount_point

_WANTED_OPTIONS = frozenset({"ro", "nosuid", "nodev"})
_WANTED_ATTRIBUTES = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
_TREE_FLAGS = syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC | syscalls.AT_SYMLINK_NOFOLLOW
_WANTED_FLAGS = syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV

# A remount of a bind mount clears all flags that it does not name, so these are passed again.
_PRESERVED_FLAGS = {
    "noexec": syscalls.MS_NOEXEC,
    "noatime": syscalls.MS_NOATIME,
    "nodiratime": syscalls.MS_NODIRATIME,
    "relatime": syscalls.MS_RELATIME,
    "nosymfollow": syscalls.MS_NOSYMFOLLOW,
}

# Errors of a kernel before 5.12, or of a seccomp profile that does not know the calls. A process that lacks the
# privilege gets EPERM from the older call as well, so the fallback path hides no error.
_NO_NEW_API = (errno.ENOSYS, errno.EPERM)

_STACK_LIMIT = 256
"""With more mounts than this at one path, another process mounts as fast as ``unmount`` unmounts."""


@dataclass(frozen=True, slots=True)
class _Content:
    """The content of a mount: a directory of a file system."""

    device: str
    root: str


@dataclass(frozen=True, slots=True)
class _Extras:
    """Options of a new mount in addition to read-only, nosuid and nodev."""

    no_exec: bool
    user_namespace: int | None


def bind_read_only(source: Path, target: Path, *, no_exec: bool = False, user_namespace: int | None = None) -> None:
    """Ensures that ``target`` shows ``source`` read-only, nosuid and nodev, without mounts below ``source``.
    ``no_exec`` and ``user_namespace``, a descriptor of the namespace that maps owners, apply to a new mount only.

    With the mount API of descriptors (Linux 5.12) the mount becomes visible when it is complete. Without it, it is
    writable between two system calls; if the process is killed there, the next call makes it read-only.

    Raises NotMounted (``source`` is missing or its daemon is dead), MountPointMissing, MountPointBusy (a foreign mount
    at ``target``), VolumeConflict (another volume there), MountFailed, ViewUnavailable (owners cannot be mapped).
    """
    source, target = real_mount_point(source), real_mount_point(target)
    table = MountTable.read()
    wanted = _content_of(table, source)
    present = table.at(target)
    if present is None:
        _bind(source, target, table, _Extras(no_exec, user_namespace))
    elif _matches(present, wanted):
        if not present.options >= _WANTED_OPTIONS:
            _restrict(target, present)
    else:
        raise _occupied(present, table.containing(source))
    _check_result(target, wanted)


def try_user_namespace(source: Path, user_namespace: int) -> None:
    """Tests, without mounting, whether a bind mount of the directory can map owners. Raises ViewUnavailable if not."""
    try:
        tree_fd = syscalls.open_tree(syscalls.AT_FDCWD, source, _TREE_FLAGS)
    except OSError as error:
        raise _owners_unmappable(_explain(error)) from error
    try:
        _map_owners(tree_fd, user_namespace)
    finally:
        os.close(tree_fd)


def unmount(target: Path, lazy: bool = False) -> None:
    """Ensures that nothing is mounted at ``target``, including stacked mounts.

    A FUSE mount whose daemon is dead is detached. ``lazy`` detaches a busy mount as well: it disappears from the tree
    at once and ends with its last open file. Raises MountPointBusy (open files, or a working directory, in the mount),
    MountFailed.
    """
    target = real_mount_point(target)
    for _ in range(_STACK_LIMIT):
        if MountTable.read().at(target) is None:
            return
        _unmount_topmost(target, syscalls.MNT_DETACH if lazy else 0)
    raise MountPointBusy(f"{target}: mounts keep appearing while they are unmounted; stop the process that mounts")


def ensure_directory(path: Path, mode: int = 0o750) -> None:
    """Ensures a directory to mount on, with its parents. Does not access a path that is already mounted on.

    Raises MountPointMissing when it cannot be created or is not a directory.
    """
    path = real_mount_point(path)
    if MountTable.read().at(path) is not None:
        return
    try:
        path.parent.mkdir(mode=mode, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            path.mkdir(mode=mode)
        os.close(_open_directory(path))
    except OSError as error:
        raise _mount_point_error(path, error) from error


def remove_mount_point(target: Path) -> None:
    """Ensures that the empty directory ``target`` does not exist. Never deletes files in it: they were written while
    nothing was mounted, and may be a user's only copy.

    Raises MountPointBusy when it is mounted on, not empty or not a directory.
    """
    target = real_mount_point(target)
    if MountTable.read().at(target) is not None:
        raise MountPointBusy(f"{target}: still mounted; unmount it first")
    try:
        os.rmdir(target)
    except FileNotFoundError:
        return
    except OSError as error:
        reason = {
            errno.ENOTEMPTY: "contains files that do not belong to the volume; move them away",
            errno.ENOTDIR: "is not a directory; move it away",
            errno.EBUSY: "is in use as a mount point; unmount it first",
        }.get(error.errno or 0, f"cannot be removed: {error.strerror}")
        raise MountPointBusy(f"{target}: {reason}") from error


def _content_of(table: MountTable, source: Path) -> _Content:
    """The content that a bind mount of ``source`` will have."""
    parent = table.containing(source)
    if parent is None:
        raise MountFailed(f"{source}: is in no mount of this process's mount table")
    below = os.path.relpath(source, parent.mount_point)
    return _Content(parent.device, os.path.normpath(os.path.join(parent.root, below)))


def _matches(entry: MountEntry, wanted: _Content) -> bool:
    return _Content(entry.device, entry.root) == wanted and not entry.root_deleted


def _occupied(present: MountEntry, source: MountEntry | None) -> MountError | VolumeConflict:
    where = f"{present.mount_point}: {present.source!r} ({present.fs_type}) is mounted there already"
    if source is not None and present.fs_type == source.fs_type:
        return VolumeConflict(f"{where}, which is another volume; unpublish that one or use another target path")
    return MountPointBusy(f"{where}; unmount it or use another target path")


def _bind(source: Path, target: Path, table: MountTable, extras: _Extras) -> None:
    try:
        target_fd = _open_directory(target)
    except OSError as error:
        raise _mount_point_error(target, error) from error
    try:
        if not _bind_atomically(source, target_fd, extras):
            _bind_in_two_steps(source, target, table, extras)
    except OSError as error:
        raise _bind_error(source, target, error) from error
    finally:
        os.close(target_fd)


def _bind_atomically(source: Path, target_fd: int, extras: _Extras) -> bool:
    """False when this kernel, or its seccomp profile, does not support the calls. Raises OSError."""
    try:
        tree_fd = syscalls.open_tree(syscalls.AT_FDCWD, source, _TREE_FLAGS)
    except OSError as error:
        if error.errno in _NO_NEW_API:
            return False
        raise
    try:
        attributes = _WANTED_ATTRIBUTES | (syscalls.MOUNT_ATTR_NOEXEC if extras.no_exec else 0)
        syscalls.mount_setattr(tree_fd, "", syscalls.AT_EMPTY_PATH, attributes)
        if extras.user_namespace is not None:
            _map_owners(tree_fd, extras.user_namespace)
        both_empty = syscalls.MOVE_MOUNT_F_EMPTY_PATH | syscalls.MOVE_MOUNT_T_EMPTY_PATH
        syscalls.move_mount(tree_fd, "", target_fd, "", both_empty)
    except OSError as error:
        if error.errno in _NO_NEW_API:
            return False
        raise
    finally:
        os.close(tree_fd)
    return True


def _map_owners(tree_fd: int, user_namespace: int) -> None:
    try:
        syscalls.mount_setattr(
            tree_fd, "", syscalls.AT_EMPTY_PATH, syscalls.MOUNT_ATTR_IDMAP, user_namespace=user_namespace
        )
    except OSError as error:
        raise _owners_unmappable(error.strerror or str(error)) from error


def _owners_unmappable(reason: str) -> ViewUnavailable:
    return ViewUnavailable(
        f"files of a materialised view cannot be shown as those of another owner here ({reason}); it needs Linux 5.12 "
        "and a file system with idmapped mounts, such as ext4 or xfs"
    )


def _bind_in_two_steps(source: Path, target: Path, table: MountTable, extras: _Extras) -> None:
    """Raises OSError, with nothing left mounted."""
    if extras.user_namespace is not None:
        raise _owners_unmappable("this kernel has no mount_setattr")
    parent = table.containing(source)
    options = (parent.options if parent else frozenset()) | ({"noexec"} if extras.no_exec else set())
    syscalls.mount(source, target, None, syscalls.MS_BIND)
    try:
        _remount_restricted(target, options)
    except OSError:
        syscalls.umount2(target, syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
        raise


def _restrict(target: Path, present: MountEntry) -> None:
    """Makes a mount read-only that a process left writable because it was killed between the two steps."""
    try:
        _remount_restricted(target, present.options)
    except OSError as error:
        raise MountFailed(f"{target}: cannot be made read-only: {error.strerror}") from error


def _remount_restricted(target: Path, options: frozenset[str]) -> None:
    preserved = sum(flag for option, flag in _PRESERVED_FLAGS.items() if option in options)
    syscalls.mount("none", target, None, syscalls.MS_REMOUNT | syscalls.MS_BIND | _WANTED_FLAGS | preserved)


def _check_result(target: Path, wanted: _Content) -> None:
    """Success with nothing mounted would let a pod read and write the node's own disk. Raises MountFailed."""
    entry = MountTable.read().at(target)
    if entry is None or not _matches(entry, wanted) or not entry.options >= _WANTED_OPTIONS:
        raise MountFailed(f"{target}: the kernel reported success, but the mount is not there; found: {entry}")


def _unmount_topmost(target: Path, flags: int) -> None:
    try:
        syscalls.umount2(target, flags | syscalls.UMOUNT_NOFOLLOW)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT):
            return  # no longer a mount point: another process was first; the caller reads the table again
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED) and not flags:
            _unmount_topmost(target, syscalls.MNT_DETACH)
        elif error.errno == errno.EBUSY:
            raise MountPointBusy(f"{target}: is in use; end the processes that have files open in it") from error
        else:
            raise MountFailed(f"{target}: cannot be unmounted: {_explain(error)}") from error


def _open_directory(path: Path) -> int:
    """Pins the mount point: a mount on the descriptor is made on this directory, even if a link replaces the path."""
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _mount_point_error(path: Path, error: OSError) -> MountPointMissing:
    if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.EEXIST):
        return MountPointMissing(f"{path}: is not a directory (a link is not followed); make it one")
    if error.errno == errno.ENOENT:
        return MountPointMissing(f"{path}: no such directory; create it before mounting")
    return MountPointMissing(f"{path}: cannot be used as a mount point: {_explain(error)}")


def _bind_error(source: Path, target: Path, error: OSError) -> MountError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return NotMounted(f"{source}: no such directory to show at {target}; stage the volume again")
    if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
        return NotMounted(f"{source}: the daemon behind it is dead; stage the volume again")
    if error.errno == errno.EBUSY:
        return MountPointBusy(f"{target}: is in use; unmount the file system there")
    return MountFailed(f"{source} cannot be shown at {target}: {_explain(error)}")


def _explain(error: OSError) -> str:
    if error.errno in (errno.EPERM, errno.EACCES):
        return f"{error.strerror}; mounting needs CAP_SYS_ADMIN in the mount namespace"
    return error.strerror or str(error)
