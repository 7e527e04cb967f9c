"""Plain files: those that the dataset was made as, and any directory that the user names."""

from __future__ import annotations

from typing import ClassVar

from hayloft_bench.results.model import Access, Phase
from hayloft_bench.targets.base import Kind, TargetBase


class Plain(TargetBase):
    """The files themselves, on the same disk as all caches. Cold and warm are the same here: from the disk."""

    name: ClassVar[str] = "plain"
    title: ClassVar[str] = "plain local files"
    kind: ClassVar[Kind] = "limit"
    phases: ClassVar[frozenset[Phase]] = frozenset({"cold", "warm", "hot"})

    def start(self, *, cache_limit_bytes: int | None = None) -> Access:
        return Access("directory", root=str(self.place.plain))


class MountedPath(TargetBase):
    """What is mounted already. Its cache cannot be emptied from here and its store's counter is not ours, so it is
    measured warm and hot, after everything was read once."""

    name: ClassVar[str] = "path"
    title: ClassVar[str] = "--path"
    kind: ClassVar[Kind] = "path"
    phases: ClassVar[frozenset[Phase]] = frozenset({"warm", "hot"})

    def start(self, *, cache_limit_bytes: int | None = None) -> Access:
        return Access("directory", root=str(self.place.mounted))
