"""A local directory as a ``Filesystem``, which the FUSE tests serve instead of a dataset in an object store.

Nodes are numbered in the sorted order of their paths, so that a second instance over the same directory gives the same
numbers, as a restarted daemon does. Names that a test puts into ``incomplete`` have no backing file; reads of nodes in
``pending_nodes`` stay pending until ``answer_pending`` or ``cancel``.
"""

from __future__ import annotations

import itertools
import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from csi_driver.filesystem.inodes import (
    ROOT_NODE,
    Data,
    DirectoryEntry,
    NodeAttributes,
    Opened,
    OpenedFile,
    SpaceReport,
)
from csi_driver.model.errors import HayloftError, Interrupted, ObjectNotFound


@dataclass(slots=True)
class _Node:
    path: Path
    parent: int
    attributes: NodeAttributes
    children: dict[bytes, int] = field(default_factory=dict)


@dataclass(slots=True)
class _PendingRead:
    descriptor: int
    """Of its own: a reader that is killed is answered, and its handle released, before the read is cancelled."""
    offset: int
    size_bytes: int
    data: Data


class LocalFilesystem:
    """Serves a directory that does not change. ``complete`` False: no node has a backing file."""

    def __init__(self, root: Path, *, complete: bool = True) -> None:
        self.complete = complete
        self.incomplete: set[int] = set()
        self.pending_nodes: set[int] = set()
        self.open_errors: dict[int, HayloftError] = {}
        self.read_errors: dict[int, HayloftError] = {}
        self.pending_opens: set[int] = set()
        self.waiting_opens: list[tuple[int, Opened]] = []
        self.xattrs: dict[bytes, bytes] = {b"user.hayloft.etag": b"abc", b"user.hayloft.cached": b"0"}
        self.opens_are_needless = False
        self.openers: list[int] = []
        """Processes that ``opens_are_needless_for`` was asked for."""
        self.has_memory = True
        self.reads = 0
        self.node_reads = 0
        self.released = 0
        self.cancelled = 0
        self._lock = threading.Lock()
        self._handles = itertools.count(1)
        self._open: dict[int, tuple[int, int]] = {}
        self._pending: dict[int, _PendingRead] = {}
        self._tokens = itertools.count(1)
        self._nodes: dict[int, _Node] = {}
        self._buffers = threading.local()
        self._scan(root)

    def node_of(self, path: str) -> int:
        """The node of a path below the root."""
        node = ROOT_NODE
        for part in Path(path).parts:
            node = self._nodes[node].children[os.fsencode(part)]
        return node

    # -- Filesystem ---------------------------------------------------------------------------------------------------

    def lookup(self, parent: int, name: bytes) -> NodeAttributes | None:
        directory = self._nodes.get(parent)
        child = directory.children.get(name) if directory is not None else None
        return None if child is None else self._nodes[child].attributes

    def attributes(self, node: int) -> NodeAttributes | None:
        found = self._nodes.get(node)
        return None if found is None else found.attributes

    def entries(self, node: int, cookie: int) -> Iterator[DirectoryEntry]:
        children = self._nodes[node].children if node in self._nodes else {}
        for number, (name, child) in enumerate(itertools.islice(children.items(), cookie, None), cookie + 1):
            yield DirectoryEntry(name, child, stat.S_ISDIR(self._nodes[child].attributes.mode), number)

    def parent(self, node: int) -> int:
        found = self._nodes.get(node)
        return ROOT_NODE if found is None else found.parent

    def open(self, node: int, opened: Opened) -> None:
        if node in self.pending_opens:
            self.waiting_opens.append((node, opened))
            return
        error = self.open_errors.get(node)
        opened(error if error is not None else self.open_now(node))

    def open_now(self, node: int) -> OpenedFile | HayloftError:
        """The answer of ``open``."""
        if node not in self._nodes:
            return ObjectNotFound(f"node {node}")
        handle = next(self._handles)
        descriptor = os.open(self._nodes[node].path, os.O_RDONLY)
        self._open[handle] = (node, descriptor)
        complete = self.complete and node not in self.incomplete
        return OpenedFile(handle, descriptor if complete else None)

    def reopen(self, node: int, handle: int) -> OpenedFile:
        descriptor = os.open(self._nodes[node].path, os.O_RDONLY)
        with self._lock:
            self._handles = itertools.count(max(handle, next(self._handles)) + 1)
        self._open[handle] = (node, descriptor)
        return OpenedFile(handle, descriptor if self.complete else None)

    def read(self, handle: int, offset: int, size_bytes: int, data: Data) -> object:
        self.reads += 1
        node, descriptor = self._open[handle]
        if node in self.pending_nodes:
            token = next(self._tokens)
            self._pending[token] = _PendingRead(os.dup(descriptor), offset, size_bytes, data)
            return token
        error = self.read_errors.get(node)
        if error is not None:
            data(error)
            return None
        self._answer(descriptor, offset, size_bytes, data)
        return None

    def read_node(self, node: int, offset: int, size_bytes: int, data: Data) -> object:
        """Through a handle that lasts as long as the read; a pending one keeps it."""
        self.node_reads += 1
        opened = self.open_now(node)
        if isinstance(opened, HayloftError):
            data(opened)
            return None
        token = self.read(opened.handle, offset, size_bytes, data)
        if token is None:
            self.release(opened.handle)
        return token

    def cancel(self, token: object) -> None:
        pending = self._pending.pop(token, None) if isinstance(token, int) else None
        if pending is not None:
            self.cancelled += 1
            os.close(pending.descriptor)
            pending.data(Interrupted("the reader was interrupted"))

    def release(self, handle: int) -> None:
        _, descriptor = self._open.pop(handle)
        self.released += 1
        os.close(descriptor)

    def opens_are_needless_for(self, process_id: int) -> bool:
        self.openers.append(process_id)
        return self.opens_are_needless and self.has_memory

    def extended_attribute(self, node: int, name: bytes) -> bytes | None:
        return self.xattrs.get(name)

    def space(self) -> SpaceReport:
        files = [node.attributes for node in self._nodes.values() if stat.S_ISREG(node.attributes.mode)]
        return SpaceReport(sum(file.size_bytes for file in files), len(files))

    # -- for tests ----------------------------------------------------------------------------------------------------

    @property
    def open_count(self) -> int:
        """Opens that were not released."""
        return len(self._open)

    @property
    def pending_count(self) -> int:
        """Reads that are not answered yet."""
        return len(self._pending)

    def answer_pending(self) -> None:
        """Answers all pending reads; later ones are answered at once."""
        self.pending_nodes.clear()
        while self._pending:
            _, pending = self._pending.popitem()
            try:
                self._answer(pending.descriptor, pending.offset, pending.size_bytes, pending.data)
            finally:
                os.close(pending.descriptor)

    def _answer(self, descriptor: int, offset: int, size_bytes: int, data: Data) -> None:
        buffer: bytearray | None = getattr(self._buffers, "buffer", None)
        if buffer is None or len(buffer) < size_bytes:
            buffer = self._buffers.buffer = bytearray(max(size_bytes, 1 << 20))
        view = memoryview(buffer)
        count = os.preadv(descriptor, [view[:size_bytes]], offset)
        data([view[:count]])

    def _scan(self, root: Path) -> None:
        numbers = itertools.count(ROOT_NODE + 1)
        self._nodes[ROOT_NODE] = _Node(root, ROOT_NODE, self._attributes(root, ROOT_NODE))
        waiting = [ROOT_NODE]
        while waiting:
            directory = waiting.pop(0)
            for path in sorted(self._nodes[directory].path.iterdir()):
                node = next(numbers)
                self._nodes[node] = _Node(path, directory, self._attributes(path, node))
                self._nodes[directory].children[os.fsencode(path.name)] = node
                if path.is_dir():
                    waiting.append(node)

    @staticmethod
    def _attributes(path: Path, node: int) -> NodeAttributes:
        status = path.stat()
        is_directory = stat.S_ISDIR(status.st_mode)
        mode = stat.S_IFDIR | 0o555 if is_directory else stat.S_IFREG | 0o444
        return NodeAttributes(node, mode, 0 if is_directory else status.st_size, status.st_mtime_ns, 1, 0, 0)
