"""Mounts by /dev/fuse: mount, tune, abort, unmount.

Nothing here accesses a path below a mounted Hayloft volume: a daemon that stats its own mount waits for itself.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

from csi_driver.model.errors import FuseUnavailable, MountFailed, MountPointBusy, MountPointMissing
from csi_driver.mounts import syscalls
from csi_driver.mounts.mount_table import MountEntry, MountTable, real_mount_point

_log = logging.getLogger(__name__)

DEVICE = Path("/dev/fuse")
SUBTYPE = "hayloft"
FS_TYPE = f"fuse.{SUBTYPE}"

_CONNECTIONS = Path("/sys/fs/fuse/connections")
_BACKING_DEVICES = Path("/sys/class/bdi")
_FUSERMOUNT_TIMEOUT_S = 30
_ROOT_MODE = 0o40000
_MNT_FORCE = 0x1


def mount(mount_point: Path, source: str, *, no_exec: bool = False) -> int:
    """Mounts read-only, nosuid and nodev, for all users, and returns the descriptor of the connection.

    ``source`` is shown in the mount table to all users; it holds no secret. As root this is mount(2); otherwise
    fusermount3 does it, without passthrough. An access to the mount blocks until a session serves it. The caller owns
    the descriptor; when its last copy is closed, every access to the mount fails with ENOTCONN.

    Raises FuseUnavailable, MountPointMissing, MountPointBusy (something is mounted there), MountFailed.
    """
    mount_point = _checked_mount_point(mount_point)
    if os.geteuid() == 0:
        return _mount_as_root(mount_point, source, no_exec)
    return _mount_with_fusermount(mount_point, source, no_exec)


def unmount(mount_point: Path, *, lazy: bool = False) -> None:
    """Ensures that no mount of Hayloft is at this path. Raises MountPointBusy, MountFailed."""
    mount_point = real_mount_point(mount_point)
    if find(mount_point) is None:
        return
    try:
        if os.geteuid() == 0:
            syscalls.umount2(mount_point, syscalls.UMOUNT_NOFOLLOW | (syscalls.MNT_DETACH if lazy else 0))
        else:
            _run_fusermount(["-u", *(["-z"] if lazy else []), "--", str(mount_point)])
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise MountPointBusy(f"{mount_point}: files in the mount are still open; close them first") from error
        if error.errno not in (errno.EINVAL, errno.ENOENT):  # unmounted in between by another process
            raise MountFailed(f"{mount_point}: cannot be unmounted: {error.strerror}") from error


def find(mount_point: Path) -> MountEntry | None:
    """The entry of a mount of Hayloft at exactly this path, from the mount table."""
    entry = MountTable.read().at(real_mount_point(mount_point))
    return entry if entry is not None and entry.fs_type == FS_TYPE else None


def abort(entry: MountEntry) -> None:
    """Aborts a connection: every pending request and every later one fails with ENOTCONN, reads of the device with
    ECONNABORTED. For a daemon that does not answer any more. Needs root.

    Where fusectl is not mounted, as in many containers, a forced unmount does the same, and unmounts it if it is not
    busy.
    """
    minor = entry.device.partition(":")[2]
    try:
        (_CONNECTIONS / minor / "abort").write_text("1")
    except OSError:
        with suppress(OSError):  # EBUSY: aborted nevertheless
            syscalls.umount2(entry.mount_point, syscalls.UMOUNT_NOFOLLOW | _MNT_FORCE)


def set_read_ahead(mount_point: Path, read_ahead_kib: int) -> bool:
    """Raises the kernel's readahead for this mount, which starts at 128 KiB whatever INIT says: a READ is then 1 MiB
    instead of 128 KiB, and a served sequential read a quarter faster. False where /sys is not writable."""
    entry = find(mount_point)
    if entry is None:
        return False
    path = _BACKING_DEVICES / entry.device / "read_ahead_kb"
    try:
        path.write_text(str(read_ahead_kib))
    except OSError as error:
        _log.warning("%s cannot be written (%s): served sequential reads will be slower", path, error.strerror)
        return False
    return True


def _checked_mount_point(mount_point: Path) -> Path:
    mount_point = real_mount_point(mount_point)
    present = MountTable.read().at(mount_point)
    if present is not None:
        raise MountPointBusy(
            f"{mount_point}: {present.source} ({present.fs_type}) is mounted there; unmount it or choose another path"
        )
    if not mount_point.is_dir():
        raise MountPointMissing(f"{mount_point}: is not a directory; make it, or name another mount point")
    return mount_point


def _open_device() -> int:
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise FuseUnavailable(
            f"{DEVICE} does not exist: load the module fuse, or give the container {DEVICE}"
        ) from error
    except OSError as error:
        raise FuseUnavailable(f"{DEVICE} cannot be opened: {error.strerror}; run privileged or as root") from error


def _mount_as_root(mount_point: Path, source: str, no_exec: bool) -> int:
    descriptor = _open_device()
    flags = syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV
    flags |= syscalls.MS_NOEXEC if no_exec else 0
    options = f"fd={descriptor},rootmode={_ROOT_MODE:o},user_id=0,group_id=0,default_permissions,allow_other"
    try:
        syscalls.mount(source, mount_point, FS_TYPE, flags, options)
    except OSError as error:
        os.close(descriptor)
        raise _mount_error(mount_point, error) from error
    return descriptor


def _mount_error(mount_point: Path, error: OSError) -> Exception:
    if error.errno == errno.EBUSY:
        return MountPointBusy(f"{mount_point}: is in use; choose another mount point")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return MountPointMissing(f"{mount_point}: vanished before it could be mounted on; make it again")
    if error.errno == errno.ENODEV:
        return FuseUnavailable("the kernel has no FUSE file system: load the module fuse")
    remedy = "give the container CAP_SYS_ADMIN (privileged)" if error.errno == errno.EPERM else "see the kernel's log"
    return MountFailed(f"{mount_point}: the kernel refused the FUSE mount: {error.strerror}; {remedy}")


def _mount_with_fusermount(mount_point: Path, source: str, no_exec: bool = False) -> int:
    """allow_other needs a line in /etc/fuse.conf; without it the mount is for this user alone, with a warning."""
    options = f"ro,nosuid,nodev,default_permissions,subtype={SUBTYPE},fsname={_escaped(source)}"
    options += ",noexec" if no_exec else ""
    try:
        return _ask_fusermount(mount_point, f"{options},allow_other")
    except OSError as refused:
        try:
            descriptor = _ask_fusermount(mount_point, options)
        except OSError as error:
            raise MountFailed(f"{mount_point}: fusermount3 refused: {error.strerror}") from error
        _log.warning("%s: mounted for this user alone, because allow_other was refused: %s", mount_point, refused)
        return descriptor


def _escaped(source: str) -> str:
    return source.replace("\\", "\\\\").replace(",", "\\,")


def _ask_fusermount(mount_point: Path, options: str) -> int:
    """fusermount3 mounts and sends the descriptor through the socket that _FUSE_COMMFD names."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        ours.settimeout(_FUSERMOUNT_TIMEOUT_S)
        environment = {**os.environ, "_FUSE_COMMFD": str(theirs.fileno())}
        _run_fusermount(["-o", options, "--", str(mount_point)], environment, theirs.fileno())
        _, descriptors, *_ = socket.recv_fds(ours, 1, 1)
    if not descriptors:
        raise OSError(errno.EPROTO, "it sent no descriptor")
    os.set_inheritable(descriptors[0], False)
    return descriptors[0]


def _run_fusermount(arguments: list[str], environment: dict[str, str] | None = None, passed: int = -1) -> None:
    program = shutil.which("fusermount3")
    if program is None:
        raise FuseUnavailable("fusermount3 is not installed and this is not root: install fuse3, or run as root")
    done = subprocess.run(  # noqa: S603 - a fixed program with a path and options of our own
        [program, *arguments],
        env=environment,
        pass_fds=(passed,) if passed >= 0 else (),
        capture_output=True,
        timeout=_FUSERMOUNT_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        text = done.stderr.decode(errors="replace").strip().removeprefix("fusermount3: ")
        raise OSError(errno.EBUSY if "busy" in text.lower() else errno.EPERM, text or "no reason given")
