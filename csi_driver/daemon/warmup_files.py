"""The files of a warmup: those of a mount that match globs, or what a recorded trace names."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from csi_driver.catalog.tree import FIRST_FILE_NODE, Tree
from csi_driver.daemon.mount_records import MountRecord
from csi_driver.filesystem.dataset_filesystem import DatasetFilesystem
from csi_driver.filesystem.inodes import ROOT_NODE
from csi_driver.model.access_trace import AccessTrace, TracedRange
from csi_driver.model.chunk import ByteRange, chunk_count, chunks_of
from csi_driver.model.errors import Interrupted
from csi_driver.reading.services import ObjectSource
from csi_driver.reading.warmup_target import chunks_bytes
from csi_driver.rpc import callers
from csi_driver.volumes.dataset_lister import SelectionRequest
from csi_driver.volumes.parameters import VolumeParameters

Select = Callable[[SelectionRequest], "array[int]"]
"""``SnapshotService.select``."""


class WarmableMount(Protocol):
    """The properties of a mount that a warmup uses; ``served_mount.ServedMount`` has them."""

    @property
    def record(self) -> MountRecord: ...
    @property
    def parameters(self) -> VolumeParameters: ...
    @property
    def filesystem(self) -> DatasetFilesystem: ...
    @property
    def tree(self) -> Tree: ...

    def load_trace(self, path: str) -> AccessTrace:
        """As ``trace_source.load_trace``."""


@dataclass(frozen=True, slots=True)
class _Stoppable:
    """The caller of the work for a warmup: gone once the warmup is stopped."""

    stopping: Callable[[], bool]
    timed_out: bool = False

    @property
    def gone(self) -> bool:
        return self.stopping()


class SelectedFiles:
    """The files of a mount that match globs: a ``reading.warmup.WarmupFiles``. Numbers are rows of the manifest."""

    def __init__(self, mount: WarmableMount, manifest_path: Path, include: tuple[str, ...], select: Select) -> None:
        self._tree = mount.tree
        self._filesystem = mount.filesystem
        tenant = mount.record.tenant
        self._request = SelectionRequest(manifest_path, include, tenant)
        self._memory_request = SelectionRequest(manifest_path, mount.parameters.warmup_memory_include, tenant)
        self._select = select

    def chosen(self, stopping: Callable[[], bool]) -> Sequence[int]:
        """With globs the result takes eight bytes of memory for each file; without, none."""
        return self._matching(self._request, stopping)

    def for_memory(self, stopping: Callable[[], bool]) -> Sequence[int]:
        """Those of the chosen files that are wanted in memory."""
        chosen = self.chosen(stopping)
        if not self._memory_request.globs:
            return chosen
        wanted = self._matching(self._memory_request, stopping)
        if not self._request.globs:
            return wanted
        both = set(chosen)
        return array("Q", (number for number in wanted if number in both))

    def _matching(self, request: SelectionRequest, stopping: Callable[[], bool]) -> Sequence[int]:
        if not request.globs:
            return range(self._tree.file_count)
        with callers.working_for(_Stoppable(stopping)), suppress(Interrupted):
            return self._select(request)
        return array("Q")

    def size_bytes(self, number: int) -> int:
        return self._tree.size_bytes(number + FIRST_FILE_NODE)

    def source(self, number: int) -> ObjectSource:
        return self._filesystem.source(number + FIRST_FILE_NODE)

    def wanted(self, number: int) -> tuple[range, ...]:
        chunks = range(chunk_count(self.size_bytes(number)))
        return (chunks,) if chunks else ()

    def remarks(self) -> list[str]:
        """What is to be said at the end."""
        return []


class _Traced(NamedTuple):
    """A file of a trace, and what of it was read."""

    node: int
    size_bytes: int
    chunks: tuple[range, ...]


class TracedFiles:
    """What a recorded trace names: a ``reading.warmup.WarmupFiles``. Numbers are places in the trace, in the order in
    which its files were read first."""

    def __init__(self, mount: WarmableMount, trace: str, most_complete_bytes: int) -> None:
        """An object of up to ``most_complete_bytes`` is fetched completely, as a reader's open does."""
        self._mount = mount
        self._trace = trace
        self._most_complete_bytes = most_complete_bytes
        self._files: list[_Traced] = []
        self._changed: list[bytes] = []
        self._count = 0

    def chosen(self, stopping: Callable[[], bool]) -> Sequence[int]:
        """Reads the trace from the store. Raises as ``trace_source.load_trace``."""
        if not self._count:
            by_path: dict[bytes, list[TracedRange]] = {}
            for each in self._mount.load_trace(self._trace).ranges:
                by_path.setdefault(each.path, []).append(each)
            self._count = len(by_path)
            for path, ranges in by_path.items():
                node = self._matching(ranges[0])
                if node is None:
                    self._changed.append(path)
                else:
                    self._files.append(_Traced(node, ranges[0].size_bytes, self._chunks(ranges)))
        return range(len(self._files))

    def for_memory(self, stopping: Callable[[], bool]) -> Sequence[int]:
        return self.chosen(stopping)

    def size_bytes(self, number: int) -> int:
        traced = self._files[number]
        return sum(chunks_bytes(chunks, traced.size_bytes) for chunks in traced.chunks)

    def source(self, number: int) -> ObjectSource:
        return self._mount.filesystem.source(self._files[number].node)

    def wanted(self, number: int) -> tuple[range, ...]:
        return self._files[number].chunks

    def remarks(self) -> list[str]:
        if not self._changed:
            return []
        return [
            f"{len(self._changed)} of {self._count} files of the trace have changed since it was recorded, or are gone "
            f"(such as {self._changed[0].decode('utf-8', 'replace')!r}): of these nothing was fetched; record it again"
        ]

    def _chunks(self, ranges: Sequence[TracedRange]) -> tuple[range, ...]:
        size_bytes = ranges[0].size_bytes
        if size_bytes <= self._most_complete_bytes:
            return (range(chunk_count(size_bytes)),)
        return tuple(merged(chunks_of(ByteRange(each.start, each.stop)) for each in ranges))

    def _matching(self, traced: TracedRange) -> int | None:
        """The node of the file, in the version that was recorded; None if it has another one now."""
        tree, node = self._mount.tree, ROOT_NODE
        for name in traced.path.split(b"/"):
            found = tree.lookup(node, name) if tree.is_directory(node) else None
            if found is None:
                return None
            node = found
        if tree.is_directory(node):
            return None
        file = tree.file(node)
        same_version = file.etag == traced.etag if traced.etag is not None else file.mtime_ns == traced.mtime_ns
        return node if same_version and file.size_bytes == traced.size_bytes else None


def merged(chunks: Iterator[range]) -> Iterator[range]:
    """The same chunks, each once, in ascending order and in as few ranges as possible."""
    start, stop = 0, 0
    for each in sorted(chunks, key=lambda one: one.start):
        if each.start > stop:
            if stop > start:
                yield range(start, stop)
            start = each.start
        elif stop == start:
            start = each.start
        stop = max(stop, each.stop)
    if stop > start:
        yield range(start, stop)
