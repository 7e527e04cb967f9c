"""Plain files: the dataset as it was written, and any directory that the user names."""

from __future__ import annotations

from typing import ClassVar

from hayloft_bench.results.model import Access, Phase
from hayloft_bench.targets.base import TargetBase, TargetKind


class Plain(TargetBase):
    """The files themselves, on the same disk as all caches. Cold and warm are the same here: read from the disk."""

    name: ClassVar[str] = "plain"
    title: ClassVar[str] = "plain local files"
    kind: ClassVar[TargetKind] = "limit"
    phases: ClassVar[frozenset[Phase]] = frozenset({"cold", "warm", "hot"})

    def start(self, *, cache_limit_bytes: int | None = None) -> Access:
        return Access("directory", root=str(self.place.plain))


class MountedPath(TargetBase):
    """A directory that is mounted already. The benchmark can neither empty its cache nor read its store's counters, so
    it is measured warm and hot, after everything was read once."""

    name: ClassVar[str] = "path"
    title: ClassVar[str] = "--path"
    kind: ClassVar[TargetKind] = "path"
    phases: ClassVar[frozenset[Phase]] = frozenset({"warm", "hot"})

    def start(self, *, cache_limit_bytes: int | None = None) -> Access:
        return Access("directory", root=str(self.place.mounted))
