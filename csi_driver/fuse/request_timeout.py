"""The kernel's own limit of the time of a request (Linux 6.14 and newer).

A request that takes longer aborts the whole mount: every reader gets ECONNABORTED, and only new pods get a new one. The
limit is meant against daemons that hang; here a read may take as long as a store. ``fs.fuse.default_request_timeout``
is for file systems that name no limit, and is replaced by ours; ``fs.fuse.max_request_timeout`` is for all.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_SYSCTLS = Path("/proc/sys/fs/fuse")

LONGEST_S = 0xFFFF
"""The longest that INIT can name: 18 hours."""

LEAST_S = 15
"""The kernel checks as often, and takes this for a shorter limit."""


@dataclass(frozen=True, slots=True)
class RequestTimeouts:
    """The two settings of the kernel, in seconds; 0: no limit, or an older kernel."""

    default_s: int = 0
    most_s: int = 0

    @classmethod
    def read(cls, sysctls: Path = _SYSCTLS) -> RequestTimeouts:
        """Those of this moment."""
        return cls(_read(sysctls / "default_request_timeout"), _read(sysctls / "max_request_timeout"))

    @property
    def named_s(self) -> int:
        """What INIT names: nothing while there is no default to be replaced, since the kernel checks requests only
        where there is a limit."""
        return LONGEST_S if self.default_s else 0

    def warning(self, needed_s: float | None = None) -> str:
        """A sentence if the kernel ends mounts whose requests take ``needed_s``, or any time (None); else empty."""
        limit_s = max(self.most_s, LEAST_S) if self.most_s else 0
        if not limit_s or (needed_s is not None and needed_s < limit_s):
            return ""
        needed = f", and one of this volume may take {needed_s:g} s (deadline and requestTimeout)" if needed_s else ""
        return (
            f"the kernel aborts a whole mount when one of its requests takes longer than {limit_s} s "
            f"(fs.fuse.max_request_timeout = {self.most_s}){needed}: set it to 0 on the node, or above the deadline of "
            "the volumes and the time of an upgrade of this daemon"
        )


def _read(path: Path) -> int:
    with suppress(OSError, ValueError):
        return int(path.read_text())
    return 0
