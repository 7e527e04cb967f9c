"""Control groups that count memory, of version 1 or 2, for tests about what is charged to whom."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_ROOT_V1 = _ROOT / "memory"


@dataclass(frozen=True)
class MemoryGroup:
    """One group with a limit."""

    path: Path
    version: int

    def add(self, process_id: int) -> None:
        """Of a process with all its threads; what it was charged with before stays charged elsewhere."""
        (self.path / "cgroup.procs").write_text(str(process_id))

    @property
    def page_cache_bytes(self) -> int:
        lines = (line.split() for line in (self.path / "memory.stat").read_text().splitlines())
        statistics = {words[0]: int(words[1]) for words in lines}
        return statistics["active_file"] + statistics["inactive_file"]

    @property
    def charged_bytes(self) -> int:
        name = "memory.current" if self.version == 2 else "memory.usage_in_bytes"
        return int((self.path / name).read_text())

    @property
    def killed(self) -> int:
        """Processes that were killed for lack of memory."""
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        lines = (line.split() for line in (self.path / name).read_text().splitlines())
        return int({words[0]: words[1] for words in lines}.get("oom_kill", "0"))


def why_not() -> str:
    """Why no group can be made here; empty: one can."""
    if os.geteuid() != 0:
        return "needs root"
    if _ROOT_V1.is_dir():
        return "" if os.access(_ROOT_V1, os.W_OK) else f"{_ROOT_V1} is read-only"
    controllers = _ROOT / "cgroup.subtree_control"
    return "" if controllers.exists() and "memory" in controllers.read_text().split() else "no control groups of memory"


@contextmanager
def memory_group(name: str, limit_bytes: int | None = None) -> Iterator[MemoryGroup]:
    """A group below the root, removed when its processes have ended; without a limit if none is given."""
    version = 1 if _ROOT_V1.is_dir() else 2
    path = (_ROOT_V1 if version == 1 else _ROOT) / f"hayloft-{name}-{os.getpid()}"
    path.mkdir()
    try:
        if limit_bytes is not None:
            (path / ("memory.limit_in_bytes" if version == 1 else "memory.max")).write_text(str(limit_bytes))
        yield MemoryGroup(path, version)
    finally:
        with suppress(OSError):
            path.rmdir()
