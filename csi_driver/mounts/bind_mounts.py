"""Read-only bind mounts and their mount points. Each call ensures a state, compared with the mount table.

Paths are as the mount table spells them: absolute, and without links, which are not followed (see ``mount_point``). No
call accesses a mounted file system itself (no stat, no statfs): its daemon may be dead or stopped. The caller
serializes calls for one target: two concurrent binds would stack, and ``unmount`` removes both.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from csi_driver.model.errors import (
    MountError,
    MountFailed,
    MountPointBusy,
    NotMounted,
    ViewUnavailable,
    VolumeConflict,
)
from csi_driver.mounts import syscalls
from csi_driver.mounts.mount_point import (
    MountPoint,
    descriptor_path,
    detach,
    explain,
    mount_point_error,
    open_directory,
    pinned,
)
from csi_driver.mounts.mount_table import MountEntry, MountTable

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
    with pinned(target) as mount_point:
        table = MountTable.read()
        wanted = _content_of(table, source)
        present = table.at(target)
        if present is None:
            _bind(source, mount_point, wanted, _Extras(no_exec, user_namespace))
        elif not _matches(present, wanted):
            raise _occupied(present, table.containing(source))
        elif not present.options >= _WANTED_OPTIONS:
            _restrict(mount_point, present, wanted)


def try_user_namespace(source: Path, user_namespace: int) -> None:
    """Tests, without mounting, whether a bind mount of the directory can map owners. Raises ViewUnavailable if not."""
    try:
        tree_fd = _clone(source)
    except OSError as error:
        raise _owners_unmappable(explain(error)) from error
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
    for _ in range(_STACK_LIMIT):
        if MountTable.read().at(target) is None:
            return
        with pinned(target) as mount_point:
            _unmount_topmost(mount_point, syscalls.MNT_DETACH if lazy else 0)
    raise MountPointBusy(f"{target}: mounts keep appearing while they are unmounted; stop the process that mounts")


def ensure_directory(path: Path, mode: int = 0o750) -> None:
    """Ensures a directory to mount on, with its parents. Does not access a path that is already mounted on.

    Raises MountPointMissing when it cannot be created or is not a directory.
    """
    if MountTable.read().at(path) is not None:
        return
    with pinned(path, mode) as mount_point:
        try:
            mount_point.make(mode)
            os.close(mount_point.open())
        except OSError as error:
            raise mount_point_error(path, error) from error


def remove_mount_point(target: Path, *, file_or_link: bool = False) -> None:
    """Ensures that the empty directory ``target`` does not exist. Never deletes files in it: they were written while
    nothing was mounted, and may be a user's only copy. With ``file_or_link``, what replaced the directory is removed.

    Raises MountPointBusy when it is mounted on, not empty or not a directory, MountPointMissing when it is reached by a
    link.
    """
    if MountTable.read().at(target) is not None:
        raise MountPointBusy(f"{target}: still mounted; unmount it first")
    try:
        parent_fd = open_directory(target.parent)
    except FileNotFoundError:
        return
    except OSError as error:
        raise mount_point_error(target, error) from error
    try:
        mount_point = MountPoint(target, parent_fd)
        if not (file_or_link and mount_point.remove_file_or_link()):
            mount_point.remove()
    except FileNotFoundError:
        return
    except OSError as error:
        reason = {
            errno.ENOTEMPTY: "contains files that do not belong to the volume; move them away",
            errno.ENOTDIR: "is not a directory; move it away",
            errno.EBUSY: "is in use as a mount point; unmount it first",
        }.get(error.errno or 0, f"cannot be removed: {error.strerror}")
        raise MountPointBusy(f"{target}: {reason}") from error
    finally:
        os.close(parent_fd)


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


def _bind(source: Path, mount_point: MountPoint, wanted: _Content, extras: _Extras) -> None:
    """Raises MountError, with nothing left mounted."""
    try:
        directory_fd = mount_point.open()
    except OSError as error:
        raise mount_point_error(mount_point.path, error) from error
    try:
        tree_fd = _restricted_clone(source, extras)
        if tree_fd is None:
            _bind_in_two_steps(source, mount_point, directory_fd, wanted, extras)
        else:
            _attach(tree_fd, mount_point, directory_fd, wanted)
    except OSError as error:
        raise _bind_error(source, mount_point.path, error) from error
    finally:
        os.close(directory_fd)


def _attach(tree_fd: int, mount_point: MountPoint, directory_fd: int, wanted: _Content) -> None:
    """Owns ``tree_fd``. Raises OSError or MountFailed, with nothing left mounted."""
    try:
        entry = mount_point.attach(tree_fd, directory_fd)
        if not _is_result(entry, wanted):
            detach(tree_fd)
            raise _unexpected(entry)
    finally:
        os.close(tree_fd)


def _restricted_clone(source: Path, extras: _Extras) -> int | None:
    """A mount of the source that is attached nowhere yet. None when this kernel, or its seccomp profile, does not
    support the calls. Raises OSError."""
    try:
        tree_fd = _clone(source)
    except OSError as error:
        if error.errno in syscalls.NOT_SUPPORTED:
            return None
        raise
    try:
        attributes = _WANTED_ATTRIBUTES | (syscalls.MOUNT_ATTR_NOEXEC if extras.no_exec else 0)
        syscalls.mount_setattr(tree_fd, "", syscalls.AT_EMPTY_PATH, attributes)
        if extras.user_namespace is not None:
            _map_owners(tree_fd, extras.user_namespace)
    except BaseException as error:
        os.close(tree_fd)
        if isinstance(error, OSError) and error.errno in syscalls.NOT_SUPPORTED:
            return None
        raise
    return tree_fd


def _clone(source: Path) -> int:
    parent_fd = open_directory(source.parent)
    try:
        return syscalls.open_tree(parent_fd, source.name, _TREE_FLAGS)
    finally:
        os.close(parent_fd)


def _map_owners(tree_fd: int, user_namespace: int) -> None:
    try:
        syscalls.mount_setattr(
            tree_fd, "", syscalls.AT_EMPTY_PATH, syscalls.MOUNT_ATTR_IDMAP, user_namespace=user_namespace
        )
    except OSError as error:
        raise _owners_unmappable(explain(error)) from error


def _owners_unmappable(reason: str) -> ViewUnavailable:
    return ViewUnavailable(
        f"files of a materialised view cannot be shown as those of another owner here ({reason}); it needs Linux 5.12 "
        "and a file system with idmapped mounts, such as ext4 or xfs"
    )


def _bind_in_two_steps(
    source: Path, mount_point: MountPoint, directory_fd: int, wanted: _Content, extras: _Extras
) -> None:
    """Before Linux 5.12. Raises OSError or MountFailed, with nothing left mounted."""
    if extras.user_namespace is not None:
        raise _owners_unmappable("this kernel has no mount_setattr")
    with pinned(source) as origin:
        syscalls.mount(origin.address, descriptor_path(directory_fd), None, syscalls.MS_BIND)
    try:
        _restrict(mount_point, MountTable.read().at(mount_point.path), wanted, no_exec=extras.no_exec)
    except BaseException:
        mount_point.unmount(syscalls.MNT_DETACH)
        raise


def _restrict(mount_point: MountPoint, present: MountEntry | None, wanted: _Content, *, no_exec: bool = False) -> None:
    """Makes a mount of the wanted content read-only: the second of two steps, also for a process that was killed
    between them. Raises MountFailed."""
    try:
        root_fd = mount_point.open()
        try:
            if present is None or not _matches(present, wanted) or syscalls.mount_id(root_fd) != present.mount_id:
                raise _unexpected(present)
            _remount_restricted(root_fd, present.options | ({"noexec"} if no_exec else set()))
        finally:
            os.close(root_fd)
    except OSError as error:
        raise MountFailed(f"{mount_point.path}: cannot be made read-only: {explain(error)}") from error
    result = MountTable.read().at(mount_point.path)
    if result is None or not _is_result(result, wanted):
        raise _unexpected(result)


def _remount_restricted(root_fd: int, options: frozenset[str]) -> None:
    preserved = sum(flag for option, flag in _PRESERVED_FLAGS.items() if option in options)
    flags = syscalls.MS_REMOUNT | syscalls.MS_BIND | _WANTED_FLAGS | preserved
    syscalls.mount("none", descriptor_path(root_fd), None, flags)


def _is_result(entry: MountEntry, wanted: _Content) -> bool:
    return _matches(entry, wanted) and entry.options >= _WANTED_OPTIONS


def _unexpected(found: MountEntry | None) -> MountFailed:
    """Success with nothing mounted would let a pod read and write the node's own disk."""
    return MountFailed(f"the kernel reported success, but another mount is there, which is undone; found: {found}")


def _unmount_topmost(mount_point: MountPoint, flags: int) -> None:
    try:
        mount_point.unmount(flags)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT):
            return  # no longer a mount point: another process was first; the caller reads the table again
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED) and not flags:
            _unmount_topmost(mount_point, syscalls.MNT_DETACH)
        elif error.errno == errno.EBUSY:
            raise MountPointBusy(
                f"{mount_point.path}: is in use; end the processes that have files open in it"
            ) from error
        else:
            raise MountFailed(f"{mount_point.path}: cannot be unmounted: {explain(error)}") from error


def _bind_error(source: Path, target: Path, error: OSError) -> MountError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return NotMounted(f"{source}: no such directory to show at {target}; stage the volume again")
    if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
        return NotMounted(f"{source}: the daemon behind it is dead; stage the volume again")
    if error.errno == errno.EBUSY:
        return MountPointBusy(f"{target}: is in use; unmount the file system there")
    return MountFailed(f"{source} cannot be shown at {target}: {explain(error)}")
