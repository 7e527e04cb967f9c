"""The mount system calls of Linux, as functions that raise OSError; no policy.

Paths are passed as bytes in the file system encoding. Every call releases the interpreter lock while it blocks.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from csi_driver.model import syscall_numbers as number_of

_libc = ctypes.CDLL(None, use_errno=True)

# mount(2), from linux/mount.h
MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_NOSYMFOLLOW = 0x100
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_BIND = 0x1000
MS_RELATIME = 1 << 21

# umount2(2)
MNT_DETACH = 0x2
UMOUNT_NOFOLLOW = 0x8

# The mount API of descriptors.
AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_EMPTY_PATH = 0x1000
OPEN_TREE_CLONE = 0x1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_IDMAP = 0x100000
_FSOPEN_CLOEXEC = 0x1
_FSMOUNT_CLOEXEC = 0x1
_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6
RESOLVE_NO_MAGICLINKS = 0x2
RESOLVE_NO_SYMLINKS = 0x4
RESOLVE_BENEATH = 0x8

NOT_SUPPORTED = (errno.ENOSYS, errno.EPERM)
"""Errors of a call of the descriptor API on a kernel before it, or under a seccomp profile that does not know it. A
process that lacks the privilege gets EPERM from the older call as well, so a fallback path hides no error."""

StrPath = str | bytes | Path


class _MountAttributes(ctypes.Structure):
    """struct mount_attr, first version (32 bytes)."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class _OpenHow(ctypes.Structure):
    """struct open_how, first version (24 bytes)."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def mount(source: StrPath, target: StrPath, fs_type: str | None, flags: int, data: str | None = None) -> None:
    result = _libc.mount(
        ctypes.c_char_p(os.fsencode(source)),
        ctypes.c_char_p(os.fsencode(target)),
        ctypes.c_char_p(None if fs_type is None else fs_type.encode()),
        ctypes.c_ulong(flags),
        ctypes.c_char_p(None if data is None else os.fsencode(data)),
    )
    _check(result, target)


def umount2(target: StrPath, flags: int = 0) -> None:
    _check(_libc.umount2(ctypes.c_char_p(os.fsencode(target)), ctypes.c_int(flags)), target)


def open_tree(directory_fd: int, path: StrPath, flags: int) -> int:
    """The caller owns the descriptor; closing that of an unattached clone dissolves the clone."""
    result = _libc.syscall(
        ctypes.c_long(number_of.OPEN_TREE),
        ctypes.c_int(directory_fd),
        ctypes.c_char_p(os.fsencode(path)),
        ctypes.c_uint(flags),
    )
    return _check(result, path)


def mount_setattr(directory_fd: int, path: StrPath, flags: int, attr_set: int, user_namespace: int = 0) -> None:
    """Sets attributes; clears none. MOUNT_ATTR_IDMAP needs ``user_namespace``, a descriptor."""
    attributes = _MountAttributes(attr_set=attr_set, userns_fd=user_namespace)
    result = _libc.syscall(
        ctypes.c_long(number_of.MOUNT_SETATTR),
        ctypes.c_int(directory_fd),
        ctypes.c_char_p(os.fsencode(path)),
        ctypes.c_uint(flags),
        ctypes.byref(attributes),
        ctypes.c_size_t(ctypes.sizeof(attributes)),
    )
    _check(result, path)


def move_mount(from_fd: int, from_path: StrPath, to_fd: int, to_path: StrPath, flags: int) -> None:
    result = _libc.syscall(
        ctypes.c_long(number_of.MOVE_MOUNT),
        ctypes.c_int(from_fd),
        ctypes.c_char_p(os.fsencode(from_path)),
        ctypes.c_int(to_fd),
        ctypes.c_char_p(os.fsencode(to_path)),
        ctypes.c_uint(flags),
    )
    _check(result, to_path)


def new_file_system(fs_type: str, flags: tuple[str, ...], strings: dict[str, str], attributes: int) -> int:
    """A mount of a new file system that is attached nowhere yet (fsopen, fsconfig, fsmount). ``attributes`` are
    MOUNT_ATTR_*. The kernel refuses strings of more than 255 bytes. The caller owns the descriptor."""
    context_fd = _check(
        _libc.syscall(
            ctypes.c_long(number_of.FSOPEN), ctypes.c_char_p(fs_type.encode()), ctypes.c_uint(_FSOPEN_CLOEXEC)
        ),
        fs_type,
    )
    try:
        for flag in flags:
            _configure(context_fd, _FSCONFIG_SET_FLAG, flag, None)
        for key, value in strings.items():
            _configure(context_fd, _FSCONFIG_SET_STRING, key, value)
        _configure(context_fd, _FSCONFIG_CMD_CREATE, None, None)
        result = _libc.syscall(
            ctypes.c_long(number_of.FSMOUNT),
            ctypes.c_int(context_fd),
            ctypes.c_uint(_FSMOUNT_CLOEXEC),
            ctypes.c_uint(attributes),
        )
        return _check(result, fs_type)
    finally:
        os.close(context_fd)


def _configure(context_fd: int, command: int, key: str | None, value: str | None) -> None:
    result = _libc.syscall(
        ctypes.c_long(number_of.FSCONFIG),
        ctypes.c_int(context_fd),
        ctypes.c_uint(command),
        ctypes.c_char_p(None if key is None else key.encode()),
        ctypes.c_char_p(None if value is None else os.fsencode(value)),
        ctypes.c_int(0),
    )
    _check(result, key or "")


def openat2(directory_fd: int, path: StrPath, flags: int, resolve: int) -> int:
    """The caller owns the descriptor."""
    how = _OpenHow(flags=flags, resolve=resolve)
    result = _libc.syscall(
        ctypes.c_long(number_of.OPENAT2),
        ctypes.c_int(directory_fd),
        ctypes.c_char_p(os.fsencode(path)),
        ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
    )
    return _check(result, path)


def mount_id(descriptor: int) -> int:
    """The id, as in the mount table, of the mount that the descriptor belongs to."""
    with open(f"/proc/self/fdinfo/{descriptor}", "rb") as file:
        return next(int(line.split(b":")[1]) for line in file if line.startswith(b"mnt_id:"))


def _check(result: int, path: StrPath) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fsdecode(path))
    return result
