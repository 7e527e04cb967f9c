"""The memory of the control group (version 2) that this process is in.

The page cache of a file is charged to the group that touched the file first: for the object files that is the daemon,
which writes them. It is given back when memory is short; until then it counts as used for kubelet, as far as it is
active.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True)
class ControlGroupMemory:
    """In bytes."""

    current_bytes: int
    """What the limit holds for."""
    process_bytes: int
    """Of processes (anonymous memory)."""
    active_file_bytes: int
    """Page cache that was used more than once: kubelet counts it as used, and so do ``kubectl top`` and autoscalers."""
    inactive_file_bytes: int
    limit_bytes: int | None
    """The least of the limits of the group and of those that contain it (the container's and the pod's); None: none."""

    @property
    def page_cache_bytes(self) -> int:
        return self.active_file_bytes + self.inactive_file_bytes

    @property
    def other_bytes(self) -> int:
        """Of the kernel (dentries and inodes above all), and shared memory."""
        return max(0, self.current_bytes - self.process_bytes - self.page_cache_bytes)

    @classmethod
    def of_this_process(cls, root: Path = _ROOT, own: Path = _OWN) -> ControlGroupMemory | None:
        """None without control groups of version 2 that count memory."""
        groups = own_groups(root, own)
        return cls.read(groups[0], groups) if groups else None

    @classmethod
    def read(cls, group: Path, groups: tuple[Path, ...] = ()) -> ControlGroupMemory | None:
        """Of one group; its limit is the least of those of ``groups``, or its own."""
        try:
            statistics = numbers(group / "memory.stat")
            limits = [limit for one in groups or (group,) if (limit := _limit(one)) is not None]
            return cls(
                current_bytes=int((group / "memory.current").read_text()),
                process_bytes=statistics["anon"],
                active_file_bytes=statistics["active_file"],
                inactive_file_bytes=statistics["inactive_file"],
                limit_bytes=min(limits, default=None),
            )
        except (OSError, ValueError, KeyError):
            return None


def own_groups(root: Path = _ROOT, own: Path = _OWN) -> tuple[Path, ...]:
    """The directories of the group that this process is in and of those that contain it, as far as they are visible.

    A container has a namespace of control groups, and sees its own one as the root; a privileged one has none in
    containerd and CRI-O, and sees all groups of the node.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return ()
    path = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), None)
    if path is None or ".." in Path(path).parts:  # of version 1, or outside of the namespace
        return ()
    innermost = root / path
    return (innermost, *(group for group in innermost.parents if group.is_relative_to(root)))


def out_of_memory_kills(root: Path = _ROOT, own: Path = _OWN) -> int:
    """How many processes of this group the kernel has killed for lack of memory; 0 if it does not say."""
    with suppress(OSError, ValueError, IndexError, KeyError):
        return numbers(own_groups(root, own)[0] / "memory.events")["oom_kill"]
    return 0


def end_processes_one_by_one(root: Path = _ROOT, own: Path = _OWN) -> None:
    """Kubernetes has the kernel end all processes of a container together when memory runs out (``memory.oom.group``).
    For this process's own group that is switched off, if it may: the largest one ends, and its parent starts it again.
    """
    with suppress(OSError, IndexError):
        file = own_groups(root, own)[0] / "memory.oom.group"
        if file.read_text().strip() == "1":
            file.write_text("0")


def numbers(file: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    lines = (line.split() for line in file.read_text().splitlines())
    return {words[0]: int(words[1]) for words in lines}


def _limit(group: Path) -> int | None:
    """None: no limit. The root of all groups has no such file."""
    try:
        text = (group / "memory.max").read_text().strip()
    except OSError:
        return None
    return None if text == "max" else int(text)
