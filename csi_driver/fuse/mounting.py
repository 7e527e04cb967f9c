"""Mounts by /dev/fuse: mount, tune, abort, unmount. Paths are as the mount table spells them, without links.

Nothing here accesses a path below a mounted Hayloft volume: a daemon that stats its own mount waits for itself.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from csi_driver.model.errors import FuseUnavailable, MountFailed, MountPointBusy, MountPointMissing
from csi_driver.mounts import syscalls
from csi_driver.mounts.mount_point import MountPoint, descriptor_path, mount_point_error, pinned
from csi_driver.mounts.mount_table import MountEntry, MountTable

_log = logging.getLogger(__name__)

DEVICE = Path("/dev/fuse")
SUBTYPE = "hayloft"
FS_TYPE = f"fuse.{SUBTYPE}"

_CONNECTIONS = Path("/sys/fs/fuse/connections")
_BACKING_DEVICES = Path("/sys/class/bdi")
_FUSERMOUNT_TIMEOUT_S = 30
_ROOT_MODE = 0o40000
_MNT_FORCE = 0x1
_FLAGS = ("default_permissions", "allow_other")
_LONGEST_SOURCE = 255
"""Bytes; the kernel refuses a longer string."""


def mount(mount_point: Path, source: str, *, no_exec: bool = False) -> int:
    """Mounts read-only, nosuid and nodev, for all users, and returns the descriptor of the connection.

    ``source`` is shown in the mount table to all users; it holds no secret. As root this is mount(2); otherwise
    fusermount3 does it, without passthrough. An access to the mount blocks until a session serves it. The caller owns
    the descriptor; when its last copy is closed, every access to the mount fails with ENOTCONN.

    Raises FuseUnavailable, MountPointMissing, MountPointBusy (something is mounted there), MountFailed.
    """
    present = MountTable.read().at(mount_point)
    if present is not None:
        raise MountPointBusy(
            f"{mount_point}: {present.source} ({present.fs_type}) is mounted there; unmount it or choose another path"
        )
    with pinned(mount_point) as pinned_point:
        try:
            directory_fd = pinned_point.open()
        except OSError as error:
            raise mount_point_error(mount_point, error) from error
        try:
            if os.geteuid() == 0:
                return _mount_as_root(pinned_point, directory_fd, source, no_exec)
            return _mount_with_fusermount(mount_point, source, no_exec)
        finally:
            os.close(directory_fd)


def unmount(mount_point: Path, *, lazy: bool = False) -> None:
    """Ensures that no mount of Hayloft is at this path. Raises MountPointBusy, MountFailed."""
    if find(mount_point) is None:
        return
    try:
        if os.geteuid() == 0:
            with pinned(mount_point) as pinned_point:
                pinned_point.unmount(syscalls.MNT_DETACH if lazy else 0)
        else:
            _run_fusermount(["-u", *(["-z"] if lazy else []), "--", str(mount_point)])
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise MountPointBusy(f"{mount_point}: files in the mount are still open; close them first") from error
        if error.errno not in (errno.EINVAL, errno.ENOENT):  # unmounted in between by another process
            raise MountFailed(f"{mount_point}: cannot be unmounted: {error.strerror}") from error


def find(mount_point: Path) -> MountEntry | None:
    """The entry of a mount of Hayloft at exactly this path, from the mount table."""
    entry = MountTable.read().at(mount_point)
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
        # EBUSY: aborted nevertheless
        with suppress(OSError, MountPointMissing), pinned(Path(entry.mount_point)) as pinned_point:
            pinned_point.unmount(_MNT_FORCE)


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


def _open_device() -> int:
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise FuseUnavailable(
            f"{DEVICE} does not exist: load the module fuse, or give the container {DEVICE}"
        ) from error
    except OSError as error:
        raise FuseUnavailable(f"{DEVICE} cannot be opened: {error.strerror}; run privileged or as root") from error


def _mount_as_root(mount_point: MountPoint, directory_fd: int, source: str, no_exec: bool) -> int:
    try:
        return _mount(_attach_mount, mount_point, directory_fd, source, no_exec)
    except OSError as error:
        if error.errno not in (*syscalls.NOT_SUPPORTED, errno.EINVAL):  # EINVAL: an option, passed in this way
            raise _mount_error(mount_point.path, error) from error
    try:
        return _mount(_mount_on_directory, mount_point, directory_fd, source, no_exec)
    except OSError as error:
        raise _mount_error(mount_point.path, error) from error


def _mount(
    call: Callable[[MountPoint, int, str, dict[str, str], bool], None],
    mount_point: MountPoint,
    directory_fd: int,
    source: str,
    no_exec: bool,
) -> int:
    """With a connection of its own, since a mount that is undone ends it. Raises OSError, MountFailed."""
    descriptor = _open_device()
    options = {"fd": str(descriptor), "rootmode": f"{_ROOT_MODE:o}", "user_id": "0", "group_id": "0"}
    try:
        call(mount_point, directory_fd, source, options, no_exec)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _attach_mount(
    mount_point: MountPoint, directory_fd: int, source: str, options: dict[str, str], no_exec: bool
) -> None:
    """Attaches the mount when it is complete. Raises OSError, MountFailed, with nothing mounted."""
    attributes = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
    attributes |= syscalls.MOUNT_ATTR_NOEXEC if no_exec else 0
    shown = os.fsencode(source)[:_LONGEST_SOURCE].decode("utf-8", "ignore")
    strings = {"source": shown, "subtype": SUBTYPE, **options}
    tree_fd = syscalls.new_file_system("fuse", ("ro", *_FLAGS), strings, attributes)
    try:
        mount_point.attach(tree_fd, directory_fd)
    finally:
        os.close(tree_fd)


def _mount_on_directory(
    mount_point: MountPoint, directory_fd: int, source: str, options: dict[str, str], no_exec: bool
) -> None:
    """Before Linux 5.2. Raises OSError, MountFailed, with nothing mounted."""
    flags = syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV
    flags |= syscalls.MS_NOEXEC if no_exec else 0
    text = ",".join((*(f"{key}={value}" for key, value in options.items()), *_FLAGS))
    syscalls.mount(source, descriptor_path(directory_fd), FS_TYPE, flags, text)
    if find(mount_point.path) is None:
        with suppress(OSError):
            mount_point.unmount(syscalls.MNT_DETACH)
        raise MountFailed(f"{mount_point.path}: was moved or replaced during the mount; retry")


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
