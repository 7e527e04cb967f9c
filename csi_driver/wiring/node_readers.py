"""Which processes of this machine have files of which mounts open, from /proc: for ``hayloft top``.

The kernel counts for no mount the bytes that it reads by itself (FUSE passthrough). What it shows of a process are the
offsets of its open files, and the bytes of all its reads together. Nothing here accesses a mount, so that one that
hangs does no harm.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from csi_driver.mounts.mount_table import MountTable

PROC = Path("/proc")

_POD = re.compile(r"pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12})")
"""In the path of a control group, by both of kubelet's drivers."""

_MAPPED = re.compile(rb"^\S+ \S+ \S+ ([0-9a-f]+):([0-9a-f]+) (\d+)", re.MULTILINE)
"""Device and inode of a line of /proc/PID/maps; inode 0: no file."""


@dataclass(frozen=True, slots=True)
class OpenFile:
    """One open file of a process, in the mount of a device (``major:minor``)."""

    device: str
    inode: int
    offset: int


@dataclass(frozen=True, slots=True)
class Reader:
    """A process with files of mounts open, or mapped."""

    process_id: int
    command: str
    pod: str
    """``namespace/name`` where the node's logs are visible, else its uid; empty: it is in no pod."""
    read_bytes: int | None
    """By read(2) and its like, of all files, since the process started; None: not visible."""
    files: Mapping[int, OpenFile] = field(default_factory=dict)
    """By descriptor."""
    mapped: frozenset[tuple[str, int]] = frozenset()
    """Device and inode of mapped files."""

    @property
    def devices(self) -> frozenset[str]:
        return frozenset(file.device for file in self.files.values()) | {device for device, _ in self.mapped}


def readers(devices: Collection[str], proc: Path = PROC) -> dict[int, Reader]:
    """By process id. Those that cannot be looked at (of another namespace of processes or user) are left out."""
    mounts: dict[str, Mapping[int, str]] = {}
    """Devices by mount id, by mount namespace."""
    names = _pod_names(proc)
    found = {}
    for process_id in _process_ids(proc):
        directory = proc / str(process_id)
        with suppress(OSError, ValueError):  # it has just ended, or may not be looked at
            namespace = os.readlink(directory / "ns" / "mnt")
            if namespace not in mounts:
                mounts[namespace] = _mounts_of(directory, devices)
            by_mount = mounts[namespace]
            files = dict(_open_files(directory, by_mount)) if by_mount else {}
            mapped = frozenset(_mapped_files(directory, frozenset(by_mount.values()))) if by_mount else frozenset()
            if files or mapped:
                found[process_id] = Reader(
                    process_id,
                    (directory / "comm").read_text().strip(),
                    _pod(directory, names),
                    _read_bytes(directory),
                    files,
                    mapped,
                )
    return found


def _process_ids(proc: Path) -> Iterator[int]:
    for name in os.listdir(proc):
        if name.isdigit():
            yield int(name)


def _mounts_of(directory: Path, devices: Collection[str]) -> dict[int, str]:
    table = MountTable.read(directory / "mountinfo")
    return {entry.mount_id: entry.device for entry in table.entries if entry.device in devices}


def _open_files(directory: Path, by_mount: Mapping[int, str]) -> Iterator[tuple[int, OpenFile]]:
    for name in os.listdir(directory / "fd"):
        with suppress(OSError, ValueError, KeyError):
            if not os.readlink(directory / "fd" / name).startswith("/"):
                continue  # a socket or a pipe
            lines = (directory / "fdinfo" / name).read_text().splitlines()
            facts = dict(line.split(":", 1) for line in lines[:5] if ":" in line)
            device = by_mount.get(int(facts["mnt_id"]))
            if device is not None:
                yield int(name), OpenFile(device, int(facts["ino"]), int(facts["pos"]))


def _mapped_files(directory: Path, devices: Collection[str]) -> Iterator[tuple[str, int]]:
    for major, minor, inode in _MAPPED.findall((directory / "maps").read_bytes()):
        device = f"{int(major, 16)}:{int(minor, 16)}"
        if device in devices and inode != b"0":
            yield device, int(inode)


def _read_bytes(directory: Path) -> int | None:
    with suppress(OSError, ValueError, KeyError):
        facts = dict(line.split(": ", 1) for line in (directory / "io").read_text().splitlines())
        return int(facts["rchar"])
    return None


def _pod(directory: Path, names: Mapping[str, str]) -> str:
    with suppress(OSError):
        found = _POD.search((directory / "cgroup").read_text())
        if found:
            uid = found[1].replace("_", "-")
            return names.get(uid, uid)
    return ""


def _pod_names(proc: Path) -> dict[str, str]:
    """``namespace/name`` by uid, from the names of the directories of the node's logs, which kubelet makes for each
    pod (``/var/log/pods``)."""
    found = {}
    with suppress(OSError):
        for name in os.listdir(proc / "1" / "root" / "var" / "log" / "pods"):
            parts = name.rsplit("_", 2)
            if len(parts) == 3:
                found[parts[2]] = f"{parts[0]}/{parts[1]}"
    return found
