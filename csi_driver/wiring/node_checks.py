"""What ``hayloft doctor`` looks at on a node: kernel, FUSE, limits, the cache's disk, SELinux, proxies.

Each check reads, and changes nothing. ``Machine`` names the places that are read, so that a test makes them up.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from csi_driver.cache.cache_directory import UNSUITABLE, file_system_of
from csi_driver.cache.disk import DiskSpace
from csi_driver.cache.free_floor import KUBELET_SHARE, shares_disk
from csi_driver.fuse import mounting
from csi_driver.fuse.request_timeout import RequestTimeouts
from csi_driver.mounts.mount_table import MountTable
from csi_driver.objects.http.proxies import proxy_for
from csi_driver.volumes.warmup_waiting import human_size
from csi_driver.wiring.control_group import ControlGroupMemory


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    NOTE = "note"
    """Worth knowing; nothing has to be done."""
    WARNING = "warning"
    """It works, slower or with less."""
    PROBLEM = "problem"
    """It does not work, or will not."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One line of the report."""

    check: str
    level: Level
    text: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a machine shows what it is."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    fuse: Path = Path(mounting.DEVICE)
    boot: Path = Path("/boot")
    release: str = ""
    """Of the kernel, such as ``6.12.9-amd64``; empty: of this one."""


Check = Callable[[], Iterator[CheckResult]]

FEW_DESCRIPTORS, ENOUGH_DESCRIPTORS = 4096, 65_536
"""Below the first, volumes with many readers get ENFILE. Above the second, a volume keeps 4,096 files open, and others
have as many."""

_FEW_FREE_INODES = 0.15
"""The cache leaves a tenth of the inodes free."""

_TIGHT_MEMORY = 0.9


def kernel_checks(machine: Machine) -> Iterator[CheckResult]:
    """The version of the kernel, and what it does for this driver."""
    release = machine.release or os.uname().release
    found = re.match(r"(\d+)\.(\d+)", release)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    if version < (5, 4):
        yield CheckResult(
            "kernel", Level.PROBLEM, f"Linux {release} is older than 5.4", "Use nodes with Linux 6.9 or newer"
        )
    elif version < (6, 9):
        yield CheckResult(
            "kernel",
            Level.WARNING,
            f"Linux {release} passes no reads through (6.9 does): the daemon serves cached files, and a read that was "
            "pending when a daemon died hangs until its process is killed",
            "Use nodes with Linux 6.9 or newer",
        )
    else:
        more = "" if version >= (6, 12) else "; pods with hostUsers: false need 6.12"
        yield CheckResult("kernel", Level.OK, f"Linux {release}{more}")
    warning = RequestTimeouts.read(machine.proc / "sys" / "fs" / "fuse").warning()
    if warning:
        text, _, remedy = warning.partition(": ")
        yield CheckResult("request timeout", Level.WARNING, text, remedy[:1].upper() + remedy[1:])


def fuse_checks(machine: Machine) -> Iterator[CheckResult]:
    """Whether FUSE can be used, and with passthrough."""
    try:
        os.close(os.open(machine.fuse, os.O_RDWR | os.O_CLOEXEC))
        yield CheckResult("fuse", Level.OK, f"{machine.fuse} can be opened")
    except OSError as error:
        remedy = "Load the module on the node: modprobe fuse"
        if error.errno in (errno.EACCES, errno.EPERM):
            remedy = f"Run this as root, in a container that is privileged or has {machine.fuse}"
        yield CheckResult("fuse", Level.PROBLEM, f"{machine.fuse}: {error.strerror}", remedy)
    option = _kernel_option(machine, "CONFIG_FUSE_PASSTHROUGH")
    if option == "n":
        yield CheckResult(
            "passthrough",
            Level.WARNING,
            "the kernel was built without CONFIG_FUSE_PASSTHROUGH: the daemon serves the reads of cached files",
            "Use a kernel with it; those of Debian, Ubuntu, Fedora and Bottlerocket have it from 6.9 on",
        )
    elif option == "y":
        yield CheckResult("passthrough", Level.OK, "the kernel was built with CONFIG_FUSE_PASSTHROUGH")


def _kernel_option(machine: Machine, name: str) -> str:
    """``y``, ``m``, ``n``; empty: the configuration of the kernel is not visible."""
    release = machine.release or os.uname().release
    text = ""
    with suppress(OSError, EOFError):
        import gzip

        text = gzip.decompress((machine.proc / "config.gz").read_bytes()).decode("ascii", "replace")
    if not text:
        with suppress(OSError):
            text = (machine.boot / f"config-{release}").read_text(errors="replace")
    if not text:
        return ""
    found = re.search(rf"^{name}=([ym])$", text, re.MULTILINE)
    return found[1] if found else "n"


def limit_checks(machine: Machine, process_id: int) -> Iterator[CheckResult]:
    """Open files and memory of a process: the daemon."""
    limit = _open_files_limit(machine.proc / str(process_id) / "limits")
    used = _count(machine.proc / str(process_id) / "fd")
    if limit is not None:
        level, remedy = Level.OK, ""
        if limit < ENOUGH_DESCRIPTORS:
            level = Level.PROBLEM if limit < FEW_DESCRIPTORS else Level.WARNING
            remedy = (
                "Raise the limit of open files (LimitNOFILE of the container runtime's service) to "
                f"{ENOUGH_DESCRIPTORS} or more"
            )
        yield CheckResult("open files", level, f"process {process_id} has {used:,} of {limit:,} open", remedy)
    yield from _memory_checks(machine, process_id)


def _memory_checks(machine: Machine, process_id: int) -> Iterator[CheckResult]:
    memory = ControlGroupMemory.of_this_process(
        machine.sys / "fs" / "cgroup", machine.proc / str(process_id) / "cgroup"
    )
    if memory is None or memory.limit_bytes is None:
        yield CheckResult("memory", Level.OK, f"process {process_id} has no limit of memory of its own")
        return
    needed = memory.process_bytes + memory.other_bytes
    text = (
        f"{human_size(needed)} of {human_size(memory.limit_bytes)} are used, and {human_size(memory.page_cache_bytes)} "
        "of page cache, which is given back"
    )
    tight = needed > memory.limit_bytes * _TIGHT_MEMORY
    remedy = "Raise cache.resources.limits.memory of the chart" if tight else ""
    yield CheckResult("memory", Level.WARNING if tight else Level.OK, text, remedy)


def _open_files_limit(path: Path) -> int | None:
    with suppress(OSError, ValueError, IndexError):
        line = next(line for line in path.read_text().splitlines() if line.startswith("Max open files"))
        text = line.split()[3]
        return 1 << 40 if text == "unlimited" else int(text)
    return None


def _count(directory: Path) -> int:
    try:
        return len(os.listdir(directory))
    except OSError:
        return 0


def disk_checks(
    machine: Machine, directory: Path, kubelet_directory: Path | None, limit_bytes: int = 0, shared_with: str = ""
) -> Iterator[CheckResult]:
    """The disk of the cache. ``limit_bytes``: of the cache; 0: not known. ``shared_with``: what the daemon knows that
    the cache shares its disk with."""
    try:
        kind, space = file_system_of(directory), DiskSpace.of(directory)
        device = os.stat(directory).st_dev
    except OSError as error:
        yield CheckResult(
            "cache disk",
            Level.PROBLEM,
            f"{directory}: {error.strerror}",
            "Make the directory on a local disk, or name another with --cache-dir",
        )
        return
    if kind in UNSUITABLE:
        yield CheckResult(
            "cache disk",
            Level.PROBLEM,
            f"{directory} is on {kind}, which cannot hold a cache",
            "Name a directory on a local disk with ext4 or xfs",
        )
        return
    level, what, remedy = _medium(machine.sys, device)
    yield CheckResult("cache disk", level, f"{directory} is on {kind}, {what}", remedy)
    beside_kubelet = kubelet_directory is not None and kubelet_directory.is_dir()
    if (
        not shared_with
        and kubelet_directory is not None
        and beside_kubelet
        and shares_disk(directory, kubelet_directory)
    ):
        shared_with = f"kubelet ({kubelet_directory})"
    yield from _space_checks(space, shared_with, limit_bytes)
    entry = MountTable.read().containing(os.path.realpath(directory))
    if entry is not None and "seclabel" in entry.super_options | entry.options:
        yield CheckResult(
            "SELinux",
            Level.NOTE,
            f"SELinux labels the files of {entry.mount_point}: volumes are shown by FUSE, not as materialised views",
            "For views, mount the cache's file system with a context= that containers may read",
        )


def _medium(sys: Path, device: int) -> tuple[Level, str, str]:
    """What kind of disk it is, in words."""
    block = sys / "dev" / "block" / f"{os.major(device)}:{os.minor(device)}"
    with suppress(OSError):
        block = block.resolve(strict=True)
        name = block.name
        queue = next(path for path in (block / "queue", block.parent / "queue") if path.is_dir())
        rotational = (queue / "rotational").read_text().strip() == "1"
        model = ""
        with suppress(OSError):
            model = " ".join((queue.parent / "device" / "model").read_text().split())
        described = f"{name}{f' ({model})' if model else ''}"
        if rotational:
            return (
                Level.WARNING,
                f"{described}, which says that it rotates",
                "Give the cache a solid-state disk, such as the node's NVMe",
            )
        if "Amazon Elastic Block Store" in model:
            return (
                Level.WARNING,
                f"{described}, a disk of the network with the throughput that its volume is paid for",
                "Give the cache the node's own NVMe (instance store), where there is one",
            )
        return Level.OK, f"{described}, a solid-state disk", ""
    return Level.NOTE, "of which the kernel does not say what disk it is", ""


def _space_checks(space: DiskSpace, shared_with: str, limit_bytes: int) -> Iterator[CheckResult]:
    share = space.free_bytes / space.total_bytes if space.total_bytes else 0.0
    text = f"{human_size(space.free_bytes)} of {human_size(space.total_bytes)} free, {share:.0%}"
    if shared_with and share < KUBELET_SHARE:
        yield CheckResult(
            "free space",
            Level.PROBLEM,
            f"{text}, on the disk of {shared_with}: kubelet evicts pods below {KUBELET_SHARE:.0%} "
            "(imagefs.available), and below 10% (nodefs.available)",
            "Free the disk, lower --cache-limit (cache.limit of the chart), or give the cache a disk of its own",
        )
    elif shared_with:
        yield CheckResult(
            "free space",
            Level.NOTE,
            f"{text}, on the disk of {shared_with}: unless --free-floor says otherwise, the cache leaves a fifth of it "
            "free",
            "Give the cache a disk of its own to use all of it",
        )
    elif limit_bytes and space.total_bytes < limit_bytes:
        yield CheckResult(
            "free space",
            Level.WARNING,
            f"the cache may hold {human_size(limit_bytes)}, and its disk has {human_size(space.total_bytes)}",
            "Lower --cache-limit, or leave it out: then it is 90% of the disk",
        )
    else:
        yield CheckResult("free space", Level.OK, text)
    if space.total_inodes and space.free_inodes < space.total_inodes * _FEW_FREE_INODES:
        yield CheckResult(
            "inodes",
            Level.WARNING,
            f"{space.free_inodes:,} of {space.total_inodes:,} inodes are free: small objects are evicted although "
            "there is space for more",
            "Make the file system with more inodes (mkfs.ext4 -i 8192), or use xfs",
        )


def selinux_checks(machine: Machine) -> Iterator[CheckResult]:
    """Whether SELinux may keep containers from FUSE."""
    try:
        enforcing = (machine.sys / "fs" / "selinux" / "enforce").read_text().strip() == "1"
    except OSError:
        return
    if enforcing:
        yield CheckResult(
            "SELinux",
            Level.NOTE,
            "SELinux enforces its policy; some policies let containers use no FUSE file systems",
            "If pods get EACCES and the audit log names fusefs_t: getsebool -a | grep fusefs",
        )
    else:
        yield CheckResult("SELinux", Level.OK, "SELinux is permissive")


def read_ahead_checks(machine: Machine, devices: Mapping[str, str]) -> Iterator[CheckResult]:
    """Of mounts, by volume: a small one makes served sequential reads slower."""
    small = []
    for volume_id, device in devices.items():
        with suppress(OSError, ValueError):
            kib = int((machine.sys / "class" / "bdi" / device / "read_ahead_kb").read_text())
            if kib < 1024:
                small.append(f"{volume_id} {kib} KiB")
    if small:
        yield CheckResult(
            "read-ahead",
            Level.WARNING,
            f"the kernel reads less than 1 MiB ahead for: {', '.join(small)}; served sequential reads are slower",
            "Let the daemon write to /sys (a privileged container), or set mountOptions: read_ahead_kb=4096",
        )
    elif devices:
        yield CheckResult("read-ahead", Level.OK, "1 MiB or more for each mount")


def proxy_checks(environment: Mapping[str, str], endpoint: str = "") -> Iterator[CheckResult]:
    """Whether requests go through a proxy. Values are not shown: they may hold a password."""
    names = [
        spelling
        for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
        for spelling in (name, name.upper())
        if environment.get(spelling)
    ]
    if not names:
        yield CheckResult("proxies", Level.OK, "none is set here")
        return
    listed = ", ".join(dict.fromkeys(name.upper() for name in names))
    if not endpoint:
        yield CheckResult(
            "proxies", Level.NOTE, f"{listed} are set here", "Name a URL to see whether it goes through one"
        )
        return
    used = proxy_for(endpoint, environment)
    text = f"{endpoint} is dialled directly" if used is None else f"{endpoint} goes through the proxy {used.url}"
    yield CheckResult(
        "proxies", Level.NOTE, f"{listed} are set here: {text}", "Change it with NO_PROXY" if used else ""
    )
